"""`holdfast balances`, `statement`: what an account has, and how it came about."""

import argparse
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from holdfast.cli.money.options import client, command, print_json, print_table, time_text
from holdfast.money.amounts import plain
from holdfast.money.answers import AssetBalances, PairSequence
from holdfast.money.words import PURPOSES

_SEQUENCE: Final = re.compile(r"([^@\s]+)@([0-9]{1,18})", re.ASCII)


def add_commands(commands: Any) -> None:
    """Add this module's commands to the parser."""
    balances = command(commands, "balances", _balances, "show what an account has, and where")
    balances.add_argument(
        "--at",
        type=_moment,
        metavar="TIME|PAIR@SEQUENCE",
        help="as of a time such as 2026-11-23T12:00:00Z, or after a command of a pair",
    )
    statement = command(commands, "statement", _statement, "show what happened to an account")
    statement.add_argument("asset")
    statement.add_argument("purpose", nargs="?", default="funding", choices=PURPOSES.words)
    statement.add_argument("--pair", default="", help="where the purpose has one: allotted, fees")
    statement.add_argument("--lines", type=int, default=20, help="most lines, at most 1000")
    statement.add_argument("--from", dest="token", default="", help="where the page before ended")
    statement.add_argument("--all", action="store_true", help="to the first line ever")


def _moment(text: str) -> datetime | PairSequence:
    found = _SEQUENCE.fullmatch(text)
    if found is not None:
        return PairSequence(found[1], int(found[2]))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        sentence = f"{text!r} is neither a time such as 2026-11-23T12:00:00Z nor PAIR@SEQUENCE"
        raise argparse.ArgumentTypeError(sentence) from None
    # A time without a zone is taken as the one in which all times are shown.
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _balances(given: argparse.Namespace) -> int:
    with client(given) as money:
        found = money.balances(given.at)
    if given.json:
        print_json(found)
        return 0
    by_asset = found.by_asset()
    pairs = sorted({pair for one in by_asset for pair in one.engines})
    others = sorted({purpose for one in by_asset for purpose in one.other})
    numbers = ["funding", "trading", *(f"in {pair}" for pair in pairs), "in flight", *others]
    columns = ["asset", *numbers, "total"]
    rows = [_row(one, pairs, others) for one in by_asset]
    if not rows:
        print(f"account {given.account} has no balances")
    print_table(columns, rows, right=columns[1:])
    return 0


def _row(one: AssetBalances, pairs: list[str], others: list[str]) -> list[str]:
    amounts = [one.funding, one.trading, *(one.engines.get(pair) for pair in pairs), one.in_flight]
    amounts += [one.other.get(purpose) for purpose in others]
    return [one.asset, *map(_cell, amounts), plain(one.total)]


def _cell(amount: Decimal | None) -> str:
    return "-" if amount is None else plain(amount)


def _statement(given: argparse.Namespace) -> int:
    with client(given) as money:
        name = (given.asset, given.purpose, given.pair)
        if given.all:
            lines, token = tuple(money.statement_lines(*name)), ""
        else:
            page = money.statement(*name, page_size=given.lines, page_token=given.token)
            lines, token = page.lines, page.next_page_token
    if given.json:
        print_json({"lines": lines, "next_page_token": token})
        return 0
    rows = [
        [
            str(line.version),
            time_text(line.time_ns),
            line.kind if line.phase == "single" else f"{line.kind} {line.phase}",
            plain(line.amount),
            plain(line.balance),
            str(line.transfer_id),
        ]
        for line in lines
    ]
    columns = ["version", "time", "kind", "amount", "balance", "transfer"]
    print_table(columns, rows, right=("version", "amount", "balance"))
    if token:
        print(f"older lines: --from {token}")
    return 0
