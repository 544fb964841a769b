"""What each account has in one pair's engine, as far as the execution feed was read.

Pure: no clock, no input or output. Follows the feed by number: a repeated record changes nothing,
a gap is an error. The total of an account (free + held) is exact after every record, because
trades say what was paid and what was received. How much of it is free is exact after ALLOTTED and
RELEASED, which say so, until the account's orders change it; from then on the total stands in for
it, and a refused release says that it was less. Money never depends on the estimate: the engine
refuses to release what is not free.
"""

import io
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np

from exchange import records
from exchange.enums import Asset, CommandKind, ExecutionKind, Reason, Side
from exchange.instrument import Instrument
from exchange.records import Rows

SNAPSHOT_VERSION: Final = 1


class FeedTrouble(Exception):
    """The feed cannot be what an engine said: a gap, or money that does not add up."""


class Certainty(IntEnum):
    """How well the free part of an account's money is known."""

    EXACT = 0
    """As it is: nothing happened since the engine said so."""
    OPEN = 1
    """At most this: the account's orders may hold some of it."""
    REFUSED = 2
    """Less than was asked for last: ask for one unit to learn what there is."""


class Outcome(NamedTuple):
    """What the engine made of a move of funds."""

    execution_number: int
    transfer_number: int
    kind: ExecutionKind
    """ALLOTTED, RELEASED or REJECTED."""
    reason: Reason
    account: int
    asset: Asset
    amount_units: int


_MOVING: Final = (ExecutionKind.ALLOTTED, ExecutionKind.RELEASED)
_ASKING: Final = (int(CommandKind.ALLOT_FUNDS), int(CommandKind.RELEASE_FUNDS))
"""The commands that move funds; a REJECTED says which kind of command it refused."""
_CHANGING: Final = tuple(
    int(kind)
    for kind in (
        ExecutionKind.ACCEPTED,
        ExecutionKind.TRADE,
        ExecutionKind.CANCELLED,
        ExecutionKind.EXPIRED,
        ExecutionKind.AMENDED,
        ExecutionKind.PREVENTED,
    )
)
"""What may change how much of an account's money is free."""
_REFUSALS: Final = (int(Reason.BALANCE_OVERFLOW), int(Reason.INSUFFICIENT_FUNDS))
"""The refusals that use up the number of a move of funds."""
_BASE: Final = Asset.BASE - 1
_QUOTE: Final = Asset.QUOTE - 1


class Holdings:
    """The accounts of one pair; row = account number, column = asset less 1."""

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.cursor = 0
        """Number of the next execution to follow."""
        self.sequence = 0
        self.transfer_number = 0
        """Last move of funds that the engine has done with."""
        self.last_price_ticks = 0
        self.time_ns = 0
        """Time of the last execution."""
        capacity = instrument.account_capacity
        self.total: Rows = np.zeros((capacity, 2), np.int64)
        self.free: Rows = np.zeros((capacity, 2), np.int64)
        """What may be free at most; `certainty` says how to read it."""
        self.certainty: Rows = np.zeros((capacity, 2), np.int64)
        self.active_ns: Rows = np.zeros(capacity, np.int64)
        """When the account's orders last did anything."""
        self.allotted_ns: Rows = np.zeros((capacity, 2), np.int64)
        """When money last arrived."""

    def follow(self, first_number: int, rows: Rows) -> list[Outcome]:
        """Take executions (n, 16) in; return what became of moves of funds. Raises FeedTrouble."""
        if first_number > self.cursor:
            pair = self.instrument.pair
            raise FeedTrouble(f"{pair}: execution {first_number} came instead of {self.cursor}")
        rows = rows[self.cursor - first_number :]
        outcomes: list[Outcome] = []
        if not len(rows):
            return outcomes
        begin = 0
        for place in self._funds(rows):
            self._trade(rows[begin:place])
            outcomes.append(self._move(rows[place], self.cursor + place))
            begin = place + 1
        self._trade(rows[begin:])
        self.cursor += len(rows)
        self.sequence = int(rows[-1, records.E_SEQUENCE])
        self.time_ns = int(rows[-1, records.E_TIME_NS])
        return outcomes

    @staticmethod
    def _funds(rows: Rows) -> list[int]:
        kinds = records.kind_of(rows)
        moved = np.isin(kinds, _MOVING)
        refused = (kinds == ExecutionKind.REJECTED) & np.isin(records.reason_of(rows), _REFUSALS)
        refused &= np.isin(rows[:, records.E_COMMAND_KIND], _ASKING)
        found: list[int] = np.flatnonzero(moved | refused).tolist()
        return found

    def _move(self, row: Rows, number: int) -> Outcome:
        outcome = Outcome(
            number,
            int(row[records.E_TRANSFER_NUMBER]),
            ExecutionKind(int(records.kind_of(row))),
            Reason(int(records.reason_of(row))),
            int(records.account_of(row)),
            Asset(int(records.price_of(row))),
            int(row[records.E_AMOUNT]),
        )
        if outcome.kind == ExecutionKind.REJECTED:
            return outcome
        place = (outcome.account, outcome.asset - 1)
        allotted = outcome.kind == ExecutionKind.ALLOTTED
        self.total[place] += outcome.amount_units if allotted else -outcome.amount_units
        free, held = int(row[records.E_FREE]), int(row[records.E_HELD])
        if self.total[place] != free + held:
            raise FeedTrouble(
                f"{self.instrument.pair}: execution {number} leaves account {outcome.account} with"
                f" {free + held} units of asset {int(outcome.asset)}; the executions before it with"
                f" {self.total[place]}"
            )
        self.free[place] = free
        self.certainty[place] = Certainty.EXACT
        if allotted:
            self.allotted_ns[place] = row[records.E_TIME_NS]
        return outcome

    def known_free(self, account: int, asset: Asset, after_number: int) -> int:
        """Return what is free for certain, if the feed was heard beyond an execution; else 0."""
        exact = self.certainty[account, asset - 1] == Certainty.EXACT
        return int(self.free[account, asset - 1]) if exact and self.cursor > after_number else 0

    def refused(self, outcome: Outcome) -> None:
        """Note that a release was refused: less was free than was asked for."""
        place = (outcome.account, outcome.asset - 1)
        if outcome.amount_units <= 1:
            self.free[place] = 0
            self.certainty[place] = Certainty.EXACT
        else:
            self.free[place] = min(self.free[place], outcome.amount_units - 1)
            self.certainty[place] = Certainty.REFUSED

    def _trade(self, rows: Rows) -> None:
        kinds = records.kind_of(rows)
        changing = rows[np.isin(kinds, _CHANGING)]
        if not len(changing):
            return
        trades = rows[kinds == ExecutionKind.TRADE]
        if len(trades):
            self._pay(trades)
        takers, makers = records.account_of(changing), records.maker_account_of(changing)
        for accounts in (takers, makers[makers > 0]):
            self.active_ns[accounts] = changing[-1, records.E_TIME_NS]
            self.free[accounts] = self.total[accounts]
            self.certainty[accounts] = Certainty.OPEN

    def _pay(self, trades: Rows) -> None:
        pair = self.instrument
        lots = trades[:, records.E_QUANTITY]
        worth = records.price_of(trades) * lots * pair.quote_units_per_tick_lot
        coins = lots * pair.base_units_per_lot
        sign = np.where(records.side_of(trades) == Side.SELL, np.int64(-1), np.int64(1))
        takers, makers = records.account_of(trades), records.maker_account_of(trades)
        base, quote = self.total[:, _BASE], self.total[:, _QUOTE]
        np.add.at(base, takers, sign * coins)
        np.add.at(base, makers, -sign * coins)
        np.add.at(quote, takers, -sign * worth - trades[:, records.E_FEE])
        np.add.at(quote, makers, sign * worth - trades[:, records.E_MAKER_FEE])
        self.last_price_ticks = int(records.price_of(trades[-1]))

    def taken(self) -> tuple[Rows, Rows]:
        """Return a copy of the state, as far as accounts were used, for `packed`."""
        used = int(np.flatnonzero(self.total.any(axis=1) | (self.active_ns > 0)).max(initial=0)) + 1
        scalars = (
            SNAPSHOT_VERSION,
            self.cursor,
            self.sequence,
            self.transfer_number,
            self.last_price_ticks,
            self.time_ns,
        )
        columns = (
            self.total[:used],
            self.free[:used],
            self.certainty[:used],
            self.active_ns[:used, None],
            self.allotted_ns[:used],
        )
        return np.array(scalars), np.hstack(columns)

    def dump(self) -> bytes:
        """Return the state for `load`."""
        return packed(*self.taken())

    @classmethod
    def load(cls, instrument: Instrument, content: bytes) -> "Holdings":
        """Return what was dumped. Raises ValueError when it is of another version."""
        found = cls(instrument)
        with np.load(io.BytesIO(content)) as stored:
            scalars, accounts = stored["scalars"].tolist(), stored["accounts"]
        if scalars[0] != SNAPSHOT_VERSION:
            raise ValueError(f"holdings of version {scalars[0]}; this is {SNAPSHOT_VERSION}")
        _, found.cursor, found.sequence, found.transfer_number, *prices = scalars
        found.last_price_ticks, found.time_ns = prices
        used = len(accounts)
        found.total[:used], found.free[:used] = accounts[:, 0:2], accounts[:, 2:4]
        found.certainty[:used] = accounts[:, 4:6]
        found.active_ns[:used] = accounts[:, 6]
        found.allotted_ns[:used] = accounts[:, 7:9]
        return found


def packed(scalars: Rows, accounts: Rows) -> bytes:
    """Return what `Holdings.taken` gave as bytes for `Holdings.load`. Takes its time."""
    target = io.BytesIO()
    np.savez_compressed(target, scalars=scalars, accounts=accounts)
    return target.getvalue()
