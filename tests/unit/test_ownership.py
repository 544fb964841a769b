"""Layouts, claims, borrows, moves and left-overs, as far as one process can show them."""

import os
import socket as sockets
import stat
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest
from numba.core.errors import TypingError

from exchange import atomics
from exchange.ownership import (
    AlreadyOwned,
    Borrowed,
    Field,
    HeaderWord,
    Layout,
    LayoutMismatch,
    Owned,
    SegmentMissing,
    State,
    Status,
    UseAfterMove,
    list_stale,
    remove_stale,
)
from exchange.segment import MAGIC, start_ticks

LAYOUT = Layout(
    "demo",
    3,
    [Field("words", "int64", 10), Field("rows", "int32", (5, 3)), Field("marks", "uint64", (8,))],
)
NOW_NS = 5_000_000_000


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a folder of its own in the system's memory directory, and leave nothing there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="holdfast-test-") as name:
        yield Path(name)


@pytest.fixture
def owned(directory: Path) -> Iterator[Owned]:
    with Owned.claim("one", LAYOUT, directory=directory, now_ns=NOW_NS) as owned:
        yield owned


@pytest.mark.parametrize("name", ["", "../etc", "a/b", ".hidden", "a b", "x" * 201])
def test_a_name_cannot_leave_its_directory(name: str, directory: Path) -> None:
    with pytest.raises(AssertionError, match="segment name"):
        Owned.claim(name, LAYOUT, directory=directory)
    assert not any(directory.iterdir())


def test_a_new_segment_is_zero_and_says_who_owns_it(owned: Owned) -> None:
    assert (owned.created, owned.previous_state, owned.epoch) == (True, None, 1)
    assert {name: (array.dtype.name, array.shape) for name, array in owned.arrays.items()} == {
        "words": ("int64", (10,)),
        "rows": ("int32", (5, 3)),
        "marks": ("uint64", (8,)),
    }
    assert not any(array.any() for array in owned.arrays.values())
    header = owned.header
    assert header[HeaderWord.MAGIC] == MAGIC
    assert header[HeaderWord.READY] == 3
    assert header[HeaderWord.LAYOUT_HASH] == LAYOUT.hash
    assert header[HeaderWord.SIZE_BYTES] == 8192
    assert header[HeaderWord.OWNER_PID] == os.getpid()
    assert header[HeaderWord.OWNER_START_TICKS] == start_ticks(os.getpid()) > 0
    assert header[HeaderWord.STATE] == State.OPEN
    assert header[HeaderWord.ACQUIRED_AT_NS] == header[HeaderWord.HEARTBEAT_NS] == NOW_NS
    assert owned.path.read_bytes()[24 * 8 : 24 * 8 + 8] == b"demo\0\0\0\0"


def test_every_array_starts_on_a_cache_line_at_its_address(owned: Owned) -> None:
    for name, array in owned.arrays.items():
        assert owned.address(name) == array.ctypes.data
        assert owned.address(name) % 64 == 0
    assert owned.address("rows") - owned.address("words") == 128


def test_the_owner_side_is_a_shared_memory_object(owned: Owned) -> None:
    memory = owned.shared_memory
    assert isinstance(memory, SharedMemory)
    assert (memory.name, memory.size) == ("one", 8192)
    assert memory.buf is not None
    memory.buf[4096] = 7
    assert owned["words"][0] == 7
    with pytest.raises(TypeError, match="moved with move_to"):
        memory.__reduce__()


def test_an_untouched_segment_costs_no_memory(directory: Path) -> None:
    layout = Layout("large", 1, [Field("rows", "int64", (1 << 24, 8))])
    assert layout.size_bytes > 1 << 30
    with Owned.claim("large", layout, directory=directory) as owned:
        owned["rows"][-1] = 1
        with Borrowed.open("large", layout, directory=directory) as borrowed:
            assert borrowed["rows"][-1, 7] == 1
            assert owned.path.stat().st_blocks * 512 <= 64 * 1024


def test_memory_can_be_taken_at_once(directory: Path) -> None:
    layout = Layout("filled", 1, [Field("rows", "int64", (1 << 14, 8))])
    with Owned.claim("filled", layout, directory=directory, populate=True) as owned:
        assert owned.path.stat().st_blocks * 512 == layout.size_bytes


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660])
def test_permissions_are_exact_whatever_the_umask(directory: Path, mode: int) -> None:
    old = os.umask(0o027)
    try:
        with Owned.claim("one", LAYOUT, directory=directory, mode=mode, group=os.getegid()) as one:
            assert stat.S_IMODE(one.path.stat().st_mode) == mode
            assert one.path.stat().st_gid == os.getegid()
    finally:
        os.umask(old)


def test_a_second_owner_is_refused_with_a_sentence(owned: Owned, directory: Path) -> None:
    with pytest.raises(AlreadyOwned, match=rf"is owned by process {os.getpid()}, epoch 1") as info:
        Owned.claim("one", LAYOUT, directory=directory)
    assert info.value.pid == os.getpid()
    assert owned.header[HeaderWord.EPOCH] == 1


def test_a_closed_segment_is_taken_over_with_its_content(owned: Owned, directory: Path) -> None:
    owned["words"][4] = 44
    owned.set_sequence(99)
    owned.close()
    owned.close()
    with Owned.claim("one", LAYOUT, directory=directory) as heir:
        assert (heir.created, heir.epoch, heir.previous_state) == (False, 2, State.CLOSED)
        assert heir["words"][4] == 44
        assert heir.header[HeaderWord.LAST_SEQUENCE] == 99


def test_readers_are_told_only_after_the_content_was_prepared(directory: Path) -> None:
    seen: list[object] = []

    def prepare(owner: Owned) -> None:
        owner["words"][0] = 1
        seen.append(int(owner.header[HeaderWord.READY]))
        with pytest.raises(SegmentMissing, match="still being created"):
            Borrowed.open("one", LAYOUT, directory=directory)

    first = Owned.claim("one", LAYOUT, directory=directory, prepare=prepare, now_ns=NOW_NS)
    borrowed = Borrowed.open("one", LAYOUT, directory=directory)
    first.close()

    def repair(owner: Owned) -> None:
        seen.append((owner.created, owner.previous_state))
        seen.append((borrowed.status(NOW_NS), int(borrowed.header[HeaderWord.EPOCH])))

    with Owned.claim("one", LAYOUT, directory=directory, prepare=repair, now_ns=NOW_NS):
        assert seen == [0, (False, State.CLOSED), (Status.STARTING, 1)]
        assert borrowed.status(NOW_NS) == Status.MOVED


def test_a_failed_preparation_gives_the_segment_up(directory: Path) -> None:
    def fail(owner: Owned) -> None:
        raise ValueError("no journal")

    for _ in range(2):
        with pytest.raises(ValueError, match="no journal"):
            Owned.claim("one", LAYOUT, directory=directory, prepare=fail)
    with Owned.claim("one", LAYOUT, directory=directory) as owned:
        assert owned.created


@pytest.mark.parametrize("size_bytes", [0, 8, 4096, 8192, 100_000])
def test_a_creation_that_died_half_way_is_begun_anew(directory: Path, size_bytes: int) -> None:
    path = directory / "one"
    path.write_bytes(MAGIC.to_bytes(8, "little").ljust(size_bytes, b"\0")[:size_bytes])
    with pytest.raises(SegmentMissing, match="still being created"):
        Borrowed.open("one", LAYOUT, directory=directory)
    with Owned.claim("one", LAYOUT, directory=directory) as owned:
        assert owned.created
        assert path.stat().st_size == 8192


MISMATCHES = [
    (Layout("other", 3, LAYOUT.fields), "holds layout 'demo', not 'other'"),
    (Layout("demo", 4, LAYOUT.fields), "holds version 3 of layout 'demo', .* knows version 4"),
    (Layout("demo", 3, LAYOUT.fields[:2]), "with other fields or capacities"),
]


@pytest.mark.parametrize(("layout", "sentence"), MISMATCHES)
def test_another_layout_is_refused_with_a_sentence(
    owned: Owned, directory: Path, layout: Layout, sentence: str
) -> None:
    owned["words"][:] = 5
    with pytest.raises(LayoutMismatch, match=sentence):
        Borrowed.open("one", layout, directory=directory)
    owned.close()
    with pytest.raises(LayoutMismatch, match=sentence):
        Owned.claim("one", layout, directory=directory)
    with Owned.claim("one", LAYOUT, directory=directory) as heir:
        assert heir["words"].tolist() == [5] * 10


@pytest.mark.parametrize("content", [b"x", b"something else" * 1000, b"\0" * 8192])
def test_a_foreign_file_is_refused_and_untouched(directory: Path, content: bytes) -> None:
    path = directory / "one"
    path.write_bytes(content)
    with pytest.raises(LayoutMismatch, match="is not a segment"):
        Owned.claim("one", LAYOUT, directory=directory)
    with pytest.raises(LayoutMismatch, match="is not a segment"):
        Borrowed.open("one", LAYOUT, directory=directory)
    assert path.read_bytes() == content


def test_a_file_of_another_size_than_its_header_says_is_refused(
    owned: Owned, directory: Path
) -> None:
    owned.close()
    with owned.path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(LayoutMismatch, match="has 8196 bytes, its header says 8192"):
        Borrowed.open("one", LAYOUT, directory=directory)
    with pytest.raises(LayoutMismatch, match="has 8196 bytes"):
        Owned.claim("one", LAYOUT, directory=directory)


def test_a_missing_segment_is_said_to_be_missing(directory: Path) -> None:
    with pytest.raises(SegmentMissing, match="there is no segment"):
        Borrowed.open("one", LAYOUT, directory=directory)


def test_a_link_is_not_followed(owned: Owned, directory: Path) -> None:
    (directory / "two").symlink_to(owned.path)
    with pytest.raises(OSError, match="symbolic links"):
        Borrowed.open("two", LAYOUT, directory=directory)
    with pytest.raises(OSError, match="symbolic links"):
        Owned.claim("two", LAYOUT, directory=directory)


def test_a_borrow_sees_every_write_and_makes_none(owned: Owned, directory: Path) -> None:
    borrowed = Borrowed.open("one", LAYOUT, directory=directory)
    owned["rows"][4, 2] = -9
    assert borrowed["rows"][4, 2] == -9
    assert borrowed.address("rows") == borrowed["rows"].ctypes.data != owned.address("rows")
    for array in (*borrowed.arrays.values(), borrowed.header):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1
        with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
            array.flags.writeable = True
        with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
            array.view(np.int8).flags.writeable = True
    with pytest.raises(TypingError):
        atomics.store(borrowed["words"], 0, 1)
    assert owned["words"][0] == 0


def test_the_arrays_of_a_borrow_outlive_it(owned: Owned, directory: Path) -> None:
    owned["words"][1] = 11
    borrowed = Borrowed.open("one", LAYOUT, directory=directory)
    view = borrowed["words"][:2]
    borrowed.close()
    with pytest.raises(UseAfterMove, match="borrow of segment one was closed"):
        borrowed["words"]
    owned.close(unlink=True)
    assert view.tolist() == [0, 11]


def test_a_borrow_tells_what_became_of_its_owner(owned: Owned, directory: Path) -> None:
    borrowed = Borrowed.open("one", LAYOUT, directory=directory, stale_after_ns=100)
    assert borrowed.status(NOW_NS + 100) == Status.LIVE
    assert borrowed.status(NOW_NS + 101) == Status.STALE
    owned.heartbeat(NOW_NS + 50)
    assert borrowed.status(NOW_NS + 150) == Status.LIVE
    assert owned.header[HeaderWord.HEARTBEAT_COUNT] == 2
    owned.close()
    assert borrowed.status(NOW_NS) == Status.CLOSED
    with Owned.claim("one", LAYOUT, directory=directory, now_ns=NOW_NS) as heir:
        assert borrowed.status(NOW_NS) == Status.MOVED
        assert (borrowed.epoch, borrowed.renew()) == (1, 2)
        assert borrowed.status(NOW_NS) == Status.LIVE
        heir.close(unlink=True)
    assert borrowed.status(NOW_NS) == Status.REPLACED
    with Owned.claim("one", LAYOUT, directory=directory, now_ns=NOW_NS):
        assert borrowed.status(NOW_NS) == Status.REPLACED


def test_a_process_of_another_boot_or_start_is_dead(owned: Owned, directory: Path) -> None:
    borrowed = Borrowed.open("one", LAYOUT, directory=directory, stale_after_ns=0)
    for word in (HeaderWord.OWNER_START_TICKS, HeaderWord.BOOT_ID_HASH):
        value = int(owned.header[word])
        owned.header[word] = value + 1
        assert borrowed.status(NOW_NS + 1) == Status.DEAD
        owned.header[word] = value
    # Of a process in another namespace nothing is known but its heartbeat.
    owned.header[HeaderWord.OWNER_PID_NAMESPACE] += 1
    owned.header[HeaderWord.OWNER_PID] = 2**22 + 1
    assert borrowed.status(NOW_NS + 1) == Status.STALE


def test_a_move_carries_lock_content_and_ownership(owned: Owned, directory: Path) -> None:
    giver, taker = sockets.socketpair()
    with giver, taker:
        borrowed = Borrowed.open("one", LAYOUT, directory=directory)
        owned["words"][3] = 33
        owned.move_to(giver)
        assert borrowed.status(NOW_NS) == Status.MOVED
        with pytest.raises(AlreadyOwned):  # The lock is under way.
            Owned.claim("one", LAYOUT, directory=directory)
        with Owned.receive(taker, LAYOUT, now_ns=NOW_NS) as heir:
            assert (heir.epoch, heir.created, heir.previous_state) == (2, False, State.MOVING)
            assert heir["words"][3] == 33
            assert (heir.name, heir.path) == ("one", owned.path)
            heir["words"][3] = 34
            assert borrowed["words"][3] == 34
            with pytest.raises(AlreadyOwned):
                Owned.claim("one", LAYOUT, directory=directory)
            owned.close()  # Of no effect: it is somebody else's.
            assert heir.header[HeaderWord.STATE] == State.OPEN


def test_after_a_move_or_a_close_the_giver_has_nothing(directory: Path) -> None:
    giver, taker = sockets.socketpair()
    with giver, taker:
        moved = Owned.claim("one", LAYOUT, directory=directory)
        moved.move_to(giver)
        heir = Owned.receive(taker, LAYOUT)
        heir.close()
        for dead in (moved, heir):
            uses: list[Callable[[Owned], object]] = [
                lambda one: one["words"],
                lambda one: one.arrays,
                lambda one: one.header,
                lambda one: one.address("words"),
                lambda one: one.shared_memory,
                lambda one: one.heartbeat(1),
                lambda one: one.set_sequence(1),
                lambda one: one.move_to(giver),
            ]
            for use in uses:
                with pytest.raises(UseAfterMove, match="was moved or closed"):
                    use(dead)
        assert [moved.epoch, heir.epoch] == [1, 2]


def test_two_moves_on_one_socket_stay_two(directory: Path) -> None:
    giver, taker = sockets.socketpair()
    with giver, taker:
        for name in ("one", "two"):
            Owned.claim(name, LAYOUT, directory=directory).move_to(giver)
        for name in ("one", "two"):
            with Owned.receive(taker, LAYOUT) as heir:
                assert heir.name == name


def test_a_move_that_cannot_be_sent_did_not_happen(owned: Owned, directory: Path) -> None:
    giver, taker = sockets.socketpair()
    taker.close()
    view = owned["words"]
    with giver, pytest.raises(OSError, match="Broken pipe"):
        owned.move_to(giver)
    view[2] = 22
    assert owned["words"][2] == 22
    borrowed = Borrowed.open("one", LAYOUT, directory=directory)
    assert borrowed["words"][2] == 22
    assert borrowed.status(NOW_NS) == Status.LIVE
    with pytest.raises(AlreadyOwned):
        Owned.claim("one", LAYOUT, directory=directory)


def test_a_segment_lost_on_the_way_can_be_claimed(owned: Owned, directory: Path) -> None:
    giver, taker = sockets.socketpair()
    owned["words"][0] = 5
    owned.move_to(giver)
    taker.close()  # The receiver died before it took the message.
    giver.close()
    with Owned.claim("one", LAYOUT, directory=directory) as heir:
        assert (heir.previous_state, heir["words"][0]) == (State.MOVING, 5)


def test_receiving_another_layout_is_refused_and_leaves_no_owner(
    owned: Owned, directory: Path
) -> None:
    giver, taker = sockets.socketpair()
    with giver, taker:
        owned.move_to(giver)
        with pytest.raises(LayoutMismatch, match="knows version 4"):
            Owned.receive(taker, Layout("demo", 4, LAYOUT.fields))
    Owned.claim("one", LAYOUT, directory=directory).close()


def test_receiving_something_else_is_refused(tmp_path: Path) -> None:
    giver, taker = sockets.socketpair()
    with giver, taker, (tmp_path / "file").open("w") as file:
        giver.sendall(b"hello, this is no segment")
        with pytest.raises(ConnectionError, match="sent no segment"):
            Owned.receive(taker, LAYOUT)
    giver, taker = sockets.socketpair()
    with giver, taker, (tmp_path / "file").open("w") as file:
        sockets.send_fds(giver, [b"hello, no segment"], [file.fileno()])
        with pytest.raises(ConnectionError, match="does not announce a segment"):
            Owned.receive(taker, LAYOUT)
        giver.close()
        with pytest.raises(ConnectionError):
            Owned.receive(taker, LAYOUT)


def test_an_owner_that_is_forgotten_gives_up_loudly(directory: Path) -> None:
    owned = Owned.claim("one", LAYOUT, directory=directory)
    with pytest.warns(ResourceWarning, match="segment .*one was never closed"):
        del owned
    Owned.claim("one", LAYOUT, directory=directory).close()


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_the_system_takes_no_more_descriptors_than_it_gave(directory: Path) -> None:
    Owned.claim("one", LAYOUT, directory=directory).close()
    before = open_descriptors()
    for _ in range(20):
        with Owned.claim("one", LAYOUT, directory=directory):
            Borrowed.open("one", LAYOUT, directory=directory).close()
            with pytest.raises(AlreadyOwned):
                Owned.claim("one", LAYOUT, directory=directory)
        with pytest.raises(LayoutMismatch):
            Owned.claim("one", Layout("demo", 4, LAYOUT.fields), directory=directory)
    assert open_descriptors() == before


def test_only_what_is_ours_and_left_over_is_stale(owned: Owned, directory: Path) -> None:
    Owned.claim("one-closed", LAYOUT, directory=directory).close()
    (directory / "one-foreign").write_bytes(b"not ours")
    (directory / "one-folder").mkdir()
    (directory / "one-link").symlink_to(directory / "one-closed")
    os.mkfifo(directory / "one-pipe")
    for name in ("one-dead", "other-dead"):
        dead = Owned.claim(name, LAYOUT, directory=directory)
        dead.header[HeaderWord.OWNER_START_TICKS] += 1
        dead.close()
    # Under way between two processes: the lock is held, the process named may be dead already.
    moving = Owned.claim("one-moving", LAYOUT, directory=directory)
    moving.header[HeaderWord.OWNER_START_TICKS] += 1
    before = sorted(path.name for path in directory.iterdir())
    assert list_stale("one", directory) == ["one-dead"]
    assert sorted(path.name for path in directory.iterdir()) == before
    assert remove_stale("one", directory) == ["one-dead"]
    assert remove_stale("one", directory) == []
    before.remove("one-dead")
    assert sorted(path.name for path in directory.iterdir()) == before
    with pytest.raises(AssertionError, match="everybody's segments"):
        remove_stale("", directory)
    moving.close()
