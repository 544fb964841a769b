"""`holdfast limits`, `exposure`, `kill`, `risk status`: what operators set, see and stop."""

import argparse
from collections.abc import Iterable
from typing import Any

from holdfast.cli.money.options import (
    client,
    command,
    groups,
    print_json,
    print_table,
    time_text,
)
from holdfast.money.amounts import plain
from holdfast.money.answers import Limit, LimitChange
from holdfast.money.risk import value_text
from holdfast.money.words import LIMIT_KINDS


def add_commands(commands: Any) -> None:
    """Add this module's commands to the parser."""
    limits = groups(commands, "limits", "what accounts may do at most")
    show = command(
        limits, "show", _show, "show all limits, or those that bind an account in a pair"
    )
    show.add_argument("--pair", help="what binds the account there: the strictest of each kind")
    show.add_argument("--version", type=int, default=0, help="all limits of an earlier version")
    for name, run, text in (
        ("set", _set, "set one limit"),
        ("lift", _lift, "lift one limit"),
    ):
        change = command(limits, name, run, text)
        change.add_argument("kind", choices=LIMIT_KINDS.words, metavar="KIND")
        if name == "set":
            change.add_argument("value", help="decimal text for an amount, digits for a count")
        change.add_argument(
            "--of", default="everyone", metavar="everyone|tier:NAME|account:N", help="whom it binds"
        )
        change.add_argument(
            "--in", dest="place", default="everywhere", metavar="everywhere|PAIR|ASSET"
        )
        change.add_argument("--note", required=True, help="why; kept for ever")
        change.add_argument("--as", dest="actor", default="operator", help="who changes it")
        change.add_argument(
            "--expected-version", type=int, default=0, help="refuse unless that is the version now"
        )
        change.epilog = f"KIND is one of {', '.join(LIMIT_KINDS.words)}"
    history = command(limits, "history", _history, "show who changed what: limits, kills, the rest")
    history.add_argument("--lines", type=int, default=20, help="most changes, at most 1000")
    history.add_argument(
        "--from", dest="before", type=int, default=0, metavar="N", help="only changes older than N"
    )
    command(commands, "exposure", _exposure, "show an account's money in pairs and its limits")
    kill = command(commands, "kill", _kill, "stop an account, a pair or everything")
    kill.add_argument("scope", choices=("account", "pair", "everything"))
    kill.add_argument("name", nargs="?", default="", help="the account number or the pair")
    kill.add_argument("--lift", action="store_true", help="let it trade again")
    kill.add_argument("--note", default="", help="why; kept for ever")
    kill.add_argument("--as", dest="actor", default="operator", help="who does it")
    risk = groups(commands, "risk", "the risk service itself")
    command(risk, "status", _status, "show how far each pair is followed, and what is wrong")


# Limits.


def _rows(limits: Iterable[Limit]) -> list[list[str]]:
    return [
        [
            one.kind,
            f"{one.subject} {one.subject_name}".rstrip(),
            one.place_name or one.place,
            value_text(one),
        ]
        for one in limits
    ]


def _show(given: argparse.Namespace) -> int:
    columns = ["limit", "binds", "in", "at most"]
    with client(given) as money:
        if given.pair is None:
            found = money.limits(given.version)
            if given.json:
                print_json(found)
                return 0
            print_table(columns, _rows(found.limits))
            print(f"version {found.version}, {len(found.limits)} limits")
            return 0
        binding = money.effective_limits(given.pair)
    if given.json:
        print_json(binding)
        return 0
    print_table(columns, _rows(binding.limits))
    known = "the engine knows" if binding.confirmed else "the engine does not know all of them yet"
    print(
        f"account {given.account} in {given.pair}: tier {binding.tier}, role {binding.role},"
        f" version {binding.version}, {known}"
    )
    return 0


def _history(given: argparse.Namespace) -> int:
    with client(given) as money:
        found = money.risk_changes(before=given.before, page_size=given.lines)
    # Behind a full page there may be more, unless it ends with the first change ever.
    full = len(found) >= max(given.lines, 1)
    older = found[-1].change if full and found[-1].change > 1 else 0
    if given.json:
        print_json({"changes": found, "older": older})
        return 0
    rows = [
        [
            str(one.change),
            time_text(one.time_ns),
            one.actor,
            edit.what,
            edit.before or "-",
            edit.after or "-",
            one.note,
        ]
        for one in found
        for edit in one.edits
    ]
    if not rows:
        print("there are no such changes")
    print_table(
        ["change", "time", "who", "what", "before", "after", "note"], rows, right=("change",)
    )
    if older:
        print(f"older changes: --from {older}")
    return 0


def _subject(text: str) -> tuple[str, str]:
    """Return subject and name. Raises ValueError."""
    subject, _, name = text.partition(":")
    fits = not name if subject == "everyone" else subject in ("tier", "account") and bool(name)
    if not fits:
        raise ValueError(f"--of is {text!r}; it must be everyone, tier:NAME or account:N")
    return subject, name


def _place(text: str) -> tuple[str, str]:
    if text == "everywhere":
        return text, ""
    return ("pair" if "-" in text else "asset"), text


def _set(given: argparse.Namespace) -> int:
    return _change(given, given.value)


def _lift(given: argparse.Namespace) -> int:
    return _change(given, None)


def _change(given: argparse.Namespace, value: str | None) -> int:
    (subject, subject_name), (place, place_name) = _subject(given.of), _place(given.place)
    change = LimitChange(given.kind, value, subject, subject_name, place, place_name)
    with client(given, given.actor) as money:
        changed = money.change_limits([change], given.note, expected_version=given.expected_version)
    if given.json:
        print_json(changed)
        return 0
    left = changed.unconfirmed_count
    told = f"; {left} accounts or pairs have yet to confirm" if left else "; engines know"
    print(f"limits are at version {changed.version} now{told}")
    return 0


def _exposure(given: argparse.Namespace) -> int:
    with client(given) as money:
        found = money.exposure()
    if given.json:
        print_json(found)
        return 0
    rows = [
        [
            one.pair,
            one.asset,
            plain(one.total),
            plain(one.free) if one.free_exact else f"<= {plain(one.free)}",
            plain(one.in_flight),
            plain(one.target),
            str(one.sequence),
        ]
        for one in found.pairs
    ]
    columns = ["pair", "asset", "total", "free", "in flight", "target", "at sequence"]
    if not rows:
        print(f"account {given.account} has nothing in any pair")
    print_table(columns, rows, right=columns[2:])
    for use in found.uses:
        percent, rest = divmod(use.used_ppm, 10_000)
        broken = ": BROKEN" if use.used_ppm > 1_000_000 else ""
        print(
            f"{use.limit.kind} {plain(use.used)} of {value_text(use.limit)},"
            f" {percent}.{rest // 100:02d} %{broken}"
        )
    return 0


# Stopping.


def _kill(given: argparse.Namespace) -> int:
    account, pair = 0, ""
    if given.scope == "account":
        if not (given.name.isascii() and given.name.isdigit() and len(given.name) <= 18):
            raise ValueError(f"the account is {given.name!r}; it must be a number")
        account = int(given.name)
    elif given.scope == "pair":
        if not given.name:
            raise ValueError("the pair is ''; it must be one such as BTC-USDT")
        pair = given.name
    elif given.name:
        raise ValueError(f"everything takes no name, and {given.name!r} was given")
    with client(given, given.actor) as money:
        killed = money.kill(
            given.scope, account=account, pair=pair, lift=given.lift, note=given.note
        )
    unconfirmed = [one for one in killed.confirmations if not one.confirmed]
    if given.json:
        print_json(killed)
        return 1 if unconfirmed else 0
    whose = f"account {account} trades" if account else "everybody trades"
    never = f"nothing of account {account} trades" if account else "nothing trades"
    for one in killed.confirmations:
        if not one.confirmed:
            print(f"{one.pair}: not confirmed yet, it is asked until it does: {one.message}")
        else:
            what = f"this switch is lifted: {whose}" if given.lift else never
            print(f"{one.pair}: {what} after sequence {one.sequence:,}")
    return 1 if unconfirmed else 0


def _status(given: argparse.Namespace) -> int:
    with client(given) as money:
        found = money.risk_status()
    alarms = [(pair.pair, alarm) for pair in found.pairs for alarm in pair.alarms]
    if given.json:
        print_json(found)
        return 1 if alarms else 0
    rows = [
        [
            one.pair,
            "stopped" if one.killed else "open",
            f"{one.committed_number:,}",
            f"{one.cursor:,}",
            f"{one.settled_number:,}",
            f"{one.transfer_number:,}",
            str(one.open_move_count),
        ]
        for one in found.pairs
    ]
    columns = ["pair", "state", "committed", "followed", "settled", "moves", "open moves"]
    print_table(columns, rows, right=columns[2:])
    for pair, alarm in alarms:
        print(f"ALARM {pair} {alarm.alarm} since {time_text(alarm.since_ns)}: {alarm.message}")
    stopped = ", ".join(map(str, found.killed_accounts)) or "none"
    everything = "; EVERYTHING IS STOPPED" if found.everything_killed else ""
    print(f"limits version {found.limits_version}; stopped accounts: {stopped}{everything}")
    return 1 if alarms else 0
