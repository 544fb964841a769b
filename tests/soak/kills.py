"""Kills one process after the other and measures how long the exchange needs each time."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

import grpc
from grpc import aio

from exchange.v1 import (
    ledger_pb2,
    ledger_pb2_grpc,
    market_data_pb2,
    market_data_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
    risk_pb2,
    risk_pb2_grpc,
)
from holdfast.errors import of_rpc_error
from tests.integration.run_process import SHARED, RunProcess
from tests.soak.reading import Reader

HEAL_S: Final = 90
"""An exchange that is not whole by then is a finding."""
LOOK_S: Final = 0.05
CALL_S: Final = 2
TWICE_PERCENT: Final = 25
"""So often somebody else is killed before the exchange has healed."""
POSTMASTER: Final = ("postmaster", SHARED)
_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
)


class NotHealed(RuntimeError):
    """The exchange is not whole long after a kill; the sentence says what is missing."""


class Killer:
    """Kills, each kind of process in turn, in an order that the seed decides."""

    def __init__(
        self, run: RunProcess, reader: Reader, chance: random.Random, say: Callable[[str], None]
    ) -> None:
        self._run = run
        self._reader = reader
        self._chance = chance
        self._say = say
        self._heal_ms: dict[str, list[int]] = defaultdict(list)
        self._channels: list[aio.Channel] = []

    async def work(self, seconds: int) -> None:
        """Kill for so long, and until everybody has had a turn. Raises NotHealed."""
        self._connect()
        try:
            ends, turn = time.monotonic() + seconds, list[tuple[str, str]]()
            victims = 0
            while time.monotonic() < ends or turn:
                if not turn:
                    turn = [*self._reader.pids, POSTMASTER]
                    self._chance.shuffle(turn)
                    if time.monotonic() >= ends and victims:
                        break
                await asyncio.sleep(self._chance.uniform(0.2, 3.0))
                await self._kill_and_heal(turn)
                victims += 1
        finally:
            for channel in self._channels:
                await channel.close()

    async def _kill_and_heal(self, turn: list[tuple[str, str]]) -> None:
        killed = [turn.pop()]
        await self._kill(killed[0])
        began_ns = time.monotonic_ns()
        if turn and self._chance.randrange(100) < TWICE_PERCENT:
            await asyncio.sleep(self._chance.uniform(0.0, 1.0))
            killed.append(turn.pop())
            await self._kill(killed[1])
        names = " and ".join(f"{name} of {of}" for name, of in killed)
        # Looked at after the kill: whatever comes beyond was done by who lives now.
        await self._heal(await self._marks(), names)
        spent_ms = (time.monotonic_ns() - began_ns) // 1_000_000
        kind = killed[0][0].partition("-")[0] if len(killed) == 1 else "two at a time"
        self._heal_ms[kind].append(spent_ms)
        self._say(f"killed {names}: whole again after {spent_ms / 1_000:.1f} s")

    async def _kill(self, victim: tuple[str, str]) -> None:
        while True:
            # What was printed last may be a second old, and the process dead since.
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                postmaster = victim == POSTMASTER
                pid = self._run.postmaster() if postmaster else self._reader.pids[victim]
                os.kill(pid, signal.SIGKILL)
                return
            await asyncio.sleep(LOOK_S)

    def _connect(self) -> None:
        def channel(target: str) -> aio.Channel:
            self._channels.append(aio.insecure_channel(target, options=_OPTIONS))
            return self._channels[-1]

        targets = self._run.targets
        self._admins: dict[str, Any] = {
            pair: pair_admin_pb2_grpc.PairAdminServiceStub(channel(target))
            for pair, target in targets.items()
        }
        self._books: Any = ledger_pb2_grpc.LedgerServiceStub(channel(self._run.ledger_target))
        self._risk: Any = risk_pb2_grpc.RiskServiceStub(channel(self._run.risk_target))
        market = channel(self._run.market_data_target)
        self._market: Any = market_data_pb2_grpc.MarketDataServiceStub(market)

    async def _marks(self) -> dict[str, int]:
        """Return how far the log of each pair is."""
        marks = {}
        for pair in self._admins:
            while True:
                with contextlib.suppress(grpc.RpcError):
                    marks[pair] = (await self._status(pair)).committed_number
                    break
                await asyncio.sleep(LOOK_S)
        return marks

    async def _status(self, pair: str) -> Any:
        request = pair_admin_pb2.GetStatusRequest(pair=pair)
        return await self._admins[pair].GetStatus(request, timeout=CALL_S)

    async def _heal(self, marks: dict[str, int], names: str) -> None:
        """Return once everything works beyond the marks."""
        ends = time.monotonic() + HEAL_S
        while True:
            try:
                missing = await self._missing(marks)
            except grpc.RpcError as error:
                missing = str(of_rpc_error(error))
            if not missing:
                return
            if time.monotonic() > ends:
                raise NotHealed(f"{HEAL_S} s after {names} was killed: {missing}")
            await asyncio.sleep(LOOK_S)

    async def _missing(self, marks: dict[str, int]) -> str:
        for pair, mark in marks.items():
            if (await self._status(pair)).committed_number <= mark:
                return f"{pair} executes nothing"
            request = market_data_pb2.GetTickerRequest(pair=pair)
            await self._market.GetTicker(request, timeout=CALL_S)
        answer = await self._books.ListSettlements(
            ledger_pb2.ListSettlementsRequest(), timeout=CALL_S
        )
        for one in answer.settlements:
            if one.state == ledger_pb2.SETTLEMENT_STATE_STOPPED:
                raise NotHealed(f"settlement of {one.pair} stopped: {one.sentence}")
            if one.state != ledger_pb2.SETTLEMENT_STATE_RUNNING or one.cursor <= marks[one.pair]:
                return f"settlement of {one.pair} stands at {one.cursor} {one.sentence}"
        risk = await self._risk.GetRiskStatus(risk_pb2.GetRiskStatusRequest(), timeout=CALL_S)
        for pair in risk.pairs:
            if pair.cursor <= marks[pair.pair]:
                return f"riskd stands at {pair.cursor} of {pair.pair}"
        return ""

    def summary(self) -> list[str]:
        """Return a line for each kind of process."""
        lines = []
        for kind, taken in sorted(self._heal_ms.items()):
            middle, longest = sorted(taken)[len(taken) // 2], max(taken)
            lines.append(
                f"{kind}: killed {len(taken)} times, whole again after {middle / 1_000:.1f} s"
                f" (median), {longest / 1_000:.1f} s (longest)"
            )
        return lines
