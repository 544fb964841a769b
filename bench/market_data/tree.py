"""Gateways that follow gateways: what each step adds in time, and what a step costs."""

import statistics
import time
from contextlib import ExitStack
from typing import Final

import uvloop

from bench.harness import Rounds, Row, percentile, rate, span
from bench.market_data.fanout import BEAT_S, STREAMS, streamed
from bench.market_data.gateway import LiveVenue, Server
from bench.market_data.latency import delays

STEPS: Final = ("first gateway", "relay", "relay of the relay")


def _chain(venue: LiveVenue, stack: ExitStack) -> list[Server]:
    """Start a gateway, one that follows it, and one that follows that one."""
    chain = [stack.enter_context(venue.gateway("--eager"))]
    while len(chain) < len(STEPS):
        upstream = f"127.0.0.1:{chain[-1].port}"
        chain.append(stack.enter_context(venue.gateway("--eager", "--upstream", upstream)))
    return chain


def _busy(venue: LiveVenue, chain: list[Server], seconds: float) -> list[float]:
    """Publish for a while with no subscriber; return each gateway's share of a processor."""
    before = [server.cpu_seconds() for server in chain]
    started_ns = time.monotonic_ns()
    for _ in range(int(seconds / BEAT_S)):
        venue.publish(venue.orders(3))
        time.sleep(BEAT_S)
    passed_s = (time.monotonic_ns() - started_ns) / 1e9
    return [
        (server.cpu_seconds() - used) / passed_s for server, used in zip(chain, before, strict=True)
    ]


def run_tree(rounds: Rounds) -> list[Row]:
    """Measure a chain of three gateways in turns, step by step."""
    count, seconds = rounds.size(400, 100), rounds.size(3, 1)
    late: list[list[float]] = [[] for _ in STEPS]
    told: list[list[float]] = [[] for _ in STEPS]
    shares: list[list[float]] = [[] for _ in STEPS]
    with LiveVenue() as venue, ExitStack() as stack:
        venue.publish(venue.orders(200))
        chain = _chain(venue, stack)
        for turn in range(rounds.count + 1):
            busy = _busy(venue, chain, seconds)
            for step, server in enumerate(chain):
                late[step].append(percentile(uvloop.run(delays(venue, server, count)), 50))
                told[step].append(streamed(venue, server, seconds))
                shares[step].append(busy[step])
            if turn == 0:  # The first round warms up.
                for figures in (*late, *told, *shares):
                    figures.clear()
    return [_late(late, step) for step in range(len(STEPS))] + [
        Row(
            f"depth to {STREAMS} gRPC streams from a relay, messages a second of server CPU",
            rate(statistics.median(told[1])),
            f"from the first gateway {rate(statistics.median(told[0]))}",
            statistics.median(told[1]) / statistics.median(told[0]),
            "",
            "what it takes to follow is in it",
        ),
        Row(
            "a relay without subscribers, of a processor",
            f"{statistics.median(shares[2]):.1%}",
            f"the first gateway with one relay {statistics.median(shares[0]):.1%}",
            None,
            "",
            "100 ticks a second, each with three changes; the first one looks at memory eagerly",
        ),
    ]


def _late(late: list[list[float]], step: int) -> Row:
    mine, first = statistics.median(late[step]), statistics.median(late[0])
    subject = f"book to subscriber of the {STEPS[step]}, --eager, p50"
    return Row(subject, span(mine), f"{STEPS[0]} {span(first)}", mine / first)
