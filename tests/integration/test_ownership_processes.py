"""Ownership among real processes: claims, deaths, moves, torn reads, and what is left behind."""

import os
import signal
import socket as sockets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numba.core.errors import TypingError

from exchange import atomics
from exchange.doorbell import Doorbell, Ringer, Sleeper
from exchange.ownership import (
    AlreadyOwned,
    Borrowed,
    Layout,
    LayoutMismatch,
    Owned,
    State,
    Status,
    UseAfterMove,
    list_stale,
    remove_stale,
)
from exchange.ring import RingConsumer
from exchange.seqlock import (
    copy_words,
    needs_repair,
    read_copy,
    read_stable,
)
from tests.integration.ownership_children import (
    BELLS,
    COPY_HEAD,
    PUBLICATION,
    RECORD_WORDS,
    RING,
    TOUCH_VERSION,
    count_stable_copies,
    count_stable_reads,
    find_torn_read,
    is_torn,
    publish_numbers,
    repair,
)

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
STABLE_READS = 10_000_000
CHANGES = 50_000
KILLS = 20
MOVES = 300
ANSWERS = 500


class Child:
    """A process with a role in `ownership_children`, spoken to in lines."""

    def __init__(self, role: str, *arguments: object, descriptors: tuple[int, ...] = ()) -> None:
        module = "tests.integration.ownership_children"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, role, *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=descriptors,
        )

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, line: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait(self) -> int:
        return self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def clear_away(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


Start = Callable[..., Child]


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="holdfast-test-") as name:
        yield Path(name)


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    """Return a function that starts a child in this test's directory; all end with the test."""
    children: list[Child] = []

    def start_child(role: str, *arguments: object, descriptors: tuple[int, ...] = ()) -> Child:
        children.append(Child(role, directory, *arguments, descriptors=descriptors))
        return children[-1]

    yield start_child
    for child in children:
        child.clear_away()


def test_of_two_claimants_one_wins_and_the_other_is_told_who(directory: Path, start: Start) -> None:
    children = [start("claim_at_once", "one") for _ in range(2)]
    for child in children:
        assert child.hear() == "waiting"
    for child in children:
        child.say()
    answers = [child.hear() for child in children]
    winner, loser = (0, 1) if answers[0].startswith("owned") else (1, 0)
    assert answers[winner] == "owned 1"
    assert answers[loser].startswith("refused")
    # Who lost against a winner still writing its header is told that somebody is claiming.
    pid = children[winner].process.pid
    sentences = (f"is owned by process {pid}, epoch 1", "is being claimed or cleaned")
    assert any(sentence in answers[loser] for sentence in sentences)
    with pytest.raises(AlreadyOwned, match=sentences[0]) as refusal:
        Owned.claim("one", PUBLICATION, directory=directory)
    assert refusal.value.pid == pid
    children[winner].say()
    assert children[winner].wait() == 0
    with Owned.claim("one", PUBLICATION, directory=directory) as heir:
        assert (heir.created, heir.previous_state) == (False, State.CLOSED)


def test_a_killed_owner_leaves_its_segment_to_the_next(directory: Path, start: Start) -> None:
    child = start("claim", "one")
    assert child.hear() == "owned 1"
    borrowed = Borrowed.open("one", PUBLICATION, directory=directory, stale_after_ns=-1)
    assert borrowed.status(time.monotonic_ns()) == Status.STALE
    child.kill()
    assert borrowed.status(time.monotonic_ns()) == Status.DEAD
    with Owned.claim("one", PUBLICATION, directory=directory) as heir:
        assert (heir.created, heir.epoch, heir.previous_state) == (False, 2, State.OPEN)
        assert borrowed.status(time.monotonic_ns()) == Status.MOVED


@pytest.mark.parametrize(
    ("end", "code"),
    [("exit", 0), ("abort", -signal.SIGABRT), ("kill", -signal.SIGKILL), ("upgrade", 0)],
)
def test_however_a_reader_ends_nothing_changes(
    directory: Path, start: Start, end: str, code: int
) -> None:
    with Owned.claim("one", PUBLICATION, directory=directory) as owned:
        owned["touch"][:] = 7
        before = owned.path.read_bytes()
        child = start("borrow", "one", end)
        assert child.hear() == "7"
        if end == "kill":
            child.kill()
        else:
            child.say()
        if end == "upgrade":
            assert child.hear() == "-1 Permission denied"
        if end in {"exit", "upgrade"}:
            assert child.hear() == "done"
            child.say()
        assert child.wait() == code
        assert owned.path.read_bytes() == before
        with pytest.raises(AlreadyOwned):
            Owned.claim("one", PUBLICATION, directory=directory)


def test_a_write_through_a_borrow_is_impossible(directory: Path, start: Start) -> None:
    with Owned.claim("one", PUBLICATION, directory=directory) as owned:
        borrowed = Borrowed.open("one", PUBLICATION, directory=directory)
        touch = borrowed["touch"]
        with pytest.raises(ValueError, match="read-only"):
            touch[0] = 666
        with pytest.raises(ValueError, match="WRITEABLE"):
            touch.flags.writeable = True
        with pytest.raises(TypingError):
            copy_words(np.zeros(RECORD_WORDS, np.int64), touch)
        with pytest.raises(TypingError):
            publish_numbers(
                borrowed["control"],
                touch,
                borrowed["copies"],
                np.zeros(RECORD_WORDS, np.int64),
                1,
                0,
            )
        # Even an address is of no use: the system kills the reader, not the content.
        child = start("borrow", "one", "store")
        child.hear()
        child.say()
        assert child.wait() == -signal.SIGSEGV
        assert not owned["touch"].any()


def test_a_stale_layout_left_by_another_process_is_refused(directory: Path, start: Start) -> None:
    child = start("leave_behind", "one")
    assert child.hear() == "owned 1"
    newer = Layout("publication", 2, PUBLICATION.fields)
    with pytest.raises(LayoutMismatch, match=r"holds version 1 .* this program knows version 2"):
        Borrowed.open("one", newer, directory=directory)
    child.kill()
    with pytest.raises(LayoutMismatch, match="remove the segment or run the matching program"):
        Owned.claim("one", newer, directory=directory)
    assert remove_stale("one", directory) == ["one"]
    with Owned.claim("one", newer, directory=directory) as owned:
        assert owned.created


@pytest.fixture
def cores() -> Iterator[tuple[object, ...]]:
    """Give this process a core of its own, as far as there are two, and return the other one."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) > 1:
        os.sched_setaffinity(0, available[1:2])
    yield (available[0],)
    os.sched_setaffinity(0, available)


@pytest.mark.parametrize(
    ("rest", "wanted", "different"), [(0, STABLE_READS, 100), (20, STABLE_READS // 10, CHANGES)]
)
def test_no_read_is_torn_while_the_writer_runs_at_full_speed(
    directory: Path,
    start: Start,
    cores: tuple[object, ...],
    rest: int,
    wanted: int,
    different: int,
) -> None:
    # Without any rest nearly all stable reads fall into the moments in which the system stops the
    # writer; with a little, they fall between its writes, and the record changes all the time.
    writer = start("publish", "one", rest, *cores)
    assert writer.hear() == "running"
    borrowed = Borrowed.open("one", PUBLICATION, directory=directory)
    control, touch, copies = (borrowed[name] for name in ("control", "touch", "copies"))
    out = np.zeros(RECORD_WORDS, np.int64)
    limit = 100 * STABLE_READS
    reads, torn, changes = count_stable_reads(control, touch, out, wanted, different, limit)
    assert torn == 0
    assert (reads >= wanted, changes >= different) == (True, True), (reads, changes)
    reads, torn, changes, older = count_stable_copies(
        control, copies, out, wanted // 10, different, limit
    )
    assert (torn, older) == (0, 0)
    assert (reads >= wanted // 10, changes >= different) == (True, True), (reads, changes)
    # The same without the check finds torn reads, so the test above could have failed.
    assert find_torn_read(touch, out, limit) > 0


def test_no_kill_of_the_writer_makes_a_publication_unreadable(
    directory: Path, start: Start
) -> None:
    out = np.zeros(RECORD_WORDS, np.int64)
    newest = repaired = 0
    writer = start("publish", "one")
    for kill in range(1, KILLS + 1):
        assert writer.hear() == "running"
        borrowed = Borrowed.open("one", PUBLICATION, directory=directory, stale_after_ns=-1)
        writer.kill()
        control = borrowed["control"]
        assert borrowed.status(time.monotonic_ns()) == Status.DEAD
        # Without any owner the newest complete copy is readable at the first try.
        number = read_copy(control, COPY_HEAD, borrowed["copies"], out, 1)
        assert number > newest
        assert out.tolist() == list(range(number, number + RECORD_WORDS))
        # With a new owner the touch is as well; until then it is readable or known not to be.
        odd = needs_repair(control, TOUCH_VERSION)
        assert read_stable(control, TOUCH_VERSION, borrowed["touch"], out, 1) is not odd
        with Owned.claim("one", PUBLICATION, directory=directory, prepare=repair) as heir:
            assert (heir.epoch, heir.previous_state) == (2 * kill, State.OPEN)
            assert read_stable(control, TOUCH_VERSION, borrowed["touch"], out, 1)
            assert not is_torn(out)
            assert number <= out[0] <= number + 1
        newest, repaired = number, repaired + odd
        if kill < KILLS:
            writer = start("publish", "one")
    print(f"{repaired} of {KILLS} kills came in the middle of the touch")


def test_a_writer_killed_in_mid_write_is_repaired_by_its_successor(
    directory: Path, start: Start
) -> None:
    writer = start("stop_in_mid_write", "one")
    assert writer.hear() == "in the middle"
    writer.kill()
    borrowed = Borrowed.open("one", PUBLICATION, directory=directory)
    control, touch = borrowed["control"], borrowed["touch"]
    out = np.zeros(RECORD_WORDS, np.int64)
    assert not read_stable(control, TOUCH_VERSION, touch, out, 1000)
    assert read_copy(control, COPY_HEAD, borrowed["copies"], out, 1) == 100
    assert out.tolist() == list(range(100, 100 + RECORD_WORDS))
    with Owned.claim("one", PUBLICATION, directory=directory, prepare=repair) as heir:
        assert read_stable(control, TOUCH_VERSION, touch, out, 1)
        assert out.tolist() == list(range(100, 100 + RECORD_WORDS))
        record = np.zeros(RECORD_WORDS, np.int64)
        publish_numbers(heir["control"], heir["touch"], heir["copies"], record, 1, 0)
        assert read_copy(control, COPY_HEAD, borrowed["copies"], out, 1) == 101
        assert read_stable(control, TOUCH_VERSION, touch, out, 1)
        assert out[0] == 101


def test_no_rival_gets_in_while_a_segment_moves(directory: Path, start: Start) -> None:
    here, there = sockets.socketpair()
    with here, there:
        owned = Owned.claim("one", PUBLICATION, directory=directory)
        player = start("pass_back_and_forth", "one", there.fileno(), descriptors=(there.fileno(),))
        there.close()
        rival = start("claim_all_the_time", "one")
        assert (player.hear(), rival.hear()) == ("ready", "ready")
        for move in range(1, MOVES + 1):
            owned.move_to(here)
            owned = Owned.receive(here, PUBLICATION)
            assert (owned["touch"][0], owned.epoch) == (move, 2 * move + 1)
        rival.say("stop")
        tries, successes = map(int, rival.hear().split())
        assert tries > MOVES, "the rival hardly tried: this proves nothing"
        assert successes == 0
        # The player's inherited copies of the file are gone: with us the lock dies as well.
        owned.close()
        Owned.claim("one", PUBLICATION, directory=directory).close()
    assert player.wait() == 0


def test_a_segment_whose_receiver_is_killed_can_be_claimed(directory: Path, start: Start) -> None:
    here, there = sockets.socketpair()
    with here, there:
        child = start("receive_never", "one", there.fileno(), descriptors=(there.fileno(),))
        there.close()
        assert child.hear() == "ready"
        owned = Owned.claim("one", PUBLICATION, directory=directory)
        owned["touch"][3] = 33
        owned.move_to(here)
        with pytest.raises(UseAfterMove, match="was moved or closed"):
            owned["touch"]
        with pytest.raises(AlreadyOwned):
            Owned.claim("one", PUBLICATION, directory=directory)
        child.kill()
        with Owned.claim("one", PUBLICATION, directory=directory) as heir:
            assert (heir.previous_state, heir["touch"][3]) == (State.MOVING, 33)


@pytest.mark.parametrize("end", ["move", "close"])
@pytest.mark.parametrize("use", ["view", "address", "read"])
def test_a_stray_view_faults_instead_of_corrupting(
    directory: Path, start: Start, end: str, use: str
) -> None:
    child = start("use_after", "one", end, use)
    assert child.hear() == "given away"
    borrowed = Borrowed.open("one", PUBLICATION, directory=directory)
    child.say()
    assert child.hear() == ""
    assert child.wait() == -signal.SIGSEGV
    assert borrowed["touch"][0] == (6 if end == "move" else 5)


def test_a_forked_child_owns_nothing(directory: Path, start: Start) -> None:
    parent = start("fork_and_write", "one")
    assert parent.hear() == f"child ended by signal {signal.SIGSEGV.value} touch 0"
    assert parent.hear() == "forked"
    with pytest.raises(AlreadyOwned):
        Owned.claim("one", PUBLICATION, directory=directory)
    parent.say()
    assert parent.wait() == -signal.SIGKILL
    # The child that was forked is alive until its pipe ends with the parent, and holds no lock.
    Owned.claim("one", PUBLICATION, directory=directory).close()


def test_left_overs_of_killed_owners_are_cleaned_and_nothing_else(
    directory: Path, start: Start
) -> None:
    dead = start("leave_behind", "pair-book", "pair-vault", "other-book")
    living = start("leave_behind", "pair-inbox")
    assert (dead.hear(), living.hear()) == ("owned 3", "owned 1")
    (directory / "pair-notes").write_bytes(b"somebody else's")
    mine = Owned.claim("pair-mine", PUBLICATION, directory=directory)
    assert list_stale("pair-", directory) == []
    borrowed = Borrowed.open("pair-book", PUBLICATION, directory=directory, stale_after_ns=-1)
    dead.kill()
    assert list_stale("pair-", directory) == ["pair-book", "pair-vault"]
    assert remove_stale("pair-", directory) == ["pair-book", "pair-vault"]
    assert sorted(path.name for path in directory.iterdir()) == [
        "other-book",
        "pair-inbox",
        "pair-mine",
        "pair-notes",
    ]
    assert borrowed.status(time.monotonic_ns()) == Status.REPLACED
    assert borrowed["touch"][0] == 0  # A borrow survives the removal of the name.
    with pytest.raises(AlreadyOwned):
        Owned.claim("pair-inbox", PUBLICATION, directory=directory)
    mine.close(unlink=True)


def test_a_segment_outlives_the_kill_in_the_default_directory() -> None:
    name = f"holdfast-test-{os.getpid()}"
    child = Child("leave_behind", "/dev/shm", name)
    try:
        assert child.hear() == "owned 1"
        child.kill()
        with Owned.claim(name, PUBLICATION) as heir:
            assert (heir.created, heir.path) == (False, Path("/dev/shm") / name)
    finally:
        child.clear_away()
        Path("/dev/shm", name).unlink(missing_ok=True)


def test_a_ring_goes_on_where_a_killed_producer_stopped(directory: Path, start: Start) -> None:
    expected = 0
    out = np.zeros((RING.fields[1].shape[0], 4), np.int64)  # type: ignore[index]
    with Owned.claim("cursors", BELLS, directory=directory) as cursors:
        for _ in range(3):
            producer = start("produce", "numbers")
            assert producer.hear() == "ready"
            borrowed = Borrowed.open("numbers", RING, directory=directory)
            consumer = RingConsumer(borrowed["control"], borrowed["records"], cursors["control"], 0)
            target = expected + 10_000
            while expected < target or consumer.peek()[1]:
                if expected >= target:
                    producer.kill()
                count = consumer.drain(out)
                for row in out[:count]:
                    assert row.tolist() == [expected] * 4
                    expected += 1
            producer.kill()
    assert expected >= 30_000


def test_no_ring_of_the_bell_is_lost_between_processes(directory: Path, start: Start) -> None:
    child = start("answer_bell", "child")
    with (
        Owned.claim("parent", BELLS, directory=directory) as owned,
        Doorbell.listen(directory / "parent.bell") as bell,
    ):
        assert child.hear() == "ready"
        child.say()
        borrowed = Borrowed.open("child", BELLS, directory=directory)
        sleeper = Sleeper(bell, owned["control"], 8, spins=0)
        ringer = Ringer(directory / "child.bell")
        addresses = np.array([borrowed.address("control")], np.int64)
        seen = np.zeros(1, np.int64)
        for number in range(1, ANSWERS + 1):
            atomics.store(owned["control"], 0, number)
            ringer.ring_if_asleep(borrowed["control"], 8)
            while sleeper.wait(addresses, seen) < 0:
                pass  # A ring that was meant for an answer already seen.
            seen[0] = atomics.load(borrowed["control"], 0)
            assert seen[0] == number
        atomics.store(owned["control"], 0, -1)
        ringer.ring_if_asleep(borrowed["control"], 8)
        assert child.wait() == 0
        ringer.close()


def test_the_page_shows_the_example_and_what_it_prints() -> None:
    page = (ROOT / "docs" / "ownership.md").read_text()
    program = (ROOT / "examples" / "ownership.py").read_text()
    assert f"```python\n{program}```" in page
    told = subprocess.run(
        [sys.executable, "-m", "examples.ownership"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"```\n{told.stdout}```" in page
    assert told.stderr == ""
