"""What a caller may post: the whole table, each refusal, and the table in the documentation."""

from itertools import product
from pathlib import Path
from uuid import UUID

import pytest

from exchange.refusal import Refused
from ledgerd.audit import verify
from ledgerd.books.permitted import OF_CUSTODY, RULES, not_permitted
from ledgerd.chart import AccountName, OwnerKind, Phase, Purpose, TransferKind
from ledgerd.custody.journal import transfer_id
from ledgerd.custody.proof import verify_money
from ledgerd.transfers import ASKED_FOR, Leg, NewTransfer
from tests.books import PAIR, custody, fresh_books, superuser, user
from tests.custody import NEEDED, NO_LIMITS, Desk, fresh_desk

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "ledger.md"
EXCHANGE = OwnerKind.EXCHANGE, 0
OWN = {"funding", "trading"}
INVESTED = {"staking", "third_party"}
EARNED = {"fees", "fees:pair", "insurance"}
EVERYTHING = OWN | INVESTED | EARNED | {"custody"}
PERMITTED = {
    TransferKind.INTERNAL: (OWN, OWN),
    TransferKind.STAKE: (OWN | INVESTED, OWN | INVESTED),
    TransferKind.FEE_SWEEP: ({"fees", "fees:pair"}, EARNED),
    TransferKind.CORRECTION: (EVERYTHING | {"exchange's suspense"}, EVERYTHING),
}


def places(owner: int) -> dict[str, AccountName]:
    """Name an account of every sort, of an owner where a trader may have it."""
    trader = OwnerKind.USER, owner
    return {
        "funding": AccountName(*trader, Purpose.FUNDING, "BTC"),
        "trading": AccountName(*trader, Purpose.TRADING, "BTC"),
        "staking": AccountName(*trader, Purpose.STAKING, "BTC"),
        "third_party": AccountName(*trader, Purpose.THIRD_PARTY, "BTC"),
        "suspense": AccountName(*trader, Purpose.SUSPENSE, "BTC"),
        "suspense:pair": AccountName(*trader, Purpose.SUSPENSE, "BTC", PAIR.pair),
        "allotted:pair": AccountName(*trader, Purpose.ALLOTTED, "BTC", PAIR.pair),
        "exchange's suspense": AccountName(*EXCHANGE, Purpose.SUSPENSE, "BTC"),
        "fees": AccountName(*EXCHANGE, Purpose.FEES, "BTC"),
        "fees:pair": AccountName(*EXCHANGE, Purpose.FEES, "BTC", PAIR.pair),
        "insurance": AccountName(*EXCHANGE, Purpose.INSURANCE, "BTC"),
        "custody": AccountName(*EXCHANGE, Purpose.CUSTODY, "BTC"),
    }


def transfer(kind: TransferKind, *legs: Leg, phase: Phase = Phase.SINGLE) -> NewTransfer:
    return NewTransfer(UUID(int=1), kind, legs, phase)


@pytest.mark.parametrize("custodian", [False, True])
@pytest.mark.parametrize("kind", sorted(RULES))
def test_each_kind_moves_what_the_table_says_and_nothing_else(
    kind: TransferKind, custodian: bool
) -> None:
    takes, gives = PERMITTED[kind]
    for (source, owner), target in product(product(places(1), (1, 2)), places(1)):
        left, right = places(1)[source], places(owner)[target]
        asked = transfer(kind, Leg(left, -5), Leg(right, 5))
        one_owner = (left.owner_kind, left.owner_id) == (right.owner_kind, right.owner_id)
        expected = source in takes and target in gives
        expected &= one_owner or kind == TransferKind.CORRECTION
        expected &= not (custodian and "custody" in {source, target})
        permitted = not_permitted([asked], custodian=custodian) is None
        assert permitted == expected, f"{kind.name} from {source} to {target} of {owner}"


def test_only_what_an_owner_may_do_can_wait() -> None:
    waiting = set()
    for kind in RULES:
        found = [
            not_permitted([transfer(kind, phase=phase)], custodian=False) is None
            for phase in (Phase.PENDING, Phase.POSTED, Phase.VOIDED)
        ]
        assert len(set(found)) == 1
        waiting |= {kind} if found[0] else set()
    assert waiting == {TransferKind.INTERNAL, TransferKind.STAKE}


def test_every_kind_that_can_be_asked_for_has_its_rule() -> None:
    assert RULES.keys() | set(OF_CUSTODY) == ASKED_FOR


def test_the_documentation_has_the_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")

    def told(purposes: frozenset[Purpose]) -> str:
        return ", ".join(f"`{one.name.lower()}`" for one in sorted(purposes))

    for kind, rule in RULES.items():
        owner, waits = "one" if rule.one_owner else "any", "yes" if rule.may_wait else "no"
        row = f"| `{kind.name}` | {told(rule.takes)} | {told(rule.gives)} | {owner} | {waits} |"
        assert row in text


def refused(desk: Desk, *legs: tuple[AccountName, int], **more: object) -> str:
    with pytest.raises(Refused) as caught:
        desk.books.ledger.post([desk.books.transfer(*legs, **more)])
    return caught.value.refusal.reason


def test_the_money_of_a_withdrawal_cannot_be_taken_back() -> None:
    with fresh_desk() as desk:
        desk.funded(1, 10_000)
        desk.listed(1)
        asked = desk.asked(1, 4_000)
        desk.withdrawals.request(asked, NO_LIMITS)
        held, funding = places(1)["suspense"], places(1)["funding"]
        desk.books.ledger.open_accounts([user(2, "BTC", Purpose.FUNDING), places(1)["staking"]])
        back = (held, -4_000), (funding, 4_000)
        for kind in (TransferKind.INTERNAL, TransferKind.CORRECTION):
            assert refused(desk, *back, kind=kind) == "ACCOUNT_OF_PENDING"
        held_id = transfer_id(asked.id, "hold")
        for kind in RULES:
            reason = refused(desk, kind=kind, phase=Phase.VOIDED, pending_id=held_id)
            assert reason in {"KIND_INVALID", "PHASE_INVALID"}
        assert (desk.funding(1), desk.suspense(1)) == (6_000, 4_000)


def test_an_owner_moves_nobody_elses_money() -> None:
    with fresh_desk() as desk:
        desk.funded(1, 10_000)
        mine, others = places(1)["funding"], places(2)["funding"]
        desk.books.ledger.open_accounts([others])
        legs = (mine, -1_000), (others, 1_000)
        for kind in (TransferKind.INTERNAL, TransferKind.STAKE):
            assert refused(desk, *legs, kind=kind) == "OWNERS_DIFFER"
            pending = refused(desk, *legs, kind=kind, phase=Phase.PENDING)
            assert pending == "OWNERS_DIFFER"
        assert desk.funding(1) == 10_000


def test_with_a_custodian_no_caller_books_coins_that_did_not_come() -> None:
    with fresh_desk() as desk:
        desk.funded(1, 10_000)
        legs = (custody("BTC"), -5), (places(1)["funding"], 5)
        assert refused(desk, *legs) == "ACCOUNT_OF_CUSTODY"


def test_what_was_withheld_of_a_reversed_deposit_is_not_resolved_by_a_caller() -> None:
    with fresh_desk() as desk:
        payment = desk.funded(1, 700)
        desk.custody.reorganise(NEEDED, [payment])
        gone = desk.deposits.look(payment, 0)
        assert gone is not None
        assert gone.withheld_units == 700
        given = {"phase": Phase.VOIDED, "pending_id": gone.holding}
        assert refused(desk, **given, kind=TransferKind.CORRECTION) == "PHASE_INVALID"
        assert refused(desk, **given, kind=TransferKind.INTERNAL) == "KIND_INVALID"
        assert desk.suspense(1) == 700
        assert verify_money(desk.books.engine) == []


def returned(desk: Desk) -> None:
    """Let the chain undo a withdrawal of 400 that was confirmed, and see a deposit of 300."""
    desk.funded(1, 1_000)
    desk.listed(1)
    asked = desk.asked(1, 400)
    desk.withdrawals.request(asked, NO_LIMITS)
    paid = desk.paid_out(asked.id)
    desk.custody.reorganise(2 * NEEDED + 4, [paid.transaction_id])
    desk.withdrawals.advance()
    assert desk.state(asked.id) == "RETURNED"
    payment = desk.custody.receive(("BTC", desk.deposits.address(OwnerKind.USER, 2, "BTC"), 300))
    desk.custody.mine()
    desk.deposits.look(payment, 0)
    assert desk.of_exchange(Purpose.SUSPENSE) == 700


def test_a_person_gives_back_what_returned_and_not_what_is_pending() -> None:
    with fresh_desk() as desk:
        returned(desk)
        suspense, funding = places(1)["exchange's suspense"], places(1)["funding"]
        assert refused(desk, (suspense, -401), (funding, 401)) == "AMOUNT_HELD"
        twice = [desk.books.transfer((suspense, -201), (funding, 201)) for _ in range(2)]
        with pytest.raises(Refused, match="hold 300"):
            desk.books.ledger.post(twice)
        given = desk.books.transfer((suspense, -400), (funding, 400))
        desk.books.ledger.post([given])
        assert (desk.funding(1), desk.of_exchange(Purpose.SUSPENSE)) == (1_000, 300)
        desk.custody.mine(NEEDED)
        desk.deposits.sweep()
        assert desk.funding(2) == 300


def test_an_auditor_sees_that_set_aside_money_was_taken() -> None:
    with fresh_books() as books:
        books.open(1, PAIR)
        books.deposit(1, "BTC", 10)
        target = user(1, "BTC", Purpose.FUNDING)
        legs = (user(1, "BTC"), -8), (target, 8)
        books.ledger.post([books.transfer(*legs, phase=Phase.PENDING)])
        assert verify(books.engine).complaints == []
        everything = superuser(books)
        with everything.begin() as thief:
            thief.exec_driver_sql("SET session_replication_role = replica")
            thief.exec_driver_sql(
                "UPDATE balances SET amount = 1 FROM accounts WHERE id = account_id AND purpose = 6"
            )
        everything.dispose()
        found = verify(books.engine).complaints
        assert any("has 1 units, and 8 are set aside there" in sentence for sentence in found)
