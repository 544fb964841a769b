"""The client of money for programs without asyncio: the same calls, which wait for their answers.

It shares the one background loop of `holdfast.blocking`, in which `AsyncMoneyClient` does the work.
Safe to use from several threads. Not to be used inside a running event loop.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from holdfast.blocking import _iterate, _wait
from holdfast.money.amounts import Amount
from holdfast.money.answers import (
    FUNDING,
    TRADING,
    Balances,
    BooksReport,
    EffectiveLimits,
    Exposure,
    Killed,
    LimitChange,
    Limits,
    LimitsChanged,
    Moved,
    PairSequence,
    RiskChange,
    RiskStatus,
    Settlement,
    Snapshot,
    StatementLine,
    StatementPage,
    TrialBalance,
)
from holdfast.money.calls import LEDGER_TARGET, RISK_TARGET
from holdfast.money.client import AsyncMoneyClient
from holdfast.money.funds import WATCH
from holdfast.money.liabilities import LiabilityProof
from holdfast.money.movements import (
    AddressList,
    Deposit,
    DepositAddress,
    DepositPage,
    FundsEvent,
    FundsStatus,
    ListedAddress,
    Withdrawal,
    WithdrawalPage,
)
from holdfast.money.verification import PATIENT, Digest, Finding
from holdfast.retry import Retry


async def _make(*given: Any, **named: Any) -> AsyncMoneyClient:
    # gRPC ties a channel to the loop that runs when it is made.
    return AsyncMoneyClient(*given, **named)


class MoneyClient:
    """Balances, transfers, deposits, withdrawals, limits, proofs. Use as a context manager.

    The methods are those of `AsyncMoneyClient`, where each is explained.
    """

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
        made = _make(
            account,
            owner_kind=owner_kind,
            actor=actor,
            ledger=ledger,
            risk=risk,
            pairs=pairs,
            retry=retry,
        )
        self._client = _wait(made)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all calls and connections."""
        _wait(self._client.close())

    def decimals(self, asset: str) -> int:
        """Return how many decimals an asset's amounts have."""
        return _wait(self._client.decimals(asset))

    # Books.

    def balances(self, at: datetime | PairSequence | None = None) -> Balances:
        """Return the account's balances, now or as of a moment."""
        return _wait(self._client.balances(at))

    def statement(
        self,
        asset: str,
        purpose: str = FUNDING,
        pair: str = "",
        *,
        page_size: int = 100,
        page_token: str = "",
    ) -> StatementPage:
        """Return a page of an account's statement, newest first."""
        return _wait(
            self._client.statement(asset, purpose, pair, page_size=page_size, page_token=page_token)
        )

    def statement_lines(
        self, asset: str, purpose: str = FUNDING, pair: str = "", *, page_size: int = 1_000
    ) -> Iterator[StatementLine]:
        """Yield an account's whole statement, newest first."""
        return _iterate(self._client.statement_lines(asset, purpose, pair, page_size=page_size))

    def verify_books(self) -> BooksReport:
        """Have the whole chain and all balances computed again."""
        return _wait(self._client.verify_books())

    def trial_balance(self, at: datetime | None = None) -> TrialBalance:
        """Return the sums of all postings by asset and purpose."""
        return _wait(self._client.trial_balance(at))

    def settlements(self) -> tuple[Settlement, ...]:
        """Return how far each pair is settled."""
        return _wait(self._client.settlements())

    def take_snapshot(self, asset: str) -> Snapshot:
        """Have the root of what all traders are owed of an asset computed and kept."""
        return _wait(self._client.take_snapshot(asset))

    def liability_proof(self, snapshot: int) -> LiabilityProof:
        """Return the account's proof in a snapshot; `complaint` of it checks it."""
        return _wait(self._client.liability_proof(snapshot))

    # Proofs.

    def verify(self, *, patience: Retry = PATIENT) -> Iterator[Finding]:
        """Yield what was found, as it is found: books, sums, custody, then each pair."""
        return _iterate(self._client.verify(patience=patience))

    def verify_liability(self, asset: str) -> tuple[Finding, LiabilityProof]:
        """Take a snapshot, get the account's proof and check it against the root, here."""
        return _wait(self._client.verify_liability(asset))

    def digest(self, pair: str) -> Digest:
        """Ask a pair's engine what all accounts have."""
        return _wait(self._client.digest(pair))

    def until_settled(self, pair: str, number: int, patience: Retry = PATIENT) -> Settlement | None:
        """Wait until the books have a pair's execution; return how far they are."""
        return _wait(self._client.until_settled(pair, number, patience))

    # Risk.

    def limits(self, version: int = 0) -> Limits:
        """Return all limits, now (0) or of an earlier version."""
        return _wait(self._client.limits(version))

    def effective_limits(self, pair: str) -> EffectiveLimits:
        """Return what binds the account in a pair."""
        return _wait(self._client.effective_limits(pair))

    def change_limits(
        self, changes: Iterable[LimitChange], note: str, *, expected_version: int = 0
    ) -> LimitsChanged:
        """Make all changes one new version, or none of them."""
        return _wait(self._client.change_limits(changes, note, expected_version=expected_version))

    def risk_changes(self, *, before: int = 0, page_size: int = 100) -> tuple[RiskChange, ...]:
        """Return changes of limits, profiles, targets and kill switches, newest first."""
        return _wait(self._client.risk_changes(before=before, page_size=page_size))

    def recall(
        self, asset: str, amount: Amount, pair: str = "", *, patience_s: float | None = None
    ) -> Decimal:
        """Have free money brought back from engines to trading; return what a pair released."""
        return _wait(self._client.recall(asset, amount, pair, patience_s=patience_s))

    def exposure(self) -> Exposure:
        """Return where the account's money is and how much of its limits it uses."""
        return _wait(self._client.exposure())

    def kill(
        self, scope: str, *, account: int = 0, pair: str = "", lift: bool = False, note: str = ""
    ) -> Killed:
        """Stop an `account`, a `pair` or `everything`, or let it trade again (`lift`)."""
        return _wait(self._client.kill(scope, account=account, pair=pair, lift=lift, note=note))

    def risk_status(self) -> RiskStatus:
        """Return how far each pair is followed, and what is wrong."""
        return _wait(self._client.risk_status())

    # Funds.

    def deposit_address(self, asset: str) -> DepositAddress:
        """Return where the account deposits an asset: the same address whenever asked."""
        return _wait(self._client.deposit_address(asset))

    def simulate_deposit(
        self, address: str, asset: str, amount: Amount, *, payment_id: UUID | None = None
    ) -> str:
        """Let somebody outside pay to an address, once for an id; return the transaction."""
        paid = self._client.simulate_deposit(address, asset, amount, payment_id=payment_id)
        return _wait(paid)

    def deposits(self, *, page_size: int = 100, page_token: str = "") -> DepositPage:
        """Return a page of the account's deposits, newest first."""
        return _wait(self._client.deposits(page_size=page_size, page_token=page_token))

    def follow_deposit(self, transaction_id: str, *, watch: Retry = WATCH) -> Iterator[Deposit]:
        """Yield a deposit whenever it changed, until it is no longer merely seen."""
        return _iterate(self._client.follow_deposit(transaction_id, watch=watch))

    def transfer(
        self,
        asset: str,
        amount: Amount,
        *,
        source: str = FUNDING,
        target: str = TRADING,
        recall: bool = True,
        transfer_id: UUID | None = None,
    ) -> Moved:
        """Move money of the account between funding and trading."""
        return _wait(
            self._client.transfer(
                asset,
                amount,
                source=source,
                target=target,
                recall=recall,
                transfer_id=transfer_id,
            )
        )

    def add_address(
        self, asset: str, address: str, *, address_id: UUID | None = None
    ) -> ListedAddress:
        """List an address to withdraw to; it waits before it can be used."""
        return _wait(self._client.add_address(asset, address, address_id=address_id))

    def remove_address(self, address_id: UUID) -> ListedAddress:
        """Take an address off the list at once; what was not sent there yet goes back."""
        return _wait(self._client.remove_address(address_id))

    def addresses(self) -> AddressList:
        """Return the addresses that the account lists now."""
        return _wait(self._client.addresses())

    def withdraw(
        self, asset: str, amount: Amount, address: str, *, withdrawal_id: UUID | None = None
    ) -> Withdrawal:
        """Set money of funding aside to be paid to a listed address."""
        return _wait(self._client.withdraw(asset, amount, address, withdrawal_id=withdrawal_id))

    def withdrawal(self, withdrawal_id: UUID) -> Withdrawal:
        """Return a withdrawal. Raises NotFound."""
        return _wait(self._client.withdrawal(withdrawal_id))

    def withdrawals(
        self, *, awaiting_approval: bool = False, page_size: int = 100, page_token: str = ""
    ) -> WithdrawalPage:
        """Return a page of the account's withdrawals, newest first."""
        return _wait(
            self._client.withdrawals(
                awaiting_approval=awaiting_approval, page_size=page_size, page_token=page_token
            )
        )

    def follow_withdrawal(
        self, withdrawal_id: UUID, *, watch: Retry = WATCH
    ) -> Iterator[Withdrawal]:
        """Yield a withdrawal whenever it changed, until its last state or the end of patience."""
        return _iterate(self._client.follow_withdrawal(withdrawal_id, watch=watch))

    def approve(self, withdrawal_id: UUID, approver: str, digest: bytes) -> Withdrawal:
        """Consent to a withdrawal as it was seen."""
        return _wait(self._client.approve(withdrawal_id, approver, digest))

    def reject(self, withdrawal_id: UUID, reason: str) -> Withdrawal:
        """Refuse a withdrawal before it is sent: the money goes back."""
        return _wait(self._client.reject(withdrawal_id, reason))

    def cancel_withdrawal(self, withdrawal_id: UUID) -> Withdrawal:
        """Take a withdrawal back before it is sent: the money goes back."""
        return _wait(self._client.cancel_withdrawal(withdrawal_id))

    def funds_events(
        self, subject: UUID | None = None, *, alarms: bool = False, before: int = 0
    ) -> tuple[FundsEvent, ...]:
        """Return what was decided about one thing, or about everything, newest first."""
        return _wait(self._client.funds_events(subject, alarms=alarms, before=before))

    def funds_status(self) -> FundsStatus:
        """Return how the way in and out stands, and the rules in force."""
        return _wait(self._client.funds_status())
