"""What the commands about money share: where the services are, whose money it is, how it is shown.

Without `--ledger` and `--risk` the ports are read from the run folder, where the services wrote
them when they started; without such a file they are the usual ones. Text for people goes to
standard output in aligned columns that are never cut; with `--json` one document is printed.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from holdfast.money.amounts import plain
from holdfast.money.blocking import MoneyClient
from holdfast.money.calls import LEDGER_TARGET, RISK_TARGET
from holdfast.money.words import OWNER_KINDS
from holdfast.retry import Retry
from holdfast.running.demonstration import VISITOR

HOST: Final = "127.0.0.1"
_PATIENT: Final = Retry(patience_s=10.0, attempt_s=5.0)


def command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    """Return the parser of one command, with the options that all of them have."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    where = parser.add_argument_group("where and who")
    where.add_argument("--ledger", metavar="HOST:PORT", help=f"default: {LEDGER_TARGET}")
    where.add_argument("--risk", metavar="HOST:PORT", help=f"default: {RISK_TARGET}")
    where.add_argument(
        "--run", type=Path, default=Path("run"), help="the run folder, which knows other ports"
    )
    where.add_argument(
        "--account", type=int, default=VISITOR, help=f"{VISITOR}: the demo's visitor"
    )
    where.add_argument(
        "--owner-kind",
        choices=OWNER_KINDS.words,
        default="",
        help="what the account is, if the books do not know it yet",
    )
    parser.add_argument("--json", action="store_true", help="one document for programs")
    parser.set_defaults(command=run)
    return parser


def groups(commands: Any, name: str, text: str) -> Any:
    """Return where the commands of a group are added: `holdfast NAME COMMAND`."""
    parser = commands.add_parser(name, help=text, description=text)
    return parser.add_subparsers(required=True, metavar="COMMAND")


def target(given: str | None, port_file: Path, default: str) -> str:
    """Return where a service is: as given, as it said itself when it started, or as usual."""
    if given is not None:
        return given
    try:
        return f"{HOST}:{int(port_file.read_text(encoding='ascii'))}"
    except FileNotFoundError:
        return default
    except ValueError as error:
        raise ValueError(f"{port_file} holds no port; name the service by its option") from error


def ledger_of(given: argparse.Namespace) -> str:
    """Return where the ledger is."""
    return target(given.ledger, given.run / "ledgerd.port", LEDGER_TARGET)


def client(
    given: argparse.Namespace, actor: str = "", pairs: dict[str, str] | None = None
) -> MoneyClient:
    """Return the client that the options ask for."""
    return MoneyClient(
        given.account,
        owner_kind=given.owner_kind,
        actor=actor,
        ledger=ledger_of(given),
        risk=target(given.risk, given.run / "riskd.port", RISK_TARGET),
        pairs=pairs,
        retry=_PATIENT,
    )


def uuid(text: str) -> UUID:
    """Return an id given on the command line; argparse turns the error into usage."""
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no id such as {UUID(int=0)}") from None


def time_text(time_ns: int) -> str:
    """Return nanoseconds since 1970 as a time of day that can be given back to `--at`."""
    seconds, rest_ns = divmod(time_ns, 10**9)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest_ns // 1_000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def print_json(value: Any) -> None:
    """Print one document: decimals as text, ids in their usual form, hashes as hexadecimal."""
    print(json.dumps(_simple(value), indent=2))


def _simple(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _simple(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {key: _simple(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_simple(item) for item in value]
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, bytes):
        return value.hex()
    return str(value) if isinstance(value, UUID) else value


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()
) -> None:
    """Print rows in aligned columns; those named in `right` are numbers. Nothing is ever cut.

    Without rows nothing is printed: what is missing is the caller's to say.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    numbers = set(right)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if not table.row_count:
        return
    console = Console(markup=False, highlight=False, emoji=False)
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.width = max(console.width, needed)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print(line.rstrip())
