"""What one subscriber holds and is told next: a few numbers, whatever it does or does not read.

``take`` returns the next message, or None while there is nothing to say. Nothing is queued: a
subscriber that comes back late gets the newest value of what changed (depth, ticker), or as many
trades as the log still has. Encoded messages are shared by all who hold the same position.
"""

from typing import Final

from exchange.v1 import market_data_pb2
from mdgateway.feed import messages
from mdgateway.feed.messages import StreamMessage
from mdgateway.feed.publisher import WHOLE, Publisher

TRADES_PER_MESSAGE: Final = 500


class Lagging(Exception):
    """A subscriber wants what is no longer there; it may come again at `resume_from`."""

    def __init__(self, resume_from: int, oldest: int) -> None:
        super().__init__(f"{resume_from} is no longer kept; the oldest is {oldest}")
        self.resume_from = resume_from
        self.oldest = oldest


class Subscription:
    """What all streams share: notices first, then content, a heartbeat in silence."""

    kind: StreamMessage

    def __init__(self, publisher: Publisher, interval_ns: int) -> None:
        self.publisher = publisher
        self._interval_ns = interval_ns
        self._heartbeat_ns = publisher.config.heartbeat_ms * 1_000_000
        self._notice_number = publisher.notice_count
        self._greeting = publisher.present_notice()
        self._sent_ns = 0
        self._time_ns = 0
        self._content_ns = 0

    def take(self, now_ns: int, time_ns: int) -> bytes | None:
        """Return the next message; `now_ns` is monotonic, `time_ns` of the wall clock."""
        self._time_ns = time_ns
        message = self._notice()
        if message is None and now_ns - self._content_ns >= self._interval_ns:
            message = self._content()
            if message is not None:
                self._content_ns = now_ns
        if message is None and now_ns - self._sent_ns >= self._heartbeat_ns:
            message = messages.heartbeat(self.kind, time_ns, self._position())
        if message is not None:
            self._sent_ns = now_ns
        return message

    def close(self) -> None:
        """Give back what is shared."""

    def goodbye(self, reason: str) -> bytes:
        """Return the stream's last message."""
        return messages.goodbye(self.kind, reason, 0)

    def _content(self) -> bytes | None:
        raise NotImplementedError

    def _position(self) -> int:
        return self.publisher.sequence

    def _notice(self) -> bytes | None:
        if self._greeting is not None:
            content, self._greeting = self._greeting, None
            return messages.notice(self.kind, content)
        if self._notice_number == self.publisher.notice_count:
            return None
        for number, content in self.publisher.notices:
            if number > self._notice_number:
                self._notice_number = number
                return messages.notice(self.kind, content)
        raise AssertionError("a counted notice is kept")


class DepthSubscription(Subscription):
    """A snapshot, then updates that name their predecessor."""

    kind = market_data_pb2.StreamDepthResponse

    def __init__(self, publisher: Publisher, level_count: int, interval_ns: int = 0) -> None:
        super().__init__(publisher, interval_ns)
        self._channel = publisher.acquire_channel(level_count)
        self._generation = WHOLE
        self._sequence = 0

    def close(self) -> None:
        """Give the shared view back."""
        self.publisher.release_channel(self._channel)

    def _content(self) -> bytes | None:
        view, publisher = self._channel.view, self.publisher
        if not publisher.ready or self._generation == view.generation:
            return None
        held = self._generation
        if held < view.oldest_generation:
            held = WHOLE
        message = self._channel.encoded.get(held)
        if message is None:
            message = self._channel.encoded[held] = self._encode(held)
        self._generation, self._sequence = view.generation, view.sequence
        return message

    def _encode(self, held: int) -> bytes:
        view, publisher = self._channel.view, self.publisher
        place = publisher.epoch, view.sequence, publisher.time_ns
        if held == WHOLE:
            return publisher.encoder.snapshot(*place, *view.levels())
        changes = view.since(held)
        assert changes is not None, "the caller looked at the oldest generation"
        epoch, sequence, time_ns = place
        return publisher.encoder.update(epoch, self._sequence, sequence, time_ns, changes)


class TradeSubscription(Subscription):
    """Every trade in order of its number; who falls behind the log is told to come again.

    A number a little ahead is waited for: another gateway may have been quicker by a tick.
    """

    kind = market_data_pb2.StreamTradesResponse

    def __init__(self, publisher: Publisher, from_trade_number: int) -> None:
        super().__init__(publisher, 0)
        self._next = from_trade_number
        if not from_trade_number and publisher.ready:
            self._next = publisher.trade_log.newest + 1
        self._history = publisher.history
        self._started = False

    def goodbye(self, reason: str) -> bytes:
        """Return the stream's last message: where to go on with another server."""
        return messages.goodbye(self.kind, reason, self._next)

    def _position(self) -> int:
        return max(0, self._next - 1)

    def _content(self) -> bytes | None:
        publisher, log = self.publisher, self.publisher.trade_log
        if not publisher.ready:
            return None
        if not self._started:
            self._started = True
            self._next = self._next or log.newest + 1
            if self._next > log.newest + log.capacity:
                raise Lagging(self._next, log.oldest)
            if self._next < log.oldest:
                return self._missed(log.oldest)
        if self._history != publisher.history:
            # Another history, with fewer trades, took the place of the one that was told.
            self._history = publisher.history
            self._next = min(self._next, log.newest + 1)
        if self._next < log.first_after_hole:
            return self._missed(max(log.first_after_hole, log.oldest))
        if self._next < log.oldest:
            raise Lagging(self._next, log.oldest)
        if self._next > log.newest:
            return None
        end = min(log.newest, self._next + TRADES_PER_MESSAGE - 1)
        key = (publisher.epoch, self._next, end)
        message = publisher.encoded_trades.get(key)
        if message is None:
            rows = log.since(self._next, TRADES_PER_MESSAGE)
            message = publisher.encoder.trades(publisher.epoch, rows)
            publisher.encoded_trades[key] = message
        self._next = end + 1
        return message

    def _missed(self, upto: int) -> bytes:
        count, self._next = upto - self._next, upto
        content = self.publisher.missed_notice(count, f"{count} trades are no longer kept")
        return messages.notice(self.kind, content)


class TickerSubscription(Subscription):
    """The whole ticker whenever it changed."""

    kind = market_data_pb2.StreamTickerResponse

    def __init__(self, publisher: Publisher, interval_ns: int) -> None:
        super().__init__(publisher, interval_ns)
        self._revision = -1

    def _content(self) -> bytes | None:
        if self._revision == self.publisher.revision or self.publisher.touch is None:
            return None
        self._revision = self.publisher.revision
        return self.publisher.encoded_ticker(self._time_ns)
