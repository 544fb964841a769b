"""What must hold of the whole money machine after every step, and what only when all is quiet."""

from collections import defaultdict

import numpy as np

from engine import vault_layout as vault
from exchange import records
from exchange.enums import Asset, ExecutionKind
from ledgerd.audit import trial_balance, verify
from ledgerd.custody.deposit_rules import ABSENT
from ledgerd.custody.proof import unexplained_payouts, verify_money
from ledgerd.custody.withdrawal_rules import PAID, WithdrawalState
from ledgerd.reserves.holdings import custody_complaints
from riskd.limits import asset_name
from tests.property.test_ledger import read
from tests.property.whole_money import EVERYTHING, OWNERS, Whole
from tests.reference.ledger import Key
from tests.simulation.processes import ASSETS, EngineNode

Amounts = dict[Key, int]


def check(whole: Whole) -> None:
    """Assert that every unit is in exactly one place, and that all who know it agree."""
    amounts = {key: amount for key, (amount, _) in read(whole.books).items()}
    for (owner, purpose, asset, pair), amount in amounts.items():
        below = amount > 0 if purpose == "custody" else amount < 0
        assert not below, f"{purpose}:{pair} {asset} of {owner} is {amount}"
    sums: dict[str, int] = defaultdict(int)
    for line in trial_balance(whole.books.engine):
        sums[line.asset] += line.amount
    assert dict(sums) == dict.fromkeys(ASSETS, 0)
    assert without_zeros(amounts) == without_zeros(whole.twin.balances), "the twin has others"
    for node in whole.engines.values():
        check_pair(whole, node, amounts)
    check_coins(whole, amounts)
    desk = whole.desk
    for rows in (desk.deposits.notices, desk.deposits.open, desk.deposits.watched):
        assert rows.troubles == {}
    for rows in (desk.withdrawals.waiting, desk.withdrawals.moving, desk.withdrawals.watched):
        assert rows.troubles == {}


def without_zeros(amounts: Amounts) -> Amounts:
    return {key: amount for key, amount in amounts.items() if amount}


def check_pair(whole: Whole, node: EngineNode, amounts: Amounts) -> None:
    """Compare a pair's engine with the books: at their cursor by account, and now in sum."""
    instrument, pair = node.instrument, node.instrument.pair
    cursor, there = whole.settled[pair], node.accounts()
    if cursor in node.totals:
        booked = np.zeros_like(there)
        for owner in OWNERS:
            for side in (Asset.BASE, Asset.QUOTE):
                key = (owner, "allotted", asset_name(instrument, side), pair)
                booked[owner, side - 1] = amounts.get(key, 0)
        booked[0, 1] = amounts.get((0, "fees", instrument.quote_asset, pair), 0)
        assert (booked == node.totals[cursor]).all(), f"{pair}: ledger and engine differ"
    applied = int(node.engine.vault["scalars"][vault.TRANSFER_NUMBER])
    assert applied <= whole.numbers[pair], f"{pair}: a number nobody gave"
    for side in (Asset.BASE, Asset.QUOTE):
        name = asset_name(instrument, side)
        ours = sum(
            units
            for (_, purpose, asset, where), units in amounts.items()
            if (asset, where) == (name, pair) and purpose in {"allotted", "suspense", "fees"}
        )
        told = (whole.twin.told[pair, at] for at in range(applied + 1, whole.numbers[pair] + 1))
        coming = sum(one.amount for one in told if one.allot and one.asset == name)
        released = sum(
            row[records.E_AMOUNT]
            for row in node.log[cursor:]
            if row[records.E_VERB] & 0xFF == ExecutionKind.RELEASED
            if row[records.E_PRICE] & 0xFFFFFFFF == side
        )
        there_now = int(there[:, side - 1].sum())
        assert ours == there_now + coming + released, f"{pair}: {name} is lost or made"


def check_coins(whole: Whole, amounts: Amounts) -> None:
    """Compare the coins with the books, payment by payment, and what was paid with what was taken.

    The chain may be ahead of the books, or have taken back what they still believe.
    """
    custody = whole.calm.custody
    assert unexplained_payouts(whole.books.engine, custody) == []
    ahead = dict.fromkeys(ASSETS, 0)
    booked = set[str]()
    for owner in OWNERS:
        for deposit in whole.calm.deposits.of_owner(owner, EVERYTHING):
            if deposit.state not in ABSENT:
                booked.add(deposit.transaction_id)
        taken = dict.fromkeys(ASSETS, 0)
        for one in whole.calm.withdrawals.of_owner(owner, EVERYTHING):
            asset, units = one.asked.asset, one.asked.amount_units
            gone = custody.payout(one.id).confirmations > 0
            ahead[asset] -= units * (gone - (one.state == WithdrawalState.CONFIRMED))
            on_its_way = one.state in {WithdrawalState.SENDING, WithdrawalState.SENT, *PAID}
            taken[asset] += units * on_its_way
        for asset, units in taken.items():
            assert custody.paid_units(asset, f"outside{owner}") <= units
    for payment in whole.payments:
        incoming = custody.incoming(payment, 0)
        assert incoming is not None
        came = incoming.confirmations > 0
        ahead[incoming.asset] += incoming.amount_units * (came - (payment in booked))
    for asset, units in ahead.items():
        holdings = -amounts.get((0, "custody", asset, ""), 0) + units
        assert custody.holdings_units(asset) == holdings, f"{asset} coins are lost or made"


def check_rest(whole: Whole) -> None:
    """Assert that nothing is on its way, and that every proof there is finds nothing."""
    check(whole)
    engine = whole.books.engine
    for (_, purpose, _, pair), units in whole.twin.balances.items():
        on_its_way = bool(pair) and purpose in {"allotted", "suspense"}
        assert not (on_its_way and units)
    assert not any(told.open for told in whole.twin.told.values())
    assert verify(engine).complaints == []
    assert verify_money(engine) == []
    assert whole.books.ledger.differences() == []

    def no_second_look() -> None:
        raise AssertionError("coins and books differ although nothing moves")

    assert list(custody_complaints(engine, whole.calm.custody, no_second_look)) == []
