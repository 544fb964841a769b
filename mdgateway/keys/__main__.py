"""`python -m mdgateway keys add|list|revoke`: make, show and revoke market data keys."""

import argparse
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mdgateway.keys.key_file import InvalidKeyFile, UnknownKey, add_key, read_keys, revoke_key
from mdgateway.keys.tiers import ANONYMOUS, TIERS

_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_SPAN: Final = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
NOTE_CHARACTERS: Final = 200


def span_ns(text: str) -> int:
    """Return a span such as 30d, 12h, 15m or 90s in nanoseconds; raises ValueError."""
    match = _SPAN.fullmatch(text)
    if match is None or not int(match[1]):
        raise ValueError(f"{text!r} is no span; it must be like 30d, 12h, 15m or 90s")
    return int(match[1]) * _SECONDS[match[2]] * 1_000_000_000


def main(argv: list[str] | None = None) -> int:
    """Do what the arguments after `keys` say; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mdgateway keys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    given = [tier for tier in TIERS if tier != ANONYMOUS.name]
    add = commands.add_parser("add", help="make a key and print its secret, once")
    add.add_argument("--tier", choices=given, required=True)
    add.add_argument("--expires", help="after 30d, 12h, 15m, 90s; never unless given")
    add.add_argument("--note", default="", help="whom it is for")
    listing = commands.add_parser("list", help="show all keys, without their secrets")
    revoke = commands.add_parser("revoke", help="end a key; gateways notice within a second")
    revoke.add_argument("id", help="the key's name as `list` shows it")
    for command in (add, listing, revoke):
        command.add_argument("--file", type=Path, required=True, help="the key file")
    arguments = parser.parse_args(argv)
    try:
        return _COMMANDS[arguments.command](arguments)
    except (ValueError, InvalidKeyFile, UnknownKey, OSError) as error:
        print(f"keys: {error}", file=sys.stderr)
        return 1


def _add(arguments: argparse.Namespace) -> int:
    now_ns = time.time_ns()
    expires_ns = now_ns + span_ns(arguments.expires) if arguments.expires else None
    if len(arguments.note) > NOTE_CHARACTERS:
        raise ValueError(f"note has {len(arguments.note)} characters; at most {NOTE_CHARACTERS}")
    secret, key = add_key(arguments.file, arguments.tier, now_ns, expires_ns, arguments.note)
    print(f"{key.id}  {key.tier}  {_end(key.expires_ns)}", file=sys.stderr)
    print(secret)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    now_ns = time.time_ns()
    for key in read_keys(arguments.file).values():
        state = key.ended(now_ns) or "valid"
        print(f"{key.id}  {key.tier:12}  {state:8}  {_end(key.expires_ns)}  {key.note}".rstrip())
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    key = revoke_key(arguments.file, arguments.id, time.time_ns())
    print(f"{key.id} is revoked")
    return 0


def _end(expires_ns: int | None) -> str:
    if expires_ns is None:
        return "never expires"
    moment = datetime.fromtimestamp(expires_ns // 1_000_000_000, UTC)
    return f"expires {moment:%Y-%m-%d %H:%M:%S} UTC"


_COMMANDS: Final = {"add": _add, "list": _list, "revoke": _revoke}


if __name__ == "__main__":
    sys.exit(main())
