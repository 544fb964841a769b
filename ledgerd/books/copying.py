"""Arrays of integers to and from PostgreSQL's binary forms, without a loop over rows.

A row of binary COPY is the number of its columns (int16) and, for each, its length (int32) and
value, all big-endian; without NULLs all rows of a table of integers are equally long, so a table
is one structured array. An int8 array parameter is the same trick with one column.

Pure: no connection here. Only for columns that are NOT NULL.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

Rows = npt.NDArray[np.int64]

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"

INT8_OID: Final = 20
INT8_ARRAY_OID: Final = 1016


class NotRows(ValueError):
    """Bytes that are no COPY of the columns expected."""


class RowForm:
    """The binary form of one table's integer columns, given by their sizes in bytes."""

    def __init__(self, table: str, columns: Sequence[tuple[str, int]]) -> None:
        self.table = table
        self.columns = tuple(name for name, _ in columns)
        fields: list[tuple[str, str]] = [("count", ">i2")]
        for name, size in columns:
            fields += [(f"{name} size", ">i4"), (name, f">i{size}")]
        self.dtype = np.dtype(fields)
        self._blank = np.zeros(1, self.dtype)
        self._blank["count"] = len(columns)
        for name, size in columns:
            self._blank[f"{name} size"] = size

    @property
    def copy_in(self) -> str:
        """Return the statement that takes rows."""
        names = ", ".join(self.columns)
        return f"COPY {self.table} ({names}) FROM STDIN (FORMAT binary)"

    def copy_out(self, condition: str) -> str:
        """Return the statement that gives the rows a condition and order choose."""
        names = ", ".join(self.columns)
        return f"COPY (SELECT {names} FROM {self.table} {condition}) TO STDOUT (FORMAT binary)"

    def pack(self, columns: Sequence[Rows]) -> bytes:
        """Return columns, in the order of the form, as a whole COPY stream."""
        assert len(columns) == len(self.columns), (self.table, len(columns))
        packed = np.repeat(self._blank, len(columns[0]))
        for name, values in zip(self.columns, columns, strict=True):
            packed[name] = values
        return b"".join((HEADER, packed.tobytes(), TRAILER))

    def unpack(self, data: bytes) -> Rows:
        """Return the rows (n, columns) of a COPY stream. Raises NotRows."""
        start = len(HEADER)
        body = len(data) - start - len(TRAILER)
        if not data.startswith(HEADER[:11]) or body < 0 or body % self.dtype.itemsize:
            raise NotRows(f"{len(data)} bytes are no binary rows of {self.table}")
        packed = np.frombuffer(data, self.dtype, body // self.dtype.itemsize, start)
        rows = np.empty((len(packed), len(self.columns)), np.int64)
        for index, name in enumerate(self.columns):
            rows[:, index] = packed[name]
        return rows


TRANSFERS: Final = RowForm(
    "transfers",
    (("id", 8), ("time_ns", 8), ("sequence", 8), ("row_check", 8), ("kind", 2), ("phase", 2)),
)
T_ID, T_TIME_NS, T_SEQUENCE, T_CHECK, T_KIND, T_PHASE = range(6)
TRANSFER_COLUMNS: Final = 6

POSTINGS: Final = RowForm(
    "postings",
    (
        ("account_id", 4),
        ("version", 8),
        ("transfer_id", 8),
        ("amount", 8),
        ("balance_after", 8),
        ("leg", 2),
    ),
)
P_ACCOUNT, P_VERSION, P_TRANSFER, P_AMOUNT, P_BALANCE, P_LEG = range(6)
POSTING_COLUMNS: Final = 6

_ELEMENT = np.dtype([("size", ">i4"), ("value", ">i8")])


class Int8ArrayDumper(Dumper):
    """Sends a one-dimensional int64 array as an int8[] parameter."""

    format = Format.BINARY
    oid = INT8_ARRAY_OID

    def dump(self, obj: Any) -> Buffer:
        """Return the array's binary form."""
        packed = np.empty(len(obj), _ELEMENT)
        packed["size"] = 8
        packed["value"] = obj
        head = np.array([1, 0, INT8_OID, len(obj), 1], ">i4")
        return head.tobytes() + packed.tobytes()
