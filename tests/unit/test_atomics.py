"""The intrinsics: what instructions they become, what they refuse, and that they do their work."""

import platform
import re
import threading
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError
from numba.np.numpy_support import carray

from exchange import atomics
from exchange.atomics import (
    fence_acquire,
    fence_full,
    fence_release,
    fetch_add,
    load_acquire,
    load_acquire_at,
    load_relaxed,
    load_relaxed_at,
    pause,
    pointer_at,
    prefetch,
    store_relaxed,
    store_relaxed_at,
    store_release,
    store_release_at,
)

ROUNDS = 200_000


def words(count: int = 8) -> Any:
    return np.zeros(count, np.int64)


def compiled(function: Any, *arguments: Any) -> Any:
    """Compile afresh and run once: a function that came from a cache has no text to look at."""
    dispatcher = njit(boundscheck=False, error_model="numpy")(function)
    dispatcher(*arguments)
    return dispatcher


def text_of(function: Any, *arguments: Any) -> str:
    (text,) = compiled(function, *arguments).inspect_llvm().values()
    return str(text)


def publish(array: Any, value: int) -> None:
    store_relaxed(array, 0, 1)
    fence_release()
    array[1] = value
    store_release(array, 0, 2)


def observe(array: Any) -> int:
    before = load_acquire(array, 0)
    value = array[1]
    fence_acquire()
    return value if load_relaxed(array, 0) == before else -1


def publish_at(address: int) -> int:
    store_relaxed_at(address, 5)
    store_release_at(address + 8, 6)
    return load_relaxed_at(address) + load_acquire_at(address + 8)


def announce(array: Any) -> int:
    store_relaxed(array, 0, 1)
    fence_full()
    return load_relaxed(array, 1)


def count_one(array: Any) -> int:
    return fetch_add(array, 0, 1)


def hint(address: int) -> None:
    prefetch(address)
    pause()


@pytest.mark.parametrize(
    ("function", "arguments", "patterns"),
    [
        (
            publish,
            (words(), 7),
            [
                r"store atomic i64 1, .* monotonic, align 8",
                r"fence release",
                r"store atomic i64 2, .* release, align 8",
            ],
        ),
        (
            observe,
            (words(),),
            [
                r"load atomic i64, .* acquire, align 8",
                r"fence acquire",
                r"load atomic i64, .* monotonic, align 8",
            ],
        ),
        (
            publish_at,
            (words().ctypes.data,),
            [
                r"store atomic i64 5, .* monotonic, align 8",
                r"store atomic i64 6, .* release, align 8",
                r"load atomic i64, .* monotonic, align 8",
                r"load atomic i64, .* acquire, align 8",
            ],
        ),
        (
            announce,
            (words(),),
            [r"store atomic i64 1", r"fence seq_cst", r"load atomic i64"],
        ),
        (count_one, (words(),), [r"atomicrmw add .* seq_cst"]),
        (hint, (words().ctypes.data,), [r"call void @llvm\.prefetch"]),
    ],
)
def test_each_intrinsic_becomes_its_atomic_instruction_in_order(
    function: Any, arguments: tuple[Any, ...], patterns: list[str]
) -> None:
    if function is publish_at:
        target = words()
        arguments = (target.ctypes.data,)
    text = text_of(function, *arguments)
    position = 0
    for pattern in patterns:
        found = re.compile(pattern).search(text, position)
        assert found, f"{pattern!r} is missing after position {position} in\n{text}"
        position = found.end()


def assembly_for(triple: str, function: Any, *arguments: Any) -> str:
    """Translate the optimised code of one function, without its wrappers, for a processor."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    body = re.search(
        r"^define [^\n]*\{\n.*?^\}", text_of(function, *arguments), re.DOTALL | re.MULTILINE
    )
    assert body
    module = llvm.parse_assembly(body.group().replace(" #0 {", " {"))
    module.triple = triple
    machine = llvm.Target.from_triple(triple).create_target_machine(opt=2)
    return str(machine.emit_assembly(module))


def test_arm_gets_the_barriers_that_x86_does_not_need() -> None:
    triple = "aarch64-unknown-linux-gnu"
    writer = assembly_for(triple, publish, words(), 7)
    assert re.search(r"\bdmb\s+ish\b", writer), writer
    assert re.search(r"\bstlr\b", writer), writer
    reader = assembly_for(triple, observe, words())
    assert re.search(r"\bldap?r\b", reader), reader
    assert re.search(r"\bdmb\s+ishld\b", reader), reader
    assert re.search(r"\bdmb\s+ish\b", assembly_for(triple, announce, words()))


def test_x86_gets_a_locked_instruction_only_where_ordering_needs_one() -> None:
    triple = "x86_64-unknown-linux-gnu"
    locked = r"\block\b|\bmfence\b|\bxchg"
    assert not re.search(locked, assembly_for(triple, publish, words(), 7))
    assert not re.search(locked, assembly_for(triple, observe, words()))
    assert re.search(locked, assembly_for(triple, announce, words()))
    assert re.search(locked, assembly_for(triple, count_one, words()))


def test_the_processor_runs_what_was_asked_for() -> None:
    (assembly,) = compiled(hint, words().ctypes.data).inspect_asm().values()
    expected = {
        "x86_64": r"\bprefetcht0\b.*\bpause\b",
        "aarch64": r"\bprfm\b.*\bisb\b",
    }[platform.machine()]
    assert re.search(expected, assembly, re.DOTALL), assembly


def test_python_callable_forms_read_and_write_one_word() -> None:
    array = words()
    atomics.store(array, 3, -7)
    assert atomics.load(array, 3) == -7
    assert array.tolist() == [0, 0, 0, -7, 0, 0, 0, 0]


def test_address_forms_reach_the_same_words() -> None:
    array = words()
    assert compiled(publish_at, array.ctypes.data)(array.ctypes.data) == 11
    assert array.tolist() == [5, 6, 0, 0, 0, 0, 0, 0]


def test_a_view_can_be_formed_from_an_address_inside_compiled_code() -> None:
    def total(address: int, count: int) -> int:
        view = carray(pointer_at(address), (count,), np.int64)
        return int(view.sum())

    array = np.arange(8)
    assert compiled(total, array.ctypes.data, 8)(array.ctypes.data, 8) == 28


def test_a_store_to_a_read_only_array_does_not_compile() -> None:
    array = words()
    array.flags.writeable = False
    assert atomics.load(array, 0) == 0
    for function in (publish, count_one, announce):
        arguments = (array, 1) if function is publish else (array,)
        with pytest.raises(TypingError):
            compiled(function, *arguments)
    with pytest.raises(TypingError):
        atomics.store(array, 0, 1)


@pytest.mark.parametrize(
    "array", [np.zeros(8, np.int32), np.zeros(8), np.zeros((2, 4), np.int64), np.arange(8)[::2]]
)
def test_other_arrays_than_contiguous_words_do_not_compile(array: Any) -> None:
    with pytest.raises(TypingError):
        atomics.load(array, 0)


def test_a_float_is_not_stored() -> None:
    with pytest.raises(TypingError):
        compiled(publish_float, words())


def publish_float(array: Any) -> None:
    store_release(array, 0, 1.5)  # type: ignore[arg-type]


def wait_for(array: Any) -> int:
    rounds = 0
    while load_acquire(array, 0) == 0:
        pause()
        rounds += 1
    return int(array[1])


def test_a_waiting_loop_sees_the_change_of_another_thread() -> None:
    waiting = njit(nogil=True)(wait_for)
    ready = words()
    ready[0] = 1
    waiting(ready)  # Compiled before the thread starts.
    array = words()
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(waiting(array)))
    thread.start()
    array[1] = 42
    atomics.store(array, 0, 1)
    thread.join()
    assert seen == [42]


def count_many(array: Any, rounds: int) -> None:
    for _ in range(rounds):
        fetch_add(array, 0, 1)


def test_two_threads_lose_no_count() -> None:
    counting = njit(nogil=True)(count_many)
    counting(words(), 1)
    array = words()
    threads = [threading.Thread(target=counting, args=(array, ROUNDS)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert array[0] == 2 * ROUNDS
