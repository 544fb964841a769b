"""The matching kernel: compiled, pure functions over plain integer arrays.

No clock, no chance, no allocation, no Python object: same commands in, same bytes out, on every
machine. What it decides is written in ``docs/trading-rules.md``; the twin in ``tests/reference``
is the second writing. ``apply`` is the only entry point; the rest are its parts.
"""
