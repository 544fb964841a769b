"""Compiled loops to compare with: what the machine does when there is nothing to decide."""

from exchange.compiled import kernel
from exchange.tables import words


@kernel
def null_batch(
    context: int, commands: int, count: int, time_ns: int, out: int, out_capacity: int
) -> int:
    """Read every word of each command and write one whole execution; decide nothing."""
    source = words(commands, 8)
    target = words(out, 16)
    work = words(context, 1)
    first = work[0] + 1
    applied = min(count, out_capacity)
    for i in range(applied):
        target[i, 0] = first + i
        target[i, 1] = time_ns
        target[i, 2] = source[i, 0]
        target[i, 3] = source[i, 2]
        target[i, 4] = source[i, 1]
        target[i, 5] = source[i, 3]
        target[i, 6] = source[i, 4]
        target[i, 7] = source[i, 6]
        target[i, 8] = source[i, 7]
        target[i, 9] = 0
        target[i, 10] = source[i, 5]
        target[i, 11] = 0
        target[i, 12] = 0
        target[i, 13] = 0
        target[i, 14] = 0
        target[i, 15] = 0
    work[0] += applied
    work[1] = applied
    return applied
