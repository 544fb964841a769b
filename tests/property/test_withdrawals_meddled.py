"""Deposits and withdrawals while somebody posts transfers of every kind: none reaches their money.

The same storm as in `test_withdrawals`, and a caller of the ledger's door that asks for whatever a
message can say: any kind and phase, from any account to any, other people's pending transfers. What
is permitted is done; after every step all that was set aside is still there, custody has what the
chain gave and took, and in the end every coin is where the books say.
"""

import random
from collections import Counter
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.refusal import Refused
from exchange.v1 import ledger_pb2
from ledgerd.audit import verify
from ledgerd.books.permitted import RULES
from ledgerd.chart import AccountName, OwnerKind, Phase, Purpose, TransferKind
from ledgerd.custody.bookings import Deposit
from ledgerd.custody.deposit_rules import DepositState
from ledgerd.custody.journal import transfer_id
from ledgerd.custody.proof import verify_money
from ledgerd.custody.withdrawal_rules import HELD, WithdrawalState
from ledgerd.doors.ledger_messages import name_message, new_transfer
from tests.custody import Desk, fresh_desk
from tests.property.test_withdrawals import OWNERS, PAID, STORM, Money, stormy

MEDDLER: Final = "mallory"
OF_A_TRADER: Final = (
    Purpose.FUNDING,
    Purpose.TRADING,
    Purpose.SUSPENSE,
    Purpose.STAKING,
    Purpose.THIRD_PARTY,
)
OF_THE_EXCHANGE: Final = (Purpose.SUSPENSE, Purpose.FEES, Purpose.INSURANCE, Purpose.CUSTODY)
KINDS: Final = tuple(RULES) * 4
TURNS: Final = 5
"""So often in a row it is tried."""
PHASES: Final = (Phase.SINGLE, Phase.SINGLE, *Phase)


class Meddled(Money):
    """The desk, with somebody who posts beside it."""

    actions = 20

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        traders = [
            AccountName(OwnerKind.USER, owner, purpose, "BTC")
            for owner in range(1, OWNERS + 1)
            for purpose in OF_A_TRADER
        ]
        exchange = [AccountName(OwnerKind.EXCHANGE, 0, one, "BTC") for one in OF_THE_EXCHANGE]
        self.places = [*traders, *exchange]
        desk.books.ledger.open_accounts(self.places)
        for address in self.addresses.values():
            self.payments.append(desk.custody.receive(("BTC", address, 20_000)))
        self.made: list[bytes] = []
        self.done: Counter[tuple[TransferKind, Phase]] = Counter()
        self.refusals: Counter[str] = Counter()

    def step(self, step: tuple[int, int, int]) -> None:
        action, owner, amount = step
        if action < Money.actions:
            super().step(step)
        else:
            for turn in range(TURNS):
                self.meddle(random.Random(f"{action} {owner} {amount} {turn}"), owner, amount)

    def meddle(self, chance: random.Random, owner: int, amount: int) -> None:
        """Ask the ledger's door for some transfer."""
        kind = chance.choice((*KINDS, *TransferKind))
        phase = chance.choice(PHASES)
        made = self.calm.books.new_id().bytes
        message = ledger_pb2.NewTransfer(id=made, kind=int(kind), phase=int(phase), actor=MEDDLER)  # type: ignore[arg-type]
        if phase in {Phase.POSTED, Phase.VOIDED}:
            message.pending_id = self.pending(chance)
        else:
            source, target = self.ends(chance, kind, owner)
            units = (
                chance.choice((amount, 1 + amount % 50)) if kind != TransferKind.FEE_SWEEP else 1
            )
            for name, signed in ((source, -units), (target, units)):
                message.legs.add(name=name_message(name), amount_units=signed)
        try:
            self.calm.books.ledger.post([new_transfer(message)])
        except Refused as refused:
            self.refusals[refused.refusal.reason] += 1
            return
        self.done[kind, phase] += 1
        if phase == Phase.PENDING:
            self.made.append(made)

    def ends(
        self, chance: random.Random, kind: TransferKind, owner: int
    ) -> tuple[AccountName, AccountName]:
        """Return source and target: any two, or two of one owner that the kind may move."""
        rule = RULES.get(kind)
        if rule is None or chance.randrange(2):
            source, target = chance.choices(self.places, k=2)
            return source, target
        whose = 0 if kind == TransferKind.FEE_SWEEP else owner
        takes = [one for one in self.places if one.purpose in rule.takes and one.owner_id == whose]
        gives = [one for one in self.places if one.purpose in rule.gives]
        if rule.one_owner:
            gives = [one for one in gives if one.owner_id == whose]
        return chance.choice(takes), chance.choice(gives)

    def pending(self, chance: random.Random) -> bytes:
        """Return the id of a pending transfer: of the meddler, of a withdrawal, or of a deposit."""
        withdrawals = [transfer_id(made, "hold").bytes for made in self.asked]
        deposits = [
            one.holding.bytes for owner in range(1, OWNERS + 1) for one in self.deposits(owner)
        ]
        return chance.choice(chance.choice((self.made, withdrawals, deposits)) or [bytes(16)])

    def deposits(self, owner: int) -> list[Deposit]:
        return self.calm.deposits.of_owner(owner, 1_000)

    def meddled_units(self, name: AccountName) -> int:
        """Return what the meddler moved into an account, with all that was resolved since."""
        query = (
            "SELECT coalesce(sum(amount), 0) FROM postings JOIN requests USING (transfer_id)"
            " JOIN accounts ON accounts.id = account_id"
            " WHERE actor = %s AND owner_kind = %s AND owner_id = %s AND purpose = %s"
        )
        key = (MEDDLER, int(name.owner_kind), name.owner_id, int(name.purpose))
        with self.calm.books.engine.connect() as connection:
            return int(connection.exec_driver_sql(query, key).scalar_one())

    def moved_by_others(self, owner: int) -> dict[str, int]:
        return {
            purpose.name.lower(): self.meddled_units(
                AccountName(OwnerKind.USER, owner, purpose, "BTC")
            )
            for purpose in (Purpose.FUNDING, Purpose.SUSPENSE)
        }

    def out_of_reach(self) -> None:
        """Show that all that is set aside is there, and custody has what came less what left."""
        self.unpaid_twice()
        desk, booked, returned, pending = self.calm, 0, 0, 0
        for owner in range(1, OWNERS + 1):
            aside = self.moved_by_others(owner)["suspense"]
            for deposit in self.deposits(owner):
                came = deposit.state != DepositState.VOIDED
                booked += deposit.amount_units * came
                pending += deposit.amount_units * (deposit.state == DepositState.SEEN)
                aside += deposit.withheld_units * (deposit.state == DepositState.REVERSED)
            for one in desk.withdrawals.of_owner(owner, 1_000):
                units = one.asked.amount_units
                aside += units * (one.state in HELD)
                booked -= units * (one.state == WithdrawalState.CONFIRMED)
                returned += units * (one.state == WithdrawalState.RETURNED)
            assert desk.suspense(owner) == aside
        assert -desk.of_exchange(Purpose.CUSTODY) == booked
        taken = -self.meddled_units(AccountName(OwnerKind.EXCHANGE, 0, Purpose.SUSPENSE, "BTC"))
        assert 0 <= taken <= returned
        assert desk.of_exchange(Purpose.SUSPENSE) == pending + returned - taken


@settings(max_examples=8)
@given(seed=st.integers(0, 1 << 32), count=st.integers(40, 160))
def test_no_transfer_that_is_permitted_reaches_money_on_its_way(seed: int, count: int) -> None:
    with fresh_desk(seed, STORM) as desk:
        money = stormy(Meddled(desk), seed, count, Meddled.out_of_reach)
        money.settle()
        money.out_of_reach()
        money.every_coin_is_where_the_books_say()
        assert verify(desk.books.engine).complaints == []
        assert verify_money(desk.books.engine) == []


def test_the_meddler_gets_far_enough_to_do_harm() -> None:
    """Show that all that is permitted is done, and all that is not is tried."""
    done: Counter[tuple[TransferKind, Phase]] = Counter()
    refusals: Counter[str] = Counter()
    paid = 0
    for seed in range(3):
        with fresh_desk(seed, STORM) as desk:
            money = stormy(Meddled(desk), seed, 300, lambda _: None)
            done, refusals = done + money.done, refusals + money.refusals
            for owner in range(1, OWNERS + 1):
                paid += sum(one.state in PAID for one in desk.withdrawals.of_owner(owner, 1_000))
    assert {kind for kind, _ in done} == set(RULES)
    assert {phase for _, phase in done} == set(Phase) - {Phase.UNSPECIFIED}
    assert {
        "ACCOUNT_OF_PENDING",
        "ACCOUNT_OF_CUSTODY",
        "KIND_OF_CUSTODY",
        "KIND_INVALID",
        "OWNERS_DIFFER",
        "PHASE_INVALID",
    } <= set(refusals)
    assert paid
