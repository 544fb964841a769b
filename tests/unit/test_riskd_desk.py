"""The desk of the risk service over real wires to a ledger and a pair that do as they are told."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import grpc
import pytest
from grpc import aio

from exchange.enums import ExecutionKind, Reason
from exchange.instrument import Instrument
from exchange.refusal import Refused
from exchange.v1 import (
    enums_pb2,
    execution_pb2,
    ledger_pb2,
    ledger_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
    risk_pb2,
)
from riskd import alarms
from riskd.alarms import Alarm
from riskd.allotments import Allotments
from riskd.desk import Desk
from riskd.funds.holdings import Holdings
from riskd.funds.moves import Policy
from riskd.limits import RuleBook
from riskd.links import LedgerLink, PairLink
from riskd.server import RiskServicer
from riskd.settings import Scope, Settings
from riskd.storage.store import KillState, Store, Stored, connect

INSTRUMENT = Instrument(account_capacity=8)
PAIR = INSTRUMENT.pair
ALICE = 1
HANG_S = 120
"""Bounds a hang; nothing is measured against it."""
EAGER = Policy(resend_ns=1, relearn_ns=1)
RUNNING = ledger_pb2.Settlement(pair=PAIR, state=ledger_pb2.SETTLEMENT_STATE_RUNNING)


class Ledger(ledger_pb2_grpc.LedgerServiceServicer):
    """Books with one move that is open, and a settlement as it is told."""

    def __init__(self) -> None:
        self.away = False
        self.calls = 0
        self.settlement = RUNNING

    async def ListInstructions(self, request: Any, context: Any) -> Any:
        self.calls += 1
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        move = ledger_pb2.Instruction(
            transfer_number=1,
            kind=ledger_pb2.TRANSFER_KIND_ALLOT,
            owner_id=ALICE,
            asset=enums_pb2.ASSET_QUOTE,
            amount_units=5,
        )
        wanted = request.from_number <= move.transfer_number
        return ledger_pb2.ListInstructionsResponse(instructions=[move] if wanted else [])

    async def ListSettlements(self, request: Any, context: Any) -> Any:
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        return ledger_pb2.ListSettlementsResponse(settlements=[self.settlement])


class Pair(pair_admin_pb2_grpc.PairAdminServiceServicer):
    """An engine that answers everything as it is told."""

    def __init__(self) -> None:
        self.reason = Reason.UNSPECIFIED
        self.killed: list[tuple[int, bool]] = []

    def _report(self) -> Any:
        kind = ExecutionKind.REJECTED if self.reason else ExecutionKind.ALLOTTED
        return execution_pb2.CommandReport(kind=int(kind), reason=int(self.reason), sequence=9)  # type: ignore[arg-type]

    async def AllotFunds(self, request: Any, context: Any) -> Any:
        return pair_admin_pb2.AllotFundsResponse(report=self._report())

    async def SetKillSwitch(self, request: Any, context: Any) -> Any:
        self.killed.append((request.account, request.killed))
        return pair_admin_pb2.SetKillSwitchResponse(report=self._report())


class World:
    """A desk between them."""

    def __init__(self, ledger: Ledger, pair: Pair, port: int) -> None:
        self.ledger, self.pair = ledger, pair
        target = f"127.0.0.1:{port}"
        self.link = PairLink(INSTRUMENT, target)
        machine = Allotments([Holdings(INSTRUMENT)], EAGER, uuid4)
        self.store = Store(connect("postgresql://nobody@127.0.0.1:1/risk"), time.time_ns)
        self.desk = Desk(machine, {PAIR: self.link}, LedgerLink(target), self.store, 3_600, 3_600)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once something is so."""
        deadline_s = asyncio.get_running_loop().time() + HANG_S
        assert await self.desk.until(condition, deadline_s)

    async def sentence(self, alarm: Alarm) -> str:
        """Return an alarm's sentence once it stands."""
        await self.until(lambda: self.desk.alarms.has(PAIR, alarm))
        (found,) = (item for item in self.desk.alarms.of(PAIR) if item.alarm == alarm)
        return found.sentence

    async def over(self, alarm: Alarm) -> None:
        """Return once an alarm stands no longer."""
        await self.until(lambda: not self.desk.alarms.has(PAIR, alarm))


@asynccontextmanager
async def running(ledger: Ledger) -> AsyncIterator[World]:
    pair, server = Pair(), aio.server()  # type: ignore[abstract]
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(ledger, server)
    pair_admin_pb2_grpc.add_PairAdminServiceServicer_to_server(pair, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    world = World(ledger, pair, port)
    work = asyncio.create_task(world.desk.run())
    try:
        yield world
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await world.desk.close()
        await server.stop(None)


def played(scene: Callable[[World], Awaitable[None]], ledger: Ledger | None = None) -> None:
    async def bounded() -> None:
        async with running(ledger or Ledger()) as world:  # type: ignore[abstract]
            await scene(world)

    asyncio.run(bounded())


def test_a_move_that_its_engine_refuses_is_an_alarm_until_it_is_taken() -> None:
    async def scene(world: World) -> None:
        world.pair.reason = Reason.ACCOUNT_UNKNOWN
        assert await world.sentence(Alarm.MOVES_BLOCKED) == (
            "the engine refuses transfer 1 of account 1: ACCOUNT_UNKNOWN; later ones wait behind it"
        )
        world.pair.reason = Reason.TRANSFER_REPEATED
        await world.over(Alarm.MOVES_BLOCKED)

    played(scene)


def test_a_settlement_that_stopped_is_late_at_once() -> None:
    async def scene(world: World) -> None:
        world.ledger.settlement = ledger_pb2.Settlement(
            pair=PAIR, state=ledger_pb2.SETTLEMENT_STATE_STOPPED, sentence="a digest differs"
        )
        assert await world.sentence(Alarm.SETTLEMENT_LATE) == (
            f"the ledger stopped settling {PAIR}: a digest differs"
        )
        world.ledger.settlement = RUNNING
        await world.over(Alarm.SETTLEMENT_LATE)

    played(scene)


def test_a_ledger_that_is_away_is_spoken_of_once_and_when_it_is_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "SOUND_NS", 0)
    ledger = Ledger()  # type: ignore[abstract]
    ledger.away = True

    async def scene(world: World) -> None:
        # Several questions failed, and were asked again.
        await world.until(lambda: ledger.calls >= 5)
        assert caplog.text.count("the ledger does not answer: UNAVAILABLE: starting") == 1
        assert "answers again" not in caplog.text
        ledger.away = False
        await world.until(lambda: "the ledger answers again, after " in caplog.text)

    with caplog.at_level(logging.INFO):
        played(scene, ledger)


def test_a_switch_that_was_set_can_be_lifted_whatever_room_pairs_have() -> None:
    """An account of a pair that had more room when it was stopped."""

    def request(account: int, killed: bool) -> risk_pb2.KillSwitchRequest:
        return risk_pb2.KillSwitchRequest(
            scope=risk_pb2.KILL_SCOPE_ACCOUNT, account=account, killed=killed, actor="eve"
        )

    async def scene(world: World) -> None:
        stored = Stored(RuleBook(0, {}))
        stored.kills[Scope.ACCOUNT, "8"] = KillState(True, 1, frozenset({PAIR}))
        settings = Settings(stored, world.store, world.desk)
        door: Any = RiskServicer(world.desk, settings, world.store)
        for account, killed in ((8, True), (9, True), (9, False)):
            with pytest.raises(Refused) as refused:
                await door.KillSwitch(request(account, killed), None)
            assert refused.value.refusal.reason == "ACCOUNT_INVALID"
        (said,) = (await door.KillSwitch(request(8, False), None)).confirmations
        assert (said.confirmed, world.pair.killed) == (True, [(8, False)])
        assert not settings.kills_of(8).account

    played(scene)
