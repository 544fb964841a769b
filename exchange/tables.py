"""A table in memory as compiled code sees it: an address and a fixed number of columns.

Numba's own arrays carry nine words each (owner, shape, strides ...), count references and wrap
negative indices. The kernel needs none of that, and two dozen of them in one tuple make every
helper slow to compile. A table is one machine word; ``table[row, column]`` is one load or store at
``address + (row * columns + column) * width``. Nothing is checked: an index must be right.

Tables exist only inside compiled code. Values read are always int64 (uint64 for bitmaps), so that
arithmetic never mixes signs or widths.
"""

import operator
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model


class TableType(types.Type):
    """The type of a table: how many columns, of what integers."""

    def __init__(self, columns: int, element: Any) -> None:
        self.columns = columns
        self.element = element
        super().__init__(name=f"Table({columns}, {element})")

    @property
    def value(self) -> Any:
        """Return the type a value is read as."""
        return types.int64 if self.element.signed else types.uint64


@register_model(TableType)
class _TableModel(models.PrimitiveModel):
    def __init__(self, manager: Any, table: TableType) -> None:
        super().__init__(manager, table, ir.IntType(64))


def _index_of(table: Any, index: Any) -> Any:
    """Return the signature's index type, or None when the index does not fit the table."""
    if isinstance(index, types.Integer) and table.columns == 1:
        return types.int64
    if isinstance(index, types.BaseTuple) and len(index) == 2:
        return types.UniTuple(types.int64, 2)
    return None


@infer_global(operator.getitem)
class _GetItem(AbstractTemplate):
    def generic(self, arguments: Any, keywords: Any) -> Any:
        table, index = arguments
        if isinstance(table, TableType) and (wanted := _index_of(table, index)):
            return signature(table.value, table, wanted)
        return None


@infer_global(operator.setitem)
class _SetItem(AbstractTemplate):
    def generic(self, arguments: Any, keywords: Any) -> Any:
        table, index, _ = arguments
        if isinstance(table, TableType) and (wanted := _index_of(table, index)):
            return signature(types.none, table, wanted, table.value)
        return None


def _pointer(context: Any, builder: Any, table: TableType, address: Any, index: Any) -> Any:
    word = ir.IntType(64)
    if isinstance(index.type, ir.ArrayType):
        row, column = cgutils.unpack_tuple(builder, index, 2)
        cell = builder.add(builder.mul(row, word(table.columns), flags=("nsw",)), column)
    else:
        cell = index
    element = ir.IntType(table.element.bitwidth)
    return builder.gep(builder.inttoptr(address, element.as_pointer()), [cell])


def _lower_get(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
    table = sig.args[0]
    value = builder.load(_pointer(context, builder, table, arguments[0], arguments[1]))
    if table.element.bitwidth == 64:
        return value
    extend = builder.sext if table.element.signed else builder.zext
    return extend(value, ir.IntType(64))


def _lower_set(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
    table = sig.args[0]
    value = arguments[2]
    if table.element.bitwidth < 64:
        value = builder.trunc(value, ir.IntType(table.element.bitwidth))
    builder.store(value, _pointer(context, builder, table, arguments[0], arguments[1]))
    return context.get_dummy_value()


lower_builtin(operator.getitem, TableType, types.Any)(_lower_get)
lower_builtin(operator.setitem, TableType, types.Any, types.Any)(_lower_set)


def _literal(argument: Any) -> int:
    return int(argument.literal_value)


def _make_table(element: Any) -> Any:
    @intrinsic(prefer_literal=True)
    def table(typing_context: Any, address: Any, columns: Any) -> Any:
        if not isinstance(columns, types.IntegerLiteral):
            return None

        def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
            return arguments[0]

        return TableType(_literal(columns), element)(types.int64, columns), generate

    return table


words = _make_table(types.int64)
"""``words(address, columns)``: a table of int64 with a literal number of columns."""
halves = _make_table(types.int32)
"""``halves(address, columns)``: a table of int32, read as int64."""
bitmap = _make_table(types.uint64)
"""``bitmap(address, 1)``: a vector of uint64."""


@intrinsic(prefer_literal=False)
def _address_of(typing_context: Any, table: Any, row: Any) -> Any:
    if not isinstance(table, TableType):
        return None

    def generate(context: Any, builder: Any, sig: Any, arguments: Any) -> Any:
        size = sig.args[0].columns * sig.args[0].element.bitwidth // 8
        return builder.add(arguments[0], builder.mul(arguments[1], ir.IntType(64)(size)))

    return types.int64(table, types.int64), generate


address_of = cast(Callable[[Any, int], int], _address_of)
"""``address_of(table, row)``: the address of a row's first byte."""
int64: Any = np.int64
uint64: Any = np.uint64
"""Conversions inside compiled code."""
