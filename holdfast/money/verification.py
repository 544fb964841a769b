"""Proves money against the running services, a finding at a time.

The chain and all balances are computed again by the ledger; that every asset sums to zero, and that
an owner's Merkle proof leads to the published root, is computed here. For a pair the engine is
asked for a digest of all accounts, which is a command in the pair's order: the ledger reads it in
the feed, computes the same digest of its own books at exactly that place, and stops settlement of
the pair if they differ. So when the pair runs and the ledger says that it compared that command,
ledger and engine were equal there, to the unit.
"""

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Final

from exchange.v1 import pair_admin_pb2
from holdfast.errors import CallFailed, NotFound, OrderRejected, accepted
from holdfast.money.amounts import plain
from holdfast.money.answers import Settlement
from holdfast.money.books import BooksCalls
from holdfast.money.funds import FundsCalls
from holdfast.money.liabilities import LiabilityProof
from holdfast.money.movements import FundsStatus
from holdfast.retry import Attempts, Retry

RUNNING: Final = "running"
STOPPED: Final = "stopped"
NO_CUSTODIAN: Final = "there is no custodian"
"""What a ledger that was started without one says."""
PATIENT: Final = Retry(patience_s=60.0, attempt_s=10.0)
"""A digest has to be settled within so long."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    """`books`, `trial balance`, `custody`, `liabilities`, or a pair."""
    sound: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Digest:
    """What an engine says all its accounts have, at one place of the pair's order."""

    pair: str
    sequence: int
    number: int
    """The digest's own execution in the pair's log."""
    digest: int
    account_count: int
    base_units: int
    quote_units: int
    fee_units: int


class Verifying(BooksCalls, FundsCalls):
    """What proves money."""

    async def verify(self, *, patience: Retry = PATIENT) -> AsyncGenerator[Finding, None]:
        """Yield what was found, as it is found: books, sums, custody, then each pair.

        A pair whose order entry was not named cannot be compared, and is found unsound. Services
        that do not answer raise CallFailed: then nothing is known.
        """
        for finding in await self._books_findings():
            yield finding
        yield await self._trial_finding()
        for finding in await self._custody_findings(patience):
            yield finding
        for settlement in await self.settlements():
            yield await self._pair_finding(settlement, patience)

    async def verify_liability(self, asset: str) -> tuple[Finding, LiabilityProof]:
        """Take a snapshot, get the account's proof and check it against the root, here."""
        snapshot = await self.take_snapshot(asset)
        proof = await self.liability_proof(snapshot.snapshot)
        complaint = proof.complaint(snapshot.root, snapshot.total_units)
        if not complaint and proof.owner_id != self.account:
            complaint = f"the proof is of owner {proof.owner_id}, not of {self.account}"
        if complaint:
            return Finding("liabilities", False, complaint), proof
        owed = plain(await self.decimal(asset, proof.amount_units))
        total = plain(await self.decimal(asset, proof.total_units))
        sentence = (
            f"snapshot {snapshot.snapshot} counts {owed} {asset} of account {self.account}:"
            f" {len(proof.steps)} steps lead to its root {snapshot.root.hex()[:16]}…, which"
            f" commits to {total} {asset} of {snapshot.leaf_count} owners"
        )
        return Finding("liabilities", True, sentence), proof

    async def digest(self, pair: str) -> Digest:
        """Ask a pair's engine what all accounts have. Raises NotFound: its target was not given."""
        admin = self._pair_admins.get(pair)
        if admin is None:
            sentence = f"the order entry of {pair} was not named; it must be given as HOST:PORT"
            raise NotFound(5, sentence, "PAIR_UNKNOWN", field="pair", value=pair)
        request = pair_admin_pb2.DigestAccountsRequest(pair=pair)
        answer = await self._call(admin.DigestAccounts, request)
        report = accepted(answer.report)
        return Digest(
            pair,
            report.sequence,
            report.first_number,
            answer.digest,
            answer.account_count,
            answer.base_units,
            answer.quote_units,
            answer.fee_units,
        )

    async def until_settled(
        self, pair: str, number: int, patience: Retry = PATIENT
    ) -> Settlement | None:
        """Wait until the books have a pair's execution; return how far they are.

        Returns early if settlement stopped, and what there is after the patience; None if the
        books do not settle the pair at all.
        """
        attempts = Attempts(patience)
        while True:
            found = next((one for one in await self.settlements() if one.pair == pair), None)
            if found is None or found.state == STOPPED or attempts.spent():
                return found
            if found.state == RUNNING and found.cursor > number:
                return found
            await attempts.pause()

    async def _books_findings(self) -> Iterable[Finding]:
        report = await self.verify_books()
        if not report.sound:
            complaints = report.complaints or ("the books are not sound",)
            return [Finding("books", False, complaint) for complaint in complaints]
        sentence = (
            f"the chain of {report.seal_count:,} seals over {report.transfer_count:,} transfers"
            f" and {report.posting_count:,} postings holds, and so do all balances"
        )
        return [Finding("books", True, sentence)]

    async def _trial_finding(self) -> Finding:
        trial = await self.trial_balance()
        wrong = [f"{plain(total)} {asset}" for asset, total in trial.sums().items() if total]
        if wrong or not trial.balanced:
            amounts = ", ".join(wrong) or "sums the ledger does not call zero"
            return Finding("trial balance", False, f"the books do not sum to zero: {amounts}")
        assets = ", ".join(sorted(trial.sums())) or "no asset yet"
        return Finding("trial balance", True, f"all postings sum to zero in {assets}")

    async def _custody_findings(self, patience: Retry) -> Iterable[Finding]:
        status, attempts = await self.funds_status(), Attempts(patience)
        # A ledger that was just started has not asked its custodian yet.
        while not _asked(status) and not attempts.spent():
            await attempts.pause()
            status = await self.funds_status()
        findings = [
            Finding("custody", False, f"unexplained payout: {sentence}")
            for sentence in status.unexplained_payouts
        ]
        if NO_CUSTODIAN in status.waiting_for:
            return [*findings, Finding("custody", True, f"{NO_CUSTODIAN} to be compared with")]
        if not status.custodian_reachable:
            sentence = f"the custodian cannot be compared: {status.waiting_for or 'it is away'}"
            findings.append(Finding("custody", False, sentence))
        if not findings:
            sentence = "every payout of the custodian is in the books"
            if status.undecided_count:
                sentence += f"; {status.undecided_count} cases wait for a person"
            findings.append(Finding("custody", True, sentence))
        return findings

    async def _pair_finding(self, settlement: Settlement, patience: Retry) -> Finding:
        pair, attempts = settlement.pair, Attempts(patience)
        if settlement.state == STOPPED:
            return Finding(pair, False, f"settlement stopped: {settlement.sentence}")
        while True:
            try:
                digest = await self.digest(pair)
            except (CallFailed, OrderRejected) as error:
                return Finding(pair, False, f"no digest of the engine: {error}")
            settled = await self.until_settled(pair, digest.number, patience)
            if settled is not None and _compared(settled, digest):
                sentence = f"ledger = engine at sequence {digest.sequence:,}"
                return Finding(pair, True, f"{sentence} ({digest.account_count} accounts)")
            # A ledger that was started again after it had settled the digest knows of no
            # comparison: then the next digest tells.
            passed = settled is not None and settled.cursor > digest.number
            if not passed or attempts.spent():
                why = _missing(settled, digest)
                return Finding(pair, False, f"not proved at sequence {digest.sequence:,}: {why}")
            await attempts.pause()


def _asked(status: FundsStatus) -> bool:
    """Say whether the custodian answered, or there is none that could."""
    return status.custodian_reachable or NO_CUSTODIAN in status.waiting_for


def _compared(settled: Settlement, digest: Digest) -> bool:
    """Say whether the books, as they stand, were found the same as the engine at a digest."""
    return settled.state == RUNNING and settled.checked_number >= digest.number


def _missing(settled: Settlement | None, digest: Digest) -> str:
    if settled is None:
        return "the books do not follow the pair"
    if settled.state != RUNNING:
        return f"settlement is {settled.state}: {settled.sentence}"
    if settled.cursor <= digest.number:
        return f"settled to {settled.cursor}, and the digest is execution {digest.number}"
    return f"last compared at execution {settled.checked_number}, not at {digest.number}"
