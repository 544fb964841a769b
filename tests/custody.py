"""Deposits and withdrawals for tests: real books, a simulated chain in a file, one clock."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from exchange.instrument import Instrument
from ledgerd.chart import AccountName, OwnerKind, Purpose
from ledgerd.custody.addresses import Address, Addresses
from ledgerd.custody.bookings import Withdrawal
from ledgerd.custody.deposits import Deposits
from ledgerd.custody.journal import MoneyBooks
from ledgerd.custody.simulated_chain import CALM, SimulatedCustody, Weather
from ledgerd.custody.withdrawal_rules import Asked, Limits, Policy
from ledgerd.custody.withdrawals import Withdrawals
from tests.books import PAIR, TestBooks, fresh_books, user

HOUR_NS = 3_600_000_000_000
NEEDED = 3
POLICY = Policy(
    address_waiting_ns=HOUR_NS,
    approval_expiry_ns=2 * HOUR_NS,
    confirmations={"BTC": NEEDED, "USDT": NEEDED},
    approval_above_units={"BTC": (1_000,), "USDT": (1_000, 1_000_000)},
)
NO_LIMITS = Limits(None)
OUTSIDE = "outside1"


@dataclass
class Desk:
    """Everything about one exchange's money at the door."""

    books: TestBooks
    custody: SimulatedCustody
    money: MoneyBooks
    deposits: Deposits
    withdrawals: Withdrawals
    addresses: Addresses

    def funded(self, owner: int, amount: int, asset: str = "BTC") -> str:
        """Deposit for an owner, to the end; return the transaction's id."""
        address = self.deposits.address(OwnerKind.USER, owner, asset)
        payment = self.custody.receive((asset, address, amount))
        self.custody.mine(NEEDED)
        self.deposits.look(payment, 0)
        return payment

    def listed(self, owner: int, address: str = OUTSIDE, asset: str = "BTC") -> Address:
        """List an address and let it wait long enough."""
        wanted = Address(
            self.books.new_id(), OwnerKind.USER, owner, asset, address, f"user {owner}"
        )
        made = self.addresses.add(wanted)
        self.books.clock.now_ns += HOUR_NS
        return made

    def asked(self, owner: int, amount: int, **other: object) -> Asked:
        given: dict[str, object] = {
            "id": self.books.new_id(),
            "owner_kind": OwnerKind.USER,
            "owner_id": owner,
            "asset": "BTC",
            "amount_units": amount,
            "address": OUTSIDE,
            "requester": f"user {owner}",
        }
        return Asked(**(given | other))  # type: ignore[arg-type]

    def state(self, subject: UUID) -> str:
        found = self.withdrawals.get(subject)
        assert found is not None
        return found.state.name

    def paid_out(self, subject: UUID) -> Withdrawal:
        """Go on with everything until a withdrawal is through."""
        for _ in range(2 * NEEDED + 4):
            self.withdrawals.advance()
            self.custody.mine()
        found = self.withdrawals.get(subject)
        assert found is not None
        return found

    def funding(self, owner: int, asset: str = "BTC") -> int:
        return self.books.balance(user(owner, asset, Purpose.FUNDING))

    def suspense(self, owner: int, asset: str = "BTC") -> int:
        return self.books.balance(user(owner, asset, Purpose.SUSPENSE))

    def of_exchange(self, purpose: Purpose, asset: str = "BTC") -> int:
        return self.books.balance(AccountName(OwnerKind.EXCHANGE, 0, purpose, asset))


def desk_over(books: TestBooks, custody: SimulatedCustody, policy: Policy = POLICY) -> Desk:
    """Return the desk over books and a chain."""
    money = MoneyBooks(books.engine, books.clock)
    return Desk(
        books,
        custody,
        money,
        Deposits(money, custody, policy),
        Withdrawals(money, custody, policy),
        Addresses(money, custody, policy),
    )


@contextmanager
def fresh_desk(
    seed: int = 1,
    weather: Weather = CALM,
    pairs: Sequence[Instrument] = (PAIR,),
    policy: Policy = POLICY,
) -> Iterator[Desk]:
    """Give a desk with empty books and an empty chain of the pairs' assets: BTC and USDT."""
    with (
        TemporaryDirectory(prefix="holdfast-chain-") as folder,
        fresh_books(custodian=True) as books,
    ):
        for pair in pairs:
            books.ledger.list_pair(pair)
        assets = [code for pair in pairs for code in (pair.base_asset, pair.quote_asset)]
        custody = SimulatedCustody(Path(folder) / "chain.log", seed, assets, weather)
        yield desk_over(books, custody, policy)
