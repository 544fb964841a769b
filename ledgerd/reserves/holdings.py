"""Coins against books: what a custodian holds of each asset, and what it paid, one by one.

The books' custody is what came less what left. The chain is ahead of them by what is on its way:

    paid      broadcast and in a block, not deep enough to be CONFIRMED
    arrived   in a block, not looked at yet
    gone      booked when it was in a block, and in none now

With these named, both are equal to the unit. They are read one after the other while chain and
books go on, so a difference counts only if it stays. Then the payments that the chain undid are
named (`ledgerd.reserves.undone`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final

from sqlalchemy import Engine

from ledgerd.audit import one_moment
from ledgerd.books.commit import Connection
from ledgerd.chart import Purpose
from ledgerd.custody.adapter import Custody, PayoutState
from ledgerd.custody.deposit_rules import ABSENT, DepositState
from ledgerd.custody.deposits import NOTICE_BATCH
from ledgerd.custody.proof import unexplained_payouts
from ledgerd.custody.withdrawal_rules import WithdrawalState
from ledgerd.reserves.undone import undone_payments
from ledgerd.trail.progress import Progress

TRIES: Final = 10
"""So often the same difference must be seen."""
Units = defaultdict[str, int]
"""By asset."""
_ON_ITS_WAY: Final = (WithdrawalState.SENDING, WithdrawalState.SENT)
_OPEN: Final = (DepositState.SEEN, DepositState.REVERSED, DepositState.UNCLAIMED)


def custody_complaints(
    engine: Engine,
    custody: Custody,
    pause: Callable[[], None],
    progress: Progress | None = None,
) -> Iterator[str]:
    """Yield where custodian and books disagree. Raises CustodyUnavailable and Abandoned.

    `pause` lets time pass between two looks at a difference.
    """
    progress = progress or Progress()
    progress.at("payouts of the custodian")
    yield from unexplained_payouts(engine, custody)
    yield from _unpaid(engine, custody)
    last: dict[str, str] = {}
    for attempt in range(TRIES):
        if attempt:
            pause()
        progress.at(f"coins against books, look {attempt + 1} of at most {TRIES}")
        last = _differences(engine, custody)
        if not last:
            break
    for asset, sentence in last.items():
        yield sentence
        yield from undone_payments(engine, custody, asset, progress)


def _unpaid(engine: Engine, custody: Custody) -> list[str]:
    """Return the withdrawals that the books have as sent or paid and the custodian never was."""
    paid = [int(WithdrawalState.SENT), int(WithdrawalState.CONFIRMED)]
    query = "SELECT id, state FROM withdrawals WHERE state = ANY(%s) ORDER BY id"
    with one_moment(engine) as connection:
        rows = connection.execute(query, (paid,)).fetchall()
    known = {payout.id for payout in custody.payouts()}
    return [
        f"withdrawal {made} is {WithdrawalState(state).name}, and the custodian has no such payout"
        for made, state in rows
        if made not in known
    ]


def _differences(engine: Engine, custody: Custody) -> dict[str, str]:
    """Return by asset in what the custodian's coins differ from the books now."""
    held = {asset: custody.holdings_units(asset) for asset in _assets(engine, custody)}
    with one_moment(engine) as connection:
        booked = _booked(connection)
        paid = _paid(connection, custody)
        gone = _gone(connection, custody)
        arrived = _arrived(connection, custody)
    found = {}
    for asset, units in held.items():
        expected = booked[asset] - paid[asset] - gone[asset] + arrived[asset]
        if units != expected:
            found[asset] = (
                f"the custodian holds {units} {asset} units, not {expected}: {booked[asset]} are"
                f" booked, {paid[asset]} of it paid and not confirmed, {gone[asset]} gone from the"
                f" chain; {arrived[asset]} arrived and are not booked yet"
            )
    return found


def _assets(engine: Engine, custody: Custody) -> list[str]:
    with one_moment(engine) as connection:
        codes = connection.execute("SELECT code FROM assets ORDER BY code").fetchall()
    return [code for (code,) in codes if custody.carries(code)]


def _booked(connection: Connection) -> Units:
    query = (
        "SELECT asset, -sum(amount)::int8 FROM balances JOIN accounts ON id = account_id"
        " WHERE purpose = %s GROUP BY asset"
    )
    return Units(int, connection.execute(query, (int(Purpose.CUSTODY),)).fetchall())


def _paid(connection: Connection, custody: Custody) -> Units:
    query = "SELECT id, asset, amount_units FROM withdrawals WHERE state = ANY(%s)"
    found = Units(int)
    for made, asset, units in connection.execute(query, ([int(one) for one in _ON_ITS_WAY],)):
        status = custody.payout(made)
        found[asset] += units * (status.state == PayoutState.ACCEPTED and status.confirmations > 0)
    return found


def _gone(connection: Connection, custody: Custody) -> Units:
    query = (
        "SELECT transaction_id, output_index, asset, amount_units FROM deposits"
        " WHERE state = ANY(%s)"
    )
    found = Units(int)
    for name, index, asset, units in connection.execute(query, ([int(one) for one in _OPEN],)):
        incoming = custody.incoming(name, index)
        found[asset] += units * (incoming is None or incoming.confirmations == 0)
    return found


def _arrived(connection: Connection, custody: Custody) -> Units:
    """Return what was announced since the books last looked, is in a block, and is not booked."""
    row = connection.execute("SELECT coalesce(max(cursor), 0) FROM custody_cursors").fetchone()
    assert row is not None
    start, payments = int(row[0]), set[tuple[str, int]]()
    while notices := custody.notices(start, NOTICE_BATCH):
        payments |= {(one.transaction_id, one.output_index) for one in notices}
        start = notices[-1].number + 1
    query = (
        "SELECT 1 FROM deposits WHERE transaction_id = %s AND output_index = %s"
        " AND state <> ALL(%s)"
    )
    absent = [int(state) for state in ABSENT]
    found = Units(int)
    for name, index in payments:
        incoming = custody.incoming(name, index)
        if incoming is not None and incoming.confirmations > 0:
            booked = connection.execute(query, (name, index, absent)).fetchone()
            found[incoming.asset] += incoming.amount_units * (booked is None)
    return found
