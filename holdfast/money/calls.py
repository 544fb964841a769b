"""What all calls about money share: connections, retries, and who asks.

A call is made again while nobody answers, within one patience. Every call that moves money carries
an id made before the first attempt, and the services answer an id they know as they did the first
time: so a repeated call never moves money twice.
"""

from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any, Final, TypeVar

import grpc
from grpc import aio

from exchange.identity import open_channel
from exchange.v1 import (
    funds_pb2,
    funds_pb2_grpc,
    ledger_pb2,
    ledger_pb2_grpc,
    pair_admin_pb2_grpc,
    risk_pb2_grpc,
)
from holdfast.calls import Closing, made
from holdfast.errors import CallFailed, TryAgain, Unavailable, of_rpc_error
from holdfast.money.amounts import decimal_of, decimals_in, invalid
from holdfast.money.words import OWNER_KINDS
from holdfast.retry import Attempts, Retry

LEDGER_TARGET: Final = "127.0.0.1:8870"
RISK_TARGET: Final = "127.0.0.1:8871"
CANCELLED: Final = 1
UNIMPLEMENTED: Final = 12
UNAVAILABLE: Final = 14
TRADER_KINDS: Final = ("user", "sub-account", "market-maker")
"""Kinds whose owners share one series of numbers."""

Message = TypeVar("Message")

_CHANNEL_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.enable_http_proxy", 0),
    # While an answer takes its time: a machine that is gone says nothing, a service that computes
    # still answers pings.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
)


class Calls(Closing):
    """Connections to the ledger, the risk service and the pairs; made when first used."""

    def __init__(
        self,
        account: int = 0,
        *,
        owner_kind: str = "",
        actor: str = "",
        ledger: str = LEDGER_TARGET,
        risk: str = RISK_TARGET,
        pairs: Mapping[str, str] | None = None,
        retry: Retry | None = None,
    ) -> None:
        self.account = account
        self.owner_kind = owner_kind
        self.actor = actor or f"account {account}"
        self.pairs = dict(pairs or {})
        self.retry = (retry or Retry()).validate()
        self._decimals: dict[str, int] = {}
        self._channels: list[aio.Channel] = []
        ledger_channel, risk_channel = self._channel(ledger), self._channel(risk)
        self._books = ledger_pb2_grpc.LedgerServiceStub(ledger_channel)
        self._funds = funds_pb2_grpc.FundsServiceStub(ledger_channel)
        self._risk = risk_pb2_grpc.RiskServiceStub(risk_channel)
        self._pair_admins = {
            pair: pair_admin_pb2_grpc.PairAdminServiceStub(self._channel(target))
            for pair, target in self.pairs.items()
        }

    def _channel(self, target: str) -> aio.Channel:
        channel = open_channel(target, options=_CHANNEL_OPTIONS)
        self._channels.append(channel)
        return channel

    async def close(self) -> None:
        """End all calls and connections."""
        for channel in self._channels:
            await channel.close()

    async def _call(
        self, method: Callable[..., Awaitable[Message]], request: Any, retry: Retry | None = None
    ) -> Message:
        """Make a call, again while the trouble may pass. Raises CallFailed."""
        return await made(method, request, retry or self.retry)

    async def _computed(self, method: Callable[..., Awaitable[Message]], request: Any) -> Message:
        """Make a call that takes as long as it takes. Raises CallFailed.

        It is made again within the client's patience, as others are; when the ledger goes away
        after that, the work is lost, and whoever wants it begins anew.
        """
        attempts = Attempts(self.retry)
        while True:
            try:
                return await method(request)
            except grpc.RpcError as error:
                failed = of_rpc_error(error)
            lost = not failed.reason and failed.code in {CANCELLED, UNAVAILABLE}
            if lost:
                sentence = f"the ledger went away before it answered ({failed.message})"
                failed = Unavailable(UNAVAILABLE, sentence, "LEDGER_LOST")
            if not isinstance(failed, TryAgain) or attempts.spent():
                raise failed
            await attempts.pause()

    async def _known_kind(self) -> Any:
        """Return the number of the owner's kind: as given, or as the books know the account.

        A number names one owner, whatever its kind; one without accounts counts as a user.
        """
        if not self.owner_kind:
            for word in TRADER_KINDS:
                request = ledger_pb2.ListBalancesRequest(
                    owner_kind=OWNER_KINDS.number("owner_kind", word), owner_id=self.account
                )
                if (await self._call(self._books.ListBalances, request)).balances:
                    self.owner_kind = word
                    break
            else:
                return OWNER_KINDS.number("owner_kind", TRADER_KINDS[0])
        return OWNER_KINDS.number("owner_kind", self.owner_kind)

    async def decimals(self, asset: str) -> int:
        """Return how many decimals an asset's amounts have. Raises InvalidRequest: not listed."""
        if asset not in self._decimals:
            self._decimals |= await self._carried_decimals()
        if asset not in self._decimals:
            request = ledger_pb2.GetTrialBalanceRequest()
            lines = (await self._call(self._books.GetTrialBalance, request)).lines
            self._decimals |= {line.asset: decimals_in(line.amount) for line in lines}
        if asset not in self._decimals:
            limit = " or ".join(sorted(self._decimals)) or "an asset that the books list"
            raise invalid("ASSET_UNKNOWN", "asset", asset, limit)
        return self._decimals[asset]

    async def decimal(self, asset: str, units: int) -> Decimal:
        """Return smallest units of an asset as an exact decimal."""
        return decimal_of(units, await self.decimals(asset))

    async def _carried_decimals(self) -> dict[str, int]:
        """Return the decimals of what the custodian carries; nothing if there is no custodian."""
        try:
            answer = await self._call(self._funds.GetFundsStatus, funds_pb2.GetFundsStatusRequest())
        except CallFailed as error:
            if error.code != UNIMPLEMENTED:
                raise
            return {}
        return {item.asset: item.decimals for item in answer.assets}
