"""What many connections are told together.

A feed is one subscription of the gateway that stands for all connections that subscribed to the
same: when it has something to say, its message is framed once and written to all of them. A
connection that comes later, or comes back after it was too slow, first has a subscription of its
own, which tells it where things stand at once; as soon as the feed speaks the next time, both have
arrived at the same moment and the connection is one of the many. So nobody waits for an interval
to begin, and no chain of updates breaks.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from mdgateway.feed.candles import Interval
from mdgateway.feed.market import Market
from mdgateway.feed.publication import Publication
from mdgateway.feed.records import Heartbeat, NoticeKind, Place
from mdgateway.feed.requests import candles_of, with_orders
from mdgateway.feed.subscriptions import (
    CandleSubscription,
    DepthSubscription,
    OrderSubscription,
    StatusSubscription,
    Subscription,
    TickerSubscription,
)
from mdgateway.feed.trade_subscription import TradeSubscription
from mdgateway.http.json_format import JsonEncoder, dumps
from mdgateway.http.stream.frames import Framed
from mdgateway.http.stream.requests import Spec
from mdgateway.keys.tiers import CHANNELS

MS_NS: Final = 1_000_000
PAIR: Final = "heartbeat"
"""The channel that everybody of a pair is told: notices and heartbeats."""


class FeedKey(NamedTuple):
    """What a feed is about."""

    pair: str
    spec: Spec


class Source(Protocol):
    """What a feed takes its messages from: a subscription of the gateway."""

    def take(self, now_ns: int) -> bytes | None:
        """Return the next message, or None."""

    def close(self) -> None:
        """Give back what is shared."""

    def place(self) -> Place:
        """Return what a source has to be made with to go on from here."""

    def follows(self) -> bool:
        """Say whether what comes first follows the place that this was made with."""


class PairLine:
    """Notices of one pair and, unless it is for one connection, a heartbeat each second.

    `from_notice`: the number of the newest notice that was told; below zero: begin with what a
    newcomer has to know.
    """

    def __init__(self, publication: Publication, from_notice: int, *, beats: bool) -> None:
        self._publication = publication
        self._encoder = JsonEncoder(publication.instrument)
        self._told = publication.notice_count if from_notice < 0 else from_notice
        self._greeting = publication.present_notice() if from_notice < 0 else None
        self._interval_ns = publication.config.heartbeat_ms * MS_NS if beats else 0
        self._beat_ns = 0
        self._number = 0

    def take(self, now_ns: int) -> bytes | None:
        """Return the next notice, or the heartbeat if it is time."""
        publication = self._publication
        if self._greeting is not None:
            content, self._greeting = self._greeting, None
            return dumps(self._encoder.notice(content))
        for number, content in publication.notices:
            if number > self._told:
                self._told = number
                return dumps(self._encoder.notice(content))
        if not self._interval_ns or now_ns - self._beat_ns < self._interval_ns:
            return None
        self._beat_ns = now_ns
        self._number += 1
        return self._heartbeat(Heartbeat(publication.wall_ns, publication.sequence))

    def place(self) -> Place:
        """Return the number of the newest notice that was told."""
        return self._told

    def follows(self) -> bool:
        """Say yes: no notice is told in the middle of a line."""
        return True

    def close(self) -> None:
        """Do nothing: nothing is shared."""

    def _heartbeat(self, beat: Heartbeat) -> bytes:
        publication = self._publication
        return dumps(
            {
                "type": "heartbeat",
                "pair": publication.pair,
                "number": self._number,
                "epoch": publication.epoch,
                "sequence": beat.position,
                "trade_number": publication.trade_log.newest,
                "time_ns": str(beat.time_ns),
            }
        )


class Feed:
    """One thing that connections are told together."""

    def __init__(self, market: Market, key: FeedKey) -> None:
        self.key = key
        self.rank = -1 if key.spec.channel == PAIR else CHANNELS.index(key.spec.channel)
        """Connections are told of one moment in this order: notices come before content."""
        self.beats = 0
        """How often it spoke: who was there at the last beat has missed nothing."""
        self.user_count = 0
        self._market = market
        self._publication = market.publication(key.pair)
        self._source: Source
        self._close: Callable[[], None]
        self._open()

    @property
    def channel(self) -> str:
        """The channel's name."""
        return self.key.spec.channel

    def beat(self, now_ns: int) -> list[Framed]:
        """Return what there is to say since the last beat; may raise Lagging."""
        parts = take_all(self._source, now_ns)
        if parts:
            self.beats += 1
        return parts

    def place(self) -> Place:
        """Return what `private` has to be given to go on from the last beat."""
        return self._source.place()

    def private(self, place: Place | None) -> Source:
        """Return a source for one connection, from a place, or None: from now."""
        if self.channel == PAIR:
            number = place if isinstance(place, int) else -1
            return PairLine(self._publication, number, beats=False)
        return self._subscription(self._publication, place, hurry=True)

    def missed(self) -> bytes:
        """Return the notice for a connection that was too slow."""
        content = self._publication.missed_notice(0, "too slow: updates were left out; start anew")
        assert content.kind is NoticeKind.MISSED
        return dumps(JsonEncoder(self._publication.instrument).notice(content, self.channel))

    def renew(self) -> None:
        """Begin anew where things stand now, for who is still there."""
        self._close()
        self._open()

    def close(self) -> None:
        """End the feed."""
        self._close()

    def _open(self) -> None:
        market = self._market
        if self.channel == PAIR:
            line = PairLine(self._publication, -1, beats=True)
            self._source, self._close = line, line.close
        else:
            opened = market.open(self.key.pair, self._subscription)
            self._source, self._close = opened, lambda: market.close(opened)

    def _subscription(
        self, publication: Publication, place: Place | None = None, *, hurry: bool = False
    ) -> Subscription:
        spec = self.key.spec
        held = place if isinstance(place, tuple) else None
        interval_ns = 0 if hurry else spec.interval_ms * MS_NS
        made: Subscription
        match spec.channel:
            case "depth":
                made = DepthSubscription(
                    publication,
                    JsonEncoder,
                    spec.detail,
                    interval_ns,
                    held=held,
                    only_snapshots=spec.only_snapshots,
                )
            case "ticker":
                made = TickerSubscription(publication, JsonEncoder, interval_ns)
            case "trades":
                number, time_ns = place if isinstance(place, tuple) else (place or 0, 0)
                made = TradeSubscription(publication, JsonEncoder, number, time_ns)
            case "status":
                made = StatusSubscription(publication, JsonEncoder)
            case "candles":
                candles_of(publication)
                interval = Interval(spec.detail)
                made = CandleSubscription(publication, JsonEncoder, interval, interval_ns)
            case "orders":
                made = OrderSubscription(with_orders(publication), JsonEncoder, held=held)
            case _:
                raise AssertionError(f"{spec.channel} has no subscription of its own")
        made.heartbeat_ns, made.tells_notices = 0, False
        return made


def take_all(source: Source, now_ns: int) -> list[Framed]:
    """Return everything a source has to say now, framed."""
    parts = []
    while (message := source.take(now_ns)) is not None:
        parts.append(Framed(message))
    return parts
