"""Layouts: what two processes have to agree on before they share a byte."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from exchange.segment import Field, Layout

LAYOUT = Layout(
    "demo",
    3,
    [Field("words", "int64", 10), Field("rows", "int32", (5, 3)), Field("marks", "uint64", (8,))],
)


def test_offsets_are_what_the_page_of_the_drawing_says() -> None:
    assert dict(LAYOUT.offsets) == {"words": 4096, "rows": 4224, "marks": 4288}
    assert LAYOUT.size_bytes == 8192
    assert LAYOUT.hash == -291_008_660_152_925_573


@pytest.mark.parametrize(
    "other",
    [
        Layout("demo", 4, LAYOUT.fields),
        Layout("other", 3, LAYOUT.fields),
        Layout("demo", 3, LAYOUT.fields[:2]),
        Layout("demo", 3, LAYOUT.fields[::-1]),
        Layout("demo", 3, [Field("words", "int64", 11), *LAYOUT.fields[1:]]),
        Layout("demo", 3, [Field("words", "uint64", 10), *LAYOUT.fields[1:]]),
        Layout("demo", 3, [Field("other", "int64", 10), *LAYOUT.fields[1:]]),
    ],
)
def test_the_hash_covers_names_types_capacities_and_order(other: Layout) -> None:
    assert other.hash != LAYOUT.hash


@pytest.mark.parametrize(
    ("dtype", "shape", "complaint"),
    [
        ("float64", 4, "no integer type"),
        ("bool", 4, "no integer type"),
        (">i8", 4, "byte order"),
        ("int64", (2, 2, 2), "not 1-D or 2-D"),
        ("int64", (4, 0), "empty axis"),
    ],
)
def test_a_field_is_a_plain_integer_array(dtype: str, shape: Any, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        Field("x", dtype, shape)


def test_a_layout_is_described_once_and_for_all() -> None:
    with pytest.raises(AssertionError, match="words appears twice"):
        Layout("demo", 1, [Field("words", "int64", 1), Field("words", "int32", 1)])
    with pytest.raises(AssertionError, match="version 0"):
        Layout("demo", 0, [])
    with pytest.raises(FrozenInstanceError):
        LAYOUT.version = 4  # type: ignore[misc]
