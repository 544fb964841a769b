"""Market data of the pairs on this host, read from borrowed book segments and served to anybody."""
