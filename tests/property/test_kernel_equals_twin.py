"""The compiled kernel against its plain twin: every word of every execution, after every command.

Hypothesis draws short streams and shrinks what it finds. A long stream comes from a seed, which is
printed and taken back: `HOLDFAST_SEED=7 pytest tests/property/test_kernel_equals_twin.py`;
`HOLDFAST_COMMANDS` says how long it is.
"""

import os
import secrets

import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from engine.kernel.apply import OUTPUT_RESERVE
from tests.property.drawing import Stream, effort, streams
from tests.property.streams import UNIVERSES, Author, SeededDice
from tests.reference.comparison import difference
from tests.reference.drivers import Kernel, Twin

COMMANDS = int(os.environ.get("HOLDFAST_COMMANDS", "200000"))
SEGMENT = 1_000


def complain(expected: list[list[int]], actual: list[list[int]], command: list[int]) -> None:
    """Fail with the first difference in words."""
    if expected != actual:
        pytest.fail(f"{difference(expected, actual)}\n  after {command}", pytrace=False)


@given(streams())
@effort(400)
def test_each_command_has_the_same_executions(stream: Stream) -> None:
    kernel = Kernel(stream.universe.instrument)
    twin = Twin(stream.universe.instrument)
    for command, time_ns in stream:
        room = len(twin.engine.market.book.orders) + OUTPUT_RESERVE
        expected = twin.apply(command, time_ns)
        assert len(expected) <= room, command
        complain(expected, kernel.apply(command, time_ns), command)
        assert kernel.summary() == twin.summary(), command
    kernel.check()


@given(streams(), st.data())
@effort(200)
def test_how_commands_are_batched_changes_nothing(stream: Stream, data: st.DataObject) -> None:
    commands = np.array(stream.commands, dtype=np.int64)
    time_ns = stream.times[0]
    engines = []
    for _ in range(2):
        kernel = Kernel(stream.universe.instrument)
        cuts = sorted(data.draw(st.sets(st.integers(0, len(commands)), max_size=8)))
        note(f"cut at {cuts}")
        rows: list[list[int]] = []
        for batch in np.split(commands, cuts):
            rows += kernel.apply_all(batch, time_ns)
        engines.append((rows, kernel.engine.state_hash(), kernel.summary()))
    assert engines[0] == engines[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wide", "plain", "fees", "huge"])
def test_a_long_stream_from_a_seed(name: str) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", "0")) or secrets.randbits(32)
    print(f"HOLDFAST_SEED={seed} repeats this stream")
    dice = SeededDice(seed)
    universe = UNIVERSES[name]
    twin, kernel = Twin(universe.instrument), Kernel(universe.instrument)
    author = Author(dice, universe, twin)
    pending = author.opening()
    total = COMMANDS if name == "wide" else COMMANDS // 8
    kinds: set[int] = set()
    for start in range(0, total, SEGMENT):
        time_ns = author.pass_time()
        commands: list[list[int]] = []
        expected: list[list[int]] = []
        while len(commands) < SEGMENT:
            command = pending.pop(0) if pending else author.command()
            room = len(twin.engine.market.book.orders) + OUTPUT_RESERVE
            rows = twin.apply(command, time_ns)
            assert len(rows) <= room, f"seed {seed}: {command}"
            author.watch(rows)
            commands.append(command)
            expected += rows
        actual: list[list[int]] = []
        cuts = sorted(dice.number(0, SEGMENT) for _ in range(6))
        for batch in np.split(np.array(commands, dtype=np.int64), cuts):
            actual += kernel.apply_all(batch, time_ns)
        if expected != actual:
            pytest.fail(f"seed {seed}, from {start}: {difference(expected, actual)}")
        kinds |= {(row[2] & 0xFF) for row in expected}
        assert kernel.summary() == twin.summary(), f"seed {seed}, from {start}"
        kernel.check()
    twin.check()
    assert kinds == set(range(1, 15)), f"seed {seed}: the stream never caused some kinds"
