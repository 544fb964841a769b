"""A disk that is full or read-only stops the writing, loses nothing and lets it go on later.

Each scenario runs in a process with mounts of its own, on a real memory file system that really
is full. No privileges are needed where user namespaces are allowed; root needs none.
"""

import errno
import mmap
import os
import signal
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

from engine.durability.execution_log import ExecutionLogReader, ExecutionLogWriter, LogBlocked
from engine.durability.journal import Durability, Frame, Journal, JournalBlocked
from engine.durability.snapshot import (
    SnapshotFailed,
    Stamp,
    newest_snapshot,
    sequences,
    write_snapshot,
)

ROOT = Path(__file__).resolve().parents[2]
SEGMENT_BYTES = 64 << 10
DISK_BYTES = 1 << 20


def rows_of(first_sequence: int, count: int) -> np.ndarray:
    words = np.arange(first_sequence * 8, (first_sequence + count) * 8, dtype=np.int64)
    return (words * 0x0101_0101_0101_0101).reshape(-1, 8)


def open_journal(folder: Path, applied_sequence: int = 0) -> Journal:
    return Journal.open(
        folder,
        durability=Durability.FSYNC,
        segment_bytes=SEGMENT_BYTES,
        applied_sequence=applied_sequence,
    )


def append(journal: Journal, count: int) -> Frame:
    first = journal.last_sequence + 1
    frame = Frame(first, first, first, rows_of(first, count))
    journal.append(frame.commands, first, first, first)
    journal.sync()
    return frame


def append_until_blocked(journal: Journal, count: int, frames: list[Frame]) -> JournalBlocked:
    while True:
        try:
            frames.append(append(journal, count))
        except JournalBlocked as blocked:
            return blocked


def assert_holds(journal: Journal, frames: list[Frame]) -> None:
    """Check that the journal holds these frames, each once, and nothing else."""
    found = list(journal.replay(0))
    assert [frame.first_sequence for frame in found] == [frame.first_sequence for frame in frames]
    for one, other in zip(found, frames, strict=True):
        assert np.array_equal(one.commands, other.commands)


def fill(disk: Path) -> Path:
    """Take all the space there is, to the last byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size_bytes in (4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size_bytes))
    return filler


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Scenarios: each gets an empty disk of 1 MiB ------------------------------------------------


def full_at_rotation(disk: Path) -> None:
    frames: list[Frame] = []
    with closing(open_journal(disk / "journal")) as journal:
        frames.append(append(journal, 10))
        filler = fill(disk)
        blocked = append_until_blocked(journal, 100, frames)
        assert blocked.errno == errno.ENOSPC
        assert str(blocked).endswith("cannot be written: No space left on device")
        last, before = journal.last_sequence, contents(disk / "journal")
        assert last == sum(len(frame.commands) for frame in frames)
        for _ in range(3):
            with pytest.raises(JournalBlocked):
                append(journal, 100)
            assert journal.last_sequence == last
            assert contents(disk / "journal") == before
        filler.unlink()
        frames += [append(journal, 100) for _ in range(30)]
        assert_holds(journal, frames)
    with closing(open_journal(disk / "journal", journal.last_sequence)) as journal:
        assert_holds(journal, frames)


def full_and_killed(disk: Path) -> None:
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        journal = open_journal(disk / "journal")
        append(journal, 10)
        fill(disk)
        append_until_blocked(journal, 100, [])
        os.write(sender, b"%d\n" % journal.last_sequence)
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(sender)
    with os.fdopen(receiver) as file:
        last = int(file.read())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    # The disk is still full: reading what there is needs no space.
    with closing(open_journal(disk / "journal", last)) as journal:
        assert journal.last_sequence == last
        frames = list(journal.replay(0))
        assert sum(len(frame.commands) for frame in frames) == last
        blocked = append_until_blocked(journal, 100, frames)
        assert blocked.errno == errno.ENOSPC
        (disk / "filler").unlink()
        frames.append(append(journal, 100))
        assert_holds(journal, frames)


def punch(path: Path, start: int, end: int) -> None:
    """Give a part of a file back to the disk, as a copy-on-write file system would."""
    command = ["fallocate", "--punch-hole", "--offset", str(start), "--length", str(end - start)]
    subprocess.run([*command, str(path)], check=True)


def full_in_mid_frame(disk: Path) -> None:
    probe = disk / "probe"
    probe.write_bytes(bytes(SEGMENT_BYTES))
    with closing(open_journal(disk / "journal")) as journal:
        frames = [append(journal, 10)]
        (path,) = (disk / "journal").glob("journal-*.log")
        for punched in (path, probe):
            punch(punched, 8192, SEGMENT_BYTES)
        filler = fill(disk)
        # On this disk a long write is cut short: that is what the journal meets below.
        with probe.open("r+b", buffering=0) as file:
            assert file.write(bytes(20_000)) == 8192
        with pytest.raises(JournalBlocked) as refusal:
            append(journal, 300)
        assert refusal.value.errno == errno.ENOSPC
        end = 64 + 10 * 64
        assert path.read_bytes()[end:] == bytes(SEGMENT_BYTES - end), "the partial frame is there"
        # A shorter one fits into the room there is; the long one comes later.
        frames.append(append(journal, 50))
        filler.unlink()
        frames.append(append(journal, 300))
        assert_holds(journal, frames)
    with closing(open_journal(disk / "journal", journal.last_sequence)) as journal:
        assert_holds(journal, frames)


def read_only(disk: Path) -> None:
    folder = disk / "journal"
    with closing(open_journal(folder)) as journal:
        frames = [append(journal, 10)]
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        blocked = append_until_blocked(journal, 100, frames)
        assert blocked.errno == errno.EROFS
        assert str(blocked).endswith("cannot be written: Read-only file system")
        with pytest.raises(JournalBlocked):
            append(journal, 100)
        subprocess.run(["umount", str(folder)], check=True)
        frames += [append(journal, 100) for _ in range(12)]
        assert_holds(journal, frames)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(JournalBlocked, match="Read-only file system"):
        open_journal(folder)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    with closing(open_journal(folder)) as journal:
        assert_holds(journal, frames)


def executions_of(number: int, count: int) -> np.ndarray:
    return np.arange(number * 16 + 1, (number + count) * 16 + 1, dtype=np.int64).reshape(-1, 16)


def full_for_executions(disk: Path) -> None:
    folder = disk / "executions"
    with closing(ExecutionLogWriter.open(folder, segment_rows=512)) as log:
        log.reserve(700)
    # Without the preparer of the first one, so that nothing more is being made ahead.
    with closing(ExecutionLogWriter.open(folder, segment_rows=512)) as log:
        room = sum(1 for _ in folder.glob("executions-*.log")) * 512
        filler = fill(disk)
        # What was reserved is there, whatever happens to the disk.
        log.append(executions_of(0, room - 10))
        log.commit()
        log.sync()
        for _ in range(3):
            with pytest.raises(LogBlocked, match="No space left on device"):
                log.append(executions_of(room - 10, 11))
            assert (log.appended, log.committed) == (room - 10, room - 10)
        log.append(executions_of(room - 10, 10))
        filler.unlink()
        log.append(executions_of(room, 1000))
        log.commit()
    reader, number = ExecutionLogReader.open(folder), 0
    while len(rows := reader.read(number, 10**6)):
        assert np.array_equal(rows, executions_of(number, len(rows)))
        number += len(rows)
    assert number == room + 1000


def sparse_file_faults(disk: Path) -> None:
    """Show what the allocation ahead prevents: a store into a file whose space was not there."""
    path = disk / "sparse"
    with path.open("w+b") as file:
        file.truncate(SEGMENT_BYTES)
        mapping = mmap.mmap(file.fileno(), SEGMENT_BYTES)
    fill(disk)
    child = os.fork()
    if child == 0:
        mapping[0] = 1
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGBUS


def full_for_snapshots(disk: Path) -> None:
    state = np.arange(20_000, dtype=np.int64)
    write_snapshot(disk / "journal", Stamp(10, 0, 0, 0), {"state": state})
    filler = fill(disk)
    with pytest.raises(SnapshotFailed, match="No space left on device"):
        write_snapshot(disk / "journal", Stamp(20, 0, 0, 0), {"state": state})
    assert sequences(disk / "journal") == [10]
    assert len(list((disk / "journal").iterdir())) == 1
    filler.unlink()
    write_snapshot(disk / "journal", Stamp(20, 0, 0, 0), {"state": state})
    newest = newest_snapshot(disk / "journal")
    assert newest is not None
    assert newest.stamp.sequence == 20


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        full_at_rotation,
        full_and_killed,
        full_in_mid_frame,
        read_only,
        full_for_executions,
        sparse_file_faults,
        full_for_snapshots,
    )
}


def main(name: str, disk: Path) -> None:
    options = f"size={DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "disk", str(disk)], check=True)
    SCENARIOS[name](disk)


@pytest.mark.integration
@pytest.mark.parametrize("name", SCENARIOS)
def test_on_a_disk_of_its_own(tmp_path: Path, name: str) -> None:
    namespaces = ["--mount"] if os.geteuid() == 0 else ["--map-root-user", "--mount"]
    command = ["unshare", *namespaces, sys.executable, str(Path(__file__)), name, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    outcome = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
