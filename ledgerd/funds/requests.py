"""A request to withdraw, from the limits that riskd counts to money set aside.

    1  the books say that nothing else speaks against it, and keep that riskd will be asked   ASKED
    2  riskd counts it, by the reservation's id
    3  the money is set aside, and the reservation is the withdrawal's, in one transaction    TAKEN

Whoever dies between two of them leaves a row that says so. A reservation that was asked for and
not taken within a minute, or whose withdrawal ended without being paid, is ended first and then
released at riskd, again and again until riskd answered: so nothing is counted for ever, and
nothing that is set aside is uncounted. An ended one cannot be taken any more, and the next try is a
reservation of its own, so a late release never takes another's count away.
"""

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from exchange.refusal import Code, Refusal, Refused
from ledgerd.books.commit import Connection
from ledgerd.custody.bookings import SERVICE_ACTOR, Withdrawal
from ledgerd.custody.journal import Change, MoneyBooks, Step, Subject, digest_of, transfer_id
from ledgerd.custody.rounds import Rows
from ledgerd.custody.withdrawal_rules import (
    PAID,
    UNPAID,
    Asked,
    Limits,
    ReservationState,
)
from ledgerd.custody.withdrawals import Withdrawals
from ledgerd.funds.risk_link import Limiter, RiskUnavailable

GRACE_NS: Final = 60_000_000_000
"""A request that did not get so far within this time is dead: riskd is asked for 3 s at most."""
BATCH: Final = 1_000
NO_LIMITS: Final = Limits(None)
_S = ReservationState


class Requests:
    """Requests to withdraw, counted by a limiter if there is one."""

    def __init__(
        self, books: MoneyBooks, withdrawals: Withdrawals, limiter: Limiter | None
    ) -> None:
        self._books = books
        self._withdrawals = withdrawals
        self._limiter = limiter
        self.releasing = Rows("the reservation")

    def request(self, asked: Asked) -> Withdrawal:
        """Set money aside to be paid out; the same request again is answered as it stands.

        Raises Refused, with RISK_UNAVAILABLE when riskd gave no answer: then nothing is set aside
        and the same request can be made again.
        """
        limiter = self._limiter
        if limiter is None:
            return self._withdrawals.request(asked, NO_LIMITS)
        reserved: list[UUID] = []

        def open_(step: Step) -> None:
            reserved[:] = [_opened(step, asked)]

        if not self._withdrawals.judge(asked, NO_LIMITS, open_):
            return self._withdrawals.request(asked, NO_LIMITS)
        (made,) = reserved
        try:
            refused = limiter.reserve(made, asked.owner_id, asked.asset, asked.amount_units)
        except RiskUnavailable as error:
            sentence = f"{error}; nothing was set aside, ask again with the same id"
            raise Refused(Refusal(Code.UNAVAILABLE, "RISK_UNAVAILABLE", sentence)) from error
        if refused is not None:
            self._books.done(_moving(made, _S.ASKED, _S.REFUSED))
            raise Refused(refused)
        try:
            return self._withdrawals.request(asked, NO_LIMITS, lambda step: _take(step, made))
        except Refused:
            self._books.done(_moving(made, _S.ASKED, _S.ENDED))
            raise

    def settle(self) -> int:
        """End what nobody will pay, release what ended; return how many. Raises RiskUnavailable."""
        limiter = self._limiter
        if limiter is None:
            return 0
        if self._books.read(self._due):
            self._books.done(self._sort)
        query = "SELECT id FROM withdrawal_reservations WHERE state = %s"
        ended = self._books.read(
            lambda connection: self.releasing.page(connection, query, (int(_S.ENDED),), BATCH)
        )

        def release(row: tuple[Any, ...]) -> bool:
            limiter.release(row[0])
            return self._books.done(_moving(row[0], _S.ENDED, _S.RELEASED))

        return self.releasing.each(ended, lambda row: row[0], release)

    def _due(self, connection: Connection) -> bool:
        query: Any = (
            "SELECT 1 FROM withdrawal_reservations AS kept"
            " LEFT JOIN withdrawals ON withdrawals.id = kept.withdrawal_id"
            " WHERE (kept.state = %s AND kept.changed_ns < %s)"
            " OR (kept.state = %s AND withdrawals.state = ANY(%s)) LIMIT 1"
        )
        over_ns = self._books.clock() - GRACE_NS
        given = (int(_S.ASKED), over_ns, int(_S.TAKEN), _numbers(*PAID, *UNPAID))
        return connection.execute(query, given).fetchone() is not None

    def _sort(self, step: Step) -> None:
        """Move reservations to where their withdrawals are."""
        late = step.rows(
            "SELECT id, state FROM withdrawal_reservations"
            " WHERE state = %s AND changed_ns < %s ORDER BY id",
            *(int(_S.ASKED), step.now_ns - GRACE_NS),
        )
        for made, state in late:
            _move(step, made, state, _S.ENDED)
        for after, ends in ((_S.ENDED, UNPAID), (_S.KEPT, PAID)):
            over = step.rows(
                "SELECT kept.id, kept.state FROM withdrawal_reservations AS kept"
                " JOIN withdrawals ON withdrawals.id = kept.withdrawal_id WHERE kept.state = %s"
                " AND withdrawals.state = ANY(%s) ORDER BY kept.id",
                *(int(_S.TAKEN), _numbers(*ends)),
            )
            for made, state in over:
                _move(step, made, state, after)


def _numbers(*states: int) -> list[int]:
    return [int(state) for state in states]


def _opened(step: Step, asked: Asked) -> UUID:
    """Keep that riskd will be asked; return the id to ask by."""
    rows = step.rows(
        "SELECT id, owner_id, asset, amount_units, state FROM withdrawal_reservations"
        " WHERE withdrawal_id = %s",
        asked.id,
    )
    content = (asked.owner_id, asked.asset, asked.amount_units)
    for made, *known, state in rows:
        if state == _S.ASKED and tuple(known) == content:
            _move(step, made, _S.ASKED, _S.ASKED)
            return UUID(str(made))
    made = transfer_id(asked.id, f"reservation {len(rows)}") if rows else asked.id
    values = {
        "withdrawal_id": asked.id,
        "owner_id": asked.owner_id,
        "asset": asked.asset,
        "amount_units": asked.amount_units,
        "state": _S.ASKED,
        "changed_ns": step.now_ns,
    }
    step.insert("withdrawal_reservations", {"id": made}, values)
    _told(step, made, _S.UNSPECIFIED, _S.ASKED)
    return made


def _move(step: Step, made: UUID, before: int, after: ReservationState) -> None:
    values = {"state": after, "changed_ns": step.now_ns}
    step.update("withdrawal_reservations", {"id": made}, values)
    _told(step, made, before, after)


def _told(step: Step, made: UUID, before: int, after: ReservationState) -> None:
    told = (SERVICE_ACTOR, after.name, digest_of(made))
    step.record(Change(made, Subject.RESERVATION, before, after, *told))


def _moving(
    made: UUID, before: ReservationState, after: ReservationState
) -> Callable[[Step], bool]:
    def work(step: Step) -> bool:
        query = "SELECT 1 FROM withdrawal_reservations WHERE id = %s AND state = %s"
        if step.row(query, made, int(before)) is None:
            return False
        _move(step, made, before, after)
        return True

    return work


def _take(step: Step, made: UUID) -> None:
    if not _moving(made, _S.ASKED, _S.TAKEN)(step):
        sentence = "the request took too long and its reservation was given up; ask again"
        raise Refused(Refusal(Code.UNAVAILABLE, "RESERVATION_ENDED", sentence))
