"""A full disk under the candles: memory stays bounded, what fits is written, the rest is known.

A real store on a real memory file system that really is full, in a process with its own mounts
(root, or a user namespace where those are allowed).
"""

import asyncio
import io
import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from mdgateway.feed.candles import Hole, Interval
from mdgateway.history.backfill import collect, write_file
from mdgateway.history.rollup import SECOND_NS
from mdgateway.history.source import CandleKeeper
from mdgateway.history.store import CandleStore
from mdgateway.history.unwritten import UNWRITTEN_SECONDS
from tests.unit.test_mdgateway_history import PAIR, START_NS, chunks, executions, trades

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
DISK_BYTES = 16 << 20
WRITTEN = 600
"""Trades that were written before; one a second, so ten minutes."""
MINUTES_GONE = 7


def fill(disk: Path) -> Path:
    """Take all the space there is, to the last byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size_bytes in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size_bytes))
    return filler


def scenario(disk: Path) -> None:
    said = io.StringIO()
    logging.basicConfig(stream=said)
    whole = trades(1, WRITTEN + 60 * MINUTES_GONE + UNWRITTEN_SECONDS)
    folder = disk / "candles"
    store = CandleStore(folder)
    keeper = CandleKeeper(store, lambda: START_NS)
    candles = keeper.source_of(PAIR)
    candles.add_trades(whole[:WRITTEN])
    asyncio.run(keeper.write())
    filler = fill(disk)
    for start in range(WRITTEN, len(whole), 500):
        candles.add_trades(whole[start : start + 500])
        asyncio.run(keeper.write())
        assert "No space left on device" in keeper.trouble
    first, last = WRITTEN + 1, WRITTEN + 60 * MINUTES_GONE
    assert said.getvalue().count("ERROR") == 2, said.getvalue()
    assert said.getvalue().count(f"become a hole from trade {first} on") == 1
    filler.unlink()
    asyncio.run(keeper.write())
    assert keeper.trouble == ""
    assert f"trades {first} to {last} were not written" in said.getvalue()
    edges = START_NS + (first - 2) * SECOND_NS, START_NS + last * SECOND_NS
    assert store.holes(PAIR) == [Hole(first, last, *edges)]
    assert candles.take_change() is None
    store.close()
    fill_in_and_compare(folder, whole)


def fill_in_and_compare(folder: Path, whole: np.ndarray) -> None:
    collected = asyncio.run(collect(chunks(executions(whole[: len(whole) // 2]), 1_000)))
    assert write_file(folder, PAIR, collected) is not None
    store = CandleStore(folder)
    store.take_imports()
    assert store.holes(PAIR) == []
    plain = CandleKeeper(None).source_of(PAIR)
    plain.add_trades(whole)
    again = CandleKeeper(store).source_of(PAIR)
    for interval in Interval:
        assert again.recent(interval, 0, 1_500) == plain.recent(interval, 0, 1_500), interval
    store.close()


def test_candles_on_a_full_disk(tmp_path: Path) -> None:
    alone = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = f'mount -t tmpfs -o size={DISK_BYTES} disk "$0" && exec "$@"'
    inside = [sys.executable, "-m", __name__, str(tmp_path)]
    command = ["unshare", *alone, "--mount", "sh", "-c", mount, str(tmp_path), *inside]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


if __name__ == "__main__":
    scenario(Path(sys.argv[1]))
