"""The execution log: what followers see, what recovery may find, what is kept and for how long."""

import logging
import multiprocessing
import os
import resource
import signal
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.durability.execution_log import (
    FIELDS,
    ExecutionLogDiverged,
    ExecutionLogReader,
    ExecutionLogWriter,
    ExecutionsPruned,
    LogBlocked,
    LogDamaged,
    LogLost,
    LogMissing,
    LogReplaced,
    confirm,
    consumers,
    forget,
)
from engine.durability.journal import JournalOwned

SEGMENT_ROWS = 32


def rows_of(number: int, count: int) -> np.ndarray:
    """Return the executions with these numbers; two come from each sequence, beginning with 1."""
    numbers = np.arange(number, number + count, dtype=np.int64)
    rows = numbers[:, None] * 1_000_003 + np.arange(16)
    rows[:, 0] = numbers // 2 + 1
    return rows


# Children fork from a process that has compiled code at hand, so that they start at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["engine.durability.execution_log", "hypothesis", "pytest"])


def small(
    folder: Path, keep_count: int = 1, identity: int = 0, segment_rows: int = SEGMENT_ROWS
) -> ExecutionLogWriter:
    return ExecutionLogWriter.open(
        folder, keep_count=keep_count, segment_rows=segment_rows, identity=identity
    )


def fill(folder: Path, count: int) -> None:
    with closing(small(folder)) as log:
        log.append(rows_of(log.appended, count))
        log.commit()


def read_all(reader: ExecutionLogReader, number: int = 0) -> np.ndarray:
    parts = []
    while len(part := reader.read(number, 10**9)):
        parts.append(part)
        number += len(part)
    return np.concatenate(parts) if parts else np.zeros((0, 16), np.int64)


def segments(folder: Path) -> list[int]:
    return sorted(int(path.stem[11:]) for path in folder.glob("executions-*.log"))


@given(counts=st.lists(st.integers(0, 70), max_size=5), limit=st.integers(1, 50))
@settings(max_examples=30)
def test_what_is_committed_can_be_read_in_any_portions(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    with closing(small(folder)) as log:
        reader = ExecutionLogReader.open(folder)
        for count in counts:
            before = log.committed
            log.append(rows_of(log.appended, count))
            assert log.committed == before == reader.committed()
            assert len(reader.read(before, 1)) == 0, "uncommitted rows are not to be seen"
            log.commit()
            assert log.committed == log.appended == reader.committed() == before + count
            number = before
            while len(part := reader.read(number, limit)):
                assert len(part) <= limit
                assert np.array_equal(part, rows_of(number, len(part)))
                number += len(part)
            assert number == before + count
    with closing(small(folder)) as log:
        assert log.committed == sum(counts)
        assert log.last_sequence() == (sum(counts) + 1) // 2
        assert np.array_equal(read_all(reader), rows_of(0, sum(counts)))


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    rows = ExecutionLogReader.open(tmp_path).read(0, 3)
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        rows.flags.writeable = True


def test_a_reader_notices_a_restarted_writer_and_another_log(tmp_path: Path) -> None:
    with pytest.raises(LogMissing, match="there is no execution log in"):
        ExecutionLogReader.open(tmp_path)
    fill(tmp_path, 3)
    reader = ExecutionLogReader.open(tmp_path)
    assert not reader.restarted()
    fill(tmp_path, 2)
    assert reader.restarted()
    assert not reader.restarted()
    assert reader.epoch() == 2
    assert reader.committed() == 5
    assert not reader.replaced()
    for path in tmp_path.iterdir():
        path.unlink()
    assert reader.replaced()
    fill(tmp_path, 1)
    assert reader.replaced()
    with pytest.raises(LogReplaced, match="holds another execution log now, or none"):
        reader.read(0, 5)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with closing(small(tmp_path)), pytest.raises(JournalOwned):
        small(tmp_path)


# Recovery -----------------------------------------------------------------------------------


def test_recovery_verifies_what_is_there_and_appends_what_is_not(tmp_path: Path) -> None:
    fill(tmp_path, 70)
    with closing(small(tmp_path)) as log:
        reader = ExecutionLogReader.open(tmp_path)
        log.rewind(10)
        for number in range(10, 100, 15):
            log.append_or_verify(rows_of(number, 15))
            log.commit()
            assert reader.committed() == max(70, number + 15), "followers never go back"
        log.end_recovery()
        assert log.committed == 100
        assert np.array_equal(read_all(reader), rows_of(0, 100))


def test_uncommitted_rows_of_a_dead_writer_are_overwritten(tmp_path: Path) -> None:
    with closing(small(tmp_path)) as log:
        log.append(rows_of(0, 5))
        log.commit()
        log.append(rows_of(900, 5))
    with closing(small(tmp_path)) as log:
        assert log.committed == 5
        assert log.last_sequence() == 3
        log.append_or_verify(rows_of(5, 5))
        log.end_recovery()
        assert np.array_equal(read_all(ExecutionLogReader.open(tmp_path)), rows_of(0, 10))


@pytest.mark.parametrize("word", range(16))
@pytest.mark.parametrize("number", [0, 31, 32, 69])
def test_one_different_word_is_named(tmp_path: Path, number: int, word: int) -> None:
    fill(tmp_path, 70)
    regenerated = rows_of(0, 80)
    regenerated[number, word] ^= 1 << 40
    with closing(small(tmp_path)) as log:
        log.rewind(0)
        with pytest.raises(ExecutionLogDiverged) as divergence:
            log.append_or_verify(regenerated)
    kept, given_now = rows_of(number, 1)[0, word], regenerated[number, word]
    assert str(divergence.value) == (
        f"execution {number}: the log has {FIELDS[word]} {kept}, the replay gave {given_now}"
    )
    assert divergence.value.number == number
    fill(tmp_path, 1)
    assert np.array_equal(read_all(ExecutionLogReader.open(tmp_path)), rows_of(0, 71))


def test_rows_lost_with_the_power_are_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, 70)
    # Pages that never reached the disk read as zeros: the second half of the first segment, and
    # the end of the log.
    for first, start in ((0, 16), (64, 2)):
        path = tmp_path / f"executions-{first:020}.log"
        content = path.read_bytes()
        path.write_bytes(content[: start * 128] + bytes(len(content) - start * 128))
    with closing(small(tmp_path)) as log:
        assert log.last_sequence() == 33, "the newest row that is there"
        log.rewind(0)
        with caplog.at_level(logging.WARNING):
            log.append_or_verify(rows_of(0, 70))
        assert [record.getMessage() for record in caplog.records] == [
            f"{tmp_path}: wrote 16 executions again that were lost, the first is 16",
            f"{tmp_path}: wrote 4 executions again that were lost, the first is 66",
        ]
        log.end_recovery()
    assert np.array_equal(read_all(ExecutionLogReader.open(tmp_path)), rows_of(0, 70))


def test_a_log_that_knows_more_than_the_journal_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, 70)
    with closing(small(tmp_path)) as log:
        log.rewind(60)
        log.append_or_verify(rows_of(60, 5))
        with pytest.raises(ExecutionLogDiverged, match="holds 70 executions, the replay gave 65"):
            log.end_recovery()
        with pytest.raises(ExecutionLogDiverged, match="the state was taken after 71"):
            log.rewind(71)


# Retention ----------------------------------------------------------------------------------


def test_nothing_is_pruned_that_somebody_needs(tmp_path: Path) -> None:
    with closing(small(tmp_path, keep_count=40)) as log:
        log.append(rows_of(0, 200))
        log.commit()
        log.sync()
        reader = ExecutionLogReader.open(tmp_path)
        assert reader.read(70, 1)[0, 0] == 36
        confirm(tmp_path, "ledger", 64)
        confirm(tmp_path, "risk", 150)
        assert consumers(tmp_path) == {"ledger": 64, "risk": 150}
        assert log.prune() == 2
        assert log.prune() == 0
        assert reader.first() == log.first == 64
        with pytest.raises(ExecutionsPruned, match="63 is no longer kept, the first kept is 64"):
            reader.read(63, 1)
        confirm(tmp_path, "ledger", 200)
        assert log.prune() == 2, "risk needs 150"
        forget(tmp_path, "risk")
        assert log.prune() == 1, "the newest 40 stay"
        assert segments(tmp_path)[0] == 160
        assert np.array_equal(read_all(reader, 160), rows_of(160, 40))
        fresh = ExecutionLogReader.open(tmp_path)
        assert fresh.read(160, 1)[0, 0] == 81
        with pytest.raises(ExecutionsPruned):
            fresh.read(159, 1)
    with closing(small(tmp_path)) as log:
        assert (log.first, log.committed, log.last_sequence()) == (160, 200, 100)
        # Replaying from an older snapshot passes over what nobody needs any more.
        log.rewind(100)
        log.append_or_verify(rows_of(100, 110))
        log.end_recovery()
        assert np.array_equal(read_all(reader, 160), rows_of(160, 50))


def test_the_last_row_is_always_kept_as_evidence(tmp_path: Path) -> None:
    with closing(small(tmp_path, keep_count=1)) as log:
        log.append(rows_of(0, 64))
        log.commit()
        confirm(tmp_path, "ledger", 64)
        assert log.prune() == 1
        assert log.last_sequence() == 32


def test_a_pruning_that_was_killed_is_finished_at_the_next_start(tmp_path: Path) -> None:
    fill(tmp_path, 100)
    survivor = (tmp_path / f"executions-{0:020}.log").read_bytes()
    with closing(small(tmp_path)) as log:
        assert log.prune() == 3
    (tmp_path / f"executions-{0:020}.log").write_bytes(survivor)
    with closing(small(tmp_path)) as log:
        assert log.first == 96
        assert segments(tmp_path)[0] == 96


@pytest.mark.parametrize("consumer", ["", "Ledger", "../ledger", "a b", "x" * 101, "~a"])
def test_a_consumer_has_a_proper_name(tmp_path: Path, consumer: str) -> None:
    with pytest.raises(ValueError, match="consumer is"):
        confirm(tmp_path, consumer, 1)


def test_a_cursor_that_cannot_be_read_keeps_everything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="number is -1, below 0"):
        confirm(tmp_path, "ledger", -1)
    with closing(small(tmp_path)) as log:
        log.append(rows_of(0, 100))
        log.commit()
        confirm(tmp_path, "ledger", 100)
        (tmp_path / "cursors" / "ledger").write_bytes(b"")
        with caplog.at_level(logging.WARNING):
            assert log.prune() == 0
        assert "holds no number: everything is kept" in caplog.text


# Damage -------------------------------------------------------------------------------------


def test_files_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    fill(tmp_path, 100)
    middle = tmp_path / f"executions-{32:020}.log"
    content = middle.read_bytes()
    middle.unlink()
    with pytest.raises(LogDamaged, match=f"{middle} is missing"):
        small(tmp_path)
    with pytest.raises(LogDamaged, match=f"{middle} is missing"):
        ExecutionLogReader.open(tmp_path).read(40, 1)
    middle.write_bytes(content[:-1])
    with pytest.raises(LogDamaged, match=f"{middle} has 4095 bytes, not 4096"):
        small(tmp_path)
    middle.write_bytes(content)
    foreign = tmp_path / f"executions-{33:020}.log"
    foreign.write_bytes(content)
    with pytest.raises(LogDamaged, match=f"{foreign}: the name is not that of a segment"):
        small(tmp_path)
    foreign.unlink()
    with pytest.raises(LogDamaged, match="belongs to 0x0, this pair is 0x7"):
        small(tmp_path, identity=7)
    small(tmp_path).close()


@pytest.mark.parametrize(
    ("word", "value", "sentence"),
    [
        (0, 5, "is no control page: it begins with 0x5"),
        (1, 1, "has format version 1, this program knows version 4: another release wrote this"),
        (2, 0, "in segments of 0 rows"),
        (8, -1, "claims executions 0 to -1"),
        (16, 101, "claims executions 101 to 100"),
    ],
)
def test_a_damaged_control_page_is_refused(
    tmp_path: Path, word: int, value: int, sentence: str
) -> None:
    fill(tmp_path, 100)
    path = tmp_path / "control"
    words = np.fromfile(path, np.int64)
    words[word] = value
    words.tofile(path)
    with pytest.raises(LogDamaged, match=sentence):
        small(tmp_path)
    with pytest.raises(LogDamaged, match=sentence):
        ExecutionLogReader.open(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(LogDamaged, match="has 0 bytes, not 4096"):
        small(tmp_path)
    path.unlink()
    with pytest.raises(LogDamaged, match="control is missing, but executions-"):
        small(tmp_path)


def test_a_failed_sync_is_final(tmp_path: Path) -> None:
    with closing(small(tmp_path)) as log:
        log.append(rows_of(0, 5))
        # The operating system refuses to sync a pipe, with an error of its own.
        ends = os.pipe()
        os.dup2(ends[1], log._control_fd)
        with pytest.raises(LogLost, match="could not be synced: Invalid argument"):
            log.sync()
        with pytest.raises(LogLost, match="an earlier sync failed"):
            log.append(rows_of(5, 1))
        for end in ends:
            os.close(end)


# Other processes ----------------------------------------------------------------------------


def block_then_go_on(folder: Path, outcome: Connection) -> None:
    """Append where the operating system gives no more room, then where it does again."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with closing(small(folder)) as log:
        log.append(rows_of(0, 30))
        log.commit()
        log.prune()
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        log.reserve(2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
        refusals = []
        for _ in range(3):
            try:
                log.append(rows_of(30, 100))
            except LogBlocked as blocked:
                refusals.append((str(blocked), log.appended, log.committed))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        log.append(rows_of(30, 100))
        log.commit()
    outcome.send(refusals)


@pytest.mark.integration
def test_no_room_is_said_before_anything_is_half_written(tmp_path: Path) -> None:
    receiver, sender = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=block_then_go_on, args=(tmp_path, sender))
    child.start()
    sender.close()
    refusals = receiver.recv()
    child.join()
    assert len(refusals) == 3
    for sentence, appended, committed in refusals:
        assert sentence.endswith("cannot be made: File too large")
        assert (appended, committed) == (30, 30)
    assert np.array_equal(read_all(ExecutionLogReader.open(tmp_path)), rows_of(0, 130))


def write_for_ever(folder: Path, seed: int) -> None:
    random = Random(seed)
    with closing(small(folder)) as log:
        log.rewind(log.committed // 2)
        log.append_or_verify(rows_of(log.appended, log.committed - log.appended))
        log.end_recovery()
        while True:
            log.append(rows_of(log.appended, random.randrange(1, 20)))
            log.commit()


def follow(folder: Path, control: Connection) -> None:
    """Read on and on, compare every row; say how far it came whenever a target is reached."""
    reader = ExecutionLogReader.open(folder)
    number, target = 0, 0
    while target >= 0:
        rows = reader.read(number, 1000)
        assert np.array_equal(rows, rows_of(number, len(rows))), f"torn at {number}"
        number += len(rows)
        if number >= target:
            control.send((number, reader.epoch()))
            target = control.recv()


@pytest.mark.integration
def test_a_follower_reads_on_over_every_kill_of_the_writer(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    random = Random(seed)
    small(tmp_path, segment_rows=1024).close()
    reader = ExecutionLogReader.open(tmp_path)
    ours, theirs = PROCESSES.Pipe()
    follower = PROCESSES.Process(target=follow, args=(tmp_path, theirs), daemon=True)
    follower.start()
    theirs.close()
    reached, epoch = ours.recv()
    for turn in range(10):
        # Farther than the last writer came before it died, so that this one has to write.
        ours.send(reader.committed() + random.randrange(1, 3000))
        writer = PROCESSES.Process(
            target=write_for_ever, args=(tmp_path, random.getrandbits(32)), daemon=True
        )
        writer.start()
        reached, epoch = ours.recv()
        writer.kill()
        writer.join()
        assert epoch == turn + 2
    ours.send(-1)
    follower.join()
    assert follower.exitcode == 0
    with closing(small(tmp_path)) as log:
        assert log.committed >= reached
        assert len(segments(tmp_path)) > 3


@pytest.mark.integration
def test_a_killed_follower_changes_nothing(tmp_path: Path) -> None:
    with closing(small(tmp_path)) as log:
        for _ in range(5):
            ours, theirs = PROCESSES.Pipe()
            follower = PROCESSES.Process(target=follow, args=(tmp_path, theirs), daemon=True)
            follower.start()
            theirs.close()
            ours.recv()
            ours.send(log.committed + 50)
            log.append(rows_of(log.appended, 50))
            log.commit()
            ours.recv()
            follower.kill()
            follower.join()
        assert np.array_equal(read_all(ExecutionLogReader.open(tmp_path)), rows_of(0, 250))
