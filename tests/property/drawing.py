"""Streams drawn by Hypothesis: a universe, commands in it, and the times they come at."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st

from tests.property.streams import START_NS, UNIVERSES, Author, Universe
from tests.reference.drivers import Twin

SMALL = [name for name in sorted(UNIVERSES) if name != "wide"]


def effort(examples: int) -> settings:
    """Return the settings for a test with so many examples; a longer profile multiplies them."""
    assert settings.default is not None
    return settings(max_examples=examples * settings.default.max_examples // 100)


class DrawnDice:
    """Chance from Hypothesis, so that a failing stream shrinks."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def number(self, low: int, high: int) -> int:
        """Return a number from low to high, both included."""
        return self.draw(st.integers(low, high))


@dataclass
class Stream:
    """Commands of one universe with their times."""

    universe: Universe
    commands: list[list[int]] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        return zip(self.commands, self.times, strict=True)


@st.composite
def streams(draw: st.DrawFn, longest: int = 60) -> Stream:
    """Draw a stream; the twin runs along, so that commands can name orders that exist."""
    stream = Stream(UNIVERSES[draw(st.sampled_from(SMALL))])
    twin = Twin(stream.universe.instrument)
    author = Author(DrawnDice(draw), stream.universe, twin)
    author.time_ns = draw(st.sampled_from([START_NS, 0]))
    pending = author.opening()
    for _ in range(len(pending) + draw(st.integers(1, longest))):
        stream.times.append(author.pass_time())
        stream.commands.append(pending.pop(0) if pending else author.command())
        author.watch(twin.apply(stream.commands[-1], stream.times[-1]))
    return stream
