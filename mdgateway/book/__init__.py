"""The book as a reader of shared memory sees it: stable copies, events, levels, views."""
