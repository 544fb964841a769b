"""Measure this machine: ``python -m bench [NAME...] [--quick]``."""

import argparse
import gc
import sys
import time

from rich.console import Console
from rich.table import Table

from bench import BENCHMARKS
from bench.harness import Neighbours, Rounds, Row, load, machine


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure Holdfast against what the same machine can do at best.",
        epilog="benchmarks: "
        + "; ".join(f"{name} ({what})" for name, (what, _) in BENCHMARKS.items()),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these benchmarks")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller passes")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement, default 5")
    parsed = parser.parse_args(given)
    for name in parsed.names:
        if name not in BENCHMARKS:
            parser.error(f"{name!r} is not one of {', '.join(BENCHMARKS)}")
    return parsed


def _print(console: Console, rows: list[Row], title: str) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("what", "measured", "against"):
        table.add_column(column)
    table.add_column("ratio", justify="right")
    table.add_column("must reach")
    table.add_column("note")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:,.3g}"
        table.add_row(row.subject, row.measured, row.against, ratio, row.must, row.note)
    console.print(table)


def main(given: list[str] | None = None) -> int:
    """Run the benchmarks named; print each table as it is done."""
    arguments = _arguments(given)
    rounds = Rounds(arguments.rounds or (3 if arguments.quick else 5), arguments.quick)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(machine())
    console.print(f"{load()}; {rounds.count} rounds in turns, medians")
    for name in arguments.names or BENCHMARKS:
        what, run = BENCHMARKS[name]
        others, start_ns = Neighbours(), time.monotonic_ns()
        rows = run(rounds)
        gc.collect()
        took_s = (time.monotonic_ns() - start_ns) / 1e9
        _print(console, rows, f"{name}: {what}")
        console.print(f"  {took_s:.0f} s, {load()}; busy beside: {', '.join(others.busy()) or '-'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
