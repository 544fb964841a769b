"""What the risk service knows of engines, from their feeds, and what it shows of it."""

from uuid import UUID

import pytest

from exchange import records
from exchange.enums import Asset, Side
from riskd.allotments import Allotments
from riskd.funds import exposure
from riskd.funds.holdings import FeedTrouble, Holdings
from riskd.funds.moves import Policy, Want
from tests.simulation.instant import BTC, ETH, allotted_row, world_with
from tests.simulation.processes import PAIRS

QUOTE = Asset.QUOTE


def test_holdings_survive_being_stored() -> None:
    world = world_with(1_000)
    world.get(1, BTC, QUOTE, 900)
    world.order(1, BTC, Side.BUY, 10, 3)
    item = world.machine.holdings[BTC]
    found = Holdings.load(item.instrument, item.dump())
    assert (found.cursor, found.transfer_number) == (item.cursor, item.transfer_number)
    for field in ("total", "free", "certainty", "active_ns", "allotted_ns"):
        assert (getattr(found, field) == getattr(item, field)).all(), field


def test_holdings_of_an_unknown_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    item = Holdings(PAIRS[0])
    monkeypatch.setattr("riskd.funds.holdings.SNAPSHOT_VERSION", 9)
    stored = item.dump()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version 9"):
        Holdings.load(PAIRS[0], stored)


def test_a_gap_in_the_feed_and_money_that_does_not_add_up_stop_the_reading() -> None:
    row = allotted_row()
    machine = Allotments([Holdings(PAIRS[0])], Policy(), lambda: UUID(int=1))
    with pytest.raises(FeedTrouble, match="execution 1 came instead of 0"):
        machine.facts(BTC, 1, row)
    row[0, records.E_FREE] = 101
    with pytest.raises(FeedTrouble, match="leaves account 1 with 101 units"):
        machine.facts(BTC, 0, row)


# Views.


def test_exposure_counts_what_is_there_and_what_is_on_its_way() -> None:
    world = world_with(1_000)
    world.trading[2, "USDT"] = 50
    world.get(1, BTC, QUOTE, 300)
    world.get(2, ETH, QUOTE, 50)
    world.want(1, ETH, QUOTE, 200)
    for step in world.machine.steps(world.now_ns):
        world.take(step)
    (instruct,) = world.machine.steps(world.now_ns)
    assert exposure.in_flight(world.machine, 1, ETH, QUOTE) == 0
    world.take(instruct)
    assert exposure.in_flight(world.machine, 1, ETH, QUOTE) == 200
    assert exposure.exposure(world.machine, 1, "USDT") == 500
    assert exposure.exposure(world.machine, 3, "USDT") == 0
    assert exposure.exposure(world.machine, 1 << 20, "USDT") == 0
    assert exposure.total_exposure(world.machine, "USDT") == 550
    assert exposure.position(world.machine, 1, "USDT", 500) == 1_000
    world.settle_down()
    assert exposure.in_flight(world.machine, 1, ETH, QUOTE) == 0
    assert exposure.exposure(world.machine, 1, "USDT") == 500


def test_wants_that_ended_are_handed_out_once() -> None:
    world = world_with(1_000)
    want = world.get(1, BTC, QUOTE, 300)
    ended = [item for item in world.machine.finished if isinstance(item, Want)]
    assert ended == [want]
