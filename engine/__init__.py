"""One trading pair: the kernel, its journal, the single writer and order entry."""
