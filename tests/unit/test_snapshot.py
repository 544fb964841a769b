"""Snapshots: what is in the arrays comes back, holes stay holes, damage falls back."""

import json
import logging
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.durability.snapshot import (
    Image,
    Snapshot,
    SnapshotInvalid,
    Stamp,
    capture,
    newest_snapshot,
    read_snapshot,
    restore,
    sequences,
    write,
    write_snapshot,
)

STAMP = Stamp(
    sequence=70,
    execution_count=90,
    chain_hash=2**64 - 1,
    state_hash=2**63,
    layout_hash=-(2**63),
    identity=-5,
)
SPARSE_BYTES = 1 << 30


@pytest.fixture
def segment() -> Iterator[int]:
    """Give the descriptor of a memory file of 1 GiB, all hole."""
    fd = os.memfd_create("segment", os.MFD_CLOEXEC)
    os.ftruncate(fd, SPARSE_BYTES)
    yield fd
    os.close(fd)


def mapped(fd: int, dtype: str, offset_bytes: int, count: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(fd, SPARSE_BYTES), dtype, count, offset_bytes)


def test_a_restored_state_is_the_written_one(tmp_path: Path) -> None:
    orders = np.zeros((5000, 8), np.int64)
    orders[[0, 3, 511, 4999]] = [[1] * 8, [-2] * 8, [3] * 8, [2**62] * 8]
    queues = np.zeros((3000, 2), np.int32)
    queues[1234, 1] = 7
    untouched = np.zeros(100_000, np.uint64)
    images: dict[str, np.ndarray] = {"orders": orders, "queues": queues, "untouched": untouched}
    path = write_snapshot(tmp_path / "new", STAMP, images)
    assert path.name == f"snapshot-{70:020}.state"
    # Five pages are in use; everything else on disk is header and table.
    assert path.stat().st_size < 6 * 4096
    snapshot = newest_snapshot(path.parent, layout_hash=-(2**63), identity=-5)
    assert snapshot is not None
    assert snapshot.stamp == STAMP
    copies = {name: np.zeros_like(array) for name, array in images.items()}
    restore(snapshot, copies)
    for name, array in images.items():
        assert np.array_equal(copies[name], array), name


def test_an_empty_state_is_a_state(tmp_path: Path) -> None:
    write_snapshot(tmp_path, Stamp(0, 0, 0, 0), {"scalars": np.zeros(64, np.int64)})
    snapshot = newest_snapshot(tmp_path)
    assert snapshot is not None
    assert len(snapshot.body) == 0
    restore(snapshot, {"scalars": np.zeros(64, np.int64)})


@given(
    touched=st.dictionaries(st.integers(0, 9_999), st.integers(-(2**62), 2**62), max_size=60),
    dtype=st.sampled_from(["int64", "uint64", "int32"]),
    as_file=st.booleans(),
    offset_bytes=st.integers(0, 200).map(lambda lines: 64 * lines),
)
@settings(max_examples=200)
def test_any_pattern_comes_back(
    touched: dict[int, int], dtype: str, as_file: bool, offset_bytes: int
) -> None:
    fd = os.memfd_create("segment", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, SPARSE_BYTES)
        words = mapped(fd, dtype, offset_bytes, 10_000)
        for index, value in touched.items():
            words[index] = np.int64(value).astype(dtype)
        # Content before and behind the array is none of its business.
        neighbours = mapped(fd, "uint8", 0, offset_bytes + words.nbytes + 4096)
        neighbours[:offset_bytes] = 255
        neighbours[offset_bytes + words.nbytes :] = 255
        image = Image(words, fd, offset_bytes) if as_file else Image(words)
        with tempfile.TemporaryDirectory() as folder:
            write_snapshot(Path(folder), STAMP, {"words": image})
            copy = np.zeros_like(words)
            restore(read_snapshot_of(Path(folder)), {"words": copy})
        assert np.array_equal(copy, words)
    finally:
        os.close(fd)


def read_snapshot_of(folder: Path) -> Snapshot:
    snapshot = newest_snapshot(folder, layout_hash=STAMP.layout_hash, identity=STAMP.identity)
    assert snapshot is not None
    return snapshot


def test_holes_of_a_memory_file_are_not_touched(tmp_path: Path, segment: int) -> None:
    levels = mapped(segment, "int64", 4096 + 64, (SPARSE_BYTES - 8192) // 8)
    rows = [0, 1, 1_000_000, 50_000_000, len(levels) - 1]
    levels[rows] = [1, 2, 3, 4, 5]
    allocated = os.fstat(segment).st_blocks
    captured = capture(STAMP, {"levels": Image(levels, segment, 4096 + 64)})
    assert os.fstat(segment).st_blocks == allocated
    assert captured.body.nbytes <= 5 * 4096
    write(tmp_path, captured)
    # Reading without the descriptor is right too, but it allocates: so this test can fail.
    without = capture(STAMP, {"levels": Image(levels[:1_000_000])})
    assert without.body.nbytes <= 4096
    assert os.fstat(segment).st_blocks > allocated + 1000
    os.ftruncate(segment, 0)
    os.ftruncate(segment, SPARSE_BYTES)
    restore(read_snapshot_of(tmp_path), {"levels": levels})
    assert levels[rows].tolist() == [1, 2, 3, 4, 5]
    assert os.fstat(segment).st_blocks <= allocated


def test_a_used_prefix_is_all_that_is_read(tmp_path: Path) -> None:
    table = np.arange(10_000, dtype=np.int64)
    captured = capture(STAMP, {"table": Image(table, used_bytes=8000)})
    assert captured.runs.tolist() == [[0, 0, 8000]]


def test_a_capture_is_a_copy(tmp_path: Path) -> None:
    state = np.ones(1000, np.int64)
    captured = capture(STAMP, {"state": state})
    state[:] = 2
    write(tmp_path, captured)
    copy = np.zeros_like(state)
    restore(read_snapshot_of(tmp_path), {"state": copy})
    assert copy.tolist() == [1] * 1000


def write_three(folder: Path) -> list[Path]:
    return [
        write_snapshot(folder, replace(STAMP, sequence=sequence), {"a": np.full(999, sequence)})
        for sequence in (10, 20, 30)
    ]


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    (tmp_path / "snapshot-7.unfinished").write_bytes(b"killed here")
    write_three(tmp_path)
    assert sequences(tmp_path) == [20, 30]
    assert len(list(tmp_path.iterdir())) == 2


def test_every_flipped_byte_and_every_cut_falls_back_with_a_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = write_three(tmp_path)[-1]
    content = newest.read_bytes()
    # All of header and table, then every 97th byte of the body.
    places = [*range(200), *range(200, len(content), 97), len(content) - 1]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        for damaged in (bytes(changed), content[:place]):
            newest.write_bytes(damaged)
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                assert read_snapshot_of(tmp_path).stamp.sequence == 20
            (record,) = caplog.records
            assert str(newest) in record.getMessage()
    newest.write_bytes(content)
    assert read_snapshot_of(tmp_path).stamp.sequence == 30


def test_without_a_whole_snapshot_there_is_none(tmp_path: Path) -> None:
    assert newest_snapshot(tmp_path) is None
    assert newest_snapshot(tmp_path / "absent") is None
    for path in write_three(tmp_path)[1:]:
        path.write_bytes(b"")
    assert newest_snapshot(tmp_path) is None


@pytest.mark.parametrize(
    ("expected", "sentence"),
    [
        (
            {"layout_hash": 1, "identity": -5},
            r"has layout -0x8000000000000000, this program has 0x1",
        ),
        ({"layout_hash": -(2**63), "identity": 9}, "belongs to -0x5, this pair is 0x9"),
    ],
)
def test_a_snapshot_of_something_else_is_refused(
    tmp_path: Path, expected: dict[str, int], sentence: str
) -> None:
    path = write_three(tmp_path)[-1]
    with pytest.raises(SnapshotInvalid, match=sentence):
        read_snapshot(path, **expected)
    assert newest_snapshot(tmp_path, **expected) is None


def test_a_renamed_snapshot_is_refused(tmp_path: Path) -> None:
    path = write_three(tmp_path)[-1]
    renamed = path.rename(tmp_path / f"snapshot-{31:020}.state")
    with pytest.raises(SnapshotInvalid, match="holds the state after sequence 30"):
        read_snapshot(renamed, layout_hash=STAMP.layout_hash, identity=STAMP.identity)


def test_arrays_of_another_shape_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_three(tmp_path)
    other = np.zeros(1000, np.int64)
    with pytest.raises(SnapshotInvalid, match=r"holds arrays of \{'a': 7992\} bytes"):
        restore(read_snapshot_of(tmp_path), {"a": other})
    assert not other.any()


WRITE_UNDER_A_LIMIT = f"""
import json, resource, signal, sys
from pathlib import Path
import numpy as np
from engine.durability.snapshot import SnapshotFailed, Stamp, write_snapshot
# A process that may write files of {16384} bytes only: the kernel refuses in mid-file.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
try:
    write_snapshot(Path(sys.argv[1]), Stamp(40, 0, 0, 0), {{"a": np.ones(9999, np.int64)}})
except SnapshotFailed as failure:
    print(json.dumps(str(failure)))
"""


def test_a_disk_that_takes_only_a_part_leaves_the_older_ones(tmp_path: Path) -> None:
    write_three(tmp_path)
    child = subprocess.run(
        [sys.executable, "-c", WRITE_UNDER_A_LIMIT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(child.stdout).endswith("cannot be written: File too large")
    assert sequences(tmp_path) == [20, 30]
    assert len(list(tmp_path.iterdir())) == 2
