"""The kernel with every feature on, against nothing at all and against its plain twin."""

from dataclasses import replace
from functools import partial
from typing import Final, Protocol

import numpy as np

from bench.flows import FIVE, Flow, common, generated, recorded_normal
from bench.harness import Rounds, Row, cpu_seconds, in_turns, medians, rate
from bench.loops import null_batch
from bench.venue import ACCOUNTS, START_NS, Venue, funding
from exchange.enums import OrderType, SelfTradePrevention
from exchange.records import C_PRICE, C_VERB, COMMAND_BYTES, EXECUTION_WORDS, Rows
from tests.reference.engine import ReferenceEngine

CALLS: Final = (64, 1_024)
"""Commands a call."""


class Applying(Protocol):
    """What takes commands by address."""

    def apply_at(self, commands_address: int, count: int, time_ns: int) -> int:
        """Apply commands; return how many."""


class NullEngine:
    """Called like an engine, and nothing behind it: each command read, one execution written."""

    def __init__(self) -> None:
        self._context = np.zeros(128, np.int64)
        self._output = np.zeros((1 << 14, EXECUTION_WORDS), np.int64)
        self._context_address = self._context.ctypes.data
        self._output_address = self._output.ctypes.data
        self._output_capacity = len(self._output)

    def apply_at(self, commands_address: int, count: int, time_ns: int) -> int:
        """Do nothing with so many commands at an address; return how many."""
        return null_batch(
            self._context_address,
            commands_address,
            count,
            time_ns,
            self._output_address,
            self._output_capacity,
        )


def _run(engine: Applying, commands: Rows, batch: int) -> None:
    address, left = commands.ctypes.data, len(commands)
    while left:
        applied = engine.apply_at(address, min(batch, left), START_NS)
        left -= applied
        address += applied * COMMAND_BYTES


def commands_per_second(venue: Venue, commands: Rows, batch: int) -> float:
    """Return the rate of one pass from an empty book, in CPU time of this thread."""
    venue.reset()
    return len(commands) / cpu_seconds(lambda: _run(venue.engine, commands, batch))


def _against_null(rounds: Rounds, flow: Flow) -> list[Row]:
    """Return a row per batch size for one flow."""
    null, rows = NullEngine(), []
    accounts = ACCOUNTS if flow.instrument.account_capacity > ACCOUNTS else 1
    with Venue(flow.instrument, accounts) as venue:
        for batch in CALLS:

            def nothing(batch: int = batch) -> float:
                return len(flow.commands) / cpu_seconds(lambda: _run(null, flow.commands, batch))

            found = medians(
                rounds,
                {
                    "kernel": partial(commands_per_second, venue, flow.commands, batch),
                    "null": nothing,
                },
            )
            rows.append(
                Row(
                    f"{flow.name}, {batch:,} a call",
                    rate(found["kernel"]),
                    f"null kernel {rate(found['null'])}",
                    found["kernel"] / found["null"],
                    "8 M/s and 0.15",
                    flow.origin,
                )
            )
        venue.engine.check()
    return rows


def _against_twin(rounds: Rounds, flow: Flow, count: int) -> Row:
    """Compare kernel and twin on the first commands of a flow."""
    commands = flow.commands[:count]
    plain, funds = commands.tolist(), funding().tolist()

    def twin() -> float:
        reference = ReferenceEngine(flow.instrument)
        for sequence, command in enumerate(funds, 1):
            reference.apply(command, sequence, START_NS)

        def work() -> None:
            for sequence, command in enumerate(plain, len(funds) + 1):
                reference.apply(command, sequence, START_NS)

        return count / cpu_seconds(work)

    with Venue(flow.instrument) as venue:
        found = medians(
            Rounds(3, rounds.quick),
            {"kernel": lambda: commands_per_second(venue, commands, 1_024), "twin": twin},
        )
    return Row(
        f"{flow.name}, first {count:,}, 1,024 a call",
        rate(found["kernel"]),
        f"plain twin {rate(found['twin'])}",
        found["kernel"] / found["twin"],
    )


def run_kernel(rounds: Rounds) -> list[Row]:
    """Measure the whole kernel: accounts, holds, fees, prevention, client ids, executions."""
    count = rounds.size(1_000_000, 200_000)
    flows = [common("deep", count), common("wide", count)]
    recorded = recorded_normal(count // 2)
    flows.append(recorded or generated("normal", count // 2))
    rows = [row for flow in flows for row in _against_null(rounds, flow)]
    rows.append(_against_twin(rounds, flows[1], rounds.size(10_000, 4_000)))
    return rows


def _without_features(flow: Flow) -> Flow:
    """Return the flow with no fees and no prevention of self-trades."""
    commands = flow.commands.copy()
    new = (commands[:, C_VERB] >> 16) & 0xFF == OrderType.LIMIT
    commands[new, C_PRICE] &= 0xFFFFFFFF
    commands[new, C_PRICE] |= int(SelfTradePrevention.NONE) << 32
    instrument = replace(flow.instrument, taker_fee_ppm=0, maker_fee_ppm=0)
    return Flow(flow.name, flow.origin, commands, instrument)


def _least(rounds: Rounds, flow: Flow) -> list[Row]:
    bare = _without_features(flow)
    stream = len(bare.commands)
    with Venue(bare.instrument) as venue, Venue(flow.instrument) as full:
        found = medians(
            rounds,
            {
                "stream": partial(commands_per_second, venue, bare.commands, stream),
                "calls": partial(commands_per_second, venue, bare.commands, 1_024),
                "full": partial(commands_per_second, full, flow.commands, 1_024),
            },
        )
    against = f"every feature on, 1,024 a call {rate(found['full'])}"
    return [
        Row(
            f"{flow.name}, whole stream a call",
            rate(found["stream"]),
            against,
            found["stream"] / found["full"],
            "25 M/s",
            "no fees, no prevention; accounts, ids and executions stay",
        ),
        Row(
            f"{flow.name}, 1,024 a call",
            rate(found["calls"]),
            against,
            found["calls"] / found["full"],
            "25 M/s",
            "no fees, no prevention; accounts, ids and executions stay",
        ),
    ]


def run_book(rounds: Rounds) -> list[Row]:
    """Measure the least the kernel can be asked to do: no fees, no prevention, long calls."""
    count = rounds.size(1_000_000, 200_000)
    flows = [common(profile, count) for profile in ("deep", "wide")]
    return [row for flow in flows for row in _least(rounds, flow)]


def run_flows(rounds: Rounds) -> list[Row]:
    """Measure five markets, and how much the worst loses against the normal one."""
    flows = [generated(name, rounds.size(500_000, 150_000)) for name in FIVE]
    with Venue() as venue:
        found = in_turns(
            rounds,
            {
                flow.name: partial(commands_per_second, venue, flow.commands, 1_024)
                for flow in flows
            },
        )
    middle = {name: float(np.median(rates)) for name, rates in found.items()}
    return [
        Row(
            name,
            rate(figure),
            f"normal {rate(middle['normal'])}",
            figure / middle["normal"],
            "0.7",
        )
        for name, figure in middle.items()
    ]
