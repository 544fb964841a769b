"""Compiled loops to compare with: what the machine does when there is nothing to decide."""

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from engine.kernel.apply import apply_batch
from exchange.atomics import Words, fence_acquire, load_acquire, pause, store_release
from exchange.compiled import kernel
from exchange.ring import TAIL, Rows, drain_rows, push_rows, take_rows
from exchange.seqlock import read_stable, read_unchecked
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


@intrinsic
def _cycles(_typing_context: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        shape: Any = ir.FunctionType(ir.IntType(64), [])
        insert: Any = cgutils.get_or_insert_function
        return builder.call(insert(builder.module, shape, "llvm.readcyclecounter"), [])

    return types.int64(), generate


cycles = cast(Callable[[], int], _cycles)
"""Return the processor's cycle counter."""


@kernel
def count_cycles() -> int:
    """Return the cycle counter, to be compared with a clock."""
    return cycles()


@kernel
def ping(
    control: Words,
    records: Rows,
    cursors: Words,
    back_control: Words,
    back_records: Rows,
    back_cursors: Words,
    cache: Rows,
    row: Rows,
    samples: Words,
) -> None:
    """Send one record at a time and wait for its echo; leave the cycles of each round trip."""
    for index in range(samples.shape[0]):
        start = cycles()
        push_rows(control, records, cursors, 0, cache[0], row, 1)
        while drain_rows(back_control, back_records, back_cursors, 0, cache[1], row, 1) == 0:
            pause()
        samples[index] = cycles() - start


@kernel
def echo(
    control: Words,
    records: Rows,
    cursors: Words,
    back_control: Words,
    back_records: Rows,
    back_cursors: Words,
    cache: Rows,
    row: Rows,
    count: int,
) -> None:
    """Send so many records back, one at a time."""
    for _ in range(count):
        while drain_rows(control, records, cursors, 0, cache[0], row, 1) == 0:
            pause()
        push_rows(back_control, back_records, back_cursors, 0, cache[1], row, 1)


@kernel
def send_each(
    control: Words, records: Rows, cursors: Words, cache: Words, rows: Rows, samples: Words
) -> None:
    """Send rows one at a time, each when the one before was released; leave the cycles of each."""
    for index in range(samples.shape[0]):
        start = cycles()
        push_rows(control, records, cursors, 0, cache, rows[index : index + 1], 1)
        tail = load_acquire(control, TAIL)
        while load_acquire(cursors, 0) < tail:
            pause()
        samples[index] = cycles() - start


@kernel
def apply_each(
    control: Words,
    records: Rows,
    cursors: Words,
    cache: Words,
    row: Rows,
    row_address: int,
    context: int,
    out: int,
    out_capacity: int,
    time_ns: int,
    count: int,
) -> None:
    """Take so many commands from a ring, apply each, and release it when it is applied."""
    position = load_acquire(cursors, 0)
    for _ in range(count):
        while take_rows(control, records, position, cache, row, 1) == 0:
            pause()
        apply_batch(context, row_address, 1, time_ns, out, out_capacity)
        position += 1
        store_release(cursors, 0, position)


@kernel
def wait_until(control: Words, index: int, value: int, spins: int) -> bool:
    """Look at a word until it has reached a value; False after so many looks in vain."""
    for _ in range(spins):
        if load_acquire(control, index) >= value:
            return True
        pause()
    return False


@kernel
def read_often(words: Words, version: int, source: Words, out: Words, count: int) -> int:
    """Read a record stably so many times; return how often that worked."""
    done = 0
    for _ in range(count):
        done += read_stable(words, version, source, out, 1_000)
    return done


@kernel
def copy_often(source: Words, out: Words, count: int) -> int:
    """Copy a record so many times."""
    for _ in range(count):
        read_unchecked(source, out)
        # Or the compiler copies once.
        fence_acquire()
    return count
