"""`holdfast deposit`, `deposits`, `transfer`, `address`: money comes in and is made ready."""

import argparse
import sys
from typing import Any
from uuid import uuid4

from holdfast.cli.money.options import (
    client,
    command,
    groups,
    print_json,
    print_table,
    time_text,
    uuid,
)
from holdfast.money.amounts import plain
from holdfast.money.funds import WATCH
from holdfast.money.movements import CREDITED, SEEN, Deposit, ListedAddress
from holdfast.retry import Retry


def add_commands(commands: Any) -> None:
    """Add this module's commands to the parser."""
    deposit = command(
        commands,
        "deposit",
        _deposit,
        "show where to deposit an asset; with an amount, let the simulated chain pay it",
    )
    deposit.add_argument("asset")
    deposit.add_argument("amount", nargs="?", help="decimal text, such as 0.5")
    deposit.add_argument("--id", type=uuid, help="the id of an earlier payment, to repeat it")
    deposit.add_argument("--wait", type=int, default=60, help="seconds until it must be credited")
    deposits = command(commands, "deposits", _deposits, "list an account's deposits")
    deposits.add_argument("--lines", type=int, default=20)
    transfer = command(
        commands, "transfer", _transfer, "move money between funding and trading, or back"
    )
    transfer.add_argument("asset")
    transfer.add_argument("amount")
    transfer.add_argument("--from", dest="source", required=True, choices=("funding", "trading"))
    transfer.add_argument("--to", dest="target", required=True, choices=("funding", "trading"))
    transfer.add_argument("--id", type=uuid, help="the id of an earlier attempt, to repeat it")
    transfer.add_argument(
        "--no-recall", action="store_true", help="do not ask engines for money they hold idle"
    )
    addresses = groups(commands, "address", "the addresses an account may withdraw to")
    add = command(addresses, "add", _add, "list an address; it waits before it can be used")
    add.add_argument("asset")
    add.add_argument("address")
    add.add_argument("--as", dest="actor", default="", help="who lists it")
    remove = command(addresses, "remove", _remove, "take an address off the list at once")
    remove.add_argument("id", type=uuid, help="as `address list` shows it")
    remove.add_argument("--as", dest="actor", default="", help="who removes it")
    command(addresses, "list", _list, "show the addresses and when each can be used")


# In.


def _deposit(given: argparse.Namespace) -> int:
    with client(given) as money:
        found = money.deposit_address(given.asset)
        if given.amount is None:
            if given.json:
                print_json(found)
                return 0
            print(found.address)
            print(f"credited after {found.confirmations_needed} confirmations", file=sys.stderr)
            return 0
        paid = given.id or uuid4()
        # Said before anything is sent: whoever has it can ask again after a lost answer.
        said = f"paying {given.amount} {given.asset} to {found.address} (id {paid})"
        print(said, file=sys.stderr if given.json else sys.stdout, flush=True)
        what = (found.address, given.asset, given.amount)
        transaction_id = money.simulate_deposit(*what, payment_id=paid)
        watch = Retry(given.wait, given.wait, WATCH.first_pause_s, WATCH.longest_pause_s)
        last: Deposit | None = None
        for last in money.follow_deposit(transaction_id, watch=watch.validate()):
            if not given.json:
                print(_progress(last), flush=True)
    assert last is not None, "a deposit that is not found is an error of its own"
    if given.json:
        print_json(last)
    if last.state == SEEN:
        print(
            f"holdfast: not credited within {given.wait} s; `holdfast deposits` shows it later",
            file=sys.stderr,
        )
    return 0 if last.state == CREDITED else 1


def _progress(deposit: Deposit) -> str:
    depth = ""
    if deposit.state == SEEN and deposit.confirmations is not None:
        depth = f", {deposit.confirmations} of {deposit.confirmations_needed} confirmations"
    where = " to funding" if deposit.state == CREDITED else ""
    return f"{deposit.state}{where}: {plain(deposit.amount)} {deposit.asset}{depth}"


def _deposits(given: argparse.Namespace) -> int:
    with client(given) as money:
        page = money.deposits(page_size=given.lines)
    if given.json:
        print_json(page)
        return 0
    rows = [
        [
            time_text(one.seen_ns),
            plain(one.amount),
            one.asset,
            one.state,
            "-" if one.confirmations is None else str(one.confirmations),
            one.transaction_id,
        ]
        for one in page.deposits
    ]
    columns = ["seen", "amount", "asset", "state", "depth", "transaction"]
    print_table(columns, rows, right=("amount", "depth"))
    return 0


# Between.


def _transfer(given: argparse.Namespace) -> int:
    if given.source == given.target:
        raise ValueError(f"--to is {given.target}, as is --from; they must differ")
    with client(given) as money:
        moved = money.transfer(
            given.asset,
            given.amount,
            source=given.source,
            target=given.target,
            recall=not given.no_recall,
            transfer_id=given.id,
        )
    if given.json:
        print_json(moved)
        return 0
    how = ", after engines gave it back" if moved.recalled else ""
    how += ", as it was before" if moved.repeated else ""
    print(
        f"moved {given.amount} {given.asset} of account {given.account} from {given.source} to"
        f" {given.target}{how} (id {moved.id}, transfer {moved.transfer_id})"
    )
    return 0


# The list.


def _add(given: argparse.Namespace) -> int:
    with client(given, given.actor) as money:
        listed = money.add_address(given.asset, given.address)
    return _tell(given, listed, f"listed, usable from {time_text(listed.usable_ns)}")


def _remove(given: argparse.Namespace) -> int:
    with client(given, given.actor) as money:
        return _tell(given, money.remove_address(given.id), "removed")


def _tell(given: argparse.Namespace, listed: ListedAddress, what: str) -> int:
    if given.json:
        print_json(listed)
    else:
        print(f"{listed.address} for {listed.asset} of account {listed.owner_id}: {what}")
    return 0


def _list(given: argparse.Namespace) -> int:
    with client(given) as money:
        found = money.addresses()
    if given.json:
        print_json(found)
        return 0
    rows = [
        [
            one.asset,
            one.address,
            "now" if one.usable_ns <= found.now_ns else time_text(one.usable_ns),
            str(one.id),
        ]
        for one in found.addresses
    ]
    print_table(["asset", "address", "usable", "id"], rows)
    return 0
