"""`holdfast withdraw`, `withdrawals`, `approve`, `reject`, `cancel-withdrawal`: money leaves."""

import argparse
import sys
import time
from typing import Any, Final, NoReturn
from uuid import UUID, uuid4

from holdfast.cli.money.options import (
    client,
    command,
    print_json,
    print_table,
    time_text,
    uuid,
)
from holdfast.errors import InvalidRequest
from holdfast.money.amounts import decimal_of, plain, shortest, units_of
from holdfast.money.blocking import MoneyClient
from holdfast.money.funds import WATCH
from holdfast.money.movements import CONFIRMED, Withdrawal
from holdfast.retry import Retry
from holdfast.running.demonstration import VISITOR

ADDRESS_LOOK_S: Final = 0.5
"""How often an address that waits is tried again."""


def add_commands(commands: Any) -> None:
    """Add this module's commands to the parser."""
    withdraw = command(commands, "withdraw", _withdraw, "have money of funding paid to an address")
    withdraw.add_argument("asset")
    withdraw.add_argument("amount")
    withdraw.add_argument("--to", dest="address", required=True, help="a listed address")
    withdraw.add_argument("--as", dest="actor", default="", help="who asks; default: the account")
    withdraw.add_argument("--id", type=uuid, help="the id of an earlier attempt, to repeat it")
    withdraw.add_argument(
        "--wait",
        type=int,
        nargs="?",
        const=60,
        metavar="SECONDS",
        help="wait for an address listed just now, and follow the withdrawal to its end",
    )
    found = command(
        commands, "withdrawals", _withdrawals, "list withdrawals, or show one by its id"
    )
    found.add_argument("id", nargs="?", type=uuid)
    found.add_argument("--awaiting", action="store_true", help="everybody's that need approvals")
    found.add_argument("--lines", type=int, default=20)
    approve = command(commands, "approve", _approve, "consent to a withdrawal as it is shown")
    approve.add_argument("id", type=uuid)
    approve.add_argument("--as", dest="actor", required=True, help="who approves")
    approve.add_argument(
        "--digest", type=_digest, help="of the withdrawal as it was seen before; default: as now"
    )
    reject = command(commands, "reject", _reject, "refuse a withdrawal: the money goes back")
    reject.add_argument("id", type=uuid)
    reject.add_argument("--as", dest="actor", required=True, help="who refuses")
    reject.add_argument("--why", required=True, help="1 to 200 characters")
    cancel = command(
        commands, "cancel-withdrawal", _cancel, "take a withdrawal back: the money goes back"
    )
    cancel.add_argument("id", type=uuid)
    cancel.add_argument("--as", dest="actor", default="", help="who takes it back")


def _digest(text: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != 32:
        raise argparse.ArgumentTypeError(f"{text!r} is no digest of 64 hexadecimal digits")
    return found


def _line(one: Withdrawal) -> str:
    """Return how a withdrawal stands, in one line."""
    details = "" if one.reason == one.state else f", {one.reason}"
    if one.state == "awaiting-approval":
        details = f", {len(one.approvers)} of {one.approvals_needed} approvals"
    elif one.confirmations is not None:
        details = f", {one.confirmations} of {one.confirmations_needed} confirmations"
    return f"{one.state}: {plain(one.amount)} {one.asset} to {one.address}{details}"


def _withdraw(given: argparse.Namespace) -> int:
    made = given.id or uuid4()
    # Known before it is sent: whatever happens then, the same id never pays twice.
    print(f"withdrawal {made}", file=sys.stderr if given.json else sys.stdout, flush=True)
    with client(given, given.actor) as money:
        last = _asked(money, given, made)
        if given.wait is not None:
            last = _followed(money, given, made)
        elif not given.json:
            print(_line(last) + (" (asked for before)" if last.repeated else ""))
    if given.json:
        print_json(last)
    if given.wait is None:
        return 0
    return 0 if last.state == CONFIRMED else 1


def _asked(money: MoneyClient, given: argparse.Namespace, made: UUID) -> Withdrawal:
    """Ask for a withdrawal; with `--wait` until its address, listed just now, may be used."""
    ends = time.monotonic() + (given.wait or 0)
    told = False
    while True:
        try:
            return money.withdraw(given.asset, given.amount, given.address, withdrawal_id=made)
        except InvalidRequest as error:
            if error.reason == "INSUFFICIENT_FUNDS":
                _say_what_moves_it(money, given, error)
            if error.reason != "ADDRESS_TOO_FRESH" or time.monotonic() >= ends:
                raise
            if not told and not given.json:
                print(f"waiting: {error.message}", flush=True)
            told = True
        time.sleep(ADDRESS_LOOK_S)


def _followed(money: MoneyClient, given: argparse.Namespace, made: UUID) -> Withdrawal:
    watch = Retry(given.wait, given.wait, WATCH.first_pause_s, WATCH.longest_pause_s).validate()
    last: Withdrawal | None = None
    for last in money.follow_withdrawal(made, watch=watch):
        if not given.json:
            print(_line(last), flush=True)
    assert last is not None, "a withdrawal that is not found is an error of its own"
    if last.under_way:
        print(
            f"holdfast: not confirmed within {given.wait} s; `holdfast withdrawals {made}` shows it"
            " later",
            file=sys.stderr,
        )
    return last


def _say_what_moves_it(
    money: MoneyClient, given: argparse.Namespace, error: InvalidRequest
) -> NoReturn:
    """Raise the refusal again, with the command that makes the money available if there is one."""
    there = money.balances().of(given.asset)
    decimals = money.decimals(given.asset)
    missing = decimal_of(units_of(given.amount, decimals), decimals) - there.funding
    elsewhere = there.trading + there.in_engines
    sentence = f"{error.message}; funding has {plain(there.funding)} {given.asset}"
    if elsewhere >= missing > 0:
        whose = "" if given.account == VISITOR else f" --account {given.account}"
        sentence += (
            f", trading and engines {plain(elsewhere)}; this moves what is missing: holdfast"
            f" transfer {given.asset} {shortest(missing)} --from trading --to funding{whose}"
        )
    raise InvalidRequest(
        error.code,
        sentence,
        error.reason,
        field=error.field,
        value=error.value,
        limit=error.limit,
    ) from None


def _withdrawals(given: argparse.Namespace) -> int:
    with client(given) as money:
        if given.id is not None:
            return _show(given, money.withdrawal(given.id))
        if given.awaiting:
            given.account = 0
            with client(given) as everybody:
                page = everybody.withdrawals(awaiting_approval=True, page_size=given.lines)
        else:
            page = money.withdrawals(page_size=given.lines)
    if given.json:
        print_json(page)
        return 0
    rows = [
        [
            str(one.id),
            time_text(one.requested_ns),
            str(one.owner_id),
            plain(one.amount),
            one.asset,
            one.state,
            f"{len(one.approvers)}/{one.approvals_needed}",
            one.address,
        ]
        for one in page.withdrawals
    ]
    columns = ["id", "requested", "account", "amount", "asset", "state", "approved", "address"]
    print_table(columns, rows, right=("account", "amount"))
    return 0


def _show(given: argparse.Namespace, one: Withdrawal) -> int:
    if given.json:
        print_json(one)
        return 0
    expires = time_text(one.expires_ns) if one.expires_ns else "never"
    rows = [
        ["withdrawal", str(one.id)],
        ["account", str(one.owner_id)],
        ["amount", f"{plain(one.amount)} {one.asset}"],
        ["to", one.address],
        ["requested", f"{time_text(one.requested_ns)} by {one.requester}"],
        ["state", f"{one.state} since {time_text(one.changed_ns)}: {one.reason}"],
        ["approved", f"{len(one.approvers)} of {one.approvals_needed} {' '.join(one.approvers)}"],
        ["expires", expires],
        ["transaction", one.transaction_id or "-"],
        ["digest", one.digest.hex()],
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}".rstrip())
    return 0


def _approve(given: argparse.Namespace) -> int:
    with client(given, given.actor) as money:
        seen = money.withdrawal(given.id)
        if not given.json:
            _show(given, seen)
        approved = money.approve(given.id, given.actor, given.digest or seen.digest)
    return _tell(given, approved, f"{given.actor} approved it; now {_line(approved)}")


def _reject(given: argparse.Namespace) -> int:
    with client(given, given.actor) as money:
        found = money.reject(given.id, given.why)
    return _tell(given, found, _line(found))


def _cancel(given: argparse.Namespace) -> int:
    with client(given, given.actor) as money:
        found = money.cancel_withdrawal(given.id)
    return _tell(given, found, _line(found))


def _tell(given: argparse.Namespace, found: Withdrawal, sentence: str) -> int:
    if given.json:
        print_json(found)
    else:
        print(sentence)
    return 0
