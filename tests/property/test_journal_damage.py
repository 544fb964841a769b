"""Every cut and every flipped bit of a journal: cut where it may be cut, else refused, never read.

The journals are small, so that all their bytes and bits can be tried; Hypothesis adds larger ones
of several files.
"""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.durability.journal import Durability, Frame, Journal, JournalDamaged

SEGMENT_BYTES = 4096
COUNTS = (1, 3, 2)


def rows_of(first_sequence: int, count: int) -> np.ndarray:
    """Return the commands with these sequences: each word of each is different, none is zero."""
    words = np.arange(first_sequence * 8, (first_sequence + count) * 8, dtype=np.int64)
    return (words * 0x0101_0101_0101_0101).reshape(-1, 8)


def write_journal(folder: Path, counts: tuple[int, ...]) -> list[Frame]:
    """Write frames of so many commands and return them."""
    frames = []
    with closing(Journal.open(folder, durability=Durability.OS, segment_bytes=SEGMENT_BYTES)) as j:
        for number, count in enumerate(counts):
            first = j.last_sequence + 1
            frame = Frame(
                first, 1_000 + number, 0xFFFF_0000_0000_0000 + number, rows_of(first, count)
            )
            j.append(frame.commands, frame.first_sequence, frame.time_ns, frame.chain_hash)
            frames.append(frame)
    return frames


def open_small(folder: Path, applied_sequence: int = 0) -> Journal:
    return Journal.open(
        folder,
        durability=Durability.OS,
        segment_bytes=SEGMENT_BYTES,
        applied_sequence=applied_sequence,
    )


def read_journal(folder: Path, applied_sequence: int = 0) -> list[Frame]:
    with closing(open_small(folder, applied_sequence)) as journal:
        return list(journal.replay(0))


def outcome_of(folder: Path, applied_sequence: int = 0) -> list[Frame] | JournalDamaged:
    """Return what reading the journal brought: its frames or its refusal."""
    try:
        return read_journal(folder, applied_sequence)
    except JournalDamaged as damage:
        return damage


def assert_same(found: list[Frame], expected: list[Frame]) -> None:
    assert [frame[:3] for frame in found] == [frame[:3] for frame in expected]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.commands, other.commands)


def ends_of(frames: list[Frame]) -> list[int]:
    """Return the byte at which each frame ends."""
    return [int(end) for end in np.cumsum([64 + frame.commands.nbytes for frame in frames])]


@pytest.fixture(scope="module")
def written() -> Iterator[tuple[list[Frame], bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        frames = write_journal(Path(folder), COUNTS)
        yield frames, only_file(Path(folder)).read_bytes()


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("journal-*.log")
    return path


@pytest.mark.parametrize("zero_filled", [False, True], ids=["truncated", "zero-filled"])
def test_every_cut_leaves_exactly_the_whole_frames(
    tmp_path: Path, written: tuple[list[Frame], bytes], *, zero_filled: bool
) -> None:
    frames, content = written
    ends = ends_of(frames)
    path = tmp_path / f"journal-{1:020}.log"
    for length in range(ends[-1] + 1):
        cut = content[:length] + bytes(len(content) - length if zero_filled else 0)
        # A cut through zeros that were to be written anyway cuts nothing.
        padded = cut.ljust(len(content), b"\0")
        whole = [
            frame for frame, end in zip(frames, ends, strict=True) if padded[:end] == content[:end]
        ]
        if not zero_filled:
            whole = [frame for frame, end in zip(frames, ends, strict=True) if end <= length]
        last = sum(len(frame.commands) for frame in whole)
        path.write_bytes(cut)
        if len(whole) < len(frames):
            with pytest.raises(JournalDamaged, match=f"but {last + 1} was applied") as refusal:
                open_small(tmp_path, applied_sequence=last + 1)
            assert refusal.value.path == path
            assert refusal.value.offset_bytes == sum(64 + f.commands.nbytes for f in whole)
            assert path.read_bytes() == cut, "a refused journal was changed"
        with closing(open_small(tmp_path, applied_sequence=last)) as journal:
            assert_same(list(journal.replay(0)), whole)
            added = rows_of(last + 1, 2)
            journal.append(added, last + 1, 7, 8)
        assert_same(read_journal(tmp_path), [*whole, Frame(last + 1, 7, 8, added)])
        assert path.stat().st_size == SEGMENT_BYTES


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_is_cut_with_the_last_frame_or_refused(
    tmp_path: Path, written: tuple[list[Frame], bytes]
) -> None:
    frames, content = written
    ends = ends_of(frames)
    starts = [0, *ends[:-1]]
    last = sum(COUNTS)
    path = tmp_path / f"journal-{1:020}.log"
    cut_count = refused_count = 0
    for bit in range(8 * ends[-1]):
        changed = flipped(content, bit)
        path.write_bytes(changed)
        hit = next(index for index, end in enumerate(ends) if bit // 8 < end)
        # Proven applied: refused wherever it is.
        with pytest.raises(JournalDamaged) as refusal:
            read_journal(tmp_path, applied_sequence=last)
        assert (refusal.value.path, refusal.value.offset_bytes) == (path, starts[hit])
        assert path.read_bytes() == changed, "a refused journal was changed"
        found = outcome_of(tmp_path)
        if isinstance(found, JournalDamaged):
            assert (found.path, found.offset_bytes) == (path, starts[hit])
            refused_count += 1
        else:
            assert hit == len(frames) - 1, f"bit {bit} in frame {hit} was accepted"
            assert_same(found, frames[:-1])
            cut_count += 1
    last_bits = 8 * (ends[-1] - starts[-1])
    # Another format version is never cut: a newer program may have written it.
    assert refused_count == 8 * starts[-1] + 31
    assert cut_count == last_bits - 31


def test_every_byte_behind_the_last_frame_is_cut_and_costs_no_frame(
    tmp_path: Path, written: tuple[list[Frame], bytes]
) -> None:
    frames, content = written
    path = tmp_path / f"journal-{1:020}.log"
    for offset in range(ends_of(frames)[-1], len(content)):
        path.write_bytes(flipped(content, 8 * offset + offset % 8))
        assert_same(read_journal(tmp_path, applied_sequence=sum(COUNTS)), frames)
        assert path.read_bytes() == content


@given(
    counts=st.lists(st.integers(1, 40), min_size=4, max_size=12).map(tuple),
    data=st.data(),
)
@settings(max_examples=150)
def test_damage_to_a_journal_of_several_files_never_passes(
    counts: tuple[int, ...], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = write_journal(folder, counts)
        paths = sorted(folder.glob("journal-*.log"))
        path = data.draw(st.sampled_from(paths))
        content = path.read_bytes()
        kind = data.draw(st.sampled_from(["flip", "truncate", "zero", "delete", "copy"]))
        place = data.draw(st.integers(0, len(content) - 1))
        if kind == "flip":
            path.write_bytes(flipped(content, 8 * place + data.draw(st.integers(0, 7))))
        elif kind == "truncate":
            path.write_bytes(content[:place])
        elif kind == "zero":
            path.write_bytes(content[:place] + bytes(len(content) - place))
        elif kind == "delete":
            path.unlink()
        else:
            path.write_bytes(data.draw(st.sampled_from(paths)).read_bytes())
        unchanged = path.exists() and path.read_bytes() == content
        applied = data.draw(st.sampled_from([0, sum(counts)]))
        found = outcome_of(folder, applied)
        if isinstance(found, JournalDamaged):
            assert not unchanged
            assert str(found).startswith(f"{found.path}, byte {found.offset_bytes}: ")
        else:
            # Read to the end, or cut in the last file and nowhere else.
            assert_same(found, frames[: len(found)])
            lost = sum(counts) - sum(len(frame.commands) for frame in found)
            allowed = lost == 0 or (path == paths[-1] and not applied)
            assert allowed, f"{kind} at {place} of {path.name} lost {lost} commands"
