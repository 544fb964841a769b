"""The trades of a pair for one subscriber: each once, and of one history only.

Numbers alone do not say which history they are of, so a subscriber that returns names the time of
its last trade, too; and where another history begins, that is said before its trades are.
"""

from typing import Final

from mdgateway.feed.publication import Publication
from mdgateway.feed.records import Channel, Format, Place, TradeRun
from mdgateway.feed.subscriptions import Lagging, Subscription
from mdgateway.feed.trade_log import TRADE_TIME_NS

TRADES_PER_MESSAGE: Final = 500


class TradeSubscription(Subscription):
    """Every trade in order of its number; who falls behind the log is told to come again.

    A number a little ahead is waited for: another gateway may have been quicker by a tick.
    `held_time_ns` is the time of the trade before it, as a returning subscriber holds it: when that
    is not of the history that is told here, or when another history takes its place, the
    subscriber is told where trades begin anew.
    """

    def __init__(
        self,
        publication: Publication,
        format_: Format,
        from_trade_number: int = 0,
        held_time_ns: int = 0,
    ) -> None:
        super().__init__(publication, format_, Channel.TRADES)
        self._next = from_trade_number
        self._held_time_ns = held_time_ns
        if not from_trade_number and publication.ready:
            self._next = publication.trade_log.newest + 1
        self._history = publication.history
        self._started = False

    def resume_from(self) -> int:
        """Return the number of the trade that would be told next."""
        return self._next

    def place(self) -> Place:
        """Return the next trade's number, and the time of the one before if that is known."""
        log = self.publication.trade_log
        before, ours = self._next - 1, self._history == self.publication.history
        if not ours or not log.oldest <= before <= log.newest:
            return self._next
        return self._next, int(log.since(before, 1)[0, TRADE_TIME_NS])

    def follows(self) -> bool:
        """Say yes: what is missing is told."""
        return True

    def _position(self) -> int:
        return max(0, self._next - 1)

    def _content(self) -> bytes | None:
        publication, log = self.publication, self.publication.trade_log
        if not publication.ready:
            return None
        if self._is_of_another_history():
            self._history, self._held_time_ns = publication.history, 0
            self._started, self._next = True, log.oldest
            return self._encode(publication.begun_anew_notice())
        if not self._started:
            self._started = True
            self._next = self._next or log.newest + 1
            if self._next > log.newest + log.capacity:
                raise Lagging(self._next, log.oldest)
            if self._next < log.oldest:
                return self._missed(log.oldest)
        if self._next < log.first_after_hole:
            return self._missed(max(log.first_after_hole, log.oldest))
        if self._next < log.oldest:
            raise Lagging(self._next, log.oldest)
        if self._next > log.newest:
            return None
        start, end = self._next, min(log.newest, self._next + TRADES_PER_MESSAGE - 1)
        message = self._shared(
            (publication.history, start, end),
            lambda: TradeRun(publication.epoch, log.since(start, TRADES_PER_MESSAGE)),
        )
        self._next, self._held_time_ns = end + 1, 0
        return message

    def _is_of_another_history(self) -> bool:
        """Say whether what the subscriber holds is not what is told here."""
        publication = self.publication
        if self._started and self._history != publication.history:
            return True
        if not self._held_time_ns or self._next <= 1:
            return False
        return publication.is_of_another_history(self._next - 1, self._held_time_ns)

    def _missed(self, upto: int) -> bytes:
        count, self._next = upto - self._next, upto
        self._held_time_ns = 0
        text = f"{count} trades are no longer kept"
        notice = self.publication.missed_notice(count, text)
        return self._encode(notice._replace(next_trade_number=upto))
