"""What one subscriber holds and is told next: a few numbers, whatever it does or does not read.

The interface of all doors:

    market.open(pair, lambda publication: DepthSubscription(publication, Format, 20))
    subscription.take(now_ns) -> bytes | None     the next message; None: nothing to say now
    subscription.goodbye(reason) -> bytes         the last message of a stream the server ends
    subscription.restart()                        start anew, as after a message that was lost
    market.close(subscription)

``take`` is called until it returns None, then again after the market's next waking. Nothing is
queued: a subscriber that comes back late gets the newest value of what changed (depth, ticker,
status, candles), or as many trades as the log still has; when those it needs are gone ``take``
raises ``Lagging``, which names the number to come again with. Messages are those of the format
given, encoded once for all who hold the same position.

Order of what is said: notices, then content, then a heartbeat in silence.
"""

from collections.abc import Callable, Hashable
from typing import Final

from mdgateway.book.orders import EVENT_POSITION
from mdgateway.feed.candles import Candle, CandleSource, Interval
from mdgateway.feed.order_log import ROWS_PER_PART, OrderLog, OrderSnapshot
from mdgateway.feed.publication import Publication
from mdgateway.feed.records import (
    CandleRun,
    Channel,
    DepthSnapshot,
    DepthUpdate,
    Format,
    Goodbye,
    Heartbeat,
    OrderPart,
    OrderRun,
    Place,
    Record,
    Topic,
)

EVENTS_PER_MESSAGE: Final = 1_000
CANDLES_PER_SNAPSHOT: Final = 300
WHOLE: Final = -1
"""The generation of a subscriber that holds nothing."""


class Lagging(Exception):
    """A subscriber wants what is no longer there; it may come again at `resume_from`."""

    def __init__(self, resume_from: int, oldest: int, what: str = "trade") -> None:
        super().__init__(f"{what} {resume_from} is no longer kept; the oldest is {oldest}")
        self.resume_from = resume_from
        self.oldest = oldest
        self.what = what


class Subscription:
    """What all streams share: notices first, then content, a heartbeat in silence."""

    def __init__(
        self,
        publication: Publication,
        format_: Format,
        channel: Channel,
        detail: int = 0,
        interval_ns: int = 0,
    ) -> None:
        self.publication = publication
        self.topic = Topic(channel, publication.pair, detail)
        self.heartbeat_ns = publication.config.heartbeat_ms * 1_000_000
        """How long the stream may be silent; zero: for ever, for doors that beat themselves."""
        self.tells_notices = True
        """False: for doors that tell a pair's notices once for many subscriptions."""
        self._format = format_
        self._interval_ns = interval_ns
        self._notice_number = publication.notice_count
        self._greeting = publication.present_notice()
        self._sent_ns = 0
        self._content_ns = 0

    def take(self, now_ns: int) -> bytes | None:
        """Return the next message, or None; `now_ns` is of the monotonic clock."""
        message = self._notice() if self.tells_notices else None
        if message is None and now_ns - self._content_ns >= self._interval_ns:
            message = self._content()
            if message is not None:
                self._content_ns = now_ns
        if message is None and self.heartbeat_ns and now_ns - self._sent_ns >= self.heartbeat_ns:
            message = self._heartbeat()
        if message is not None:
            self._sent_ns = now_ns
        return message

    def restart(self) -> None:
        """Forget what the subscriber holds: what comes next stands by itself."""

    def close(self) -> None:
        """Give back what is shared."""

    def goodbye(self, reason: str) -> bytes:
        """Return the stream's last message."""
        return self._encode(Goodbye(reason, self.resume_from()))

    def resume_from(self) -> int:
        """Return where to go on with another server; zero: there is nothing to resume."""
        return 0

    def place(self) -> Place:
        """Return what a subscription is made with to go on from here, if it can be."""
        return self.resume_from()

    def follows(self) -> bool:
        """Say whether what comes first follows the place that this was made with."""
        return False

    def _content(self) -> bytes | None:
        raise NotImplementedError

    def _position(self) -> int:
        return self.publication.sequence

    def _encode(self, record: Record) -> bytes:
        """Encode what is only for this subscriber."""
        return self.publication.encoder(self._format).encode(self.topic, record)

    def _shared(self, key: Hashable, make: Callable[[], Record]) -> bytes:
        return self.publication.encoded(self._format, self.topic, key, make)

    def _heartbeat(self) -> bytes:
        time_ns, position = self.publication.wall_ns, self._position()
        return self._shared(("heartbeat", position), lambda: Heartbeat(time_ns, position))

    def _notice(self) -> bytes | None:
        if self._greeting is not None:
            content, self._greeting = self._greeting, None
            return self._encode(content)
        if self._notice_number == self.publication.notice_count:
            return None
        held = self._notice_number
        notice = next(one for one in self.publication.notices if one.number > held)
        self._notice_number = notice.number
        return self._shared(("notice", notice.number), lambda: notice.content)


class DepthSubscription(Subscription):
    """A snapshot, then updates that name their predecessor; or only snapshots.

    `held` is (epoch, sequence) of the snapshot or update a returning subscriber took last: if the
    view still knows what changed since exactly then, it goes on with an update.
    """

    def __init__(
        self,
        publication: Publication,
        format_: Format,
        level_count: int,
        interval_ns: int = 0,
        *,
        held: tuple[int, int] | None = None,
        only_snapshots: bool = False,
    ) -> None:
        super().__init__(publication, format_, Channel.DEPTH, level_count, interval_ns)
        self._view = publication.acquire_view(level_count)
        self._only_snapshots = only_snapshots
        self._generation = WHOLE
        self._sequence = 0
        self._follows = False
        if held and publication.ready and held[0] == publication.epoch:
            generation = self._view.generation_of(held[1])
            if generation is not None:
                self._generation, self._sequence = generation, held[1]
                self._follows = True

    def follows(self) -> bool:
        """Say whether the subscriber goes on from what it held."""
        return self._follows

    def restart(self) -> None:
        """Let a snapshot come next."""
        self._generation = WHOLE

    def close(self) -> None:
        """Give the shared view back."""
        self.publication.release_view(self.topic.detail)

    def _content(self) -> bytes | None:
        view = self._view
        if not self.publication.ready or self._generation == view.generation:
            return None
        held = self._generation
        if self._only_snapshots:
            held = WHOLE
        elif held < view.oldest_generation:
            kept = self.publication.kept_snapshot(
                self._format, self.topic, view, lambda: self._record(WHOLE)
            )
            self._generation, self._sequence = kept.generation, kept.sequence
            return kept.content
        message = self._shared((view.generation, held), lambda: self._record(held))
        self._generation, self._sequence = view.generation, view.sequence
        return message

    def _record(self, held: int) -> Record:
        view, epoch, time_ns = self._view, self.publication.epoch, self.publication.time_ns
        if held == WHOLE:
            return DepthSnapshot(epoch, view.sequence, time_ns, *view.levels(), view.checksum())
        changes = view.since(held)
        assert changes is not None, "the caller looked at the oldest generation"
        return DepthUpdate(
            epoch,
            self._sequence,
            view.sequence,
            time_ns,
            changes,
            view.checksum(),
            view.generation - held,
        )


class TickerSubscription(Subscription):
    """The whole ticker whenever it changed."""

    def __init__(self, publication: Publication, format_: Format, interval_ns: int = 0) -> None:
        super().__init__(publication, format_, Channel.TICKER, 0, interval_ns)
        self._revision = -1

    def restart(self) -> None:
        """Let the ticker come next."""
        self._revision = -1

    def _content(self) -> bytes | None:
        revision = self.publication.revision
        if self._revision == revision or self.publication.touch is None:
            return None
        self._revision = revision
        return self._shared(revision, self.publication.ticker)


class StatusSubscription(Subscription):
    """The pair's and the engine's status, at once and whenever one of them changed."""

    def __init__(self, publication: Publication, format_: Format) -> None:
        super().__init__(publication, format_, Channel.STATUS)
        self._told: tuple[int, ...] | None = None

    def restart(self) -> None:
        """Let the status come next."""
        self._told = None

    def _content(self) -> bytes | None:
        state = self.publication.pair_state()
        told = (state.epoch, state.status, state.engine_state, state.ready)
        if told == self._told:
            return None
        self._told = told
        return self._shared(("state", state), lambda: state)


class OrderSubscription(Subscription):
    """All orders in parts, then every event of an order; who falls behind is told to come again.

    `held` is (epoch, position) of the event batch a returning subscriber took last. A position a
    little ahead is waited for: another gateway may have been quicker by a tick.
    """

    def __init__(
        self,
        publication: Publication,
        format_: Format,
        *,
        held: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(publication, format_, Channel.ORDERS)
        assert publication.orders is not None, "the door looks whether orders are known"
        self._orders: OrderLog = publication.orders
        self._life = WHOLE
        self._snapshot: OrderSnapshot | None = None
        self._part = 0
        self._index = 0
        self._told_epoch = self._told_position = 0
        self._told_whole = True
        self._held = held

    def restart(self) -> None:
        """Let all orders come next."""
        self._life, self._held = WHOLE, None

    def resume_from(self) -> int:
        """Return the position to resume with."""
        return self._told_position if self._held is None else self._held[1]

    def place(self) -> Place:
        """Return epoch and position of what was told last."""
        return self._held or (self._told_epoch, self._told_position)

    def follows(self) -> bool:
        """Say whether the events after what is held are still there, or still to come."""
        if self._held is None:
            return False
        epoch, position = self._held
        return self._is_awaited(epoch, position) or self._index_after(epoch, position) is not None

    def _content(self) -> bytes | None:
        orders = self._orders
        if not self.publication.ready:
            return None
        if self._held is not None and not self._resume(*self._held):
            return None
        if self._life != orders.life:
            self._snapshot = self.publication.order_snapshot()
            if self._snapshot is None:
                return None
            self._life, self._part = self._snapshot.life, 0
        if self._snapshot is not None:
            return self._next_part(self._snapshot)
        if self._index < orders.oldest:
            oldest = int(orders.since(orders.oldest, 1)[0, EVENT_POSITION])
            raise Lagging(self._told_position, oldest, "event")
        if self._index == orders.next_index and self._told_whole >= orders.is_whole:
            return None
        return self._events(self._index)

    def _position(self) -> int:
        return self._orders.sequence

    def _resume(self, epoch: int, position: int) -> bool:
        """Go on from what is held, or from a snapshot; False: what is held is still to come."""
        if self._is_awaited(epoch, position):
            return False
        self._held = None
        index = self._index_after(epoch, position)
        if index is not None:
            self._life, self._index = self._orders.life, index
            self._told_epoch, self._told_position = epoch, position
            # What was held may have been of a moment within a command.
            self._told_whole = False
        return True

    def _is_awaited(self, epoch: int, position: int) -> bool:
        ahead = position - self._orders.position
        return epoch == self._orders.epoch and 0 < ahead <= self._orders.capacity

    def _index_after(self, epoch: int, position: int) -> int | None:
        return self._orders.index_after(position) if epoch == self._orders.epoch else None

    def _next_part(self, snapshot: OrderSnapshot) -> bytes:
        if not self._orders.holds(snapshot):
            raise Lagging(self._told_position, self._orders.position, "snapshot")
        part, is_last = self._part, self._part == snapshot.part_count - 1
        begin = part * ROWS_PER_PART
        end = begin + ROWS_PER_PART
        place = snapshot.epoch, snapshot.sequence, snapshot.position
        known, unknown = snapshot.orders
        message = self._shared(
            ("part", snapshot.life, snapshot.position, part),
            lambda: OrderPart(*place, part, is_last, known[begin:end], unknown[begin:end]),
        )
        self._part += 1
        if is_last:
            self._snapshot = None
            self._index = snapshot.index
            self._told_epoch, self._told_position = snapshot.epoch, snapshot.position
            self._told_whole = True
        return message

    def _events(self, index: int) -> bytes:
        orders, epoch = self._orders, self._orders.epoch
        rows = orders.since(index, EVENTS_PER_MESSAGE)
        end = index + len(rows)
        is_last = end == orders.next_index
        more = not (is_last and orders.is_whole)
        position = orders.position if is_last else int(rows[-1, EVENT_POSITION]) + 1
        previous, self._told_position = self._told_position, position
        self._told_whole = not more
        message = self._shared(
            (orders.life, index, end, previous, more),
            lambda: OrderRun(epoch, previous, position, rows, more),
        )
        self._index = end
        return message


class CandleSubscription(Subscription):
    """The newest candles of an interval, then each that changed, conflated.

    `from_ns`: the first start wanted, for one that returns; zero: the newest that are kept.
    """

    def __init__(
        self,
        publication: Publication,
        format_: Format,
        interval: Interval,
        interval_ns: int = 0,
        *,
        from_ns: int = 0,
    ) -> None:
        super().__init__(publication, format_, Channel.CANDLES, int(interval), interval_ns)
        assert publication.candles is not None, "the door looks whether there are candles"
        self._candles: CandleSource = publication.candles
        self._interval = interval
        self._from_ns = from_ns
        self._revision = -1
        self._history = publication.history
        self._last: Candle | None = None

    def restart(self) -> None:
        """Let a snapshot come next."""
        self._revision = -1

    def _content(self) -> bytes | None:
        publication, candles = self.publication, self._candles
        revision = candles.revision
        if not publication.ready or revision == self._revision:
            return None
        whole = self._revision < 0 or self._history != publication.history
        begin = self._from_ns if whole or self._last is None else self._last.start_ns
        found = candles.recent(self._interval, begin, CANDLES_PER_SNAPSHOT)
        self._revision, self._history = revision, publication.history
        if not whole:
            found = tuple(one for one in found if one != self._last)
            if not found:
                return None
        first = found[0].start_ns if found else 0
        self._last = found[-1] if found else None
        place = publication.epoch, publication.sequence
        return self._shared(
            (publication.history, revision, whole, first),
            lambda: CandleRun(*place, self._interval, found, whole),
        )
