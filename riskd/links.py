"""The wires to the ledger and to each pair's order entry: one method a question.

A definite answer is returned; an answer that never came, or that says "perhaps", is `Unanswered`,
and whoever asked asks again. Nothing is decided here.
"""

from typing import Any, Final
from uuid import UUID

import grpc
from grpc import aio

from exchange.enums import Asset, CommandKind, ExecutionKind, PairStatus, Reason
from exchange.feed import ExecutionFeed
from exchange.identity import open_channel
from exchange.instrument import Instrument
from exchange.service import refusal_in
from exchange.units import ticks_to_price, units_to_amount
from exchange.v1 import (
    execution_pb2,
    ledger_pb2,
    ledger_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)
from riskd.funds.moves import Instruction, Move
from riskd.limits import EngineLimits, RiskReason

CALL_S: Final = 3
PAGE: Final = 1_000
ACTOR: Final = "riskd"
LEDGER: Final = "the ledger"
_TRADERS: Final = (
    ledger_pb2.OWNER_KIND_USER,
    ledger_pb2.OWNER_KIND_SUB_ACCOUNT,
    ledger_pb2.OWNER_KIND_MARKET_MAKER,
)
_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.enable_http_proxy", 0),
)
# The ledger refuses these whatever became of earlier calls with the same id, since that would
# have been answered before anything is looked at. All else may be a question of time.
_DEFINITE: Final = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
_REASONS: Final = {
    "PAIR_UNKNOWN": RiskReason.PAIR_UNKNOWN,
    "ASSET_INVALID": RiskReason.ASSET_UNKNOWN,
    "AMOUNT_OUT_OF_RANGE": RiskReason.AMOUNT_OUT_OF_RANGE,
}


class Unanswered(Exception):
    """It is not known whether what was asked was done; the sentence names whom and why."""

    def __init__(self, whom: str, sentence: str) -> None:
        super().__init__(sentence)
        self.whom = whom


def _unanswered(whom: str, error: grpc.RpcError) -> Unanswered:
    assert isinstance(error, aio.AioRpcError)
    return Unanswered(whom, f"{whom} does not answer: {error.code().name}: {error.details()}")


def _definite(error: grpc.RpcError) -> RiskReason:
    """Return why the ledger will never post a move; UNSPECIFIED if that is not said."""
    assert isinstance(error, aio.AioRpcError)
    info = refusal_in(error)
    reason = info.reason if info else ""
    if reason == "INSUFFICIENT_FUNDS" or error.code() in _DEFINITE:
        return _REASONS.get(reason, RiskReason.INSUFFICIENT_FUNDS)
    return RiskReason.UNSPECIFIED


class LedgerLink:
    """The ledger service."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._channel = open_channel(target, options=_OPTIONS)
        self._stub: Any = ledger_pb2_grpc.LedgerServiceStub(self._channel)
        self._kinds: dict[int, Any] = {}

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def trading(self, account: int, asset_name: str) -> int:
        """Return a trading balance; 0 for whom the ledger does not know. Raises Unanswered."""
        known = self._kinds.get(account)
        for kind in (known,) if known else _TRADERS:
            request = ledger_pb2.ListBalancesRequest(owner_kind=kind, owner_id=account)
            try:
                answer = await self._stub.ListBalances(request, timeout=CALL_S)
            except grpc.RpcError as error:
                raise _unanswered(LEDGER, error) from error
            if answer.balances:
                # An owner number names one owner, whatever its kind.
                self._kinds[account] = kind
                return sum(
                    item.amount_units
                    for item in answer.balances
                    if item.name.purpose == ledger_pb2.ACCOUNT_PURPOSE_TRADING
                    and item.name.asset == asset_name
                )
        return 0

    async def instruct(self, move: Move) -> int | RiskReason:
        """Have a move recorded and numbered; return the number, or why not. Raises Unanswered."""
        assert isinstance(move.request, UUID)
        terms: dict[str, Any] = {
            "id": move.request.bytes,
            "pair": move.pair,
            "owner_id": move.account,
            "asset": int(move.asset),
            "amount_units": move.amount_units,
            "actor": ACTOR,
        }
        try:
            if move.allots:
                request = ledger_pb2.AllotTradingFundsRequest(**terms)
                answer = await self._stub.AllotTradingFunds(request, timeout=CALL_S)
            else:
                recall = ledger_pb2.RecallTradingFundsRequest(**terms)
                answer = await self._stub.RecallTradingFunds(recall, timeout=CALL_S)
        except grpc.RpcError as error:
            reason = _definite(error)
            if reason == RiskReason.UNSPECIFIED:
                raise _unanswered(LEDGER, error) from error
            return reason
        return int(answer.transfer_number)

    async def instructions(self, pair: str, from_number: int) -> list[Instruction]:
        """Return all instructions of a pair from a number on (0: from the first open one)."""
        found: list[Instruction] = []
        while True:
            request = ledger_pb2.ListInstructionsRequest(
                pair=pair, from_number=from_number, page_size=PAGE
            )
            try:
                answer = await self._stub.ListInstructions(request, timeout=CALL_S)
            except grpc.RpcError as error:
                raise _unanswered(LEDGER, error) from error
            found += [_instruction(item) for item in answer.instructions]
            if len(answer.instructions) < PAGE:
                return found
            from_number = found[-1].number + 1

    async def settlements(self) -> dict[str, ledger_pb2.Settlement]:
        """Return how far each pair is settled. Raises Unanswered."""
        request = ledger_pb2.ListSettlementsRequest()
        try:
            answer = await self._stub.ListSettlements(request, timeout=CALL_S)
        except grpc.RpcError as error:
            raise _unanswered(LEDGER, error) from error
        return {item.pair: item for item in answer.settlements}


def _instruction(item: ledger_pb2.Instruction) -> Instruction:
    allots = item.kind == ledger_pb2.TRANSFER_KIND_ALLOT
    return Instruction(
        item.transfer_number,
        CommandKind.ALLOT_FUNDS if allots else CommandKind.RELEASE_FUNDS,
        item.owner_id,
        Asset(int(item.asset)),
        item.amount_units,
        item.resolved,
    )


class PairLink:
    """One pair: its feed, and its door for settings and funds."""

    def __init__(self, instrument: Instrument, target: str) -> None:
        self.instrument = instrument
        self.pair = instrument.pair
        self.feed = ExecutionFeed(target, instrument.pair)
        self._channel = open_channel(target, options=_OPTIONS)
        self._stub: Any = pair_admin_pb2_grpc.PairAdminServiceStub(self._channel)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def _asked(self, call: Any, request: Any) -> execution_pb2.CommandReport:
        try:
            answer = await call(request, timeout=CALL_S)
        except grpc.RpcError as error:
            raise _unanswered(self.pair, error) from error
        report: execution_pb2.CommandReport = answer.report
        return report

    async def move(self, move: Move) -> Reason:
        """Give the engine a numbered move; return the reason of its refusal, or UNSPECIFIED."""
        base = move.asset == Asset.BASE
        decimals = self.instrument.base_decimals if base else self.instrument.quote_decimals
        terms: dict[str, Any] = {
            "pair": self.pair,
            "account": move.account,
            "asset": int(move.asset),
            "amount": units_to_amount(decimals, move.amount_units),
            "transfer_number": move.number,
        }
        if move.allots:
            allot = pair_admin_pb2.AllotFundsRequest(**terms)
            report = await self._asked(self._stub.AllotFunds, allot)
        else:
            release = pair_admin_pb2.ReleaseFundsRequest(**terms)
            report = await self._asked(self._stub.ReleaseFunds, release)
        return Reason(int(report.reason))

    async def set_limits(self, account: int, limits: EngineLimits) -> execution_pb2.CommandReport:
        """Tell the engine an account's limits."""
        request = pair_admin_pb2.SetLimitsRequest(
            pair=self.pair, account=account, **limits._asdict()
        )
        return await self._asked(self._stub.SetLimits, request)

    async def set_kill(self, account: int, killed: bool) -> execution_pb2.CommandReport:
        """Stop an account, or let it trade again."""
        request = pair_admin_pb2.SetKillSwitchRequest(
            pair=self.pair, account=account, killed=killed
        )
        return await self._asked(self._stub.SetKillSwitch, request)

    async def set_halted(self, halted: bool) -> execution_pb2.CommandReport:
        """Halt the pair, or open it."""
        status = int(PairStatus.HALTED if halted else PairStatus.OPEN)
        request = pair_admin_pb2.SetPairStatusRequest(
            pair=self.pair,
            status=status,  # type: ignore[arg-type]
        )
        return await self._asked(self._stub.SetPairStatus, request)

    async def set_band(self, low: int, high: int, width_ppm: int) -> execution_pb2.CommandReport:
        """Set the price band."""
        request = pair_admin_pb2.SetPriceBandRequest(
            pair=self.pair,
            low_price=ticks_to_price(self.instrument, low),
            high_price=ticks_to_price(self.instrument, high),
            width_ppm=width_ppm,
        )
        return await self._asked(self._stub.SetPriceBand, request)


def refused(report: execution_pb2.CommandReport) -> bool:
    """Say whether the engine refused a command."""
    return int(report.kind) == int(ExecutionKind.REJECTED)
