"""A full disk under the books: clear answers, nothing lost or done twice, and on it goes by itself.

A real PostgreSQL on a real memory file system that really is full, in a process with its own
mounts (root, or a user namespace where those are allowed).
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from exchange.v1 import ledger_pb2
from ledgerd.audit import verify
from ledgerd.database import OWNER, SERVICE, EmbeddedPostgres, connect, migrate
from ledgerd.follower import State
from ledgerd.ledger import Ledger
from tests.books import TestBooks
from tests.unit.test_ledgerd_follower import (
    Feed,
    at,
    bought,
    history,
    is_in,
    served,
    settling,
    trades,
    until,
)
from tests.unit.test_ledgerd_server import Door, credit, door_to

ROOT = Path(__file__).resolve().parents[2]
DISK_BYTES = 256 << 20
MANY = 3_000
"""Trades whose rows do not fit into the pages that the tables have already."""


def fill(disk: Path) -> Path:
    """Take all the space there is, to the last byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size_bytes in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size_bytes))
    return filler


def many_credits(first: int) -> ledger_pb2.PostTransfersRequest:
    """Ask for as many transfers as one call may, with long notes."""
    asked = [credit(first + n, 1, 1) for n in range(1_000)]
    for transfer in asked:
        transfer.note = "x" * 200
    return ledger_pb2.PostTransfersRequest(transfers=asked)


def refused_until_full(door: Door) -> ledger_pb2.PostTransfersRequest:
    """Post until the disk is full; return what was not posted."""
    for first in range(10_000, 10_000_000, 1_000):
        request = many_credits(first)
        answer, code, details = door.call("PostTransfers", request)
        if answer is None:
            assert code == grpc.StatusCode.UNAVAILABLE, (code, details)
            assert "repeat it with the same id" in details
            return request
    raise AssertionError("the disk was never full")


def scenario(disk: Path) -> None:
    postgres = EmbeddedPostgres(disk / "postgres")
    postgres.start()
    try:
        postgres.create()
        migrate(postgres.url(OWNER))
        engine = connect(postgres.url(SERVICE), 4)
        books = TestBooks("holdfast", engine, Ledger(engine, time.time_ns), None)  # type: ignore[arg-type]
        feed = Feed(history(books))
        feed.chunk = MANY
        door = door_to(books, [])

        async def scene() -> None:
            async with served(feed) as target, settling(books.ledger, target) as (follower, _):
                await until(follower, is_in(State.RUNNING))
                filler = fill(disk)
                request = await asyncio.to_thread(refused_until_full, door)
                await feed.add(*trades(MANY))
                await until(follower, is_in(State.WAITING_FOR_DATABASE))
                assert follower.status.cursor == 4
                filler.unlink()
                if not postgres.running():
                    # Without room for its log it gives up: whoever frees the disk starts it.
                    await asyncio.to_thread(postgres.start)
                await until(follower, at(4 + MANY))
                posted = await asyncio.to_thread(door.answer, "PostTransfers", request)
                assert len(posted.transfers) == 1_000
                again = await asyncio.to_thread(door.answer, "PostTransfers", request)
                assert all(one.repeated for one in again.transfers)

        async def bounded() -> None:
            async with asyncio.timeout(240):
                await scene()

        asyncio.run(bounded())
        assert bought(books) == MANY
        assert verify(books.engine).complaints == []
        engine.dispose()
    finally:
        postgres.stop()


@pytest.mark.integration
def test_a_full_disk_is_waited_for_and_nothing_is_posted_twice() -> None:
    # PostgreSQL may run as another user, who has to reach its folder.
    folder = Path(tempfile.mkdtemp(prefix="holdfast-disk-"))
    folder.chmod(0o755)
    inside = [sys.executable, "-m", __name__, str(folder)]
    mount = f"mount -t tmpfs -o size={DISK_BYTES},mode=755"
    if os.geteuid() == 0:
        command = ["unshare", "--mount", "sh", "-c", f'{mount} disk "$0" && exec "$@"']
    else:
        # Whoever mounts has to be root there, and PostgreSQL must not be: become oneself again.
        user, group = os.geteuid(), os.getegid()
        back = f"exec unshare --map-user={user} --map-group={group} "
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
        command.append(f'{mount} disk "$0" && {back} "$@"')
    command += [str(folder), *inside]
    try:
        outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


if __name__ == "__main__":
    scenario(Path(sys.argv[1]))
