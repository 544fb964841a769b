"""What a person sees of a running exchange: its pairs, its money, its processes.

`Screen` is pure: it is told facts and asked for a picture, either as a rich renderable for a
terminal or as plain lines for a log. It asks nobody and starts nothing.

Pairs stand side by side where the terminal is wide enough, one above the other where it is high
enough; otherwise they take turns.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from holdfast.running.money_view import MoneyScreen
from holdfast.running.pair_view import LEVELS_SHOWN, PAIR_LINES, PairScreen

PAIR_COLUMNS: Final = 76
"""Width that a pair needs beside another one."""
TURN_NS: Final = 5_000_000_000
"""How long a pair is shown where they take turns."""
LEVELS_LEAST: Final = 2


@dataclass(frozen=True, slots=True)
class ProcessLine:
    """What is shown of one process."""

    name: str
    pair: str
    pid: int
    state: str
    uptime_s: int
    restart_count: int


@dataclass
class Screen:
    """Everything that is shown, as far as it is known."""

    pairs: list[PairScreen]
    money: MoneyScreen
    processes: list[ProcessLine] = field(default_factory=list)
    footer: str = ""

    def of(self, pair: str) -> PairScreen:
        """Return what is shown of a pair."""
        return next(one for one in self.pairs if one.pair == pair)

    def lines(self) -> list[str]:
        """Return the state as plain lines: one a pair, one for all that they share."""
        found = [(one.line(), one.pair) for one in self.pairs]
        found.append((["exchange", *self.money.line()], ""))
        return [
            " | ".join(part for part in (*parts, self._processes(pair)) if part)
            for parts, pair in found
        ]

    def _processes(self, pair: str) -> str:
        return " ".join(_process(one) for one in self.processes if one.pair == pair)

    def picture(self, now_ns: int, width: int = 80, height: int = 48) -> RenderableType:
        """Return the state for a terminal of 80 columns and 24 lines or more."""
        side_by_side = width >= PAIR_COLUMNS * len(self.pairs)
        processes = len({one.pair for one in self.processes}) + 2
        # One line stays free for the cursor.
        room = height - processes - self.footer.count("\n") - bool(self.footer) - 1
        least = PAIR_LINES + 2 * LEVELS_LEAST
        wholly = room - self.money.lines(wholly=True) >= least
        room -= self.money.lines(wholly=wholly)
        shown = self.pairs
        if not side_by_side and room < least * len(self.pairs):
            shown = [self.pairs[now_ns // TURN_NS % len(self.pairs)]]
        rows = 1 if side_by_side else len(shown)
        levels = max(LEVELS_LEAST, min(LEVELS_SHOWN, (room // rows - PAIR_LINES) // 2))
        parts: list[RenderableType] = []
        if side_by_side:
            grid = Table.grid(expand=True, padding=(0, 1))
            for _ in shown:
                grid.add_column(ratio=1)
            grid.add_row(*(one.picture(levels) for one in shown))
            parts.append(grid)
        else:
            parts += [one.picture(levels) for one in shown]
        parts += [self.money.picture(wholly=wholly), self._table()]
        if self.footer:
            parts.append(Text(self.footer, style="dim"))
        return Group(*parts)

    def _table(self) -> RenderableType:
        table = Table.grid(expand=True, padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for pair in dict.fromkeys(one.pair for one in self.processes):
            mine = (one for one in self.processes if one.pair == pair)
            table.add_row(Text(pair or "shared", style="bold"), _row(mine))
        return Panel(table, padding=0, title="processes")


def _process(process: ProcessLine) -> str:
    restarts = f" ({process.restart_count} restarts)" if process.restart_count else ""
    return f"{process.name} {process.pid or process.state}{restarts}"


def _row(processes: Iterable[ProcessLine]) -> Text:
    text = Text()
    for process in processes:
        running = process.state == "running"
        cell = Text(f"{process.name} ")
        cell.append(str(process.pid) if process.pid else process.state, style="dim")
        if process.restart_count:
            cell.append(f" {process.restart_count}×", style="yellow")
        cell.stylize("" if running else "red")
        text.append_text(Text(" ") if text.plain else Text())
        text.append_text(cell)
    return text
