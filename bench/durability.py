"""The disk: what the journal adds to a bare sync, and how fast a journal becomes a state again."""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from bench.flows import Flow, common
from bench.harness import Rounds, Row, cpu_seconds, medians, rate, span
from bench.kernels import commands_per_second
from bench.venue import START_NS, Venue, funding
from engine.durability.journal import Durability, Journal, zeroed_file
from engine.recovery import Recovered, recover, reserve_pages
from engine.sequencer import Sequencer
from engine.vault_layout import vault_layout
from exchange.book_layout import book_layout
from exchange.config import RunFolder
from exchange.intake import intake_layout
from exchange.ownership import Owned
from exchange.records import Rows

FRAME: Final = 63
"""Commands of a frame that fills 4 KiB with its header."""
BATCH: Final = 1_024


@contextmanager
def disk_folder() -> Iterator[Path]:
    """Give a folder on a disk, not in memory, and remove it afterwards."""
    path = Path(
        tempfile.mkdtemp(prefix="holdfast-bench-", dir=os.environ.get("TMPDIR", "/var/tmp"))
    )
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _append(journal: Journal, rows: Rows, frames: int) -> float:
    """Append and sync so many frames; return the median seconds of one."""
    taken = []
    for _ in range(frames):
        start_ns = time.perf_counter_ns()
        journal.append(rows, journal.last_sequence + 1, START_NS, 0)
        journal.sync()
        taken.append((time.perf_counter_ns() - start_ns) / 1e9)
    return statistics.median(taken)


class _BareFile:
    """A file whose blocks are written, overwritten 4 KiB at a time."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.fd = zeroed_file(path, size_bytes)
        self.size_bytes = size_bytes
        self.position = 0

    def write(self, block: bytes, count: int) -> float:
        """Write and sync so many blocks; return the median seconds of one."""
        taken = []
        for _ in range(count):
            start_ns = time.perf_counter_ns()
            os.pwrite(self.fd, block, self.position)
            os.fdatasync(self.fd)
            taken.append((time.perf_counter_ns() - start_ns) / 1e9)
            self.position = (self.position + len(block)) % (self.size_bytes - len(block))
        return statistics.median(taken)


def _against_sync(rounds: Rounds, folder: Path) -> list[Row]:
    """Return rows of one durable frame against one durable block of as many bytes."""
    frames, rows = rounds.size(40, 10), []
    for count in (FRAME, BATCH - 1, 8 * BATCH - 1):
        journal = Journal.open(folder / f"journal-{count}")
        size_bytes = (count + 1) * 64
        bare = _BareFile(folder / f"bare-{count}", 64 << 20)
        commands = np.ones((count, 8), np.int64)
        found = medians(
            rounds,
            {
                "journal": partial(_append, journal, commands, frames),
                "bare": partial(bare.write, os.urandom(size_bytes), frames),
            },
        )
        journal.close()
        os.close(bare.fd)
        rows.append(
            Row(
                f"append and sync {count:,} commands",
                span(found["journal"]),
                f"write and fdatasync of {size_bytes // 1024:,} KiB {span(found['bare'])}",
                found["journal"] / found["bare"],
                "",
                f"{rate(count / found['journal'])} commands durable",
            )
        )
    return rows


def _without_sync(rounds: Rounds, folder: Path) -> list[Row]:
    """Return rows of writing and reading a journal without waiting for the disk."""
    flow = common("wide", rounds.size(1_000_000, 200_000))
    passes = iter(range(1_000))

    def write() -> float:
        journal = Journal.open(folder / f"os-{next(passes)}", durability=Durability.OS)

        def work() -> None:
            for start in range(0, len(flow.commands), BATCH):
                rows = flow.commands[start : start + BATCH]
                journal.append(rows, journal.last_sequence + 1, START_NS, 0)
                journal.sync()

        seconds = cpu_seconds(work)
        journal.close()
        return len(flow.commands) / seconds

    def scan() -> float:
        path = max(folder.glob("os-*"), key=lambda found: found.stat().st_mtime_ns)
        journal = Journal.open(path, durability=Durability.OS)

        def work() -> None:
            count = sum(len(frame.commands) for frame in journal.replay(0))
            assert count == len(flow.commands), f"{count} of {len(flow.commands)} commands found"

        seconds = cpu_seconds(work)
        journal.close()
        return len(flow.commands) / seconds

    found = medians(Rounds(3, rounds.quick), {"write": write, "scan": scan})
    return [
        Row(f"append {BATCH:,} commands a frame, no sync", rate(found["write"]), note="CPU time"),
        Row("read back and check every frame", rate(found["scan"]), note="CPU time"),
    ]


def run_journal(rounds: Rounds) -> list[Row]:
    """Measure the journal alone."""
    with disk_folder() as folder:
        return [*_against_sync(rounds, folder), *_without_sync(rounds, folder)]


class ArrayInbox:
    """An inbox whose commands are all there already, handed out so many at a time."""

    ring = 0

    def __init__(self, rows: Rows, batch: int) -> None:
        self.rows = rows
        self.batch = batch
        self.position = 0

    def take(self, out: Rows) -> tuple[int, int]:
        """Copy the next commands into ``out``; return (position of the first, count)."""
        count = min(self.batch, len(out), len(self.rows) - self.position)
        out[:count] = self.rows[self.position : self.position + count]
        return self.position, count

    def release(self, position: int) -> None:
        """Go on behind what was taken."""
        self.position = position


class Pipeline:
    """Recovered engine, sequencer and their memory in this process: the product without a wire."""

    def __init__(self, folder: Path, flow: Flow, durability: Durability) -> None:
        """Recover whatever ``folder`` holds."""
        self.run = RunFolder(folder, flow.instrument.pair)
        suffix = f"holdfast-bench-{os.getpid()}-{time.monotonic_ns()}"
        self.owned = [
            Owned.claim(f"{suffix}-{layout.name}", layout)
            for layout in (
                vault_layout(flow.instrument),
                book_layout(flow.instrument),
                intake_layout(),
            )
        ]
        vault, book, intake = self.owned
        reserve_pages(vault, book)
        reserve_pages(vault, book)
        start = time.thread_time_ns(), time.perf_counter_ns()
        self.recovered: Recovered = recover(
            self.run, flow.instrument, durability, vault.arrays, book.arrays
        )
        self.recovery_cpu_s = (time.thread_time_ns() - start[0]) / 1e9
        self.recovery_s = (time.perf_counter_ns() - start[1]) / 1e9
        found = self.recovered
        self.sequencer = Sequencer(
            found.engine, found.journal, found.log, intake.arrays, found.chain_hash
        )

    def carry(self, rows: Rows, batch: int) -> None:
        """Carry commands through journal, kernel and log."""
        inbox = ArrayInbox(rows, batch)
        self.sequencer.inboxes = [inbox]
        while inbox.position < len(rows):
            assert self.sequencer.step(START_NS) > 0, "the journal is blocked"

    def close(self) -> None:
        """Let go of files and memory."""
        state = self.recovered
        state.journal.close()
        state.log.close()
        del self.recovered, self.sequencer, state
        for owned in self.owned:
            owned.close(unlink=True)


def _lived(folder: Path, flow: Flow, batch: int) -> float:
    """Carry a flow through a new pipeline; return commands per second of CPU time."""
    pipeline = Pipeline(folder, flow, Durability.OS)
    pipeline.carry(funding(), batch)
    seconds = cpu_seconds(lambda: pipeline.carry(flow.commands, batch))
    pipeline.close()
    return len(flow.commands) / seconds


def _recovered(folder: Path, flow: Flow) -> tuple[float, float]:
    """Recover what lies in a folder; return commands per second of CPU time and of wall time."""
    pipeline = Pipeline(folder, flow, Durability.OS)
    count = pipeline.recovered.replayed_count
    assert count == len(flow.commands) + len(funding()), f"{count} commands replayed"
    result = count / pipeline.recovery_cpu_s, count / pipeline.recovery_s
    pipeline.close()
    return result


def run_replay(rounds: Rounds) -> list[Row]:
    """Measure living and living it again."""
    flow = common("wide", rounds.size(2_000_000, 300_000))
    with disk_folder() as folder, Venue(flow.instrument) as venue:
        _lived(folder / "first", flow, BATCH)
        numbers = iter(range(1_000))
        found = medians(
            Rounds(3 if rounds.quick else 5),
            {
                "kernel": lambda: commands_per_second(venue, flow.commands, BATCH),
                "lived": lambda: _lived_once(folder / f"{next(numbers)}", flow),
                "verified": lambda: _recovered(folder / "first", flow)[0],
                "rebuilt": lambda: _rebuilt(folder / "first", flow),
            },
        )
        wall = statistics.median(_recovered(folder / "first", flow)[1] for _ in range(3))
    kernel = f"kernel live {rate(found['kernel'])}"
    note = f"{len(flow.commands):,} commands, {BATCH:,} a frame, CPU time"
    return [
        Row(
            "recover, executions verified",
            rate(found["verified"]),
            kernel,
            found["verified"] / found["kernel"],
            "0.5",
            f"{note}; {rate(wall)} in wall time",
        ),
        Row(
            "recover, executions written anew",
            rate(found["rebuilt"]),
            kernel,
            found["rebuilt"] / found["kernel"],
            "0.5",
            note,
        ),
        Row(
            "sequencer live: journal, chain, kernel, log",
            rate(found["lived"]),
            kernel,
            found["lived"] / found["kernel"],
            "",
            f"{note}; no sync",
        ),
    ]


def _lived_once(folder: Path, flow: Flow) -> float:
    figure = _lived(folder, flow, BATCH)
    shutil.rmtree(folder)
    return figure


def _rebuilt(folder: Path, flow: Flow) -> float:
    """Recover with the execution log gone."""
    shutil.rmtree(RunFolder(folder, flow.instrument.pair).executions)
    return _recovered(folder, flow)[0]


def run_batches(rounds: Rounds) -> list[Row]:
    """Measure the sequencer's loop by the size of its batches."""
    flow = common("wide", rounds.size(200_000, 50_000))
    sizes = (1, 8, 64, 1_024, 8_192)
    with disk_folder() as folder:
        numbers = iter(range(1_000))

        def lived(batch: int) -> float:
            path, part = folder / f"{next(numbers)}", flow
            if batch < 64:
                part = Flow(flow.name, flow.origin, flow.commands[: 2_000 * batch], flow.instrument)
            figure = _lived(path, part, batch)
            shutil.rmtree(path)
            return figure

        found = medians(rounds, {str(size): partial(lived, size) for size in sizes})
    return [
        Row(
            f"{size:,} commands a batch",
            rate(found[str(size)]),
            note=f"{span(size / found[str(size)])} a batch; journal without sync; CPU time",
        )
        for size in sizes
    ]
