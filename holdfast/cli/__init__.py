"""The `holdfast` command: one file for each group of commands."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

_MODULES: Final = (
    "run",
    "replay",
    "orders",
    "watch",
    "money.funds",
    "money.withdrawals",
    "money.books",
    "money.risk",
    "money.verification",
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="holdfast", description="Run a trading pair on this machine, and trade on it."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in _MODULES:
        import_module(f"holdfast.cli.{name}").add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    from holdfast.errors import HoldfastError
    from holdfast.running.supervisor import SupervisorError

    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        return int(given.command(given))
    except (HoldfastError, SupervisorError, OSError, ValueError) as error:
        print(f"holdfast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
