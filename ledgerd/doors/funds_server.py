"""The way in and out of money: FundsService, beside LedgerService on the same server.

How a refusal ends a call is `ledgerd.doors.answers`. It translates and decides nothing: that is
`ledgerd.custody` and `ledgerd.funds`. It believes the actors that callers name: it listens on the
machine's own address only.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar
from uuid import UUID

import grpc

from exchange.refusal import Code, Refusal, Refused
from exchange.units import InvalidDecimal, amount_to_units, units_to_amount
from exchange.v1 import funds_pb2, funds_pb2_grpc
from ledgerd.books.queries import page
from ledgerd.chart import OwnerKind, Purpose
from ledgerd.custody.adapter import CustodyUnavailable
from ledgerd.custody.addresses import Address, move_own
from ledgerd.custody.bookings import Deposit, Withdrawal
from ledgerd.custody.deposit_rules import DepositState
from ledgerd.custody.journal import Subject
from ledgerd.custody.simulated_chain import PaymentConflict
from ledgerd.custody.withdrawal_rules import INT64_MAXIMUM, Asked, WithdrawalState, judge_amount
from ledgerd.doors.answers import answered, enumerated, identity, owner_number
from ledgerd.doors.funds_messages import (
    address_message,
    deposit_message,
    enum_number,
    event_message,
    withdrawal_message,
)
from ledgerd.funds import views
from ledgerd.funds.desk import Desk
from ledgerd.funds.pipelines import Pipelines
from ledgerd.heads import BooksAreOlder

SERVICE_NAME: Final = "exchange.v1.FundsService"
PAGE_SIZE: Final = 100
DIGEST_BYTES: Final = 32
ADDRESS_CHARACTERS: Final = 100
_MOVING: Final = (DepositState.SEEN, DepositState.REVERSED, DepositState.UNCLAIMED)
_PLACE = re.compile(r"([0-9]{1,19})-([0-9a-f]{32})", re.ASCII)
T = TypeVar("T")


def _place(token: str) -> tuple[int, UUID] | None:
    """Return where the page before ended."""
    match = _PLACE.fullmatch(token)
    sound = match is not None and int(match[1]) <= INT64_MAXIMUM
    if token and not sound:
        limit = "empty, or what the page before gave"
        raise Refused(Refusal.of_field("PAGE_TOKEN_INVALID", "page_token", token, limit))
    return (int(match[1]), UUID(match[2])) if match else None


def _token(size: int, rows: Sequence[T], place: Callable[[T], tuple[int, UUID]]) -> str:
    if len(rows) < size:
        return ""
    time_ns, made = place(rows[-1])
    return f"{time_ns}-{made.hex}"


class FundsServicer(funds_pb2_grpc.FundsServiceServicer):
    """Answers the calls. `older` says why nothing may be done with the books."""

    def __init__(self, desk: Desk, pipelines: Pipelines, older: Callable[[], str]) -> None:
        self._desk = desk
        self._pipelines = pipelines
        self._older = older

    def refuse_if_older(self) -> None:
        """Raise BooksAreOlder once that was noticed."""
        sentence = self._older()
        if sentence:
            raise BooksAreOlder(sentence)

    # What many calls do.

    def _kind(self, given: int, owner_id: int) -> OwnerKind:
        kind = enumerated(OwnerKind, "owner_kind", given)
        if kind != OwnerKind.UNSPECIFIED:
            return kind
        # A number no owner can have needs no question; what is wrong with it is said later.
        known = 1 <= owner_id < 1 << 31
        return self._desk.owner_kind(owner_id) if known else OwnerKind.USER

    def _units(self, asset: str, text: str) -> int:
        """Return an amount in smallest units, below zero if it says so. Raises Refused."""
        places = self._desk.decimals(asset)
        try:
            units = amount_to_units(places, text.removeprefix("-"))
        except InvalidDecimal as error:
            raise Refused(
                Refusal.of_field("AMOUNT_INVALID", "amount", text, error.limit)
            ) from error
        return -units if text.startswith("-") else units

    def _deposit(self, found: Deposit) -> funds_pb2.Deposit:
        depth = None
        if found.state in _MOVING:
            try:
                payment = self._desk.custody.incoming(found.transaction_id, found.output_index)
            except CustodyUnavailable:
                payment = None
            depth = None if payment is None else payment.confirmations
        needed = self._desk.policy.confirmations_needed(found.asset)
        return deposit_message(found, self._desk.decimals(found.asset), depth, needed)

    def _withdrawals(self, found: Sequence[Withdrawal]) -> list[funds_pb2.Withdrawal]:
        ids = [one.id for one in found]
        approvals = self._desk.books.read(lambda connection: views.approvals(connection, ids))
        messages = []
        for one in found:
            asset, depth = one.asked.asset, None
            if one.state == WithdrawalState.SENT:
                try:
                    depth = self._desk.custody.payout(one.id).confirmations
                except CustodyUnavailable:
                    depth = None
            needed = self._desk.policy.confirmations_needed(asset)
            given = (self._desk.decimals(asset), approvals.get(one.id, []), depth, needed)
            messages.append(withdrawal_message(one, *given))
        return messages

    def _withdrawal(self, found: Withdrawal) -> funds_pb2.Withdrawal:
        return self._withdrawals([found])[0]

    # In.

    @answered
    def GetDepositAddress(
        self, request: funds_pb2.GetDepositAddressRequest, context: grpc.ServicerContext
    ) -> funds_pb2.GetDepositAddressResponse:
        """Show where an owner deposits an asset."""
        self._desk.decimals(request.asset)
        kind = self._kind(request.owner_kind, request.owner_id)
        return funds_pb2.GetDepositAddressResponse(
            address=self._desk.deposits.address(kind, request.owner_id, request.asset),
            confirmations_needed=self._desk.policy.confirmations_needed(request.asset),
        )

    @answered
    def ListDeposits(
        self, request: funds_pb2.ListDepositsRequest, context: grpc.ServicerContext
    ) -> funds_pb2.ListDepositsResponse:
        """Show an owner's deposits."""
        size, before = page(request.page_size, PAGE_SIZE), _place(request.page_token)
        found = self._desk.deposits.of_owner(owner_number(request.owner_id), size, before)
        return funds_pb2.ListDepositsResponse(
            deposits=[self._deposit(one) for one in found],
            next_page_token=_token(size, found, lambda one: (one.seen_ns, one.id)),
        )

    @answered
    def ClaimDeposit(
        self, request: funds_pb2.ClaimDepositRequest, context: grpc.ServicerContext
    ) -> funds_pb2.ClaimDepositResponse:
        """Credit a deposit of another asset than its address was given for."""
        found = self._desk.deposits.claim(identity("id", request.id), request.actor)
        return funds_pb2.ClaimDepositResponse(deposit=self._deposit(found))

    @answered
    def WriteOffDeposit(
        self, request: funds_pb2.WriteOffDepositRequest, context: grpc.ServicerContext
    ) -> funds_pb2.WriteOffDepositResponse:
        """Take a reversed deposit out of the books."""
        found = self._desk.deposits.write_off(identity("id", request.id), request.actor)
        return funds_pb2.WriteOffDepositResponse(deposit=self._deposit(found))

    # Where to.

    @answered
    def AddWithdrawalAddress(
        self, request: funds_pb2.AddWithdrawalAddressRequest, context: grpc.ServicerContext
    ) -> funds_pb2.AddWithdrawalAddressResponse:
        """List an address to withdraw to."""
        made = identity("id", request.id)
        self._desk.decimals(request.asset)
        kind = self._kind(request.owner_kind, request.owner_id)
        rest = (request.asset, request.address, request.actor)
        found = self._desk.addresses.add(Address(made, kind, request.owner_id, *rest))
        return funds_pb2.AddWithdrawalAddressResponse(address=address_message(found))

    @answered
    def RemoveWithdrawalAddress(
        self, request: funds_pb2.RemoveWithdrawalAddressRequest, context: grpc.ServicerContext
    ) -> funds_pb2.RemoveWithdrawalAddressResponse:
        """Take an address off the list."""
        found = self._desk.addresses.remove(identity("id", request.id), request.actor)
        return funds_pb2.RemoveWithdrawalAddressResponse(address=address_message(found))

    @answered
    def ListWithdrawalAddresses(
        self, request: funds_pb2.ListWithdrawalAddressesRequest, context: grpc.ServicerContext
    ) -> funds_pb2.ListWithdrawalAddressesResponse:
        """Show the addresses that an owner lists now."""
        found = self._desk.addresses.of_owner(owner_number(request.owner_id))
        return funds_pb2.ListWithdrawalAddressesResponse(
            addresses=[address_message(one) for one in found], now_ns=self._desk.books.clock()
        )

    # Out.

    @answered
    def RequestWithdrawal(
        self, request: funds_pb2.RequestWithdrawalRequest, context: grpc.ServicerContext
    ) -> funds_pb2.RequestWithdrawalResponse:
        """Set money aside to be paid out."""
        made = identity("id", request.id)
        units = self._units(request.asset, request.amount)
        kind = self._kind(request.owner_kind, request.owner_id)
        to = (request.address, request.requester)
        asked = Asked(made, kind, request.owner_id, request.asset, units, *to)
        found = self._desk.requests.request(asked)
        return funds_pb2.RequestWithdrawalResponse(
            withdrawal=self._withdrawal(found), repeated=found.repeated
        )

    @answered
    def GetWithdrawal(
        self, request: funds_pb2.GetWithdrawalRequest, context: grpc.ServicerContext
    ) -> funds_pb2.GetWithdrawalResponse:
        """Show a withdrawal."""
        made = identity("id", request.id)
        found = self._desk.withdrawals.get(made)
        if found is None:
            sentence = f"there is no withdrawal {made}"
            raise Refused(Refusal(Code.NOT_FOUND, "WITHDRAWAL_UNKNOWN", sentence))
        return funds_pb2.GetWithdrawalResponse(withdrawal=self._withdrawal(found))

    @answered
    def ListWithdrawals(
        self, request: funds_pb2.ListWithdrawalsRequest, context: grpc.ServicerContext
    ) -> funds_pb2.ListWithdrawalsResponse:
        """Show an owner's withdrawals, or those that wait for approvals."""
        size, place = page(request.page_size, PAGE_SIZE), _place(request.page_token)
        if request.awaiting_approval:
            whose = owner_number(request.owner_id) if request.owner_id else 0
            found = self._desk.withdrawals.awaiting(size, place, whose)
        else:
            found = self._desk.withdrawals.of_owner(owner_number(request.owner_id), size, place)
        return funds_pb2.ListWithdrawalsResponse(
            withdrawals=self._withdrawals(found),
            next_page_token=_token(size, found, lambda one: (one.requested_ns, one.id)),
        )

    @answered
    def ApproveWithdrawal(
        self, request: funds_pb2.ApproveWithdrawalRequest, context: grpc.ServicerContext
    ) -> funds_pb2.ApproveWithdrawalResponse:
        """Consent to a withdrawal as it was seen."""
        made = identity("id", request.id)
        if len(request.digest) != DIGEST_BYTES:
            limit = f"{DIGEST_BYTES} bytes: the digest of the withdrawal that was seen"
            given = request.digest.hex()
            raise Refused(Refusal.of_field("DIGEST_INVALID", "digest", given, limit))
        found = self._desk.withdrawals.approve(made, request.approver, request.digest)
        return funds_pb2.ApproveWithdrawalResponse(
            withdrawal=self._withdrawal(found), repeated=found.repeated
        )

    @answered
    def RejectWithdrawal(
        self, request: funds_pb2.RejectWithdrawalRequest, context: grpc.ServicerContext
    ) -> funds_pb2.RejectWithdrawalResponse:
        """Refuse a withdrawal before it is sent."""
        made = identity("id", request.id)
        found = self._desk.withdrawals.reject(made, request.actor, request.reason)
        return funds_pb2.RejectWithdrawalResponse(withdrawal=self._withdrawal(found))

    @answered
    def CancelWithdrawal(
        self, request: funds_pb2.CancelWithdrawalRequest, context: grpc.ServicerContext
    ) -> funds_pb2.CancelWithdrawalResponse:
        """Take a withdrawal back before it is sent."""
        found = self._desk.withdrawals.cancel(identity("id", request.id), request.actor)
        return funds_pb2.CancelWithdrawalResponse(withdrawal=self._withdrawal(found))

    @answered
    def MoveFunds(
        self, request: funds_pb2.MoveFundsRequest, context: grpc.ServicerContext
    ) -> funds_pb2.MoveFundsResponse:
        """Move an owner's money between funding and trading."""
        made = identity("id", request.id)
        purposes = (
            enumerated(Purpose, "source", request.source),
            enumerated(Purpose, "target", request.target),
        )
        units = self._units(request.asset, request.amount)
        owner = self._kind(request.owner_kind, request.owner_id), request.owner_id
        given = (owner, request.asset, units, purposes, request.actor)
        posted = move_own(self._desk.books, self._desk.ledger, made, *given)
        return funds_pb2.MoveFundsResponse(transfer_id=posted.transfer_id, repeated=posted.repeated)

    # What happened.

    @answered
    def ListFundsEvents(
        self, request: funds_pb2.ListFundsEventsRequest, context: grpc.ServicerContext
    ) -> funds_pb2.ListFundsEventsResponse:
        """Show what was decided."""
        subject = identity("subject", request.subject) if request.subject else None
        size = page(request.page_size, PAGE_SIZE)
        found = self._desk.books.read(
            lambda connection: views.events(
                connection, subject, alarms=request.alarms, below=request.before, limit=size
            )
        )
        return funds_pb2.ListFundsEventsResponse(events=[event_message(one) for one in found])

    @answered
    def GetFundsStatus(
        self, request: funds_pb2.GetFundsStatusRequest, context: grpc.ServicerContext
    ) -> funds_pb2.GetFundsStatusResponse:
        """Show how the way in and out stands."""
        desk, pipelines, books = self._desk, self._pipelines, self._desk.books
        counts = books.read(views.counts)
        undecided = {(Subject.DEPOSIT, "REVERSED"), (Subject.WITHDRAWAL, "RETURNED")}
        answer = funds_pb2.GetFundsStatusResponse(
            custodian_reachable=pipelines.custodian_reachable,
            waiting_for=pipelines.waiting_for,
            simulated=desk.simulated is not None,
            unexplained_payouts=pipelines.unexplained or [],
            alarm_count=books.read(views.alarm_count),
            undecided_count=sum(count for *what, count in counts if tuple(what) in undecided),
            assets=self._assets(),
            address_wait_ns=desk.policy.address_waiting_ns,
            approval_expiry_ns=desk.policy.approval_expiry_ns,
            risk_target=desk.settings.risk,
            round_count=pipelines.round_count,
        )
        for kind, name, count in counts:
            number = enum_number(kind)
            answer.counts.add(kind=number, state_name=name, count=count)
        return answer

    def _assets(self) -> list[funds_pb2.FundsAsset]:
        desk = self._desk
        booked, found = desk.books.read(views.booked_units), []
        for asset, places in desk.assets.items():
            bands = desk.policy.approval_above_units.get(asset, (0,))
            message = funds_pb2.FundsAsset(
                asset=asset,
                decimals=places,
                confirmations_needed=desk.policy.confirmations_needed(asset),
                approval_above=[units_to_amount(places, units) for units in bands],
                booked_units=booked.get(asset, 0),
            )
            # Not given when the custodian is away.
            with suppress(CustodyUnavailable):
                message.holdings_units = desk.custody.holdings_units(asset)
            found.append(message)
        return found

    # The world of the simulated custodian.

    @answered
    def SimulateDeposit(
        self, request: funds_pb2.SimulateDepositRequest, context: grpc.ServicerContext
    ) -> funds_pb2.SimulateDepositResponse:
        """Let somebody outside pay to an address, once for each id."""
        custody = self._desk.simulated
        if custody is None:
            sentence = "ledgerd runs without the simulated custodian: see --custodian simulated"
            raise Refused(Refusal(Code.FAILED_PRECONDITION, "CUSTODIAN_NOT_SIMULATED", sentence))
        made, units = identity("id", request.id), self._units(request.asset, request.amount)
        refusal = judge_amount(units)
        if refusal is None and not custody.carries(request.asset):
            limit = "an asset that the custodian keeps"
            refusal = Refusal.of_field("ASSET_NOT_CARRIED", "asset", request.asset, limit)
        address = request.address
        plain = address.isascii() and address.isalnum() and len(address) <= ADDRESS_CHARACTERS
        if refusal is None and not plain:
            limit = f"1 to {ADDRESS_CHARACTERS} letters and digits"
            refusal = Refusal.of_field("ADDRESS_INVALID", "address", address, limit)
        if refusal is not None:
            raise Refused(refusal)
        try:
            payment = custody.receive((request.asset, address, units), payment_id=made)
        except PaymentConflict as error:
            limit = "an id that was never used, or the content it was used with"
            raise Refused(Refusal.of_field("PAYMENT_ID_REUSED", "id", made, limit)) from error
        return funds_pb2.SimulateDepositResponse(transaction_id=payment)
