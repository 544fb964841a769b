"""Calls that bring money in, out, and from funding to trading and back.

Each request that moves or promises something carries an id, made here unless it is given, and kept
over retries; the answer carries it back, so that a program can ask again after its own death.
"""

from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, uuid4

from exchange.v1 import funds_pb2
from holdfast.errors import InvalidRequest, NotFound
from holdfast.money import movements
from holdfast.money.amounts import Amount, amount_text, decimal_of, decimals_in
from holdfast.money.answers import FUNDING, TRADING, Moved
from holdfast.money.movements import (
    AddressList,
    CarriedAsset,
    Deposit,
    DepositAddress,
    DepositPage,
    FundsEvent,
    FundsStatus,
    ListedAddress,
    Withdrawal,
    WithdrawalPage,
)
from holdfast.money.risk import RiskCalls
from holdfast.money.words import (
    DEPOSIT_STATES,
    FUNDS_SUBJECTS,
    OWNER_KINDS,
    PURPOSES,
    WITHDRAWAL_STATES,
)
from holdfast.retry import Attempts, Retry

NOT_RELEASED: Final = "INSUFFICIENT_RELEASED_FUNDS"
"""Trading has less than asked for; engines may hold the rest."""
WATCH: Final = Retry(patience_s=600.0, first_pause_s=0.1, longest_pause_s=0.5)
"""How often, and how long, somebody looks after a deposit or a withdrawal."""


def _deposit(item: funds_pb2.Deposit) -> Deposit:
    decimals = decimals_in(item.amount)
    return Deposit(
        UUID(bytes=item.id),
        item.owner_id,
        item.asset,
        Decimal(item.amount),
        item.address,
        item.transaction_id,
        item.output_index,
        DEPOSIT_STATES.word(item.state),
        item.confirmations if item.HasField("confirmations") else None,
        item.confirmations_needed,
        decimal_of(item.withheld_units, decimals),
        decimal_of(item.shortfall_units, decimals),
        item.seen_ns,
        item.changed_ns,
    )


def _address(item: funds_pb2.WithdrawalAddress) -> ListedAddress:
    return ListedAddress(
        UUID(bytes=item.id),
        item.owner_id,
        item.asset,
        item.address,
        item.actor,
        item.added_ns,
        item.usable_ns,
        item.removed_ns,
    )


def _withdrawal(item: funds_pb2.Withdrawal, repeated: bool = False) -> Withdrawal:
    return Withdrawal(
        UUID(bytes=item.id),
        item.owner_id,
        item.asset,
        Decimal(item.amount),
        item.address,
        item.requester,
        item.digest,
        WITHDRAWAL_STATES.word(item.state),
        item.approvals_needed,
        tuple(one.approver for one in item.approvals),
        item.requested_ns,
        item.expires_ns,
        item.changed_ns,
        item.transaction_id,
        item.confirmations if item.HasField("confirmations") else None,
        item.confirmations_needed,
        item.reason,
        repeated,
    )


class FundsCalls(RiskCalls):
    """What can be asked of the way in and out."""

    def _kind(self) -> Any:
        """Return the owner's kind as it was given; if it was not, the ledger finds it out."""
        return OWNER_KINDS.number("owner_kind", self.owner_kind) if self.owner_kind else 0

    # In.

    async def deposit_address(self, asset: str) -> DepositAddress:
        """Return where the account deposits an asset: the same address whenever asked."""
        request = funds_pb2.GetDepositAddressRequest(
            owner_kind=self._kind(), owner_id=self.account, asset=asset
        )
        answer = await self._call(self._funds.GetDepositAddress, request)
        return DepositAddress(asset, answer.address, answer.confirmations_needed)

    async def simulate_deposit(
        self, address: str, asset: str, amount: Amount, *, payment_id: UUID | None = None
    ) -> str:
        """Let somebody outside pay to an address; return the chain's transaction.

        Only with the simulated custodian. The same id with the same content is the same payment.
        """
        request = funds_pb2.SimulateDepositRequest(
            id=(payment_id or uuid4()).bytes,
            address=address,
            asset=asset,
            amount=amount_text(amount),
        )
        answer = await self._call(self._funds.SimulateDeposit, request)
        return answer.transaction_id

    async def deposits(self, *, page_size: int = 100, page_token: str = "") -> DepositPage:
        """Return a page of the account's deposits, newest first."""
        request = funds_pb2.ListDepositsRequest(
            owner_id=self.account, page_size=page_size, page_token=page_token
        )
        answer = await self._call(self._funds.ListDeposits, request)
        return DepositPage(tuple(map(_deposit, answer.deposits)), answer.next_page_token)

    async def follow_deposit(
        self, transaction_id: str, *, watch: Retry = WATCH
    ) -> AsyncGenerator[Deposit, None]:
        """Yield a deposit whenever it changed, until it is no longer merely seen.

        Raises NotFound if no such payment was noticed, and ends, within the patience of `watch`.
        """
        attempts = Attempts(watch)
        last: Deposit | None = None
        while True:
            found = await self._deposit_of(transaction_id)
            if found is not None and found != last:
                yield found
                last = found
            if last is not None and (last.state != movements.SEEN or attempts.spent()):
                return
            if attempts.spent():
                sentence = f"no payment of transaction {transaction_id} was noticed"
                raise NotFound(5, sentence, "DEPOSIT_UNKNOWN")
            await attempts.pause()

    async def _deposit_of(self, transaction_id: str) -> Deposit | None:
        page = await self.deposits(page_size=1_000)
        found = [one for one in page.deposits if one.transaction_id == transaction_id]
        return found[0] if found else None

    # Between funding and trading.

    async def transfer(
        self,
        asset: str,
        amount: Amount,
        *,
        source: str = FUNDING,
        target: str = TRADING,
        recall: bool = True,
        transfer_id: UUID | None = None,
    ) -> Moved:
        """Move money of the account between funding and trading.

        When trading is short because engines hold free money, that is recalled first (unless
        `recall` is false), within the client's patience. Raises InvalidRequest with the reason.
        """
        request = funds_pb2.MoveFundsRequest(
            id=(transfer_id or uuid4()).bytes,
            owner_kind=self._kind(),
            owner_id=self.account,
            asset=asset,
            amount=amount_text(amount),
            source=PURPOSES.number("source", source),
            target=PURPOSES.number("target", target),
            actor=self.actor,
        )
        attempts, recalled = Attempts(self.retry), False
        while True:
            try:
                answer = await self._call(self._funds.MoveFunds, request)
            except InvalidRequest as error:
                if error.reason != NOT_RELEASED or not recall or (recalled and attempts.spent()):
                    raise
            else:
                made = UUID(bytes=request.id)
                return Moved(made, answer.transfer_id, answer.repeated, recalled)
            # Somebody else's order may take what came back; then it is asked for once more.
            await self.recall(asset, amount)
            recalled = True

    # Out.

    async def add_address(
        self, asset: str, address: str, *, address_id: UUID | None = None
    ) -> ListedAddress:
        """List an address to withdraw to; it waits before it can be used."""
        request = funds_pb2.AddWithdrawalAddressRequest(
            id=(address_id or uuid4()).bytes,
            owner_kind=self._kind(),
            owner_id=self.account,
            asset=asset,
            address=address,
            actor=self.actor,
        )
        return _address((await self._call(self._funds.AddWithdrawalAddress, request)).address)

    async def remove_address(self, address_id: UUID) -> ListedAddress:
        """Take an address off the list at once; what was not sent there yet goes back."""
        request = funds_pb2.RemoveWithdrawalAddressRequest(id=address_id.bytes, actor=self.actor)
        return _address((await self._call(self._funds.RemoveWithdrawalAddress, request)).address)

    async def addresses(self) -> AddressList:
        """Return the addresses that the account lists now."""
        request = funds_pb2.ListWithdrawalAddressesRequest(owner_id=self.account)
        answer = await self._call(self._funds.ListWithdrawalAddresses, request)
        return AddressList(tuple(map(_address, answer.addresses)), answer.now_ns)

    async def withdraw(
        self, asset: str, amount: Amount, address: str, *, withdrawal_id: UUID | None = None
    ) -> Withdrawal:
        """Set money of funding aside to be paid to a listed address.

        The same id with the same content is the same withdrawal, paid once for ever: a program
        that wants to survive its own death makes the id, keeps it, and asks again with it.
        """
        request = funds_pb2.RequestWithdrawalRequest(
            id=(withdrawal_id or uuid4()).bytes,
            owner_kind=self._kind(),
            owner_id=self.account,
            asset=asset,
            amount=amount_text(amount),
            address=address,
            requester=self.actor,
        )
        answer = await self._call(self._funds.RequestWithdrawal, request)
        return _withdrawal(answer.withdrawal, answer.repeated)

    async def withdrawal(self, withdrawal_id: UUID) -> Withdrawal:
        """Return a withdrawal. Raises NotFound."""
        request = funds_pb2.GetWithdrawalRequest(id=withdrawal_id.bytes)
        return _withdrawal((await self._call(self._funds.GetWithdrawal, request)).withdrawal)

    async def withdrawals(
        self, *, awaiting_approval: bool = False, page_size: int = 100, page_token: str = ""
    ) -> WithdrawalPage:
        """Return a page of the account's withdrawals, newest first.

        With `awaiting_approval` those of everybody (account 0) or of the account that wait for
        people, oldest first.
        """
        request = funds_pb2.ListWithdrawalsRequest(
            owner_id=self.account,
            awaiting_approval=awaiting_approval,
            page_size=page_size,
            page_token=page_token,
        )
        answer = await self._call(self._funds.ListWithdrawals, request)
        return WithdrawalPage(tuple(map(_withdrawal, answer.withdrawals)), answer.next_page_token)

    async def follow_withdrawal(
        self, withdrawal_id: UUID, *, watch: Retry = WATCH
    ) -> AsyncGenerator[Withdrawal, None]:
        """Yield a withdrawal whenever it changed, until its last state or the end of patience.

        One that waits for approvals waits for people: what follows then may come much later.
        """
        attempts = Attempts(watch)
        last: Withdrawal | None = None
        while last is None or (last.under_way and not attempts.spent()):
            found = await self.withdrawal(withdrawal_id)
            if found != last:
                yield found
                last = found
            if found.under_way:
                await attempts.pause()

    async def approve(self, withdrawal_id: UUID, approver: str, digest: bytes) -> Withdrawal:
        """Consent to a withdrawal as it was seen: `digest` is that of the one looked at."""
        request = funds_pb2.ApproveWithdrawalRequest(
            id=withdrawal_id.bytes, approver=approver, digest=digest
        )
        answer = await self._call(self._funds.ApproveWithdrawal, request)
        return _withdrawal(answer.withdrawal, answer.repeated)

    async def reject(self, withdrawal_id: UUID, reason: str) -> Withdrawal:
        """Refuse a withdrawal before it is sent: the money goes back."""
        request = funds_pb2.RejectWithdrawalRequest(
            id=withdrawal_id.bytes, actor=self.actor, reason=reason
        )
        return _withdrawal((await self._call(self._funds.RejectWithdrawal, request)).withdrawal)

    async def cancel_withdrawal(self, withdrawal_id: UUID) -> Withdrawal:
        """Take a withdrawal back before it is sent: the money goes back."""
        request = funds_pb2.CancelWithdrawalRequest(id=withdrawal_id.bytes, actor=self.actor)
        return _withdrawal((await self._call(self._funds.CancelWithdrawal, request)).withdrawal)

    # How it stands.

    async def funds_events(
        self, subject: UUID | None = None, *, alarms: bool = False, before: int = 0
    ) -> tuple[FundsEvent, ...]:
        """Return what was decided about one thing, or about everything, newest first."""
        request = funds_pb2.ListFundsEventsRequest(
            subject=subject.bytes if subject else b"", alarms=alarms, before=before
        )
        answer = await self._call(self._funds.ListFundsEvents, request)
        return tuple(
            FundsEvent(
                item.number,
                UUID(bytes=item.subject),
                FUNDS_SUBJECTS.word(item.kind),
                item.state_name.lower().replace("_", "-"),
                item.actor,
                item.reason,
                item.time_ns,
                item.alarm,
            )
            for item in answer.events
        )

    async def funds_status(self) -> FundsStatus:
        """Return how the way in and out stands, and the rules in force."""
        answer = await self._call(self._funds.GetFundsStatus, funds_pb2.GetFundsStatusRequest())
        counts = {
            f"{FUNDS_SUBJECTS.word(item.kind)} {item.state_name.lower().replace('_', '-')}": (
                item.count
            )
            for item in answer.counts
        }
        return FundsStatus(
            answer.custodian_reachable,
            answer.waiting_for,
            answer.simulated,
            tuple(answer.unexplained_payouts),
            answer.alarm_count,
            answer.undecided_count,
            counts,
            tuple(map(_carried, answer.assets)),
            answer.address_wait_ns,
            answer.approval_expiry_ns,
        )


def _carried(item: funds_pb2.FundsAsset) -> CarriedAsset:
    holdings = None
    if item.HasField("holdings_units"):
        holdings = decimal_of(item.holdings_units, item.decimals)
    return CarriedAsset(
        item.asset,
        item.decimals,
        item.confirmations_needed,
        tuple(map(Decimal, item.approval_above)),
        holdings,
        decimal_of(item.booked_units, item.decimals),
    )
