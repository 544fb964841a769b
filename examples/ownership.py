"""A weather station: one process measures, others look, and the station changes hands twice.

Run it with `python -m examples.ownership`. Nothing here knows of exchanges: it shows the memory
library of `exchange/` on its own, with real processes, a kill -9 and a move.
"""

import socket as sockets
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from exchange.doorbell import Doorbell, Ringer, Sleeper
from exchange.ownership import AlreadyOwned, Borrowed, Field, Layout, Owned, UseAfterMove
from exchange.ring import RingConsumer, RingProducer, ring_layout
from exchange.seqlock import needs_repair, read_stable, write_record

STATION = Layout(
    "station",
    1,
    [
        Field("versions", "int64", 8),  # word 0 guards `weather`
        Field("weather", "int64", 16),  # word 0 counts, word 1 is the temperature in millikelvin
    ],
)
ORDERS = ring_layout("orders", capacity=64, record_words=2)
DESK = Layout("desk", 1, [Field("control", "int64", 64)])  # word 0: cursor, word 8: asleep


def measure(owned: Owned, count: int, temperature_millikelvin: int) -> None:
    """Publish one measurement as a whole."""
    record = np.zeros(16, np.int64)
    record[:2] = count, temperature_millikelvin
    write_record(owned["versions"], 0, owned["weather"], record)
    owned.heartbeat(time.monotonic_ns())


def repair(owned: Owned) -> None:
    """Write the record anew, counting from zero, if the owner before died while writing it."""
    if needs_repair(owned["versions"], 0):
        measure(owned, 0, 0)


def station(directory: str, socket: sockets.socket | None, told: Connection) -> None:
    """Own the station: take it over from a dead owner, or receive it from a living one."""
    if socket is None:
        owned = Owned.claim("station", STATION, directory=directory, mode=0o640, prepare=repair)
    else:
        owned = Owned.receive(socket, STATION)
    count = int(owned["weather"][0]) + 1
    measure(owned, count, 293_150 + count)
    told.send((owned.epoch, owned.previous_state and owned.previous_state.name))
    told.recv()  # Hold the station until told to stop, or killed.
    owned.close()


def desk(directory: str, told: Connection) -> None:
    """Own a cursor, borrow a ring, and sleep until the bell rings for three orders."""
    with (
        Owned.claim("desk", DESK, directory=directory) as owned,
        Doorbell.listen(f"{directory}/desk.bell") as bell,
    ):
        told.send("open")
        told.recv()
        ring = Borrowed.open("orders", ORDERS, directory=directory)
        consumer = RingConsumer(ring["control"], ring["records"], owned["control"], 0)
        sleeper = Sleeper(bell, owned["control"], 8)
        tail_address = np.array([ring.address("control")], np.int64)
        out, taken = np.zeros((64, 2), np.int64), 0
        while taken < 3:
            sleeper.wait(tail_address, np.array([consumer.cursor], np.int64))
            count = consumer.drain(out)
            taken += count
        told.send(f"took {taken} orders, the last was {out[count - 1].tolist()}")


def show_ring(directory: str) -> None:
    """Send records to another process that sleeps until it is rung for."""
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=desk, args=(directory, there), daemon=True)
    process.start()
    here.recv()
    with Owned.claim("orders", ORDERS, directory=directory) as owned:
        cursors = Borrowed.open("desk", DESK, directory=directory)["control"]
        producer = RingProducer(owned["control"], owned["records"], cursors, 0)
        here.send("go")
        ringer = Ringer(f"{directory}/desk.bell")
        for number in (1, 2, 3):
            producer.push(np.array([[number, 10 * number]], np.int64))
            ringer.ring_if_asleep(cursors, 8)
        print("desk:", here.recv())
        process.join()
        ringer.close()


def main() -> None:
    """Tell the story from the reader's side."""
    spawn = get_context("spawn")
    out = np.zeros(16, np.int64)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        here, there = spawn.Pipe()
        first = spawn.Process(target=station, args=(directory, None, there), daemon=True)
        first.start()
        print("first owner: epoch, state found:", *here.recv())

        borrowed = Borrowed.open(
            "station", STATION, directory=directory, stale_after_ns=60_000_000_000
        )
        assert read_stable(borrowed["versions"], 0, borrowed["weather"], out, 1000)
        print("read:", out[:2].tolist(), borrowed.status(time.monotonic_ns()).name)
        try:
            Owned.claim("station", STATION, directory=directory)
        except AlreadyOwned as refusal:
            print("refused:", str(refusal).replace(str(first.pid), "<pid>").split("/")[-1])
        try:
            borrowed["weather"][1] = 0
        except ValueError as refusal:
            print("refused:", refusal)

        first.kill()
        first.join()
        borrowed.stale_after_ns = -1  # Ask the system at once instead of waiting for a heartbeat.
        print("after kill -9:", borrowed.status(time.monotonic_ns()).name)

        owned = Owned.claim("station", STATION, directory=directory, mode=0o640, prepare=repair)
        measure(owned, 2, 294_000)
        giving, taking = sockets.socketpair()
        second = spawn.Process(target=station, args=(directory, taking, there), daemon=True)
        second.start()
        owned.move_to(giving)
        print("moved: epoch, state found:", *here.recv())
        try:
            owned["weather"][1] = 0
        except UseAfterMove as refusal:
            print("refused:", refusal)
        print("reader:", borrowed.status(time.monotonic_ns()).name, "-> epoch", borrowed.renew())
        assert read_stable(borrowed["versions"], 0, borrowed["weather"], out, 1000)
        print("read:", out[:2].tolist())
        here.send("stop")
        second.join()
        print("at the end:", borrowed.status(time.monotonic_ns()).name)
        for end in (giving, taking):
            end.close()
        show_ring(directory)
        print("files left:", sorted(path.name for path in Path(directory).iterdir()))


if __name__ == "__main__":
    main()
