"""The door of the exchange's own services and operators: funds, rates, limits, status, band."""

from typing import Final

from engine.entry.order_server import accept
from engine.entry.process import EntryProcess
from engine.order_entry import (
    Command,
    account_in,
    digest_command,
    fees_command,
    kill_switch_command,
    limits_command,
    pair_status_command,
    price_band_command,
    transfer_command,
)
from exchange import atomics
from exchange.book_layout import (
    STATE_CLOSED,
    STATE_CLOSING,
    STATE_DRAINING,
    STATE_JOURNAL_BLOCKED,
    STATE_READY,
    STATE_STARTING,
    TOUCH_STATUS,
    book_layout,
    segment_name,
)
from exchange.config import segment_folder
from exchange.enums import CommandKind, PairStatus
from exchange.ownership import Borrowed, OwnershipError
from exchange.records import E_ACCOUNT_COUNT, E_BASE_TOTAL, E_DIGEST, E_FEES_TAKEN, E_QUOTE_TOTAL
from exchange.refusal import Refusal, Refused
from exchange.service import Context
from exchange.v1 import enums_pb2, execution_pb2, pair_admin_pb2, pair_admin_pb2_grpc

_STATES: Final = {
    STATE_STARTING: enums_pb2.ENGINE_STATE_STARTING,
    STATE_READY: enums_pb2.ENGINE_STATE_READY,
    STATE_JOURNAL_BLOCKED: enums_pb2.ENGINE_STATE_JOURNAL_BLOCKED,
    STATE_DRAINING: enums_pb2.ENGINE_STATE_DRAINING,
    STATE_CLOSING: enums_pb2.ENGINE_STATE_CLOSING,
    STATE_CLOSED: enums_pb2.ENGINE_STATE_CLOSED,
}


class PairAdminService(pair_admin_pb2_grpc.PairAdminServiceServicer):
    """The servicer of one process."""

    def __init__(self, process: EntryProcess) -> None:
        self._process = process
        self._instrument = process.instrument
        self._book: Borrowed | None = None

    async def _account_report(
        self, pair: str, account: int, command: Command | Refusal
    ) -> execution_pb2.CommandReport:
        refusal = self._process.pair_refusal(pair)
        if refusal is not None:
            raise Refused(refusal)
        accept(account_in("account", account))
        return await self._process.report(accept(command), account)

    async def _pair_report(
        self, pair: str, command: Command | Refusal
    ) -> execution_pb2.CommandReport:
        refusal = self._process.pair_refusal(pair)
        if refusal is not None:
            raise Refused(refusal)
        return await self._process.report(accept(command), 0)

    async def AllotFunds(
        self, request: pair_admin_pb2.AllotFundsRequest, context: Context
    ) -> pair_admin_pb2.AllotFundsResponse:
        """Put funds into the engine."""
        accept(account_in("account", request.account))
        command = transfer_command(self._instrument, CommandKind.ALLOT_FUNDS, request)
        report = await self._account_report(request.pair, request.account, command)
        return pair_admin_pb2.AllotFundsResponse(report=report)

    async def ReleaseFunds(
        self, request: pair_admin_pb2.ReleaseFundsRequest, context: Context
    ) -> pair_admin_pb2.ReleaseFundsResponse:
        """Take free funds out of the engine."""
        accept(account_in("account", request.account))
        command = transfer_command(self._instrument, CommandKind.RELEASE_FUNDS, request)
        report = await self._account_report(request.pair, request.account, command)
        return pair_admin_pb2.ReleaseFundsResponse(report=report)

    async def SetFees(
        self, request: pair_admin_pb2.SetFeesRequest, context: Context
    ) -> pair_admin_pb2.SetFeesResponse:
        """Set an account's fee rates."""
        accept(account_in("account", request.account))
        command = fees_command(request)
        report = await self._account_report(request.pair, request.account, command)
        return pair_admin_pb2.SetFeesResponse(report=report)

    async def SetLimits(
        self, request: pair_admin_pb2.SetLimitsRequest, context: Context
    ) -> pair_admin_pb2.SetLimitsResponse:
        """Set an account's limits."""
        accept(account_in("account", request.account))
        command = limits_command(request)
        report = await self._account_report(request.pair, request.account, command)
        return pair_admin_pb2.SetLimitsResponse(report=report)

    async def SetKillSwitch(
        self, request: pair_admin_pb2.SetKillSwitchRequest, context: Context
    ) -> pair_admin_pb2.SetKillSwitchResponse:
        """Stop an account, or let it trade again."""
        accept(account_in("account", request.account))
        command = kill_switch_command(request)
        report = await self._account_report(request.pair, request.account, command)
        return pair_admin_pb2.SetKillSwitchResponse(report=report)

    async def SetPairStatus(
        self, request: pair_admin_pb2.SetPairStatusRequest, context: Context
    ) -> pair_admin_pb2.SetPairStatusResponse:
        """Open, restrict or halt the pair."""
        report = await self._pair_report(request.pair, pair_status_command(request))
        return pair_admin_pb2.SetPairStatusResponse(report=report)

    async def SetPriceBand(
        self, request: pair_admin_pb2.SetPriceBandRequest, context: Context
    ) -> pair_admin_pb2.SetPriceBandResponse:
        """Set the price band."""
        command = price_band_command(self._instrument, request)
        report = await self._pair_report(request.pair, command)
        return pair_admin_pb2.SetPriceBandResponse(report=report)

    async def DigestAccounts(
        self, request: pair_admin_pb2.DigestAccountsRequest, context: Context
    ) -> pair_admin_pb2.DigestAccountsResponse:
        """Sum up what all accounts have."""
        report = await self._pair_report(request.pair, digest_command())
        words = self._process.follower.read(report.first_number, 1)[0].tolist()
        return pair_admin_pb2.DigestAccountsResponse(
            report=report,
            digest=words[E_DIGEST],
            account_count=words[E_ACCOUNT_COUNT],
            base_units=words[E_BASE_TOTAL],
            quote_units=words[E_QUOTE_TOTAL],
            fee_units=words[E_FEES_TAKEN],
        )

    async def GetStatus(
        self, request: pair_admin_pb2.GetStatusRequest, context: Context
    ) -> pair_admin_pb2.GetStatusResponse:
        """Show what the engine is doing."""
        refusal = self._process.pair_refusal(request.pair)
        if refusal is not None:
            raise Refused(refusal)
        inbox, follower = self._process.inbox, self._process.follower
        return pair_admin_pb2.GetStatusResponse(
            engine_state=_STATES.get(inbox.engine_state, enums_pb2.ENGINE_STATE_UNSPECIFIED),
            engine_epoch=inbox.engine_epoch,
            sequence=inbox.engine_sequence,
            committed_number=follower.reader.committed(),
            pair_status=self._pair_status(),  # type: ignore[arg-type]
            ring=inbox.ring,
            pending_count=inbox.tail - follower.acked,
        )

    def _pair_status(self) -> int:
        """Return the status that the public book segment shows."""
        if self._book is not None and self._book.replaced():
            self._book.close()
            self._book = None
        if self._book is None:
            name = segment_name(self._instrument.pair, "book")
            try:
                layout = book_layout(self._instrument)
                self._book = Borrowed.open(name, layout, directory=segment_folder())
            except (OwnershipError, OSError):
                return PairStatus.UNSPECIFIED
        return atomics.load(self._book["touch"], TOUCH_STATUS)
