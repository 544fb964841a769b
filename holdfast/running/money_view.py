"""What a person sees of the money: balances, settlement, the proof, alarms.

`MoneyScreen` is pure: it is told what the books and the risk service answer, and asked for a
picture or for parts of a plain line.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from exchange.units import format_decimal
from exchange.v1 import ledger_pb2, risk_pb2

MONEY_LINES: Final = 4
"""Lines of the picture besides those of pairs and balances: frame, books, alarms."""
KEPT: Final = 64
"""Looks at a pair's log that are kept to tell how long an execution waits to be settled."""
DECIMALS_SHOWN: Final = 4
_PLACES: Final = (
    ("funding", ledger_pb2.ACCOUNT_PURPOSE_FUNDING),
    ("trading", ledger_pb2.ACCOUNT_PURPOSE_TRADING),
    ("in pairs", ledger_pb2.ACCOUNT_PURPOSE_ALLOTTED),
    ("on the way", ledger_pb2.ACCOUNT_PURPOSE_SUSPENSE),
)


@dataclass
class Settled:
    """How settlement of one pair goes."""

    settlement: ledger_pb2.Settlement | None = None
    seen: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=KEPT))
    """When the log first reached how far, as the books knew it."""

    late_ms: int = 0
    """How long the oldest execution that was not settled had waited, about, at the last look."""

    def see(self, now_ns: int, settlement: ledger_pb2.Settlement) -> None:
        """Take what the books say now; times are since 1970, as theirs."""
        self.settlement = settlement
        if not self.seen or settlement.committed_number > self.seen[-1][1]:
            self.seen.append((now_ns, settlement.committed_number))
        if self.behind_count() == 0:
            self.late_ms = 0
            return
        # Who keeps up has taken all there was into the last commit; who does not was seen waiting.
        waiting = (since_ns for since_ns, number in self.seen if number > settlement.cursor)
        since_ns = min(next(waiting, now_ns), settlement.posted_ns or now_ns)
        self.late_ms = max(0, now_ns - since_ns) // 1_000_000

    def behind_count(self) -> int:
        """Return how many executions are not settled."""
        if self.settlement is None:
            return 0
        return max(0, self.settlement.committed_number - self.settlement.cursor)

    def sentence(self) -> str:
        """Return the state in a few words."""
        if self.settlement is None:
            return "the books are not reached"
        state = ledger_pb2.SettlementState.Name(self.settlement.state)
        state = state.removeprefix("SETTLEMENT_STATE_").lower().replace("_", " ")
        if self.settlement.state != ledger_pb2.SETTLEMENT_STATE_RUNNING:
            return f"settlement {state}: {self.settlement.sentence}"
        words = f"{self.behind_count():,} behind, {self.late_ms:,} ms"
        checked = self.settlement.checked_sequence
        if checked:
            words += f"; ledger = engine at sequence {checked:,}"
        # Last, because a narrow terminal cuts it.
        return f"{words}; settled to {self.settlement.cursor:,}"

    @property
    def stopped(self) -> bool:
        """Say whether books and engine contradict each other."""
        found = self.settlement
        return found is not None and found.state == ledger_pb2.SETTLEMENT_STATE_STOPPED


@dataclass
class MoneyScreen:
    """Everything that is shown of the money, as far as it is known."""

    owners: dict[str, list[ledger_pb2.AccountBalance]] = field(default_factory=dict)
    """Balances by the name under which an owner is shown."""
    decimals: dict[str, int] = field(default_factory=dict)
    """Decimals of each asset, in the order in which assets are shown."""
    settled: dict[str, Settled] = field(default_factory=dict)
    """By pair."""
    trial: ledger_pb2.GetTrialBalanceResponse | None = None
    risk: risk_pb2.GetRiskStatusResponse | None = None

    def line(self) -> list[str]:
        """Return the state as parts of a plain line."""
        parts = []
        for owner in self.owners:
            held = (f"{self._sum(owner, asset)} {asset}" for asset in self.decimals)
            parts.append(f"{owner} has {', '.join(held)}")
        parts += [f"{pair} {one.sentence()}" for pair, one in self.settled.items()]
        return [*parts, self._books(), "; ".join(self._alarms()) or self._no_alarm()]

    def _sum(self, owner: str, asset: str, purpose: int = 0) -> str:
        units = sum(
            item.amount_units
            for item in self.owners[owner]
            if item.name.asset == asset and purpose in (0, item.name.purpose)
        )
        # Cut, not rounded: nobody is shown more than there is.
        shown = units // 10 ** (self.decimals[asset] - DECIMALS_SHOWN)
        whole, _, rest = format_decimal(shown, DECIMALS_SHOWN, DECIMALS_SHOWN).partition(".")
        return f"{int(whole):,}.{rest}"

    def _books(self) -> str:
        if self.trial is None:
            return "trial balance not known yet"
        return "trial balance zero" if self.trial.balanced else "TRIAL BALANCE NOT ZERO"

    def _alarms(self) -> list[str]:
        if self.risk is None:
            return ["riskd not reached"]
        found = []
        if self.risk.everything_killed:
            found.append("everything is stopped")
        for pair in self.risk.pairs:
            for alarm in pair.alarms:
                name = risk_pb2.RiskAlarm.Name(alarm.alarm).removeprefix("RISK_ALARM_")
                found.append(f"{pair.pair} {name}: {alarm.message}")
        return found

    def _no_alarm(self) -> str:
        return "no alarms"

    # As a picture.

    def lines(self, *, wholly: bool) -> int:
        """Return how many lines the picture takes."""
        owners = len(self.owners) * (len(_PLACES) if wholly else 1)
        return MONEY_LINES + len(self.settled) + owners

    def picture(self, *, wholly: bool) -> RenderableType:
        """Return the panel: by purpose, or only what everybody has in all."""
        table = Table.grid(expand=True, padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        for _ in self.decimals:
            table.add_column(justify="right", ratio=1, no_wrap=True)
        table.add_row("", "", *(Text(asset, style="dim") for asset in self.decimals))
        for owner in self.owners:
            if not wholly:
                sums = (self._sum(owner, asset) for asset in self.decimals)
                table.add_row(Text(owner, style="bold"), "in all", *sums)
                continue
            for place, (name, purpose) in enumerate(_PLACES):
                sums = (self._sum(owner, asset, purpose) for asset in self.decimals)
                table.add_row(Text(owner if place == 0 else "", style="bold"), name, *sums)
        rows = Table.grid(expand=True)
        rows.add_column(no_wrap=True, overflow="ellipsis")
        rows.add_row(table)
        for pair, one in self.settled.items():
            text = Text(f"{pair} ", style="bold", no_wrap=True, overflow="ellipsis")
            style = "bold white on red" if one.stopped else ""
            text.append(one.sentence(), style=style or "not bold")
            rows.add_row(text)
        rows.add_row(self._verdict())
        return Panel(rows, title="money", padding=(0, 1))

    def _verdict(self) -> RenderableType:
        text = Text(no_wrap=True, overflow="ellipsis")
        sound = self.trial is not None and self.trial.balanced
        text.append(self._books(), style="green" if sound else "yellow")
        alarms = self._alarms()
        text.append("  ")
        text.append("; ".join(alarms) or self._no_alarm(), style="bold red" if alarms else "green")
        return text
