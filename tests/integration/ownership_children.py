"""The other processes of `test_ownership_processes`: one function a role, started as a module.

A child speaks in lines on standard output and waits for lines on standard input, so no test has
to guess how long anything takes. The compiled publication at full speed stands here as well,
because the tests check what these writers leave behind.
"""

import ctypes
import os
import select
import signal
import socket as sockets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from exchange import atomics
from exchange.compiled import kernel
from exchange.doorbell import Doorbell, Ringer, Sleeper
from exchange.ownership import AlreadyOwned, Borrowed, Field, Layout, Owned
from exchange.ring import RingProducer, ring_layout
from exchange.seqlock import (
    COPY_HEAD_WORDS,
    copy_words,
    needs_repair,
    publish_copy,
    read_copy,
    read_stable,
    read_unchecked,
    write_begin,
    write_end,
    write_record,
)

RECORD_WORDS = 24  # three cache lines
COPIES = 2  # the fewest possible, so that readers are lapped as often as possible
TOUCH_VERSION = 0
COPY_HEAD = 8
WARM_UP = 100_000
FOR_EVER = 1 << 62

PUBLICATION = Layout(
    "publication",
    1,
    [
        Field("control", "int64", 64),
        Field("touch", "int64", RECORD_WORDS),
        Field("copies", "int64", (COPIES, COPY_HEAD_WORDS + RECORD_WORDS)),
    ],
)
BELLS = Layout("bells", 1, [Field("control", "int64", 64)])
RING = ring_layout("numbers", 256, 4)


@kernel
def fill(record: Any, value: int) -> None:
    """Make a record whose words tell whether they belong together."""
    for i in range(record.shape[0]):
        record[i] = value + i


@kernel
def is_torn(record: Any) -> bool:
    """Say whether a record has words of two different fills."""
    wrong = 0
    for i in range(record.shape[0]):
        wrong += record[i] != record[0] + i
    return wrong > 0


@kernel
def publish_numbers(
    control: Any, touch: Any, copies: Any, record: Any, count: int, rest: int
) -> None:
    """Write touch and newest copy, over and over, as fast as this core can.

    With `rest` it looks away for so many pauses after every eight writes, as an engine that
    matches between two publications does: readers get in at all, right at the edge of a write.
    """
    value = atomics.load_relaxed(control, COPY_HEAD)
    for number in range(count):
        if number & 7 == 0:
            for _ in range(rest):
                atomics.pause()
        value += 1
        fill(record, value)
        write_begin(control, TOUCH_VERSION)
        copy_words(record, touch)
        write_end(control, TOUCH_VERSION)
        publish_copy(control, COPY_HEAD, copies, record)


@kernel
def count_stable_reads(
    control: Any, touch: Any, out: Any, wanted: int, different: int, limit: int
) -> tuple[int, int, int]:
    """Return (stable reads, torn among them, how often the record was another than before).

    Reads on until there are `wanted` of them and the writer was seen `different` times, because
    on a busy machine the writer may be off its core for long; `limit` bounds the attempts.
    """
    reads = torn = changes = 0
    last = 0
    for _ in range(limit):
        if reads >= wanted and changes >= different:
            break
        if read_stable(control, 0, touch, out, 100):
            reads += 1
            torn += is_torn(out)
            changes += out[0] != last
            last = out[0]
    return reads, torn, changes


@kernel
def count_stable_copies(
    control: Any, copies: Any, out: Any, wanted: int, different: int, limit: int
) -> tuple[int, int, int, int]:
    """Do the same with copies; return also how many were older than one read before."""
    reads = torn = changes = older = 0
    last = 0
    for _ in range(limit):
        if reads >= wanted and changes >= different:
            break
        number = read_copy(control, 8, copies, out, 100)
        if number > 0:
            reads += 1
            torn += is_torn(out) or out[0] != number
            changes += number != last
            older += number < last
            last = number
    return reads, torn, changes, older


@kernel
def find_torn_read(touch: Any, out: Any, limit: int) -> int:
    """Read without looking at the version; return how many reads the first torn one took."""
    for reads in range(limit):
        read_unchecked(touch, out)
        if is_torn(out):
            return reads + 1
    return 0


def repair(owned: Owned) -> None:
    """Restore a touch that a dead writer left half written from the newest complete copy."""
    control = owned["control"]
    if needs_repair(control, TOUCH_VERSION):
        record = np.zeros(RECORD_WORDS, np.int64)
        assert read_copy(control, COPY_HEAD, owned["copies"], record, 1) > 0
        write_record(control, TOUCH_VERSION, owned["touch"], record)


def say(*words: object) -> None:
    """Send a line to the test."""
    print(*words, flush=True)


def hear() -> str:
    """Wait for a line of the test; empty when it closed the pipe."""
    return sys.stdin.readline().strip()


def claim(directory: str, name: str) -> None:
    """Try to become the owner; hold until told otherwise."""
    try:
        owned = Owned.claim(name, PUBLICATION, directory=directory)
    except AlreadyOwned as refusal:
        say("refused", refusal.pid, refusal)
        return
    say("owned", owned.epoch)
    hear()
    owned.close()


def claim_at_once(directory: str, name: str) -> None:
    """Wait for the starting shot, try to claim, and hold until told otherwise."""
    say("waiting")
    hear()
    claim(directory, name)


def publish(directory: str, name: str, rest: str = "0", core: str = "") -> None:
    """Own the publication and write it at full speed, on one core if told which, until killed."""
    if core:
        os.sched_setaffinity(0, {int(core)})
    owned = Owned.claim(name, PUBLICATION, directory=directory, prepare=repair)
    record = np.zeros(RECORD_WORDS, np.int64)
    arrays = (owned["control"], owned["touch"], owned["copies"], record)
    publish_numbers(*arrays, WARM_UP, int(rest))
    say("running")
    publish_numbers(*arrays, FOR_EVER, int(rest))


def stop_in_mid_write(directory: str, name: str) -> None:
    """Publish a little, then die, as far as readers can tell, in the middle of both records."""
    owned = Owned.claim(name, PUBLICATION, directory=directory)
    control, copies = owned["control"], owned["copies"]
    record = np.zeros(RECORD_WORDS, np.int64)
    publish_numbers(control, owned["touch"], copies, record, 100, 0)
    control[TOUCH_VERSION] += 1
    owned["touch"][: RECORD_WORDS // 2] = -1
    row = copies[(int(control[COPY_HEAD]) + 1) % COPIES]
    row[0] = -1
    row[COPY_HEAD_WORDS : COPY_HEAD_WORDS + 5] = -1
    say("in the middle")
    hear()


def borrow(directory: str, name: str, end: str) -> None:
    """Borrow, read, and leave in one of several ways."""
    borrowed = Borrowed.open(name, PUBLICATION, directory=directory)
    say(int(borrowed["touch"][0]))
    hear()
    if end == "abort":
        os.abort()
    if end == "store":
        ctypes.c_int64.from_address(borrowed.address("touch")).value = 666
    if end == "upgrade":
        page = borrowed.address("control") // 4096 * 4096
        library = ctypes.CDLL(None, use_errno=True)
        answer = library.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(4096), 3)
        say(answer, os.strerror(ctypes.get_errno()))
    say("done")
    hear()


def use_after(directory: str, name: str, end: str, use: str) -> None:
    """Touch a segment after it was given away, through a view or an address kept from before."""
    giver, taker = sockets.socketpair()
    owned = Owned.claim(name, PUBLICATION, directory=directory)
    view, address = owned["touch"], owned.address("touch")
    view[0] = 5
    heir = None
    if end == "move":
        owned.move_to(giver)
        heir = Owned.receive(taker, PUBLICATION)
        heir["touch"][0] = 6
    else:
        owned.close()
    say("given away")
    hear()
    if use == "view":
        view[0] = 666
    elif use == "read":
        say(int(view[0]))
    else:
        ctypes.c_int64.from_address(address).value = 666
    say("still alive", heir)


def fork_and_write(directory: str, name: str) -> None:
    """Fork while owning: the child must neither write nor keep the lock."""
    owned = Owned.claim(name, PUBLICATION, directory=directory)
    view = owned["touch"]
    writer = os.fork()
    if writer == 0:
        view[0] = 666
        os._exit(0)
    _, status = os.waitpid(writer, 0)
    say("child ended by signal", os.WTERMSIG(status), "touch", int(view[0]))
    release, keep = os.pipe()
    forked, report = os.pipe()
    sleeper = os.fork()
    if sleeper == 0:
        os.close(keep)
        os.write(report, b"!")  # From here on the child is disowned.
        os.read(release, 1)
        os._exit(0)
    os.read(forked, 1)
    say("forked")
    hear()
    os.kill(os.getpid(), signal.SIGKILL)


def pass_back_and_forth(directory: str, name: str, descriptor: str) -> None:
    """Receive the segment, count in it, and move it back, until the other side is gone."""
    with sockets.socket(fileno=int(descriptor)) as socket:
        say("ready")
        while True:
            try:
                owned = Owned.receive(socket, PUBLICATION)
            except ConnectionError:
                return
            owned["touch"][0] += 1
            owned.move_to(socket)


def claim_all_the_time(directory: str, name: str) -> None:
    """Try to claim without a pause until told to stop; say how often, and how often it worked."""
    tries = successes = 0
    say("ready")
    while not select.select([sys.stdin], [], [], 0)[0]:
        tries += 1
        try:
            Owned.claim(name, PUBLICATION, directory=directory).close()
            successes += 1
        except AlreadyOwned:
            pass
    say(tries, successes)


def receive_never(directory: str, name: str, descriptor: str) -> None:
    """Hold one end of a socket without reading from it."""
    with sockets.socket(fileno=int(descriptor)):
        say("ready")
        hear()


def leave_behind(directory: str, *names: str) -> None:
    """Own several segments and wait to be killed."""
    owned = [Owned.claim(name, PUBLICATION, directory=directory) for name in names]
    say("owned", len(owned))
    hear()


def produce(directory: str, name: str) -> None:
    """Fill the ring with positions, for ever, going on where a predecessor stopped."""
    with Borrowed.open("cursors", BELLS, directory=directory) as borrowed:
        owned = Owned.claim(name, RING, directory=directory)
        producer = RingProducer(owned["control"], owned["records"], borrowed["control"], 0)
        say("ready")
        while True:
            position, count = producer.reserve(17)
            for place in range(position, position + count):
                producer.records[place & (producer.capacity - 1)] = place
            producer.commit(position + count)


def answer_bell(directory: str, name: str) -> None:
    """Answer every number of the other side with the same number, always falling asleep first."""
    folder = Path(directory)
    with (
        Owned.claim(name, BELLS, directory=directory) as owned,
        Doorbell.listen(folder / "child.bell") as bell,
    ):
        say("ready")
        hear()
        borrowed = Borrowed.open("parent", BELLS, directory=directory)
        sleeper = Sleeper(bell, owned["control"], 8, spins=0)
        ringer = Ringer(folder / "parent.bell")
        addresses = np.array([borrowed.address("control")], np.int64)
        seen = np.zeros(1, np.int64)
        while True:
            if sleeper.wait(addresses, seen) < 0:
                continue
            seen[0] = atomics.load(borrowed["control"], 0)
            if seen[0] < 0:
                break
            atomics.store(owned["control"], 0, int(seen[0]))
            ringer.ring_if_asleep(borrowed["control"], 8)
        ringer.close()


ROLES: dict[str, Callable[..., None]] = {
    role.__name__: role
    for role in (
        claim,
        claim_at_once,
        publish,
        stop_in_mid_write,
        borrow,
        use_after,
        fork_and_write,
        pass_back_and_forth,
        claim_all_the_time,
        receive_never,
        leave_behind,
        produce,
        answer_bell,
    )
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
