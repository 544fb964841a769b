"""Every scenario through both engines: the kernel and its twin state the facts written in the file.

`HOLDFAST_REWRITE=1 pytest tests/golden` writes what the twin says into the files; the difference
is then for a person to review.
"""

import os
from pathlib import Path

import pytest

from exchange.enums import Asset, CommandKind, ExecutionKind, Side
from exchange.records import C_VERB, E_COMMAND_KIND, E_VERB
from tests.golden.notation import (
    Line,
    Scenario,
    Speaker,
    Words,
    encode,
    read_scenarios,
    small_instrument,
    write_scenarios,
)
from tests.reference.comparison import difference
from tests.reference.drivers import Depth, Driver, Kernel, Twin

FOLDER = Path(__file__).with_name("scenarios")
FILES = sorted(FOLDER.glob("*.txt"))
PLENTY = 1_000_000
REWRITE = os.environ.get("HOLDFAST_REWRITE") == "1"


def catalogue() -> list[object]:
    """Return a parameter for each scenario: file and position."""
    return [
        pytest.param(path, index, id=f"{path.stem}: {scenario.title}")
        for path in FILES
        for index, scenario in enumerate(read_scenarios(path.read_text())[1])
    ]


class Stage:
    """Runs the lines of one scenario through one engine."""

    def __init__(self, make: type[Twin] | type[Kernel]) -> None:
        self.make = make
        self.changes: dict[str, int] = {}
        self.speaker = Speaker()
        self.driver: Driver | None = None
        self.rows: list[list[int]] = []

    def engine(self) -> Driver:
        """Return the engine, made when it is first needed."""
        if self.driver is None:
            self.driver = self.make(small_instrument(**self.changes))
        return self.driver

    def facts(self, text: str) -> list[str]:
        """Return what the engine says to a line."""
        words = Words(text)
        verb = words.next()
        if verb == "pair":
            assert self.driver is None, "the pair is specified before it is used"
            pairs = (word.split("=") for word in words.words)
            self.changes |= {name: Words(value).number() for name, value in pairs}
            return []
        if verb == "accounts":
            for word in words.words:
                self.fund(int(word[1:]))
            return []
        if verb == "book":
            return [show(self.engine().depth())]
        if verb == "funds":
            base, held_base, quote, held_quote = self.engine().funds(self.speaker.account(words))
            return [f"base {base} free, {held_base} held; quote {quote} free, {held_quote} held"]
        if verb == "fees-taken":
            return [str(self.engine().fees_taken())]
        if verb == "repeat":
            count = words.number()
            text = " ".join(words.words)
            told = [self.act(text, watched=False) for _ in range(count - 1)] + [self.act(text)]
            assert all(facts == told[0] for facts in told), f"{text!r} differs between repetitions"
            return told[0]
        return self.act(text)

    def fund(self, account: int) -> None:
        """Open an account with plenty of both assets."""
        for asset in (Asset.BASE, Asset.QUOTE):
            self.speaker.transfer_number += 1
            fields = {
                "kind": CommandKind.ALLOT_FUNDS,
                "account": account,
                "price": asset,
                "quantity": PLENTY,
                "client_order_id": self.speaker.transfer_number,
            }
            self.rows += self.engine().apply(encode(fields))

    def act(self, text: str, watched: bool = True) -> list[str]:
        """Apply a command; a watched one that is refused must leave everything as it was."""
        engine = self.engine()
        before = engine.state() if watched else None
        command = self.speaker.command(text)
        rows = engine.apply(command)
        self.rows += rows
        if not watched:
            return self.speaker.facts(rows)
        engine.check()
        if rows[0][E_VERB] & 0xFF == ExecutionKind.REJECTED:
            assert engine.state() == before, f"{text!r} was refused and changed something"
            refused = rows[0][E_COMMAND_KIND]
            assert refused == command[C_VERB] & 0xFF, f"{text!r} was refused as kind {refused}"
        return self.speaker.facts(rows)


def show(depth: Depth) -> str:
    """Return a book in one line: bids best first, a bar, asks best first."""
    bids, asks = (
        ", ".join(f"{price}: {lots} ({orders})" for price, lots, orders in depth[side])
        for side in (Side.BUY, Side.SELL)
    )
    return f"{bids} | {asks}".strip()


def perform(scenario: Scenario, make: type[Twin] | type[Kernel]) -> tuple[Scenario, Stage]:
    """Return the scenario with the facts an engine states."""
    stage = Stage(make)
    performed = Scenario(scenario.title)
    for line in scenario.lines:
        facts = [] if line.text.startswith("#") else stage.facts(line.text)
        performed.lines.append(Line(line.text, facts))
    return performed, stage


@pytest.mark.parametrize(("path", "index"), catalogue())
def test_scenario(path: Path, index: int) -> None:
    prose, scenarios = read_scenarios(path.read_text())
    told, twin = perform(scenarios[index], Twin)
    if REWRITE:
        scenarios[index] = told
        path.write_text(write_scenarios(prose, scenarios))
    assert told.render() == scenarios[index].render()
    told, kernel = perform(scenarios[index], Kernel)
    assert told.render() == scenarios[index].render()
    if twin.rows != kernel.rows:
        pytest.fail(difference(twin.rows, kernel.rows), pytrace=False)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_file_is_written_as_the_notation_writes_it(path: Path) -> None:
    text = path.read_text()
    assert write_scenarios(*read_scenarios(text)) == text


def test_a_wrong_fact_is_noticed() -> None:
    _, scenarios = read_scenarios(
        "scenario: wrong\n  accounts a1\n  submit a1 buy 5 @ 100 → rejected: price out of range\n"
    )
    told, _ = perform(scenarios[0], Twin)
    assert told.render() != scenarios[0].render()
    assert told.lines[1].facts == ["accepted"]
