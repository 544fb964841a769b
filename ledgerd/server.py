"""The door of the books: LedgerService on a synchronous server, one thread and connection a call.

How a refusal ends a call is `ledgerd.doors.answers`. It translates and decides nothing: that is
`ledgerd.ledger` and `ledgerd.books`.

It believes its callers: it listens on the machine's own address only.
"""

import logging
import secrets
from collections.abc import Callable, Sequence
from concurrent import futures
from datetime import date
from functools import partial
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sqlalchemy import Engine

from exchange.enums import Asset
from exchange.identity import listen, own_identity
from exchange.refusal import Code, Refusal, Refused
from exchange.service import ServerOptions
from exchange.units import format_decimal
from exchange.v1 import ledger_pb2, ledger_pb2_grpc
from ledgerd import audit
from ledgerd.books import queries
from ledgerd.chart import AccountName, OwnerKind, Purpose
from ledgerd.custody.adapter import Custody
from ledgerd.days.close import close_of, closed_days
from ledgerd.doors.answers import RoleCheck, answered, enumerated, identity
from ledgerd.doors.ledger_messages import (
    account_name,
    balance_line,
    close_message,
    day_of,
    instruction,
    name_message,
    new_transfer,
)
from ledgerd.follower import Status
from ledgerd.heads import BooksAreOlder, Heads
from ledgerd.ledger import Ledger
from ledgerd.reserves.merkle import NONCE_BYTES
from ledgerd.reserves.proof import prove
from ledgerd.trail.progress import Abandoned, Progress

SERVICE_NAME: Final = "exchange.v1.LedgerService"
CALL_LIMIT: Final = 1_000
"""Most accounts or transfers in one call."""
CLOSES_LIMIT: Final = 100
"""Most closed days in one answer."""

log = logging.getLogger("ledgerd")


def _count(field: str, items: Sequence[object]) -> None:
    if not 0 < len(items) <= CALL_LIMIT:
        limit = f"1 to {CALL_LIMIT} of them"
        raise Refused(Refusal.of_field("COUNT_OUT_OF_RANGE", field, len(items), limit))


class LedgerServicer(ledger_pb2_grpc.LedgerServiceServicer):
    """Answers the calls. `statuses` says how settlement goes; `heads` why nothing may be done."""

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        statuses: Callable[[], Sequence[Status]],
        heads: Heads,
    ) -> None:
        self.custody: Custody | None = None
        """Whoever keeps the coins, once that is known."""
        self._ledger = ledger
        self._engine = engine
        self._statuses = statuses
        self._heads = heads

    def refuse_if_older(self) -> None:
        """Raise BooksAreOlder once that was noticed."""
        sentence = self._heads.sentence
        if sentence:
            raise BooksAreOlder(sentence)

    @answered
    def OpenAccounts(
        self, request: ledger_pb2.OpenAccountsRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.OpenAccountsResponse:
        """Open accounts."""
        _count("names", request.names)
        names = [account_name(message) for message in request.names]
        for name in names:
            if name.owned_by_engine:
                limit = "an account that allotment does not open by itself"
                raise Refused(Refusal.of_field("ACCOUNT_OF_ENGINE", "name", name, limit))
        return ledger_pb2.OpenAccountsResponse(account_ids=self._ledger.open_accounts(names))

    @answered
    def ListBalances(
        self, request: ledger_pb2.ListBalancesRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.ListBalancesResponse:
        """Show balances, now or as of a moment."""
        kind = enumerated(OwnerKind, "owner_kind", request.owner_kind)
        whose = AccountName(kind, request.owner_id, Purpose.FUNDING, "any").fault()
        if whose is not None:
            raise Refused(Refusal.of_field("ACCOUNT_INVALID", *whose))
        moment = request.as_of.WhichOneof("moment")
        answer = ledger_pb2.ListBalancesResponse()
        with queries.reading(self._engine) as session:
            shown, posted, pair = queries.decimals(session), None, ""
            if moment == "time_ns":
                posted = queries.posted_at(session, request.as_of.time_ns)
            elif moment == "pair_sequence":
                pair = request.as_of.pair_sequence.pair
                sequence = request.as_of.pair_sequence.sequence
                posted = queries.posted_after(session, pair, sequence)
            for account, balance, count in queries.balances(session, kind, request.owner_id):
                # In flight money moves in two streams: a pair's sequence says nothing about it.
                if pair and (account.pair != pair or account.purpose != Purpose.ALLOTTED):
                    continue
                amount, version = balance, count
                if posted is not None:
                    last = queries.balance_as_of(session, account.id, count, posted)
                    amount = 0 if last is None else last.balance_after
                    version = 0 if last is None else last.version
                places = shown[account.asset]
                answer.balances.add(
                    name=name_message(queries.name_of(account)),
                    account_id=account.id,
                    amount_units=amount,
                    amount=format_decimal(amount, places, places),
                    version=version,
                )
        return answer

    @answered
    def ListStatement(
        self, request: ledger_pb2.ListStatementRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.ListStatementResponse:
        """Show what happened to an account, newest first."""
        size = queries.page(request.page_size, default=100)
        token = request.page_token
        if token and not (token.isascii() and token.isdecimal() and len(token) <= 18):
            limit = "empty, or what the page before gave"
            raise Refused(Refusal.of_field("PAGE_TOKEN_INVALID", "page_token", token, limit))
        answer = ledger_pb2.ListStatementResponse()
        with queries.reading(self._engine) as session:
            account = queries.account_of(session, account_name(request.name))
            places = queries.decimals(session)[account.asset]
            below = int(token) if token else None
            for posting, transfer in queries.statement(session, account, below, size):
                answer.lines.add(
                    version=posting.version,
                    transfer_id=transfer.id,
                    kind=transfer.kind,
                    phase=transfer.phase,
                    time_ns=transfer.time_ns,
                    amount_units=posting.amount,
                    amount=format_decimal(posting.amount, places, places),
                    balance_units=posting.balance_after,
                    balance=format_decimal(posting.balance_after, places, places),
                )
        if len(answer.lines) == size and answer.lines[-1].version > 1:
            answer.next_page_token = str(answer.lines[-1].version)
        return answer

    @answered
    def PostTransfers(
        self, request: ledger_pb2.PostTransfersRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.PostTransfersResponse:
        """Post transfers, all or none."""
        _count("transfers", request.transfers)
        posted = self._ledger.post([new_transfer(message) for message in request.transfers])
        answer = ledger_pb2.PostTransfersResponse()
        for one in posted:
            answer.transfers.add(
                id=one.id.bytes, transfer_id=one.transfer_id, repeated=one.repeated
            )
        return answer

    @answered
    def GetTransfer(
        self, request: ledger_pb2.GetTransferRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.GetTransferResponse:
        """Show one transfer."""
        asked = identity("id", request.id) if request.id else None
        if asked is None and request.transfer_id < 1:
            # Transfer 0 moves nothing: it is the first entry of all books, and what was not said.
            limit = "the number of a transfer, unless id is given"
            raise Refused(
                Refusal.of_field("TRANSFER_ID_INVALID", "transfer_id", request.transfer_id, limit)
            )
        with queries.reading(self._engine) as session:
            whole = queries.whole_transfer(session, request.transfer_id, asked)
            answer = ledger_pb2.GetTransferResponse(
                transfer_id=whole.transfer.id,
                kind=whole.transfer.kind,  # type: ignore[arg-type]
                phase=whole.transfer.phase,  # type: ignore[arg-type]
                time_ns=whole.transfer.time_ns,
                pair=whole.pair,
                sequence=whole.transfer.sequence,
                resolved_by=whole.resolved_by,
                seal_cursor=whole.seal.cursor_to,
                seal_hash=whole.seal.hash,
            )
            for posting, account in whole.postings:
                answer.postings.add(
                    name=name_message(queries.name_of(account)),
                    amount_units=posting.amount,
                    balance_units=posting.balance_after,
                    version=posting.version,
                )
        return answer

    @answered
    def AllotTradingFunds(
        self, request: ledger_pb2.AllotTradingFundsRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.AllotTradingFundsResponse:
        """Set trading money aside for a pair's engine."""
        done = self._ledger.allot(*instruction(request))
        return ledger_pb2.AllotTradingFundsResponse(
            transfer_number=done.number, trading_units=done.trading_units
        )

    @answered
    def RecallTradingFunds(
        self, request: ledger_pb2.RecallTradingFundsRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.RecallTradingFundsResponse:
        """Ask a pair's engine for free money back."""
        done = self._ledger.recall(*instruction(request))
        return ledger_pb2.RecallTradingFundsResponse(transfer_number=done.number)

    @answered
    def ListInstructions(
        self, request: ledger_pb2.ListInstructionsRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.ListInstructionsResponse:
        """Show a pair's instructions."""
        size = queries.page(request.page_size)
        answer = ledger_pb2.ListInstructionsResponse()
        with queries.reading(self._engine) as session:
            shown, stream = queries.decimals(session), queries.stream_of(session, request.pair)
            rows = queries.instructions(session, request.pair, request.from_number, size)
            for told, resolved in rows:
                code = stream.base if told.asset == Asset.BASE else stream.quote
                answer.instructions.add(
                    transfer_number=told.number,
                    kind=told.kind,
                    owner_id=told.owner_id,
                    asset=told.asset,
                    amount_units=told.amount,
                    amount=format_decimal(told.amount, shown[code], shown[code]),
                    resolved=resolved,
                )
        return answer

    @answered
    def GetTrialBalance(
        self, request: ledger_pb2.GetTrialBalanceRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.GetTrialBalanceResponse:
        """Sum all postings by asset and purpose."""
        lines = audit.trial_balance(self._engine, request.time_ns or None)
        with queries.reading(self._engine) as session:
            shown = queries.decimals(session)
        answer, totals = ledger_pb2.GetTrialBalanceResponse(), dict.fromkeys(shown, 0)
        for line in lines:
            totals[line.asset] += line.amount
            answer.lines.append(balance_line(line, shown))
        answer.balanced = not any(totals.values())
        return answer

    @answered
    def ListSettlements(
        self, request: ledger_pb2.ListSettlementsRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.ListSettlementsResponse:
        """Show how far each pair is settled."""
        answer = ledger_pb2.ListSettlementsResponse()
        for status in sorted(self._statuses(), key=lambda status: status.pair):
            answer.settlements.add(
                pair=status.pair,
                state=int(status.state),
                sentence=status.sentence,
                cursor=status.cursor,
                committed_number=status.committed_number,
                settled_count=status.settled_count,
                posted_ns=status.posted_ns,
                checked_sequence=status.checked_sequence,
                checked_number=status.checked_number,
                checked_ns=status.checked_ns,
                check_count=status.check_count,
                passed_ns=status.passed_ns,
            )
        return answer

    @answered
    def ListSeals(
        self, request: ledger_pb2.ListSealsRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.ListSealsResponse:
        """Show the seals of a stream."""
        size = queries.page(request.page_size)
        with queries.reading(self._engine) as session:
            stream = queries.stream_of(session, request.pair)
            answer = ledger_pb2.ListSealsResponse(cursor=stream.cursor, head=stream.head)
            for seal in queries.seals(session, stream, request.from_number, size):
                answer.seals.add(
                    cursor_from=seal.cursor_from,
                    cursor_to=seal.cursor_to,
                    sequence=seal.sequence,
                    transfer_count=seal.transfer_count,
                    posting_count=seal.posting_count,
                    posted_ns=seal.posted_ns,
                    previous=seal.previous,
                    hash=seal.hash,
                )
        return answer

    @answered
    def VerifyBooks(
        self, request: ledger_pb2.VerifyBooksRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.VerifyBooksResponse:
        """Compute everything again."""
        try:
            progress = Progress(partial(log.info, "proof: %s"), context.is_active)
            report = prove(self._engine, self._heads, self.custody, progress)
        except Abandoned:
            sentence = "nobody waits for it any more"
            raise Refused(Refusal(Code.UNAVAILABLE, "ABANDONED", sentence)) from None
        # What settlement keeps in memory must be what the balances say.
        for sentence in self._ledger.differences():
            report.complain(sentence)
        return ledger_pb2.VerifyBooksResponse(
            sound=report.sound,
            complaints=report.complaints,
            seal_count=report.seal_count,
            transfer_count=report.transfer_count,
            posting_count=report.posting_count,
        )

    @answered
    def CloseDay(
        self, request: ledger_pb2.CloseDayRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.CloseDayResponse:
        """Close a day, once settlement has passed it."""
        passed_ns = min((status.passed_ns for status in self._statuses()), default=None)
        closed = self._ledger.close_day(day_of("day", request.day), passed_ns)
        with queries.reading(self._engine) as session:
            close = close_message(closed, queries.decimals(session))
        return ledger_pb2.CloseDayResponse(close=close)

    @answered
    def ListCloses(
        self, request: ledger_pb2.ListClosesRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.ListClosesResponse:
        """Show the days that are closed."""
        first = day_of("from_day", request.from_day) if request.from_day else date.min
        size = request.page_size
        if not 0 <= size <= CLOSES_LIMIT:
            limit = f"from 0 to {CLOSES_LIMIT}"
            raise Refused(Refusal.of_field("PAGE_SIZE_OUT_OF_RANGE", "page_size", size, limit))
        with audit.one_moment(self._engine) as connection:
            days = closed_days(connection, first, size or CLOSES_LIMIT)
            closes = [close_of(connection, day) for day in days]
        with queries.reading(self._engine) as session:
            shown = queries.decimals(session)
        messages = [close_message(close, shown) for close in closes if close is not None]
        return ledger_pb2.ListClosesResponse(closes=messages)

    @answered
    def TakeLiabilitySnapshot(
        self, request: ledger_pb2.TakeLiabilitySnapshotRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.TakeLiabilitySnapshotResponse:
        """Keep a Merkle sum tree of what is owed of an asset."""
        number = self._ledger.take_snapshot(request.asset, lambda: secrets.token_bytes(NONCE_BYTES))
        with queries.reading(self._engine) as session:
            kept = queries.snapshot(session, number)
            return ledger_pb2.TakeLiabilitySnapshotResponse(
                snapshot=number,
                root=kept.root,
                total_units=kept.total,
                leaf_count=kept.leaf_count,
                time_ns=kept.time_ns,
            )

    @answered
    def GetLiabilityProof(
        self, request: ledger_pb2.GetLiabilityProofRequest, context: grpc.ServicerContext
    ) -> ledger_pb2.GetLiabilityProofResponse:
        """Prove to one owner what a snapshot counts."""
        with queries.reading(self._engine) as session:
            proof = queries.liability_proof(session, request.snapshot, request.owner_id)
        answer = ledger_pb2.GetLiabilityProofResponse(
            owner_id=proof.leaf.owner_id,
            amount_units=proof.leaf.amount,
            nonce=proof.leaf.nonce,
            root=proof.root.hash,
            total_units=proof.root.total,
        )
        for step in proof.steps:
            sibling = step.sibling
            answer.steps.add(hash=sibling.hash, total_units=sibling.total, left=step.left)
        return answer


class LedgerServer:
    """The server with health and reflection; health says whether the books can be used."""

    def __init__(
        self,
        servicer: LedgerServicer,
        options: ServerOptions,
        threads: int,
        beside: Sequence[str] = (),
    ) -> None:
        """Make the server; `beside` names the other services that are added to it."""
        self.options = options
        self._identity = own_identity()
        self._names = (SERVICE_NAME, *beside)
        self.health = health.HealthServicer()
        self.server = grpc.server(
            futures.ThreadPoolExecutor(threads, thread_name_prefix="ledger-call"),
            options=options.channel_arguments(),
            interceptors=[] if self._identity is None else [RoleCheck()],
            maximum_concurrent_rpcs=options.concurrent_call_limit,
        )
        ledger_pb2_grpc.add_LedgerServiceServicer_to_server(servicer, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        names = (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.server)

    def start(self) -> int:
        """Listen; return the port. Raises RuntimeError if it is taken."""
        self.set_serving(False)
        port = listen(self.server, f"{self.options.host}:{self.options.port}", self._identity)
        self.server.start()
        status = health_pb2.HealthCheckResponse.SERVING
        self.health.set("alive", status)
        return port

    def set_serving(self, serving: bool) -> None:
        """Say whether the books can be used."""
        answer = health_pb2.HealthCheckResponse
        status = answer.SERVING if serving else answer.NOT_SERVING
        for name in ("", "ledger", *self._names):
            self.health.set(name, status)

    def stop(self) -> None:
        """Take no more calls; wait for those under way, up to the grace."""
        self.health.enter_graceful_shutdown()
        self.server.stop(self.options.grace_s).wait()
