"""Atomic loads, stores, fences and hints for compiled code, over shared or private memory.

Numba offers no CPU atomics, and plain loads in compiled code are removed or hoisted by the
optimiser: a plain loop that waits for a word to change never ends. These intrinsics emit LLVM's
own atomic instructions, so ordering holds on ARM as well as on x86.

Two forms of each: on a one-dimensional C-contiguous array of 64-bit integers plus an index
(stores refuse a read-only array at compile time), and on a raw integer address (`..._at`), for
kernels that are reached through one address. Neither form checks bounds; an index must be
non-negative, an address must be a multiple of eight.

`load` and `store` are the same, callable from Python. Nothing here takes a lock or waits.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from exchange.compiled import kernel

# isort: split
from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic

Words = npt.NDArray[np.int64]

cgutils: Any = _cgutils  # It carries no types.
_WORD = ir.IntType(64)
_WORD_BYTES = 8
_INTEGERS = (types.Integer, types.IntEnumMember)


def _is_words(array: Any, index: Any) -> bool:
    return (
        isinstance(array, types.Array)
        and array.ndim == 1
        and array.layout == "C"
        and array.dtype in (types.int64, types.uint64)
        and isinstance(index, _INTEGERS)
    )


def _is_writable_words(array: Any, index: Any, value: Any) -> bool:
    return _is_words(array, index) and array.mutable and isinstance(value, _INTEGERS)


def _word_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    view = context.make_array(array_type)(context, builder, value=array)
    return cgutils.get_item_pointer(
        context, builder, array_type, view, [index], wraparound=False, boundscheck=False
    )


def _address_pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _WORD.as_pointer())


def _make_load(ordering: str) -> Any:
    @intrinsic(prefer_literal=False)
    def load_word(_typing_context: Any, array: Any, index: Any) -> Any:
        if not _is_words(array, index):
            return None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = _word_pointer(context, builder, signature.args[0], *arguments)
            return builder.load_atomic(pointer, ordering=ordering, align=_WORD_BYTES)

        return array.dtype(array, types.intp), generate

    return load_word


def _make_store(ordering: str) -> Any:
    @intrinsic(prefer_literal=False)
    def store_word(_typing_context: Any, array: Any, index: Any, value: Any) -> Any:
        if not _is_writable_words(array, index, value):
            return None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = _word_pointer(context, builder, signature.args[0], *arguments[:2])
            builder.store_atomic(arguments[2], pointer, ordering=ordering, align=_WORD_BYTES)
            return context.get_dummy_value()

        return types.void(array, types.intp, array.dtype), generate

    return store_word


def _make_load_at(ordering: str) -> Any:
    @intrinsic(prefer_literal=False)
    def load_word_at(_typing_context: Any, address: Any) -> Any:
        if not isinstance(address, types.Integer):
            return None

        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            pointer = _address_pointer(builder, arguments[0])
            return builder.load_atomic(pointer, ordering=ordering, align=_WORD_BYTES)

        return types.int64(types.int64), generate

    return load_word_at


def _make_store_at(ordering: str) -> Any:
    @intrinsic(prefer_literal=False)
    def store_word_at(_typing_context: Any, address: Any, value: Any) -> Any:
        if not isinstance(address, types.Integer) or not isinstance(value, _INTEGERS):
            return None

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            pointer = _address_pointer(builder, arguments[0])
            builder.store_atomic(arguments[1], pointer, ordering=ordering, align=_WORD_BYTES)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return store_word_at


def _make_fence(ordering: str) -> Any:
    @intrinsic
    def fence(_typing_context: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
            builder.fence(ordering)
            return context.get_dummy_value()

        return types.void(), generate

    return fence


@intrinsic(prefer_literal=False)
def _fetch_add(_typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    if not _is_writable_words(array, index, value):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _word_pointer(context, builder, signature.args[0], *arguments[:2])
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return array.dtype(array, types.intp, array.dtype), generate


@intrinsic
def _pause(_typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        # Inline assembly would abort the process (numba starts no assembly parser), the
        # processor's own LLVM intrinsics do not need one.
        triple = builder.module.triple
        nothing = ir.VoidType()
        if triple.startswith(("x86_64", "i686", "i386")):
            hint = ir.FunctionType(nothing, [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, hint, name), [])
        elif triple.startswith(("aarch64", "arm64")):
            # An instruction barrier stalls for about as long as a pause does; `yield` is a no-op
            # on most cores. Fifteen means the whole system.
            hint = ir.FunctionType(nothing, [ir.IntType(32)])
            name = "llvm.aarch64.isb"
            barrier = cgutils.get_or_insert_function(builder.module, hint, name)
            builder.call(barrier, [ir.Constant(ir.IntType(32), 15)])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic(prefer_literal=False)
def _prefetch(_typing_context: Any, address: Any) -> Any:
    if not isinstance(address, types.Integer):
        return None

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        flag = ir.IntType(32)
        pointer_type = ir.IntType(8).as_pointer()
        shape = ir.FunctionType(ir.VoidType(), [pointer_type, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, shape, "llvm.prefetch.p0")
        # For reading, keep in all cache levels, data (not instructions).
        hints = [ir.Constant(flag, value) for value in (0, 3, 1)]
        builder.call(function, [builder.inttoptr(arguments[0], pointer_type), *hints])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic(prefer_literal=False)
def _pointer_at(_typing_context: Any, address: Any) -> Any:
    if not isinstance(address, types.Integer):
        return None

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


_Load = Callable[[Words, int], int]
_Store = Callable[[Words, int, int], None]
_Nothing = Callable[[], None]

load_acquire = cast(_Load, _make_load("acquire"))
load_relaxed = cast(_Load, _make_load("monotonic"))
store_release = cast(_Store, _make_store("release"))
store_relaxed = cast(_Store, _make_store("monotonic"))
fetch_add = cast(Callable[[Words, int, int], int], _fetch_add)

load_acquire_at = cast(Callable[[int], int], _make_load_at("acquire"))
load_relaxed_at = cast(Callable[[int], int], _make_load_at("monotonic"))
store_release_at = cast(Callable[[int, int], None], _make_store_at("release"))
store_relaxed_at = cast(Callable[[int, int], None], _make_store_at("monotonic"))

fence_acquire = cast(_Nothing, _make_fence("acquire"))
fence_release = cast(_Nothing, _make_fence("release"))
# The only fence that keeps an earlier store before a later load: needed where two sides each
# write their own word and then look at the other's.
fence_full = cast(_Nothing, _make_fence("seq_cst"))

pause = cast(_Nothing, _pause)
prefetch = cast(Callable[[int], None], _prefetch)
# For `numba.carray(pointer_at(address), shape, dtype)`: a view formed inside compiled code.
pointer_at = cast(Callable[[int], Any], _pointer_at)


@kernel
def load(array: Words, index: int) -> int:
    """Return `array[index]` with acquire ordering: what its writer stored before is visible."""
    return load_acquire(array, index)


@kernel
def store(array: Words, index: int, value: int) -> None:
    """Set `array[index]` with release ordering: earlier writes become visible before it."""
    store_release(array, index, value)
