"""The journal's promises one by one; its damage is in tests/property/test_journal_damage.py."""

import multiprocessing
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

import numpy as np
import pytest

from engine.durability.frames import FORMAT_VERSION, MAGIC
from engine.durability.journal import (
    Durability,
    Frame,
    Journal,
    JournalDamaged,
    JournalLost,
    JournalOwned,
)

SEGMENT_BYTES = 4096
FRAME_OF_20_BYTES = 64 + 20 * 64
# Children fork from a process that has imported what they need, so that they start at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["engine.durability.execution_log", "hypothesis", "pytest"])


def rows_of(first_sequence: int, count: int) -> np.ndarray:
    words = np.arange(first_sequence * 8, (first_sequence + count) * 8, dtype=np.int64)
    return (words * 0x0101_0101_0101_0101).reshape(-1, 8)


def small(folder: Path, **settings: object) -> Journal:
    chosen = {"durability": Durability.OS, "segment_bytes": SEGMENT_BYTES, **settings}
    return Journal.open(folder, **chosen)  # type: ignore[arg-type]


def append(journal: Journal, count: int) -> Frame:
    first = journal.last_sequence + 1
    frame = Frame(first, 5 * first, 2**64 - first, rows_of(first, count))
    journal.append(frame.commands, frame.first_sequence, frame.time_ns, frame.chain_hash)
    journal.sync()
    return frame


def assert_same(found: list[Frame], expected: list[Frame]) -> None:
    assert [frame[:3] for frame in found] == [frame[:3] for frame in expected]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.commands, other.commands)


def names(folder: Path) -> list[int]:
    return sorted(int(path.stem[8:]) for path in folder.glob("journal-*.log"))


def refusal_of(action: Callable[[], object]) -> JournalDamaged:
    with pytest.raises(JournalDamaged) as refusal:
        action()
    return refusal.value


@pytest.mark.parametrize("durability", list(Durability))
def test_frames_come_back_as_they_were_appended(tmp_path: Path, durability: Durability) -> None:
    folder = tmp_path / "new" / "journal"
    with closing(small(folder, durability=durability)) as journal:
        frames = [append(journal, count) for count in (1, 7, 63)]
        assert journal.last_sequence == 71
        assert_same(list(journal.replay(0)), frames)
    with closing(small(folder, durability=durability, applied_sequence=71)) as journal:
        assert journal.last_sequence == 71
        frames.append(append(journal, 2))
        assert_same(list(journal.replay(0)), frames)
        assert_same(list(journal.replay(8)), frames[2:])
        assert list(journal.replay(73)) == []


def test_replayed_commands_are_read_only_views_of_the_file(tmp_path: Path) -> None:
    with closing(small(tmp_path)) as journal:
        expected = append(journal, 3).commands
        (frame,) = journal.replay(0)
    assert frame.commands.base is not None
    with pytest.raises(ValueError, match="read-only"):
        frame.commands[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        frame.commands.flags.writeable = True
    # Valid also after the journal was closed and its file removed.
    shutil.rmtree(tmp_path)
    assert np.array_equal(frame.commands, expected)


def test_the_bytes_of_a_frame_are_those_of_the_drawing(tmp_path: Path) -> None:
    with closing(small(tmp_path, identity=-5)) as journal:
        append(journal, 2)
    words = np.fromfile(tmp_path / f"journal-{1:020}.log", np.int64)
    assert words[:7].tolist() == [MAGIC - 2**64 * (MAGIC >> 63), 2 << 32 | 1, 1, 5, -1, 128, -5]
    assert FORMAT_VERSION == 1
    assert np.array_equal(words[8:24], rows_of(1, 2).ravel())
    assert not words[24:].any()
    assert words.nbytes == SEGMENT_BYTES


def test_a_full_segment_leads_to_a_new_one_and_old_ones_can_be_let_go(tmp_path: Path) -> None:
    with closing(small(tmp_path)) as journal:
        frames = [append(journal, 20) for _ in range(10)]
        assert names(tmp_path) == [1, 61, 121, 181]
        assert_same(list(journal.replay(0)), frames)
        assert_same(list(journal.replay(60)), frames[3:])
        assert_same(list(journal.replay(80)), frames[4:])
        assert journal.retain_from(60) == 0
        assert journal.retain_from(61) == 1
        assert journal.retain_from(180) == 1
        assert names(tmp_path) == [121, 181]
        assert journal.retain_from(10**6) == 1, "the segment in use stays"
    with closing(small(tmp_path)) as journal:
        assert_same(list(journal.replay(180)), frames[9:])
        damage = refusal_of(lambda: journal.replay(179))
    assert str(damage).endswith("the journal begins with sequence 181, 180 is missing")
    assert damage.offset_bytes == 0


def test_a_rotation_on_demand_begins_a_segment_once(tmp_path: Path) -> None:
    with closing(small(tmp_path)) as journal:
        journal.rotate()
        frames = [append(journal, 1)]
        journal.rotate()
        journal.rotate()
        assert names(tmp_path) == [1, 2]
    with closing(small(tmp_path, applied_sequence=1)) as journal:
        assert journal.last_sequence == 1
        frames.append(append(journal, 1))
        assert_same(list(journal.replay(0)), frames)


def test_another_segment_size_than_before_loses_nothing(tmp_path: Path) -> None:
    frames: list[Frame] = []
    for segment_bytes in (4096, 8192, 4096):
        with closing(small(tmp_path, segment_bytes=segment_bytes)) as journal:
            frames += [append(journal, 20) for _ in range(5)]
    with closing(small(tmp_path)) as journal:
        assert_same(list(journal.replay(0)), frames)


def test_an_unfinished_next_segment_is_no_obstacle(tmp_path: Path) -> None:
    with closing(small(tmp_path)) as journal:
        frames = [append(journal, 20)]
    (tmp_path / "journal-next.zero").write_bytes(b"killed while it was being made")
    with closing(small(tmp_path)) as journal:
        frames += [append(journal, 20) for _ in range(5)]
        assert_same(list(journal.replay(0)), frames)


@pytest.mark.parametrize(
    ("commands", "first_sequence", "sentence"),
    [
        (np.zeros((1, 8), np.int64), 3, "first_sequence is 3, 2 must follow"),
        (np.zeros((1, 8), np.int64), 1, "first_sequence is 1, 2 must follow"),
        (np.zeros((0, 8), np.int64), 2, "no command"),
        (np.zeros((1, 7), np.int64), 2, r"shape \(1, 7\)"),
        (np.zeros((1, 8), np.int32), 2, "int32"),
        (np.zeros((2, 16), np.int64)[:, ::2], 2, "C order"),
        (np.zeros((64, 8), np.int64), 2, "a frame of 4160 bytes exceeds a segment of 4096"),
    ],
)
def test_a_wrong_call_changes_nothing(
    tmp_path: Path, commands: np.ndarray, first_sequence: int, sentence: str
) -> None:
    with closing(small(tmp_path)) as journal:
        frame = append(journal, 1)
        with pytest.raises(AssertionError, match=sentence):
            journal.append(commands, first_sequence, 0, 0)
        assert_same(list(journal.replay(0)), [frame])


def test_a_second_frame_waits_for_the_sync_of_the_first(tmp_path: Path) -> None:
    with closing(small(tmp_path, durability=Durability.FSYNC)) as journal:
        journal.append(rows_of(1, 1), 1, 0, 0)
        with pytest.raises(AssertionError, match="sync comes first"):
            journal.append(rows_of(2, 1), 2, 0, 0)
        journal.sync()
        journal.append(rows_of(2, 1), 2, 0, 0)


def test_a_journal_that_ends_before_what_was_applied_is_refused(tmp_path: Path) -> None:
    damage = refusal_of(lambda: small(tmp_path, applied_sequence=4))
    assert str(damage) == (f"{tmp_path}, byte 0: there is no journal, but sequence 4 was applied")
    with closing(small(tmp_path)) as journal:
        append(journal, 3)
    damage = refusal_of(lambda: small(tmp_path, applied_sequence=4))
    assert damage.offset_bytes == 64 + 3 * 64
    assert "the last whole command is 3, but 4 was applied" in str(damage)
    with closing(small(tmp_path, applied_sequence=3)) as journal:
        damage = refusal_of(lambda: journal.replay(4))
        assert "ends with sequence 3, before 4" in str(damage)


def test_a_snapshot_can_stand_between_frames_only(tmp_path: Path) -> None:
    with closing(small(tmp_path)) as journal:
        append(journal, 3)
        damage = refusal_of(lambda: list(journal.replay(2)))
    assert "sequence 2 lies inside a frame" in str(damage)


def test_a_missing_file_is_named_by_the_gap_it_leaves(tmp_path: Path) -> None:
    with closing(small(tmp_path)) as journal:
        for _ in range(10):
            append(journal, 20)
    (tmp_path / f"journal-{61:020}.log").unlink()
    with closing(small(tmp_path)) as journal:
        damage = refusal_of(lambda: list(journal.replay(0)))
        assert len(list(journal.replay(120))) == 4, "what follows the gap is still whole"
    assert damage.path.name == f"journal-{1:020}.log"
    assert damage.offset_bytes == 3 * FRAME_OF_20_BYTES
    assert "the segment ends with sequence 60, 120 was to be its last" in str(damage)


@pytest.mark.parametrize("offset", [3 * FRAME_OF_20_BYTES, SEGMENT_BYTES - 1])
def test_bytes_behind_the_frames_of_an_earlier_file_are_damage(tmp_path: Path, offset: int) -> None:
    with closing(small(tmp_path)) as journal:
        for _ in range(4):
            append(journal, 20)
    path = tmp_path / f"journal-{1:020}.log"
    content = bytearray(path.read_bytes())
    content[offset] = 1
    path.write_bytes(content)
    with closing(small(tmp_path)) as journal:
        damage = refusal_of(lambda: list(journal.replay(0)))
    assert (damage.path, damage.offset_bytes) == (path, 3 * FRAME_OF_20_BYTES)


def test_an_empty_last_file_does_not_hide_a_torn_one_before_it(tmp_path: Path) -> None:
    with closing(small(tmp_path)) as journal:
        append(journal, 3)
        journal.rotate()
    path = tmp_path / f"journal-{1:020}.log"
    path.write_bytes(path.read_bytes()[:200])
    damage = refusal_of(lambda: small(tmp_path))
    assert (damage.path, damage.offset_bytes) == (path, 0)


def test_a_renamed_file_is_refused(tmp_path: Path) -> None:
    with closing(small(tmp_path)) as journal:
        append(journal, 3)
    (tmp_path / f"journal-{1:020}.log").rename(tmp_path / f"journal-{2:020}.log")
    damage = refusal_of(lambda: small(tmp_path))
    assert "the frame begins with sequence 1, 2 must follow" in str(damage)


@pytest.mark.parametrize("name", ["journal-1.log", "journal-old.log", f"journal-{1:020}.log.gz"])
def test_a_file_that_only_looks_like_a_segment_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a copy somebody made")
    damage = refusal_of(lambda: small(tmp_path))
    assert damage.path == tmp_path / name
    assert "the name is not that of a journal segment" in str(damage)


def test_a_foreign_file_under_the_right_name_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / f"journal-{1:020}.log"
    path.write_text("Dear diary, today nothing was traded.\n")
    damage = refusal_of(lambda: small(tmp_path))
    assert "the file is no journal" in str(damage)
    assert path.read_text().startswith("Dear diary")


def test_another_format_version_is_refused_not_cut(tmp_path: Path) -> None:
    with closing(small(tmp_path)) as journal:
        append(journal, 1)
        append(journal, 1)
    path = tmp_path / f"journal-{1:020}.log"
    content = bytearray(path.read_bytes())
    content[128 + 8] = 2
    path.write_bytes(content)
    damage = refusal_of(lambda: small(tmp_path))
    assert str(damage) == (
        f"{path}, byte 128: the frame has format version 2, this program reads version 1"
    )


def test_the_journal_of_another_pair_is_refused(tmp_path: Path) -> None:
    with closing(small(tmp_path, identity=0xB)) as journal:
        append(journal, 1)
    damage = refusal_of(lambda: small(tmp_path, identity=0xE))
    assert "the frame belongs to journal 0xb, this one is 0xe" in str(damage)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        closing(small(tmp_path)),
        pytest.raises(JournalOwned, match="is held by another process"),
    ):
        small(tmp_path)
    small(tmp_path).close()


def test_a_failed_sync_is_final(tmp_path: Path) -> None:
    with closing(small(tmp_path, durability=Durability.FSYNC)) as journal:
        journal.append(rows_of(1, 1), 1, 0, 0)
        # The operating system refuses to sync a pipe, with an error of its own.
        ends = os.pipe()
        os.dup2(ends[1], journal._fd)
        with pytest.raises(JournalLost, match="could not be synced: Invalid argument"):
            journal.sync()
        for action in (
            journal.sync,
            journal.rotate,
            lambda: journal.append(rows_of(2, 1), 2, 0, 0),
        ):
            with pytest.raises(JournalLost, match="an earlier sync failed"):
                action()
        for end in ends:
            os.close(end)


def append_for_ever(folder: Path, acknowledgements: Connection, seed: int) -> None:
    random = Random(seed)
    with closing(small(folder, durability=Durability.FSYNC, segment_bytes=16384)) as journal:
        acknowledgements.send(journal.last_sequence)
        while True:
            append(journal, random.randrange(1, 60))
            acknowledgements.send(journal.last_sequence)


@pytest.mark.integration
def test_nothing_acknowledged_is_lost_however_often_the_writer_is_killed(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    random = Random(seed)
    acknowledged = 0
    for _ in range(20):
        receiver, sender = PROCESSES.Pipe(duplex=False)
        writer = PROCESSES.Process(
            target=append_for_ever, args=(tmp_path, sender, random.getrandbits(32)), daemon=True
        )
        writer.start()
        sender.close()
        assert receiver.recv() >= acknowledged
        for _ in range(random.randrange(1, 200)):
            acknowledged = receiver.recv()
        writer.kill()
        writer.join()
        while True:
            try:
                acknowledged = receiver.recv()
            except EOFError:
                break
        receiver.close()
        with closing(
            small(tmp_path, segment_bytes=16384, applied_sequence=acknowledged)
        ) as journal:
            sequence = 1
            for frame in journal.replay(0):
                assert frame.first_sequence == sequence
                assert np.array_equal(frame.commands, rows_of(sequence, len(frame.commands)))
                sequence += len(frame.commands)
            assert sequence - 1 == journal.last_sequence >= acknowledged
    assert len(names(tmp_path)) > 2
