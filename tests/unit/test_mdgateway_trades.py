"""Trade and ticker subscribers of one pair, over a segment that a test writes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from exchange import book_layout as layout
from exchange.v1 import market_data_pb2
from mdgateway.feed.protobuf import ProtobufEncoder
from mdgateway.feed.subscriptions import Lagging, Subscription
from mdgateway.feed.trade_subscription import TradeSubscription
from tests.unit.market_data_desk import Desk, ticker, trades
from tests.unit.market_data_writer import INSTRUMENT, Writer

MISSED = market_data_pb2.NOTICE_KIND_MISSED


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.writer.close()


def trades_in(subscription: Subscription, desk: Desk) -> tuple[list[int], list[int]]:
    """Return the numbers of the trades a subscription gives now, and its notices' counts."""
    numbers: list[int] = []
    missed: list[int] = []
    while (message := subscription.take(desk.now_ns)) is not None:
        answer = market_data_pb2.StreamTradesResponse.FromString(message)
        numbers += [trade.trade_number for trade in answer.trades.trades]
        if answer.HasField("notice") and answer.notice.kind == MISSED:
            missed.append(answer.notice.missed_count)
    return numbers, missed


def test_every_trade_comes_once_in_order(desk: Desk) -> None:
    desk.step()
    subscription = trades(desk.publisher, 0)
    seen: list[int] = []
    for number in range(50):
        for _ in range(number % 4):
            desk.writer.trade(1 + number % 2, 100 + number, 1 + number)
        desk.step()
        if number % 5 == 4:
            numbers, missed = trades_in(subscription, desk)
            seen += numbers
            assert not missed
    numbers, _ = trades_in(subscription, desk)
    assert seen + numbers == list(range(1, desk.writer.trade_count + 1))


def test_trades_resume_from_a_number(desk: Desk) -> None:
    for _ in range(10):
        desk.writer.trade(1, 100, 1)
    desk.step()
    assert trades_in(trades(desk.publisher, 4), desk) == ([4, 5, 6, 7, 8, 9, 10], [])
    ahead = trades(desk.publisher, 13)
    assert trades_in(ahead, desk) == ([], [])
    for _ in range(4):
        desk.writer.trade(1, 100, 1)
    desk.step()
    assert trades_in(ahead, desk) == ([13, 14], [])
    with pytest.raises(Lagging):
        trades_in(trades(desk.publisher, 1_000_000), desk)


def test_a_trade_has_what_the_event_had(desk: Desk) -> None:
    desk.step()
    subscription = trades(desk.publisher, 0)
    trades_in(subscription, desk)
    desk.writer.trade(2, 6_400_010 % (1 << 16), 12_345)
    desk.step()
    message = subscription.take(desk.now_ns)
    assert message is not None
    trade = market_data_pb2.StreamTradesResponse.FromString(message).trades.trades[0]
    assert trade.price_ticks == 6_400_010 % (1 << 16)
    assert trade.price == f"{trade.price_ticks // 100}.{trade.price_ticks % 100:02d}"
    assert (trade.quantity_lots, trade.quantity) == (12_345, "0.12345")
    assert (trade.taker_side, trade.sequence) == (2, desk.writer.sequence)


def test_a_subscriber_behind_the_log_is_told_where_to_resume(tmp_path: Path) -> None:
    desk = Desk(tmp_path, trade_capacity=64)
    try:
        desk.step()
        subscription = trades(desk.publisher, 0)
        trades_in(subscription, desk)
        for _ in range(200):
            desk.writer.trade(1, 100, 1)
        desk.step()
        with pytest.raises(Lagging) as caught:
            trades_in(subscription, desk)
        assert (caught.value.resume_from, caught.value.oldest) == (1, 137)
        numbers, missed = trades_in(trades(desk.publisher, 1), desk)
        assert (numbers, missed) == (list(range(137, 201)), [136])
    finally:
        desk.writer.close()


def test_trades_lost_by_the_server_are_counted(desk: Desk) -> None:
    desk.writer.trade(1, 100, 1)
    desk.step()
    subscription = trades(desk.publisher, 1)
    assert trades_in(subscription, desk) == ([1], [])
    for _ in range(2 * INSTRUMENT.event_capacity):
        desk.writer.trade(1, 100, 1)
    desk.step()
    numbers, missed = trades_in(subscription, desk)
    # The server's own notice counts events, the stream's counts its trades.
    assert numbers[-1] == desk.writer.trade_count
    assert missed[-1] + len(numbers) == desk.writer.trade_count - 1
    assert numbers == list(range(numbers[0], numbers[-1] + 1))


def test_the_ticker_is_the_newest_only(desk: Desk) -> None:
    desk.level(1, 100, 5)
    desk.level(2, 110, 6)
    desk.step()
    subscription = ticker(desk.publisher)
    for lots in range(1, 4):
        desk.writer.trade(1, 110, lots)
        desk.step()
    message = subscription.take(desk.now_ns)
    assert message is not None
    told = market_data_pb2.StreamTickerResponse.FromString(message).ticker
    assert (told.best_bid.price, told.best_ask.price) == ("1.00", "1.10")
    assert (told.best_bid.quantity_lots, told.best_ask.quantity_lots) == (5, 6)
    assert (told.last_trade.trade_number, told.last_trade.quantity_lots) == (3, 3)
    assert (told.volume_24h_lots, told.volume_24h) == (6, "0.00006")
    assert told.turnover_24h == "0.00006600"
    assert told.trade_count == told.trade_count_24h == 3
    prices = (told.open_24h, told.high_24h, told.low_24h, told.vwap_24h, told.change_24h_ticks)
    assert prices == ("1.10", "1.10", "1.10", "1.10", 0)
    assert told.engine_state == layout.STATE_READY + 1
    assert subscription.take(desk.now_ns) is None


def begun_anew(subscription: Subscription, desk: Desk) -> tuple[int, list[int]]:
    """Return the first trade that a notice names, and the numbers of the trades after it."""
    restarted = market_data_pb2.NOTICE_KIND_ENGINE_RESTARTED
    notice = market_data_pb2.Notice(kind=restarted)
    while notice.kind == restarted:
        message = subscription.take(desk.now_ns)
        assert message is not None
        notice = market_data_pb2.StreamTradesResponse.FromString(message).notice
    assert notice.kind == market_data_pb2.NOTICE_KIND_TRADES_RESTARTED
    return notice.next_trade_number, trades_in(subscription, desk)[0]


@pytest.mark.parametrize("held_number", [3, 8])
def test_what_is_held_of_another_history_is_not_gone_on_with(desk: Desk, held_number: int) -> None:
    times = {}
    for number in range(1, 6):
        desk.step()
        desk.writer.trade(1, 100, 1)
        times[number] = desk.writer.time_ns
    desk.step()
    # A trade of the same number, or of one that has not happened, from before this history.
    strange = times[1] - 1
    stranger = TradeSubscription(desk.publisher, ProtobufEncoder, held_number + 1, strange)
    assert begun_anew(stranger, desk) == (1, [1, 2, 3, 4, 5])
    known = TradeSubscription(desk.publisher, ProtobufEncoder, 4, times[3])
    assert trades_in(known, desk) == ([4, 5], [])
    # Another gateway was quicker by two trades.
    ahead = TradeSubscription(desk.publisher, ProtobufEncoder, 8, times[5] + 30_000_000)
    assert trades_in(ahead, desk) == ([], [])
    for _ in range(3):
        desk.step()
        desk.writer.trade(1, 100, 1)
    desk.step()
    assert trades_in(ahead, desk) == ([8], [])


def test_who_waits_for_a_trade_of_another_history_hears_of_it_with_the_first_trade(
    desk: Desk,
) -> None:
    desk.step()
    held_ns = desk.writer.time_ns
    waiting = TradeSubscription(desk.publisher, ProtobufEncoder, 51, held_ns)
    assert trades_in(waiting, desk) == ([], [])
    desk.step()
    desk.writer.trade(1, 100, 1)
    desk.step()
    assert begun_anew(waiting, desk) == (1, [1])


def test_a_history_that_begins_under_a_stream_is_told(desk: Desk, tmp_path: Path) -> None:
    for _ in range(5):
        desk.writer.trade(1, 100, 1)
    desk.step()
    follower = trades(desk.publisher, 1)
    assert trades_in(follower, desk)[0] == [1, 2, 3, 4, 5]
    place = follower.place()
    desk.writer.close()
    desk.writer = Writer(tmp_path)
    desk.step()
    assert begun_anew(follower, desk) == (1, [])
    desk.step()
    desk.writer.trade(1, 100, 1)
    desk.step()
    assert trades_in(follower, desk)[0] == [1]
    # So does who was too slow to hear of it, and goes on from the place held for it.
    assert isinstance(place, tuple)
    slow = TradeSubscription(desk.publisher, ProtobufEncoder, *place)
    assert begun_anew(slow, desk) == (1, [1])
