"""What the risk service decides about money, one behaviour at a time, with real engines."""

from uuid import UUID

import pytest

from exchange import records
from exchange.enums import Asset, CommandKind, ExecutionKind, Reason, Side
from exchange.instrument import AMOUNT_LIMIT_UNITS
from riskd.funds.holdings import Certainty
from riskd.funds.moves import Instruct, Instruction, Learn, Move, ReadTrading, Send
from riskd.limits import RiskReason
from tests.simulation.instant import (
    BTC,
    ETH,
    FOREVER_NS,
    InstantWorld,
    allotted_row,
    world_with,
)

BASE, QUOTE = Asset.BASE, Asset.QUOTE


def moves(world: InstantWorld) -> list[tuple[str, int, int]]:
    """Return what was instructed, as (pair, kind, units)."""
    return [
        (step.move.pair, int(step.move.kind), step.move.amount_units)
        for step in world.steps_taken
        if isinstance(step, Instruct)
    ]


ALLOT, RELEASE = int(CommandKind.ALLOT_FUNDS), int(CommandKind.RELEASE_FUNDS)


# Shortage.


def test_a_shortage_is_met_from_trading_and_the_money_stays() -> None:
    world = world_with(1_000)
    want = world.get(1, BTC, QUOTE, 300)
    assert (want.done, want.reason) == (True, RiskReason.UNSPECIFIED)
    assert world.in_engine(1, BTC, QUOTE) == (300, 0)
    assert world.trading[1, "USDT"] == 700
    world.steps_taken.clear()
    # The engine says 300 are free: whoever asks for less is told so without a step.
    assert world.get(1, BTC, QUOTE, 300).done
    assert world.steps_taken == []


def test_only_what_is_missing_is_moved() -> None:
    world = world_with(1_000)
    world.get(1, BTC, QUOTE, 300)
    world.get(1, BTC, QUOTE, 500)
    assert moves(world) == [(BTC, ALLOT, 300), (BTC, ALLOT, 200)]


def test_what_open_orders_leave_free_is_looked_at_before_anybody_is_refused() -> None:
    world = world_with(1_000)
    world.get(1, BTC, QUOTE, 700)
    assert world.order(1, BTC, Side.BUY, 3, 10) == 0
    free, held = world.in_engine(1, BTC, QUOTE)
    assert held > 0
    world.steps_taken.clear()
    # Free and trading together have it; either alone does not.
    assert world.get(1, BTC, QUOTE, free + 300).reason == RiskReason.UNSPECIFIED
    assert moves(world) == [(BTC, RELEASE, 1), (BTC, ALLOT, 301)]
    assert world.in_engine(1, BTC, QUOTE) == (free + 300, held)
    # One unit more than there is.
    world.order(1, BTC, Side.BUY, 1, 1)
    free, _ = world.in_engine(1, BTC, QUOTE)
    assert world.get(1, BTC, QUOTE, free + 1).reason == RiskReason.INSUFFICIENT_FUNDS


def test_a_look_at_what_is_free_may_find_enough() -> None:
    world = world_with(700)
    world.get(1, BTC, QUOTE, 700)
    assert world.order(1, BTC, Side.BUY, 3, 10) == 0
    world.cancel_all(1, BTC)
    world.steps_taken.clear()
    assert world.get(1, BTC, QUOTE, 699).reason == RiskReason.UNSPECIFIED
    assert moves(world) == [(BTC, RELEASE, 1)]


def test_a_feed_that_lags_behind_the_shortage_does_not_count_as_knowledge() -> None:
    world = world_with(1_000)
    world.get(1, BTC, QUOTE, 300)
    heard = world.machine.holdings[BTC].cursor
    want = world.machine.want(1, BTC, QUOTE, 300, world.now_ns, FOREVER_NS, after_number=heard)
    assert not want.done
    assert want.amount_units == 300


def test_headroom_is_given_when_trading_has_it_and_limits_allow() -> None:
    world = world_with(1_000, headroom_percent=100)
    world.get(1, BTC, QUOTE, 300)
    assert world.in_engine(1, BTC, QUOTE) == (600, 0)
    world.get(1, BTC, QUOTE, 900)
    assert world.in_engine(1, BTC, QUOTE) == (1_000, 0)
    other = world_with(1_000, headroom_percent=100)
    other.machine.want(1, BTC, QUOTE, 300, other.now_ns, FOREVER_NS, most_units=350)
    other.settle_down()
    assert other.in_engine(1, BTC, QUOTE) == (350, 0)


def test_what_is_asked_while_it_is_under_way_joins_it() -> None:
    world = world_with(1_000)
    first = world.want(1, BTC, QUOTE, 300)
    assert world.want(1, BTC, QUOTE, 200) is first
    assert world.want(1, BTC, QUOTE, 400) is first
    assert first.amount_units == 400
    world = world_with(1_000)
    first = world.want(1, BTC, QUOTE, 300)
    for step in world.machine.steps(world.now_ns):
        world.take(step)
    # The move is with the ledger now: what it covers joins, what exceeds it waits for the rest.
    (instruct,) = world.machine.steps(world.now_ns)
    assert isinstance(instruct, Instruct)
    assert world.want(1, BTC, QUOTE, 300) is first
    second = world.want(1, BTC, QUOTE, 500)
    assert second is not first
    assert second.amount_units == 200
    world.take(instruct)
    world.settle_down()
    assert first.done
    assert second.done
    assert world.in_engine(1, BTC, QUOTE) == (500, 0)


def test_accounts_and_assets_do_not_join() -> None:
    world = world_with(1_000)
    world.trading[2, "USDT"] = 1_000
    world.trading[1, "BTC"] = 10
    wants = [
        world.want(1, BTC, QUOTE, 5),
        world.want(2, BTC, QUOTE, 5),
        world.want(1, BTC, BASE, 5),
    ]
    assert len(set(map(id, wants))) == 3
    world.settle_down()
    assert all(want.done and want.reason == RiskReason.UNSPECIFIED for want in wants)


def test_more_than_there_is_anywhere_is_refused_at_once() -> None:
    world = world_with(1_000)
    world.get(1, ETH, QUOTE, 400)
    want = world.get(1, BTC, QUOTE, 1_001)
    assert (want.done, want.reason) == (True, RiskReason.INSUFFICIENT_FUNDS)
    assert moves(world) == [(ETH, ALLOT, 400)]


def test_the_ledger_knows_better() -> None:
    world = world_with(1_000)
    want = world.want(1, BTC, QUOTE, 800)
    for step in world.machine.steps(world.now_ns):
        world.take(step)
    world.trading[1, "USDT"] = 100
    world.settle_down()
    assert (want.done, want.reason) == (True, RiskReason.INSUFFICIENT_FUNDS)
    assert sum(isinstance(step, ReadTrading) for step in world.steps_taken) == 2
    assert world.told[BTC] == []


def test_a_want_ends_in_time_and_what_is_under_way_goes_on() -> None:
    world = world_with(1_000)
    want = world.machine.want(1, BTC, QUOTE, 300, world.now_ns, world.now_ns + 10)
    for step in world.machine.steps(world.now_ns):
        world.take(step)
    (instruct,) = world.machine.steps(world.now_ns)
    world.now_ns += 10
    assert world.machine.steps(world.now_ns) == []
    assert (want.done, want.reason) == (True, RiskReason.TIMED_OUT)
    world.take(instruct)
    world.settle_down()
    assert world.in_engine(1, BTC, QUOTE) == (300, 0)


def test_more_wants_than_allowed_are_refused() -> None:
    world = world_with(1_000, want_limit=2)
    wants = [world.want(account, BTC, QUOTE, 5) for account in (1, 2, 3)]
    assert [want.done for want in wants] == [False, False, True]


def test_an_engine_that_can_hold_no_more_gives_the_money_back() -> None:
    world = world_with(AMOUNT_LIMIT_UNITS)
    world.trading[2, "USDT"] = 10
    world.get(1, BTC, QUOTE, AMOUNT_LIMIT_UNITS)
    want = world.get(2, BTC, QUOTE, 10)
    assert (want.done, want.reason) == (True, RiskReason.BALANCE_OVERFLOW)
    assert world.trading[2, "USDT"] == 10
    assert world.machine.numbers[BTC].applied == 2


# Recall.


def test_what_is_missing_comes_from_another_pair() -> None:
    world = world_with(1_000)
    world.get(1, BTC, QUOTE, 900)
    want = world.get(1, ETH, QUOTE, 400)
    assert (want.done, want.reason) == (True, RiskReason.UNSPECIFIED)
    assert world.in_engine(1, BTC, QUOTE) == (600, 0)
    assert world.in_engine(1, ETH, QUOTE) == (400, 0)
    assert moves(world)[1:] == [(BTC, RELEASE, 300), (ETH, ALLOT, 400)]


def test_what_orders_hold_is_left_to_them() -> None:
    world = world_with(1_000)
    world.get(1, BTC, QUOTE, 900)
    assert world.order(1, BTC, Side.BUY, 3, 10) == 0
    free, held = world.in_engine(1, BTC, QUOTE)
    assert held > 0
    assert world.machine.holdings[BTC].certainty[1, QUOTE - 1] == Certainty.OPEN
    # Asked for more than is free, the engine says no; nobody else has it.
    want = world.get(1, ETH, QUOTE, free + 400)
    assert (want.done, want.reason) == (True, RiskReason.INSUFFICIENT_FUNDS)
    assert moves(world)[1:] == [(BTC, RELEASE, free + 300)]
    assert world.machine.holdings[BTC].certainty[1, QUOTE - 1] == Certainty.REFUSED
    # From now on one unit is asked for first, to learn what there is.
    assert world.get(1, ETH, QUOTE, 150).reason == RiskReason.UNSPECIFIED
    assert moves(world)[2:] == [(BTC, RELEASE, 1), (BTC, RELEASE, 49), (ETH, ALLOT, 150)]
    assert world.machine.holdings[BTC].certainty[1, QUOTE - 1] == Certainty.EXACT
    assert world.get(1, ETH, QUOTE, free + 101).reason == RiskReason.INSUFFICIENT_FUNDS
    assert world.get(1, ETH, QUOTE, free + 100).reason == RiskReason.UNSPECIFIED
    assert world.in_engine(1, BTC, QUOTE) == (0, held)
    world.cancel_all(1, BTC)
    assert world.get(1, ETH, QUOTE, 1_000).reason == RiskReason.UNSPECIFIED


def test_the_longest_idle_gives_first() -> None:
    world = world_with(0)
    # USDT is the quote of two pairs; the third place it can be is trading itself.
    world.trading[1, "USDT"] = 800
    world.get(1, BTC, QUOTE, 400)
    world.get(1, ETH, QUOTE, 400)
    world.order(1, ETH, Side.BUY, 1, 1)
    world.now_ns += 10
    world.order(1, BTC, Side.BUY, 1, 1)
    world.get(1, "", "USDT", 100)
    assert moves(world)[2:] == [(ETH, RELEASE, 100)]
    assert world.trading[1, "USDT"] == 100


def test_money_that_came_a_moment_ago_stays_a_moment() -> None:
    world = world_with(1_000, sticky_ns=1_000)
    world.get(1, BTC, QUOTE, 1_000)
    want = world.get(1, ETH, QUOTE, 600)
    assert not want.done
    world.pass_time(999)
    assert not want.done
    world.pass_time(1)
    assert (want.done, want.reason) == (True, RiskReason.UNSPECIFIED)


def test_what_was_promised_is_not_taken_away() -> None:
    world = world_with(1_000, ahead_ns=1_000)
    world.machine.set_target(1, BTC, QUOTE, 700)
    world.settle_down()
    assert world.in_engine(1, BTC, QUOTE) == (700, 0)
    assert world.get(1, ETH, QUOTE, 301).reason == RiskReason.INSUFFICIENT_FUNDS
    assert world.get(1, ETH, QUOTE, 300).reason == RiskReason.UNSPECIFIED
    world.machine.set_target(1, BTC, QUOTE, 0)
    assert world.get(1, ETH, QUOTE, 1_000).reason == RiskReason.UNSPECIFIED


def test_what_is_promised_is_topped_up_when_it_is_worth_it() -> None:
    world = world_with(2_000, ahead_ns=1_000)
    world.machine.set_target(1, BTC, QUOTE, 800)
    world.settle_down()
    assert world.machine.recall(1, BTC, QUOTE, 199) is not None
    world.pass_time(1_000)
    assert world.in_engine(1, BTC, QUOTE) == (601, 0)
    assert world.machine.recall(1, BTC, QUOTE, 1) is not None
    world.pass_time(1_000)
    assert world.in_engine(1, BTC, QUOTE) == (800, 0)


def test_a_promise_takes_what_there_is_and_nothing_from_others() -> None:
    world = world_with(500, ahead_ns=1_000)
    world.get(1, ETH, QUOTE, 200)
    world.machine.set_target(1, BTC, QUOTE, 800)
    world.pass_time(1_000)
    assert world.in_engine(1, BTC, QUOTE) == (300, 0)
    assert world.in_engine(1, ETH, QUOTE) == (200, 0)


def test_an_explicit_recall_takes_what_is_free_whoever_was_promised_it() -> None:
    world = world_with(1_000, sticky_ns=1 << 50)
    world.machine.set_target(1, BTC, QUOTE, 500)
    world.settle_down()
    move = world.machine.recall(1, BTC, QUOTE, 600)
    assert move is not None
    world.settle_down()
    assert (move.outcome, move.amount_units) == (ExecutionKind.RELEASED, 500)
    assert world.trading[1, "USDT"] == 1_000
    assert world.machine.recall(1, ETH, QUOTE, 1) is None


def test_money_wanted_in_trading_comes_back_from_wherever_it_is() -> None:
    world = world_with(1_000)
    world.get(1, BTC, QUOTE, 500)
    world.get(1, ETH, QUOTE, 500)
    want = world.get(1, "", "USDT", 800)
    assert (want.done, want.reason) == (True, RiskReason.UNSPECIFIED)
    assert world.trading[1, "USDT"] == 800


# Fairness.


def test_two_pairs_that_want_the_same_money_are_served_in_turn() -> None:
    world = world_with(100)
    served: list[str] = []
    for _ in range(6):
        wants = {pair: world.want(1, pair, QUOTE, 100) for pair in (BTC, ETH)}
        world.settle_down()
        (winner,) = [pair for pair, want in wants.items() if want.reason == RiskReason.UNSPECIFIED]
        assert wants[BTC if winner == ETH else ETH].reason == RiskReason.INSUFFICIENT_FUNDS
        served.append(winner)
        world.get(1, "", "USDT", 100)
    assert served in ([BTC, ETH] * 3, [ETH, BTC] * 3)


def test_a_large_want_is_not_starved_by_small_ones() -> None:
    world = world_with(100, sticky_ns=1_000)
    world.trading[1, "USDT"] = 200
    world.get(1, ETH, QUOTE, 120)
    world.machine.set_target(1, ETH, QUOTE, 0)
    # 80 are in trading; BTC wants 150, and 70 of it have to come back from ETH first.
    large = world.get(1, BTC, QUOTE, 150)
    assert not large.done
    small = world.get(1, "", "USDT", 50)
    assert not small.done, "the 80 wait for who came first, though 50 would do for this one"
    world.pass_time(1_000)
    assert (large.done, large.reason) == (True, RiskReason.UNSPECIFIED)
    assert (small.done, small.reason) == (True, RiskReason.UNSPECIFIED)
    assert world.in_engine(1, BTC, QUOTE) == (150, 0)
    assert world.in_engine(1, ETH, QUOTE) == (0, 0)


# Numbers, lost answers, restarts.


def test_commands_go_out_in_the_order_of_their_numbers_within_the_window() -> None:
    world = world_with(1_000, window=2)
    machine = world.machine
    world.settle_down()
    for number, account in enumerate((4, 3, 2), start=1):
        terms = (CommandKind.ALLOT_FUNDS, account, QUOTE, 10)
        world.told[BTC].append(Instruction(number, *terms, resolved=False))
    world.now_ns += world.policy.relearn_ns
    learns = [step for step in machine.steps(world.now_ns) if isinstance(step, Learn)]
    for step in learns:
        world.take(step)
    sends = [step for step in machine.steps(world.now_ns) if isinstance(step, Send)]
    assert [step.move.number for step in sends] == [1, 2]
    # The second overtakes the first: the engine misses a number, nothing is lost.
    world.send(sends[1])
    assert machine.numbers[BTC].applied == 0
    world.send(sends[0])
    world.settle_down()
    assert machine.numbers[BTC].applied == 3
    assert [world.in_engine(account, BTC, QUOTE)[0] for account in (1, 2, 3, 4)] == [0, 10, 10, 10]


def test_a_lost_answer_of_the_ledger_costs_nothing() -> None:
    world = world_with(1_000)
    want = world.want(1, BTC, QUOTE, 300)
    for step in world.machine.steps(world.now_ns):
        world.take(step)
    (instruct,) = world.machine.steps(world.now_ns)
    assert isinstance(instruct, Instruct)
    world.record(instruct.move)
    world.machine.failed(instruct)
    world.settle_down()
    assert want.done
    assert len(world.told[BTC]) == 1
    assert world.trading[1, "USDT"] == 700


def test_a_lost_command_is_sent_again_and_a_repeated_one_is_nothing() -> None:
    world = world_with(1_000)
    want = world.want(1, BTC, QUOTE, 300)
    for _ in range(2):
        for step in world.machine.steps(world.now_ns):
            world.take(step)
    sends = [step for step in world.machine.steps(world.now_ns) if isinstance(step, Send)]
    assert len(sends) == 1
    assert world.machine.steps(world.now_ns) == []
    world.machine.failed(sends[0])
    world.settle_down()
    assert want.done
    world.send(sends[0])
    assert world.in_engine(1, BTC, QUOTE) == (300, 0)


def test_one_who_knows_nothing_goes_on_with_what_is_open() -> None:
    world = world_with(1_000)
    world.get(1, BTC, QUOTE, 100)
    move = Move(BTC, CommandKind.ALLOT_FUNDS, 1, QUOTE, 300, UUID(int=77))
    world.record(move)
    machine = world.restarted()
    machine.facts(BTC, 0, allotted_row())
    want = world.get(1, BTC, QUOTE, 150)
    # Another 50 were asked for before the 300 of the earlier life were known.
    assert want.done
    assert world.in_engine(1, BTC, QUOTE) == (450, 0)
    assert machine.numbers[BTC].applied == 3
    assert machine.numbers[BTC].moves == {}


def test_an_instruction_that_came_late_is_found_in_time() -> None:
    world = world_with(1_000)
    world.settle_down()
    world.record(Move(BTC, CommandKind.ALLOT_FUNDS, 1, QUOTE, 300, UUID(int=77)))
    world.settle_down()
    assert world.in_engine(1, BTC, QUOTE) == (0, 0)
    world.pass_time(world.policy.relearn_ns)
    assert world.in_engine(1, BTC, QUOTE) == (300, 0)


def test_a_number_before_ours_is_fetched_from_the_ledger() -> None:
    world = world_with(1_000)
    world.settle_down()
    world.record(Move(BTC, CommandKind.ALLOT_FUNDS, 1, QUOTE, 200, UUID(int=77)))
    want = world.get(1, BTC, QUOTE, 300)
    assert want.done
    assert world.in_engine(1, BTC, QUOTE) == (500, 0)


def test_a_refusal_that_the_ledger_knows_nothing_of_is_not_believed_for_long() -> None:
    world = world_with(1_000)
    world.get(1, BTC, QUOTE, 300)
    move = world.machine.recall(1, BTC, QUOTE, 100)
    assert move is not None
    (instruct,) = world.machine.steps(world.now_ns)
    world.take(instruct)
    (send,) = world.machine.steps(world.now_ns)
    assert isinstance(send, Send)
    row = allotted_row()
    row[0, records.E_VERB] = (
        int(ExecutionKind.REJECTED) | int(Reason.INSUFFICIENT_FUNDS) << 8 | 1 << 24 | 1 << 32
    )
    row[0, records.E_TRANSFER_NUMBER] = 2
    row[0, records.E_AMOUNT] = 100
    row[0, records.E_FREE] = 0
    row[0, records.E_COMMAND_KIND] = CommandKind.RELEASE_FUNDS
    # Believed for now: number, account, asset and amount are those of the move that is due.
    item = world.machine.holdings[BTC]
    item.cursor -= 1
    world.machine.facts(BTC, item.cursor, row)
    assert world.machine.numbers[BTC].applied == 2
    follower = world.machine.recall(1, BTC, QUOTE, 50)
    assert follower is not None
    world.settle_down()
    # The next number met a gap; the ledger said that the one before is still open.
    assert world.in_engine(1, BTC, QUOTE) == (150, 0)
    assert world.machine.numbers[BTC].applied == 3


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (records.E_TRANSFER_NUMBER, 3),
        (records.E_AMOUNT, 99),
        (records.E_PRICE, 1),
        # An amendment in all else like the release that is due, as a client may write it.
        (records.E_COMMAND_KIND, int(CommandKind.AMEND_ORDER)),
    ],
)
def test_a_refusal_of_something_else_ends_nothing(column: int, value: int) -> None:
    world = world_with(1_000)
    world.get(1, BTC, QUOTE, 300)
    world.machine.recall(1, BTC, QUOTE, 100)
    (instruct,) = world.machine.steps(world.now_ns)
    world.take(instruct)
    row = allotted_row()
    row[0, records.E_VERB] = int(ExecutionKind.REJECTED) | int(Reason.INSUFFICIENT_FUNDS) << 8
    row[0, records.E_VERB] |= 1 << 32
    row[0, records.E_TRANSFER_NUMBER], row[0, records.E_AMOUNT] = 2, 100
    row[0, records.E_COMMAND_KIND] = CommandKind.RELEASE_FUNDS
    row[0, column] = value
    item = world.machine.holdings[BTC]
    item.cursor -= 1
    world.machine.facts(BTC, item.cursor, row)
    assert world.machine.numbers[BTC].applied == 1
