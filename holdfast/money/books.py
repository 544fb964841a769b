"""Calls to the books: balances, statements, proofs. Reads only; moving money is `funds`."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from exchange.v1 import ledger_pb2
from holdfast.money.amounts import invalid
from holdfast.money.answers import (
    Balance,
    Balances,
    BooksReport,
    PairSequence,
    Settlement,
    Snapshot,
    StatementLine,
    StatementPage,
    TrialBalance,
    TrialLine,
)
from holdfast.money.calls import Calls
from holdfast.money.liabilities import LiabilityProof, Step
from holdfast.money.words import (
    PURPOSES,
    SETTLEMENT_STATES,
    TRANSFER_KINDS,
    TRANSFER_PHASES,
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def moment(at: datetime | PairSequence) -> ledger_pb2.Moment:
    """Return a moment in the books as a message. Raises InvalidRequest."""
    if isinstance(at, PairSequence):
        pair, sequence = at
        return ledger_pb2.Moment(
            pair_sequence=ledger_pb2.PairSequence(pair=pair, sequence=sequence)
        )
    if at.tzinfo is None:
        raise invalid("TIME_INVALID", "at", at, "a time with its time zone")
    return ledger_pb2.Moment(time_ns=(at - _EPOCH) // timedelta(microseconds=1) * 1_000)


class BooksCalls(Calls):
    """What can be asked of the books."""

    async def _account(self, asset: str, purpose: str, pair: str) -> ledger_pb2.AccountName:
        return ledger_pb2.AccountName(
            owner_kind=await self._known_kind(),
            owner_id=self.account,
            purpose=PURPOSES.number("purpose", purpose),
            asset=asset,
            pair=pair,
        )

    async def balances(self, at: datetime | PairSequence | None = None) -> Balances:
        """Return the account's balances, now or as of a moment.

        As of a pair's command only that pair's accounts are shown: they alone have a sequence.
        """
        request = ledger_pb2.ListBalancesRequest(
            owner_kind=await self._known_kind(), owner_id=self.account
        )
        if at is not None:
            request.as_of.CopyFrom(moment(at))
        answer = await self._call(self._books.ListBalances, request)
        lines = [
            Balance(
                item.name.asset,
                PURPOSES.word(item.name.purpose),
                item.name.pair,
                Decimal(item.amount),
                item.version,
            )
            for item in answer.balances
        ]
        return Balances(self.account, tuple(lines))

    async def statement(
        self,
        asset: str,
        purpose: str = "funding",
        pair: str = "",
        *,
        page_size: int = 100,
        page_token: str = "",
    ) -> StatementPage:
        """Return a page of an account's statement, newest first. Raises NotFound: no account."""
        request = ledger_pb2.ListStatementRequest(
            name=await self._account(asset, purpose, pair),
            page_size=page_size,
            page_token=page_token,
        )
        answer = await self._call(self._books.ListStatement, request)
        lines = [
            StatementLine(
                item.version,
                item.transfer_id,
                TRANSFER_KINDS.word(item.kind),
                TRANSFER_PHASES.word(item.phase),
                item.time_ns,
                Decimal(item.amount),
                Decimal(item.balance),
            )
            for item in answer.lines
        ]
        return StatementPage(tuple(lines), answer.next_page_token)

    async def statement_lines(
        self, asset: str, purpose: str = "funding", pair: str = "", *, page_size: int = 1_000
    ) -> AsyncGenerator[StatementLine, None]:
        """Yield an account's whole statement, newest first, asking page by page."""
        token = ""
        while True:
            page = await self.statement(asset, purpose, pair, page_size=page_size, page_token=token)
            for line in page.lines:
                yield line
            token = page.next_page_token
            if not token:
                return

    # Proofs.

    async def verify_books(self) -> BooksReport:
        """Have the whole chain and all balances computed again."""
        request = ledger_pb2.VerifyBooksRequest()
        answer = await self._computed(self._books.VerifyBooks, request)
        return BooksReport(
            answer.sound,
            tuple(answer.complaints),
            answer.seal_count,
            answer.transfer_count,
            answer.posting_count,
        )

    async def trial_balance(self, at: datetime | None = None) -> TrialBalance:
        """Return the sums of all postings by asset and purpose, now or as of a time."""
        time_ns = moment(at).time_ns if at is not None else 0
        request = ledger_pb2.GetTrialBalanceRequest(time_ns=time_ns)
        answer = await self._computed(self._books.GetTrialBalance, request)
        lines = [
            TrialLine(
                item.asset, PURPOSES.word(item.purpose), Decimal(item.amount), item.account_count
            )
            for item in answer.lines
        ]
        return TrialBalance(tuple(lines), answer.balanced)

    async def settlements(self) -> tuple[Settlement, ...]:
        """Return how far each pair is settled."""
        answer: Any = await self._call(
            self._books.ListSettlements, ledger_pb2.ListSettlementsRequest()
        )
        return tuple(
            Settlement(
                item.pair,
                SETTLEMENT_STATES.word(item.state),
                item.sentence,
                item.cursor,
                item.committed_number,
                item.posted_ns,
                item.checked_sequence,
                item.checked_number,
                item.checked_ns,
            )
            for item in answer.settlements
        )

    async def take_snapshot(self, asset: str) -> Snapshot:
        """Have the root of what all traders are owed of an asset computed and kept."""
        request = ledger_pb2.TakeLiabilitySnapshotRequest(asset=asset)
        answer = await self._computed(self._books.TakeLiabilitySnapshot, request)
        return Snapshot(
            answer.snapshot,
            asset,
            answer.root,
            answer.total_units,
            answer.leaf_count,
            answer.time_ns,
        )

    async def liability_proof(self, snapshot: int) -> LiabilityProof:
        """Return the account's proof in a snapshot; `complaint` of it checks it."""
        request = ledger_pb2.GetLiabilityProofRequest(snapshot=snapshot, owner_id=self.account)
        answer = await self._call(self._books.GetLiabilityProof, request)
        steps = [Step(step.hash, step.total_units, step.left) for step in answer.steps]
        return LiabilityProof(
            snapshot,
            answer.owner_id,
            answer.amount_units,
            answer.nonce,
            tuple(steps),
            answer.root,
            answer.total_units,
        )
