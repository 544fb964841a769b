"""Who is told what: connections in groups, one write for each connection and tick.

Connections with the same feeds and the same kind of frames form a group. After each step of the
market the feeds that have something to say are asked once; what a group is told is joined once and
written to each of its members. So a tick costs one joining a group and one write a connection.

A connection stands to each of its feeds in one of three ways:

    live       it is told what everybody is told
    joining    it has a source of its own until the feed speaks the next time
    held       it is told nothing; what it was told last is remembered

A connection whose client does not read is full: it holds all it was live with. Nothing is queued
for it, so it costs what its transport's limit allows and a few numbers. When its transport is empty
again it joins what has spoken since and is at once live with what has not.

All of it runs in the one thread of the event loop. A pump writes while it walks over members, and a
write may fill a transport; so what follows from fullness is done after the walk.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Final, NamedTuple, Protocol

from exchange.refusal import Code, Refusal, Refused
from mdgateway.feed.market import Market
from mdgateway.feed.records import Place
from mdgateway.feed.requests import lagging
from mdgateway.feed.subscriptions import Lagging
from mdgateway.http.json_format import dumps
from mdgateway.http.stream.feeds import PAIR, Feed, FeedKey, Source
from mdgateway.http.stream.frames import Framed
from mdgateway.http.stream.requests import Spec, Subscribe, Unsubscribe
from mdgateway.keys.admission import Visitor

NOT_TOLD: Final = -1

log = logging.getLogger(__name__)

SubscriptionName = tuple[str, str, int]
"""Channel, pair and, for candles, the interval: a connection has one subscription of each name."""


class Transport(Protocol):
    """Where bytes go."""

    def write(self, data: bytes) -> None:
        """Take bytes without waiting."""

    def is_closing(self) -> bool:
        """Return whether it takes no more."""


class Socket(Protocol):
    """What knows whether the WebSocket was closed, by whichever side."""

    @property
    def closed(self) -> bool:
        """Whether a close frame was sent: nothing may follow it."""


class Held(NamedTuple):
    """What a connection knows of a feed that tells it nothing now."""

    beats: int
    """The feed's beats when the connection was told last; NOT_TOLD: it never was."""
    place: Place | None
    """Where to go on; None: from now."""


class Group:
    """Connections that are told the same."""

    __slots__ = ("feeds", "members", "window")

    def __init__(self, feeds: frozenset[Feed], window: int) -> None:
        self.feeds = feeds
        self.window = window
        self.members: dict[Member, None] = {}


class Member:
    """One connection and what it is told."""

    def __init__(
        self,
        transport: Transport,
        socket: Socket,
        window: int,
        visitor: Visitor,
        end: Callable[[int, str], None],
        now_ns: int,
    ) -> None:
        self.transport = transport
        self.socket = socket
        self.window = window
        """Deflate window of its frames; 0: none."""
        self.visitor = visitor
        self.end = end
        """Closes the connection with a code and its name."""
        self.opened_ns = now_ns
        self.full_since_ns = 0
        """Since when nothing is told to it; 0: it is told."""
        self.ending = False
        self.subscribed = False
        """Whether it ever subscribed to anything."""
        self.changed = asyncio.Event()
        """Wakes who waits for `is_full` to end."""
        self.subscriptions: dict[SubscriptionName, Feed] = {}
        self.lines: Counter[str] = Counter()
        """Subscriptions by pair: each pair's heartbeat and notices are told once."""
        self.live: set[Feed] = set()
        self.joining: dict[Feed, Source] = {}
        self.held: dict[Feed, Held] = {}
        self.group: Group | None = None

    @property
    def is_full(self) -> bool:
        """Whether so much waits for the client that it is told nothing more."""
        return self.full_since_ns != 0

    def tell(self, payload: bytes) -> None:
        """Write one message to this connection only."""
        self.write(Framed(payload).frame(self.window))

    def write(self, data: bytes) -> None:
        """Write frames, unless the connection is ending."""
        if not (self.ending or self.socket.closed or self.transport.is_closing()):
            self.transport.write(data)


class Hub:
    """All connections of a process and what they are told."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.members: dict[Member, None] = {}
        self.written_bytes = 0
        """Bytes that pumps handed to transports."""
        self._feeds: dict[FeedKey, Feed] = {}
        self._by_pair: dict[str, list[Feed]] = {pair: [] for pair in market.publications}
        self._groups: dict[tuple[frozenset[Feed], int], Group] = {}
        self._groups_of: dict[Feed, set[Group]] = {}
        self._joining: dict[Feed, dict[Member, None]] = {}
        self._pumping = False
        self._filled: dict[Member, None] = {}
        self._gone = False
        market.listeners.append(self.pump)

    # What connections do.

    def enter(self, member: Member) -> None:
        """Take a connection in."""
        self.members[member] = None

    def leave(self, member: Member) -> None:
        """Forget a connection and all it had."""
        member.ending = True
        self.members.pop(member, None)
        self._filled.pop(member, None)
        for name in list(member.subscriptions):
            self._drop(member, name)
        self._regroup(member)

    def subscribe(self, member: Member, request: Subscribe, answer: bytes) -> None:
        """Do a request and tell the answer before any content; raises Refused and does nothing."""
        spec = request.spec
        names = [_name(spec, pair) for pair in request.pairs]
        limit = member.visitor.tier.subscription_limit
        count = len(member.subscriptions.keys() | set(names))
        if count > limit:
            raise Refused(_too_many(count, limit, member.visitor))
        feeds = self._obtain([FeedKey(pair, spec) for pair in request.pairs])
        member.subscribed = True
        member.tell(answer)
        # A pair's line lives on when its only subscription is replaced by another.
        lines = [pair for pair in request.pairs if member.lines[pair]]
        member.lines.update(lines)
        for name, pair, feed in zip(names, request.pairs, feeds, strict=True):
            # Taken before the old one is given up, so that one feed for both lives on.
            feed.user_count += 1
            if name in member.subscriptions:
                self._drop(member, name)
            self._add(member, name, pair, feed, request.place)
        member.lines.subtract(lines)
        self._catch_up(member)

    def unsubscribe(self, member: Member, request: Unsubscribe, answer: bytes) -> None:
        """Do a request; raises Refused, and does nothing, for what was never subscribed to."""
        names = [(request.channel, pair, request.detail) for pair in request.pairs]
        for name in names:
            if name not in member.subscriptions:
                limit = f"a pair with a subscription of {request.channel}"
                raise Refused(Refusal.of_field("NOT_SUBSCRIBED", "pair", name[1], limit))
        for name in names:
            self._drop(member, name)
        self._regroup(member)
        member.tell(answer)

    def filled(self, member: Member) -> None:
        """Hear that so much waits for a client that it is to be told nothing more."""
        if member in self.members and not member.is_full:
            member.full_since_ns = time.monotonic_ns()
            member.changed.clear()
            self._filled[member] = None
            if not self._pumping:
                self._settle()

    def emptied(self, member: Member) -> None:
        """Hear that nearly all of it is gone."""
        if member in self.members and member.is_full:
            member.full_since_ns = 0
            member.changed.set()
            self._catch_up(member)

    # What the market does.

    def pump(self, pairs: Collection[str]) -> None:
        """Tell every connection what is new of these pairs; a listener of the market."""
        if self.market.stopping:
            self._goodbye()
            return
        now_ns = time.monotonic_ns()
        self._pumping = True
        try:
            told: dict[Group, list[Framed]] = {}
            spoken: list[Feed] = []
            lagged: list[tuple[Feed, Lagging]] = []
            for feed in [feed for pair in pairs for feed in self._by_pair[pair]]:
                try:
                    parts = feed.beat(now_ns)
                except Lagging as error:
                    lagged.append((feed, error))
                    continue
                if parts:
                    spoken.append(feed)
                    for group in self._groups_of.get(feed, ()):
                        told.setdefault(group, []).extend(parts)
            self._write(told)
            self._join(spoken, now_ns)
            self._end_lagged(lagged)
        except Exception:
            # The market must go on stepping for all other doors.
            log.exception("telling connections failed")
        finally:
            self._pumping = False
        self._settle()

    def _write(self, told: dict[Group, list[Framed]]) -> None:
        for group, parts in told.items():
            data = b"".join([part.frame(group.window) for part in parts])
            self.written_bytes += len(data) * len(group.members)
            for member in group.members:
                member.write(data)

    def _end_lagged(self, lagged: Iterable[tuple[Feed, Lagging]]) -> None:
        """End feeds of trades that the gateway itself could not follow."""
        for feed, error in lagged:
            for member in [one for one in self.members if feed in one.live]:
                self._end_subscription(member, feed, error)
            if feed.user_count:
                feed.renew()

    def _join(self, spoken: Iterable[Feed], now_ns: int) -> None:
        moved: dict[Member, None] = {}
        for feed in spoken:
            for member in list(self._joining.get(feed, ())):
                source = member.joining[feed]
                if not self._tell_source(member, feed, source, now_ns):
                    continue
                if source.place() == feed.place():
                    self._stop_joining(member, feed)
                    member.live.add(feed)
                    moved[member] = None
        for member in moved:
            self._regroup(member)

    def _tell_source(self, member: Member, feed: Feed, source: Source, now_ns: int) -> bool:
        """Tell what a source has until the connection is full; return whether it was all."""
        try:
            while not member.is_full:
                message = source.take(now_ns)
                if message is None:
                    return True
                member.tell(message)
        except Lagging as error:
            self._end_subscription(member, feed, error)
        return False

    def _catch_up(self, member: Member) -> None:
        now_ns = time.monotonic_ns()
        for feed, source in list(member.joining.items()):
            self._tell_source(member, feed, source, now_ns)
        for feed, held in list(member.held.items()):
            if member.is_full:
                break
            del member.held[feed]
            if held.beats == feed.beats:
                member.live.add(feed)
                continue
            source = feed.private(held.place)
            if held.beats != NOT_TOLD and not source.follows():
                member.tell(feed.missed())
            member.joining[feed] = source
            self._joining.setdefault(feed, {})[member] = None
            self._tell_source(member, feed, source, now_ns)
        self._regroup(member)

    def _settle(self) -> None:
        """Let every connection that became full hold what it was live with."""
        while self._filled:
            member, _ = self._filled.popitem()
            for feed in sorted(member.live, key=lambda one: one.rank):
                member.held[feed] = Held(feed.beats, feed.place())
            member.live.clear()
            self._regroup(member)

    # Feeds and groups.

    def _obtain(self, keys: Iterable[FeedKey]) -> list[Feed]:
        """Return feeds, the missing ones made; all of them or, when one is refused, none."""
        found: list[Feed] = []
        try:
            for key in keys:
                found.append(self._feed(key))
        except Refused:
            for feed in found:
                self._close_unused(feed)
            raise
        return found

    def _feed(self, key: FeedKey) -> Feed:
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(self.market, key)
            feeds = self._by_pair[key.pair]
            feeds.append(feed)
            feeds.sort(key=lambda one: one.rank)
        return feed

    def _close_unused(self, feed: Feed) -> None:
        if not feed.user_count and self._feeds.pop(feed.key, None) is not None:
            self._by_pair[feed.key.pair].remove(feed)
            feed.close()

    def _add(
        self, member: Member, name: SubscriptionName, pair: str, feed: Feed, place: Place | None
    ) -> None:
        """Give a connection a feed, whose user count was raised, and the pair's line with it."""
        if not member.lines[pair]:
            line = self._feed(FeedKey(pair, Spec(PAIR)))
            line.user_count += 1
            member.held[line] = Held(NOT_TOLD, None)
        member.lines[pair] += 1
        member.subscriptions[name] = feed
        if feed.channel != PAIR:
            member.held[feed] = Held(NOT_TOLD, place)

    def _drop(self, member: Member, name: SubscriptionName) -> None:
        """Take a subscription away; the caller regroups."""
        feed, pair = member.subscriptions.pop(name), name[1]
        if feed.channel != PAIR:
            self._detach(member, feed)
        self._release(feed)
        member.lines[pair] -= 1
        if not member.lines[pair]:
            del member.lines[pair]
            line = self._feeds[FeedKey(pair, Spec(PAIR))]
            self._detach(member, line)
            self._release(line)

    def _detach(self, member: Member, feed: Feed) -> None:
        member.live.discard(feed)
        member.held.pop(feed, None)
        if feed in member.joining:
            self._stop_joining(member, feed)

    def _release(self, feed: Feed) -> None:
        feed.user_count -= 1
        self._close_unused(feed)

    def _stop_joining(self, member: Member, feed: Feed) -> None:
        member.joining.pop(feed).close()
        waiting = self._joining[feed]
        del waiting[member]
        if not waiting:
            del self._joining[feed]

    def _end_subscription(self, member: Member, feed: Feed, error: Lagging) -> None:
        """Tell a connection that one of its subscriptions cannot go on."""
        refusal = lagging(error)
        for name, subscribed in list(member.subscriptions.items()):
            if subscribed is feed:
                self._drop(member, name)
                ended = {"type": "ended", "channel": name[0], "pair": name[1]}
                why = {"reason": refusal.reason, "message": refusal.message}
                member.tell(dumps({**ended, **why, "resume_from": error.resume_from or None}))
        self._regroup(member)

    def _regroup(self, member: Member) -> None:
        """Put a connection into the group of what it is live with."""
        feeds = frozenset() if member.ending else frozenset(member.live)
        before = member.group
        if before is not None:
            if before.feeds == feeds:
                return
            del before.members[member]
            if not before.members:
                del self._groups[before.feeds, before.window]
                for feed in before.feeds:
                    groups = self._groups_of[feed]
                    groups.discard(before)
                    if not groups:
                        del self._groups_of[feed]
            member.group = None
        if not feeds:
            return
        group = self._groups.get((feeds, member.window))
        if group is None:
            group = self._groups[feeds, member.window] = Group(feeds, member.window)
            for feed in feeds:
                self._groups_of.setdefault(feed, set()).add(group)
        group.members[member] = None
        member.group = group

    def say_goodbye(self, member: Member, reason: str) -> None:
        """Tell a connection that it ends, and where to go on."""
        trades, orders = {}, {}
        for (channel, pair, _), feed in member.subscriptions.items():
            place = _place(member, feed)
            if channel == "trades":
                trades[pair] = place[0] if isinstance(place, tuple) else place
            elif channel == "orders" and isinstance(place, tuple) and place[0]:
                orders[pair] = {"held_epoch": place[0], "held_position": place[1]}
        goodbye = {"type": "goodbye", "reason": reason, "resume_from": trades}
        member.tell(dumps(goodbye | ({"resume_orders": orders} if orders else {})))

    def _goodbye(self) -> None:
        """Tell every connection, once, that the server stops, and where to go on elsewhere."""
        if self._gone:
            return
        self._gone = True
        for member in list(self.members):
            self.say_goodbye(member, "DRAINING")
            member.end(1001, "DRAINING")
            self.leave(member)


def _place(member: Member, feed: Feed) -> Place:
    if feed in member.joining:
        return member.joining[feed].place()
    held = member.held.get(feed)
    return feed.place() if held is None else held.place or feed.place()


def _name(spec: Spec, pair: str) -> SubscriptionName:
    return spec.channel, pair, spec.detail if spec.channel == "candles" else 0


def _too_many(count: int, limit: int, visitor: Visitor) -> Refusal:
    return Refusal(
        Code.RESOURCE_EXHAUSTED,
        "SUBSCRIPTION_LIMIT",
        f"the connection would have {count} subscriptions; the tier {visitor.tier.name} has"
        f" at most {limit}",
        "pairs",
        str(count),
        str(limit),
    )
