"""The books against their plain twin: random deposits, holds, allotments, trades and recalls.

The engines here are purses: what they say is always possible, as a kernel's executions are, and
what they are told arrives late, in order. After every step the twin's invariants hold; at the end
every balance of the database is the twin's, the audit finds nothing, and settling everything
again, in other batches, changes nothing.
"""

from collections import defaultdict
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.enums import Asset, CommandKind, ExecutionKind, OrderType, Reason, Side
from exchange.instrument import Instrument
from exchange.refusal import Refused
from ledgerd import chart
from ledgerd.audit import trial_balance, verify
from ledgerd.books.commit import CursorMoved
from ledgerd.chart import Phase, Purpose, TransferKind
from ledgerd.transfers import NewTransfer
from tests.books import OTHER, PAIR, TestBooks, fresh_books, user
from tests.reference import ledger as twin
from tests.unit.test_ledgerd_digests import digest

OWNERS = 4
PAIRS = (PAIR, OTHER)
CODES = {code for pair in PAIRS for code in (pair.base_asset, pair.quote_asset)}

Step = tuple[int, int, int, int, int]
STEPS = st.lists(
    st.tuples(
        st.integers(0, 11),
        st.integers(0, 1),
        st.integers(1, OWNERS),
        st.integers(1, OWNERS),
        st.integers(1, 5_000),
    ),
    min_size=25,
    max_size=70,
)


class Purse:
    """What an engine owns, and the executions it has said so far."""

    def __init__(self, pair: Instrument) -> None:
        self.pair = pair
        self.owns: dict[tuple[int, int], int] = defaultdict(int)
        self.fees = 0
        self.rows: list[list[int]] = []
        self.told: list[tuple[int, bool, int, Asset, int]] = []
        self.heard = 0
        self.settled = 0

    def _say(self, kind: ExecutionKind, account: int, **words: int) -> None:
        row = [0] * 16
        row[0], row[1] = len(self.rows) + 1, 1_000_000 + len(self.rows)
        row[2] = kind | words.get("reason", 0) << 8 | words.get("side", 0) << 16
        row[2] |= 1 << 24 | account << 32
        for name, value in words.items():
            if name.startswith("w"):
                row[int(name[1:])] = value
        self.rows.append(row)

    def hear(self, refuse: bool) -> None:
        """Carry out the next instruction."""
        if self.heard == len(self.told):
            return
        number, allot, owner, asset, amount = self.told[self.heard]
        self.heard += 1
        words = {"w4": number, "w5": int(asset), "w6": amount}
        asked = CommandKind.ALLOT_FUNDS if allot else CommandKind.RELEASE_FUNDS
        key = owner, int(asset)
        if allot and refuse:
            self._say(
                ExecutionKind.REJECTED, owner, reason=Reason.BALANCE_OVERFLOW, w9=asked, **words
            )
        elif allot:
            self.owns[key] += amount
            held = self.owns[key] // 3
            self._say(ExecutionKind.ALLOTTED, owner, w7=self.owns[key] - held, w8=held, **words)
        elif amount > self.owns[key]:
            reason = Reason.INSUFFICIENT_FUNDS
            self._say(ExecutionKind.REJECTED, owner, reason=reason, w9=asked, **words)
        else:
            self.owns[key] -= amount
            self._say(ExecutionKind.RELEASED, owner, w7=self.owns[key], **words)

    def trade(self, taker: int, maker: int, lots: int, side: Side) -> None:
        """Trade as much as both can pay, or say something that moves nothing."""
        price = 7
        pair = self.pair
        buyer, seller = (taker, maker) if side == Side.BUY else (maker, taker)
        coins, worth = lots * pair.base_units_per_lot, price * lots * pair.quote_units_per_tick_lot
        fees = worth // 1000 + 1, -(worth // 2000)
        buyer_fee = fees[0] if buyer == taker else fees[1]
        enough = self.owns[seller, Asset.BASE] >= coins
        enough &= self.owns[buyer, Asset.QUOTE] >= worth + buyer_fee
        both = {taker, maker} <= {told[2] for told in self.told[: self.heard] if told[1]}
        if not (enough and both):
            words = {"w4": 1, "w5": 1 | OrderType.LIMIT << 32, "w6": lots}
            words["w9"] = CommandKind.NEW_ORDER
            self._say(
                ExecutionKind.REJECTED, taker, reason=Reason.INSUFFICIENT_FUNDS, side=side, **words
            )
            return
        self.owns[seller, Asset.BASE] -= coins
        self.owns[buyer, Asset.BASE] += coins
        self.fees += sum(fees)
        for owner, sign, fee in ((taker, 1, fees[0]), (maker, -1, fees[1])):
            pays = sign if side == Side.BUY else -sign
            self.owns[owner, Asset.QUOTE] -= pays * worth + fee
        self._say(
            ExecutionKind.TRADE,
            taker,
            side=side,
            w5=price,
            w6=lots,
            w9=fees[0],
            w13=maker << 32,
            w15=fees[1],
        )

    def digest(self) -> None:
        """Say what all accounts have."""
        self.rows.append(digest(self.owns, self.fees, len(self.rows) + 1))


class Both:
    """The books and their twin, doing the same."""

    def __init__(self, books: TestBooks) -> None:
        self.books, self.twin = books, twin.Books()
        self.purses = [Purse(pair) for pair in PAIRS]
        self.held: list[tuple[UUID, twin.Held]] = []
        books.open(OWNERS, *PAIRS)
        for purse in self.purses:
            pair = purse.pair
            for owner in (1, 2):
                for asset, code in ((Asset.BASE, pair.base_asset), (Asset.QUOTE, pair.quote_asset)):
                    units = 10**10 if asset == Asset.BASE else 10**12
                    self.books.deposit(owner, code, units)
                    self.twin.deposit(owner, code, units)
                    self.tell(purse, owner, asset, code, units // 2, allot=True)
                    purse.hear(refuse=False)

    def step(self, step: Step) -> None:
        action, which, owner, other, amount = step
        purse = self.purses[which]
        asset = Asset.QUOTE if amount % 2 else Asset.BASE
        code = purse.pair.quote_asset if amount % 2 else purse.pair.base_asset
        units = amount * 1_000
        if action == 0:
            self.books.deposit(owner, code, units * 10)
            self.twin.deposit(owner, code, units * 10)
        elif action == 1:
            self.hold(owner, code, units)
        elif action == 2 and self.held:
            self.resolve(amount)
        elif action in {3, 4}:
            self.tell(purse, owner, asset, code, units, allot=action == 3)
        elif action in {5, 6}:
            purse.hear(refuse=amount % 7 == 0)
        elif action <= 10:
            # Two of the owners have money in the engines from the start.
            if amount % 3 == 0:
                purse.digest()
            lots = min(amount, 400)
            side = Side.BUY if amount % 2 else Side.SELL
            purse.trade(1 + owner % 2 if amount % 5 else owner, 1 + other % 2, lots, side)
        elif amount % 2:
            self.settle(purse)
        else:
            self.sweep(purse)

    def sweep(self, purse: Purse) -> None:
        """Gather a pair's fees: the engine goes on counting them as taken."""
        pair, code = purse.pair.pair, purse.pair.quote_asset
        earned = self.twin.balances[0, "fees", code, pair]
        if not earned:
            return
        self.books.ledger.open_accounts([chart.fees(code)])
        legs = (chart.fees(code, pair), -earned), (chart.fees(code), earned)
        self.books.ledger.post([self.books.transfer(*legs, kind=TransferKind.FEE_SWEEP)])
        self.twin.move(((0, "fees", code, pair), -earned), ((0, "fees", code, ""), earned))

    def hold(self, owner: int, code: str, units: int) -> None:
        transfer = self.books.transfer(
            (user(owner, code), -units),
            (user(owner, code, Purpose.FUNDING), units),
            phase=Phase.PENDING,
        )
        try:
            held = self.twin.hold((owner, "trading", code, ""), (owner, "funding", code, ""), units)
        except twin.Short:
            with pytest.raises(Refused, match="nothing was posted"):
                self.books.ledger.post([transfer])
            return
        self.books.ledger.post([transfer])
        self.held.append((transfer.id, held))

    def resolve(self, amount: int) -> None:
        pending_id, held = self.held.pop(amount % len(self.held))
        void = amount % 4 == 0
        part = 0 if void else max(1, held.amount * (amount % 5) // 4 % (held.amount + 1))
        kind, phase = TransferKind.INTERNAL, Phase.VOIDED if void else Phase.POSTED
        transfer = NewTransfer(
            self.books.new_id(), kind, phase=phase, pending_id=pending_id, amount=part
        )
        self.books.ledger.post([transfer])
        assert self.books.ledger.post([transfer])[0].repeated
        self.twin.resolve(held, part)

    def tell(
        self, purse: Purse, owner: int, asset: Asset, code: str, units: int, *, allot: bool
    ) -> None:
        pair, number = purse.pair.pair, len(purse.told) + 1
        request = self.books.new_id()
        ask = self.books.ledger.allot if allot else self.books.ledger.recall
        if not (allot or any(self.twin.counts[owner, "allotted", code, pair] for code in CODES)):
            with pytest.raises(Refused, match="has ever arrived"):
                ask(request, pair, owner, asset, units)
            return
        try:
            (self.twin.allot if allot else self.twin.recall)(pair, number, owner, code, units)
        except twin.Short:
            with pytest.raises(Refused, match="nothing was posted: owner"):
                ask(request, pair, owner, asset, units)
            return
        assert ask(request, pair, owner, asset, units).number == number
        assert ask(request, pair, owner, asset, units).number == number
        purse.told.append((number, allot, owner, asset, units))

    def settle(self, purse: Purse) -> None:
        rows = np.array(purse.rows[purse.settled :], np.int64).reshape(-1, 16)
        if not len(rows):
            return
        cursor = self.books.ledger.settle(purse.pair, rows, purse.settled)
        assert cursor == len(purse.rows)
        self.twin.settle(purse.pair, rows)
        with pytest.raises(CursorMoved):
            self.books.ledger.settle(purse.pair, rows, purse.settled)
        purse.settled = cursor

    def compare(self) -> None:
        for purse in self.purses:
            purse.digest()
            self.settle(purse)
            for (owner, asset), owned in purse.owns.items():
                code = purse.pair.base_asset if asset == Asset.BASE else purse.pair.quote_asset
                name = user(owner, code, Purpose.ALLOTTED, purse.pair.pair)
                assert self.books.balance(name) == owned
        assert read(self.books) == {
            key: (amount, self.twin.counts[key])
            for key, amount in self.twin.balances.items()
            if self.twin.counts[key]
        }


def read(books: TestBooks) -> dict[twin.Key, tuple[int, int]]:
    """Return balance and version of every account that was ever used."""
    query = """
        SELECT owner_id, purpose, asset, pair, amount, version
        FROM balances JOIN accounts ON id = account_id WHERE version > 0
    """
    with books.engine.connect() as connection:
        return {
            (owner, Purpose(purpose).name.lower(), asset, pair): (amount, version)
            for owner, purpose, asset, pair, amount, version in connection.exec_driver_sql(query)
        }


@settings(max_examples=40)
@given(steps=STEPS)
def test_the_books_are_the_twins_after_anything(steps: list[Step]) -> None:
    with fresh_books() as books:
        both = Both(books)
        for step in steps:
            both.step(step)
        both.compare()
        report = verify(books.engine)
        assert report.complaints == []
        assert books.ledger.differences() == []
        sums: dict[str, int] = defaultdict(int)
        for line in trial_balance(books.engine):
            sums[line.asset] += line.amount
        assert set(sums.values()) <= {0}
