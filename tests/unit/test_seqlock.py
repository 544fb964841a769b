"""Version counters and rings of copies, step by step in one thread."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from numba.core.errors import TypingError

from exchange.seqlock import (
    COPY_HEAD_WORDS,
    needs_repair,
    publish_copy,
    read_copy,
    read_stable,
    read_unchecked,
    write_record,
)

RECORD_WORDS = 24
COPIES = 4


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.int64)


def record(first: int) -> Any:
    return np.arange(first, first + RECORD_WORDS, dtype=np.int64)


COPY_INSTRUCTIONS = r"(?:@llvm\.memcpy|load <\d+ x i64>|= load i64)"


@pytest.mark.parametrize(
    ("function", "patterns"),
    [
        (
            write_record,
            [
                r"store atomic i64 .* monotonic",
                r"fence release",
                COPY_INSTRUCTIONS,
                r"store atomic i64 .* release",
            ],
        ),
        (
            read_stable,
            [
                r"load atomic i64, .* acquire",
                COPY_INSTRUCTIONS,
                r"fence acquire",
                r"load atomic i64, .* monotonic",
            ],
        ),
        (
            publish_copy,
            [
                r"store atomic i64 -1, .* monotonic",
                r"fence release",
                COPY_INSTRUCTIONS,
                r"store atomic i64 .* release",
                r"store atomic i64 .* release",
            ],
        ),
        (
            read_copy,
            [
                r"load atomic i64, .* acquire",
                r"load atomic i64, .* acquire",
                COPY_INSTRUCTIONS,
                r"fence acquire",
                r"load atomic i64, .* monotonic",
            ],
        ),
    ],
)
def test_the_compiled_code_keeps_the_order_the_protocol_needs(
    function: Any, patterns: list[str]
) -> None:
    copies, row = zeros(COPIES, COPY_HEAD_WORDS + RECORD_WORDS), record(0)
    arguments: dict[Any, tuple[Any, ...]] = {
        write_record: (zeros(8), 0, row, row.copy()),
        read_stable: (zeros(8), 0, row, row.copy(), 1),
        publish_copy: (zeros(8), 0, copies, row),
        read_copy: (zeros(8), 0, copies, row, 1),
    }
    # Compiled afresh: a function that came from the cache has no text to look at.
    fresh = njit(boundscheck=False, error_model="numpy")(function.py_func)
    fresh(*arguments[function])
    (text,) = fresh.inspect_llvm().values()
    assert re.search(".*?".join(patterns), text, re.DOTALL), text


def test_a_record_is_read_as_it_was_written() -> None:
    words, target, out = zeros(8), zeros(RECORD_WORDS), zeros(RECORD_WORDS)
    write_record(words, 3, target, record(10))
    assert words.tolist() == [0, 0, 0, 2, 0, 0, 0, 0]
    assert read_stable(words, 3, target, out, 1)
    assert out.tolist() == record(10).tolist()


def test_an_odd_version_is_refused_and_repaired_by_writing_anew() -> None:
    words, target, out = zeros(8), record(10), zeros(RECORD_WORDS)
    words[0] = 7
    assert needs_repair(words, 0)
    assert not read_stable(words, 0, target, out, 100)
    write_record(words, 0, target, record(20))
    assert words[0] == 8
    assert not needs_repair(words, 0)
    assert read_stable(words, 0, target, out, 1)
    assert out.tolist() == record(20).tolist()


def test_an_unchecked_read_takes_what_is_there() -> None:
    out = zeros(RECORD_WORDS)
    read_unchecked(record(5), out)
    assert out.tolist() == record(5).tolist()


def test_no_try_means_no_answer() -> None:
    assert not read_stable(zeros(8), 0, record(0), zeros(RECORD_WORDS), 0)


def test_reading_works_on_read_only_arrays_and_writing_does_not_compile() -> None:
    words, target, out = zeros(8), record(3), zeros(RECORD_WORDS)
    copies = zeros(COPIES, COPY_HEAD_WORDS + RECORD_WORDS)
    publish_copy(words, 1, copies, record(9))
    for array in (words, target, copies):
        array.flags.writeable = False
    assert read_stable(words, 0, target, out, 1)
    assert read_copy(words, 1, copies, out, 1) == 1
    with pytest.raises(TypingError):
        write_record(words, 0, target, record(4))
    with pytest.raises(TypingError):
        publish_copy(words, 1, copies, record(4))


def test_a_ring_of_copies_without_any_copy_says_so() -> None:
    copies = zeros(COPIES, COPY_HEAD_WORDS + RECORD_WORDS)
    assert read_copy(zeros(8), 0, copies, zeros(RECORD_WORDS), 5) == 0


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20))
def test_the_newest_copy_is_the_one_read(firsts: list[int]) -> None:
    words, out = zeros(8), zeros(RECORD_WORDS)
    copies = zeros(COPIES, COPY_HEAD_WORDS + RECORD_WORDS)
    for number, first in enumerate(firsts, start=1):
        publish_copy(words, 0, copies, record(first))
        assert read_copy(words, 0, copies, out, 1) == number
        assert out.tolist() == record(first).tolist()


@given(published=st.integers(1, 10), written_words=st.integers(0, RECORD_WORDS))
def test_a_writer_that_dies_in_the_middle_of_a_copy_hides_nothing(
    published: int, written_words: int
) -> None:
    words, out = zeros(8), zeros(RECORD_WORDS)
    copies = zeros(COPIES, COPY_HEAD_WORDS + RECORD_WORDS)
    for number in range(1, published + 1):
        publish_copy(words, 0, copies, record(number))
    # What a dead writer leaves: the next row marked as being written and partly written.
    row = copies[(published + 1) % COPIES]
    row[0] = -1
    row[COPY_HEAD_WORDS : COPY_HEAD_WORDS + written_words] = -5
    assert read_copy(words, 0, copies, out, 1) == published
    assert out.tolist() == record(published).tolist()
    # And the successor just goes on.
    publish_copy(words, 0, copies, record(99))
    assert read_copy(words, 0, copies, out, 1) == published + 1
    assert out.tolist() == record(99).tolist()


def test_a_copy_overwritten_during_the_read_is_not_returned() -> None:
    words, out = zeros(8), zeros(RECORD_WORDS)
    copies = zeros(COPIES, COPY_HEAD_WORDS + RECORD_WORDS)
    publish_copy(words, 0, copies, record(1))
    copies[1, 0] = 1 + COPIES  # As if the writer had lapped the ring, its head not yet seen.
    assert read_copy(words, 0, copies, out, 10) == 0
