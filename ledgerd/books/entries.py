"""What one commit of the books' own stream adds, while it is put together.

`Entries` holds the lock of that stream from its first line to the end of the transaction, so what
it reads (the last number, whether a request was answered before) stays true until it is written.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import numpy as np

from exchange.refusal import Code, Refusal, Refused
from ledgerd import chart
from ledgerd.books.commit import Commit, Connection, Overdrawn, lock_stream
from ledgerd.books.copying import (
    P_ACCOUNT,
    P_AMOUNT,
    P_LEG,
    P_TRANSFER,
    POSTING_COLUMNS,
    T_ID,
    T_KIND,
    T_PHASE,
    T_TIME_NS,
    TRANSFER_COLUMNS,
)
from ledgerd.chart import AccountName, OwnerKind, Phase, Purpose, TransferKind
from ledgerd.models import BOOKS, STREAM_SHIFT
from ledgerd.postings import Told
from ledgerd.transfers import NewTransfer, Pending, Posted

HELD: Final = """
    SELECT amount, (
        SELECT coalesce(sum(pendings.amount), 0)::int8 FROM pendings
        WHERE hold_id = account_id AND NOT EXISTS (
            SELECT FROM resolutions WHERE pending_id = pendings.transfer_id))
    FROM balances WHERE account_id = %s
"""
"""What an account has, and what of it pending transfers set aside."""


def unknown_pair(pair: str) -> Refusal:
    """Return the refusal of a pair that was never listed."""
    return Refusal.of_field("PAIR_UNKNOWN", "pair", pair, "a pair that was listed")


def insufficient(error: Overdrawn) -> Refusal:
    """Return the refusal of a transfer that takes what is not there."""
    return Refusal(Code.FAILED_PRECONDITION, "INSUFFICIENT_FUNDS", f"nothing was posted: {error}")


def _beyond_trading(owner_id: int, balance: int, amount: int) -> Refusal:
    """Return the refusal of an allotment beyond the trading balance, which it names."""
    return Refusal(
        Code.FAILED_PRECONDITION,
        "INSUFFICIENT_FUNDS",
        f"nothing was posted: owner {owner_id} has {balance} units to allot, not {amount}",
        "trading_units",
        str(balance),
        f"at least {amount}",
    )


@dataclass(frozen=True, slots=True)
class Instructed:
    """What became of an instruction for an engine."""

    number: int
    """In the pair, from 1 without gaps."""
    trading_units: int
    """What its owner has left to allot of that asset."""


class Entries:
    """One commit of the books' own stream while it is put together."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.commit = Commit(connection, lock_stream(connection, BOOKS))
        self._next = self.commit.state.cursor
        self._freely_taken: set[int] = set()
        """Suspense accounts that a transfer took from without resolving a pending one."""
        self._heads: list[list[int]] = []
        self._postings: list[list[int]] = []

    def entry(
        self,
        kind: TransferKind,
        time_ns: int,
        legs: Iterable[tuple[int, int]] = (),
        phase: Phase = Phase.SINGLE,
    ) -> int:
        """Add a transfer with its legs (account id, amount); return its id."""
        transfer_id = (BOOKS << STREAM_SHIFT) | self._next
        self._next += 1
        head = [0] * TRANSFER_COLUMNS
        head[T_ID], head[T_TIME_NS], head[T_KIND], head[T_PHASE] = transfer_id, time_ns, kind, phase
        self._heads.append(head)
        for leg, (account, amount) in enumerate(legs):
            posting = [0] * POSTING_COLUMNS
            posting[P_ACCOUNT], posting[P_TRANSFER] = account, transfer_id
            posting[P_AMOUNT], posting[P_LEG] = amount, leg
            self._postings.append(posting)
        return transfer_id

    def mark(self, kind: TransferKind, time_ns: int) -> int:
        """Return the last entry of this commit; one that moves nothing if there is none yet."""
        if not self._heads:
            return self.entry(kind, time_ns)
        return (BOOKS << STREAM_SHIFT) | (self._next - 1)

    def write(self, clock: Callable[[], int]) -> None:
        """Write what was added; nothing if nothing was."""
        if self._heads:
            transfers = np.array(self._heads, np.int64)
            postings = np.array(self._postings, np.int64).reshape(-1, POSTING_COLUMNS)
            self.commit.write(transfers, postings, self._next, 0, clock)
            self._refuse_taking_what_is_held()

    def _refuse_taking_what_is_held(self) -> None:
        """Refuse the commit if a suspense account has less than what is pending there."""
        for account_id in sorted(self._freely_taken):
            row = self.connection.execute(HELD, (account_id,)).fetchone()
            assert row is not None, f"account {account_id} has no balance"
            if row[0] < row[1]:
                sentence = (
                    f"nothing was posted: account {account_id} would have {row[0]} units, and"
                    f" pending transfers hold {row[1]} of it"
                )
                raise Refused(Refusal(Code.FAILED_PRECONDITION, "AMOUNT_HELD", sentence))

    def opened(self, names: Sequence[AccountName], time_ns: int) -> dict[AccountName, int]:
        """Return the ids of accounts, opening those that are missing."""
        ids = self.known(names)
        missing = list(dict.fromkeys(name for name in names if name not in ids))
        if not missing:
            return ids
        self._refuse_unlisted(missing)
        last = self.connection.execute("SELECT coalesce(max(id), 0) FROM accounts").fetchone()
        assert last is not None
        self._refuse_taken(missing)
        entry = self.entry(TransferKind.ACCOUNTS_OPENED, time_ns)
        rows = []
        for number, name in enumerate(missing, int(last[0]) + 1):
            ids[name] = number
            kind, purpose = int(name.owner_kind), int(name.purpose)
            rows.append((number, kind, name.owner_id, purpose, name.pair, name.asset, entry))
        self.commit.add("accounts", rows)
        with self.connection.cursor() as cursor:
            statement = (
                "INSERT INTO balances (account_id, amount, version, minimum, maximum)"
                " VALUES (%s, 0, 0, %s, %s)"
            )
            cursor.executemany(statement, [(ids[name], *name.bounds) for name in missing])
        return ids

    def _refuse_taken(self, names: Sequence[AccountName]) -> None:
        """Refuse an owner number that an owner of another kind has: engines know numbers only."""
        kinds: dict[int, OwnerKind] = {}
        query = """
            SELECT owner_id, owner_kind FROM accounts
            WHERE owner_id = ANY(%s) AND owner_kind IN (1, 2, 5)
        """
        traders = [name for name in names if name.owner_kind in chart.TRADERS]
        owners = np.array([name.owner_id for name in traders], np.int64)
        for owner, kind in self.connection.execute(query, (owners,)):
            kinds[owner] = OwnerKind(kind)
        for name in traders:
            if kinds.setdefault(name.owner_id, name.owner_kind) != name.owner_kind:
                limit = f"free: it is a {kinds[name.owner_id].name}'s"
                raise Refused(Refusal.of_field("OWNER_TAKEN", "owner_id", name.owner_id, limit))

    def _refuse_unlisted(self, names: Sequence[AccountName]) -> None:
        assets = {str(row[0]) for row in self.connection.execute("SELECT code FROM assets")}
        pairs = {str(row[0]) for row in self.connection.execute("SELECT pair FROM streams")}
        for name in names:
            if name.asset not in assets:
                limit = f"one of {', '.join(sorted(assets)) or 'none yet'}"
                raise Refused(Refusal.of_field("ASSET_UNKNOWN", "asset", name.asset, limit))
            if name.pair not in pairs:
                raise Refused(unknown_pair(name.pair))

    def known(self, names: Iterable[AccountName]) -> dict[AccountName, int]:
        """Return the ids of those accounts that are open."""
        query = """
            SELECT id FROM accounts WHERE owner_kind = %s AND owner_id = %s AND purpose = %s
                AND pair = %s AND asset = %s
        """
        ids = {}
        for name in dict.fromkeys(names):
            key = (int(name.owner_kind), name.owner_id, int(name.purpose), name.pair, name.asset)
            row = self.connection.execute(query, key, prepare=True).fetchone()
            if row is not None:
                ids[name] = int(row[0])
        return ids

    def requested(self, request: UUID, digest: bytes) -> int | None:
        """Return the transfer that a request's id already has; refuse other content."""
        query = "SELECT transfer_id, digest FROM requests WHERE id = %s"
        found = self.connection.execute(query, (request,), prepare=True).fetchone()
        if found is None:
            return None
        if bytes(found[1]) != digest:
            limit = "an id that was never used, or the content it was used with"
            raise Refused(Refusal.of_field("TRANSFER_ID_REUSED", "id", request, limit))
        return int(found[0])

    def posted(self, transfer: NewTransfer, time_ns: int) -> Posted:
        """Add a transfer asked for, unless it was posted before."""
        digest = transfer.digest()
        before = self.requested(transfer.id, digest)
        if before is not None:
            return Posted(transfer.id, before, repeated=True)
        if transfer.pending_id is not None:
            transfer_id = self._resolved(transfer, time_ns)
        else:
            transfer_id = self._moved(transfer, time_ns)
        request = (transfer.id, transfer_id, digest, transfer.actor, transfer.note)
        self.commit.add("requests", [request])
        return Posted(transfer.id, transfer_id, repeated=False)

    def _moved(self, transfer: NewTransfer, time_ns: int) -> int:
        names = [leg.account for leg in transfer.legs]
        ids = self.known(names)
        for name in names:
            if name not in ids:
                limit = "an account that is open"
                raise Refused(Refusal.of_field("ACCOUNT_UNKNOWN", "account", name, limit))
        legs = [(ids[leg.account], leg.amount) for leg in transfer.legs]
        self._freely_taken.update(
            ids[leg.account]
            for leg in transfer.legs
            if leg.account.purpose == Purpose.SUSPENSE and leg.amount < 0
        )
        if transfer.phase == Phase.SINGLE:
            return self.entry(transfer.kind, time_ns, legs)
        if 0 < transfer.expires_ns <= time_ns:
            limit = f"0 or later than {time_ns}"
            raise Refused(Refusal.of_field("EXPIRED", "expires_ns", transfer.expires_ns, limit))
        hold = self.opened([transfer.hold], time_ns)[transfer.hold]
        (source, taken), (target, amount) = legs
        transfer_id = self.entry(
            transfer.kind, time_ns, ((source, taken), (hold, amount)), Phase.PENDING
        )
        pending = (transfer_id, source, hold, target, amount, transfer.expires_ns)
        self.commit.add("pendings", [pending])
        return transfer_id

    def _resolved(self, transfer: NewTransfer, time_ns: int) -> int:
        query = """
            SELECT requests.transfer_id FROM requests JOIN pendings USING (transfer_id)
            WHERE id = %s AND NOT EXISTS (
                SELECT FROM instructions WHERE instructions.transfer_id = requests.transfer_id)
        """
        found = self.connection.execute(query, (transfer.pending_id,)).fetchone()
        if found is None:
            limit = "the id of a pending transfer that is not an engine's to resolve"
            value = transfer.pending_id
            raise Refused(Refusal.of_field("PENDING_UNKNOWN", "pending_id", value, limit))
        pending = self.pending(int(found[0]))
        if pending.kind != transfer.kind:
            limit = TransferKind(pending.kind).name + ", as the pending transfer"
            raise Refused(Refusal.of_field("KIND_INVALID", "kind", transfer.kind.name, limit))
        if pending.resolved:
            sentence = f"the pending transfer {transfer.pending_id} was resolved before"
            raise Refused(Refusal(Code.FAILED_PRECONDITION, "PENDING_RESOLVED", sentence))
        posting = transfer.phase == Phase.POSTED
        if posting and 0 < pending.expires_ns <= time_ns:
            sentence = f"the pending transfer {transfer.pending_id} has expired"
            raise Refused(Refusal(Code.FAILED_PRECONDITION, "EXPIRED", sentence))
        if transfer.amount > pending.amount:
            limit = f"at most {pending.amount}, what is pending"
            raise Refused(Refusal.of_field("AMOUNT_OUT_OF_RANGE", "amount", transfer.amount, limit))
        return self.resolve(pending, transfer.phase, transfer.amount, time_ns)

    def pending(self, transfer_id: int) -> Pending:
        """Return a pending transfer as the books have it, with what this commit adds."""
        query = """
            SELECT source_id, hold_id, target_id, amount, expires_ns, kind, EXISTS (
                SELECT FROM resolutions WHERE pending_id = pendings.transfer_id)
            FROM pendings LEFT JOIN transfers ON id = transfer_id WHERE transfer_id = %s
        """
        row = self.connection.execute(query, (transfer_id,)).fetchone()
        assert row is not None, f"transfer {transfer_id} is not pending"
        kind = row[5]
        if kind is None:
            # Pending since this very commit: its transfer row is still in our hands.
            kind = self._heads[transfer_id - self.commit.state.cursor][T_KIND]
        return Pending(transfer_id, row[0], row[1], row[2], row[3], row[4], kind, row[6])

    def resolve(self, pending: Pending, phase: Phase, amount: int, time_ns: int) -> int:
        """Post or void a pending transfer; return the id of the resolving one."""
        legs = pending.resolved_by(phase, amount)
        transfer_id = self.entry(TransferKind(pending.kind), time_ns, legs, phase)
        self.commit.add("resolutions", [(pending.transfer_id, transfer_id)])
        return transfer_id

    def instructed(
        self,
        request: UUID,
        pair: str,
        told: Told,
        actor: str,
        time_ns: int,
        account_capacity: int,
    ) -> Instructed:
        """Add a numbered instruction for a pair's engine, or find the one given before.

        An engine refuses some moves of funds without using up their number; nothing after such an
        instruction would ever be carried out, so it must not be given: of an owner beyond the
        engine's accounts, or of money back from an owner whose account the engine never opened.
        """
        content = (told.kind, pair, told.owner_id, told.asset, told.amount, actor)
        digest = NewTransfer(request, told.kind, note=repr(content)).digest()
        before = self.requested(request, digest)
        if before is not None:
            query = "SELECT number FROM instructions WHERE transfer_id = %s"
            given = self.connection.execute(query, (before,)).fetchone()
            assert given is not None, f"transfer {before} is no instruction"
            asset = self._pair(pair)[1][told.asset - 1]
            name = chart.trading(self._trader(told.owner_id), told.owner_id, asset)
            return Instructed(int(given[0]), self.balance(self.known([name])[name]))
        stream, assets = self._pair(pair)
        if not 1 <= told.owner_id < account_capacity:
            limit = f"from 1 to {account_capacity - 1}, the accounts that engine has room for"
            raise Refused(
                Refusal.of_field("ACCOUNT_BEYOND_ENGINE", "owner_id", told.owner_id, limit)
            )
        asset, kind = assets[told.asset - 1], self._trader(told.owner_id)
        allot = told.kind == TransferKind.ALLOT
        if not allot:
            self._refuse_never_allotted(pair, told.owner_id)
        trading = chart.trading(kind, told.owner_id, asset)
        flight = chart.in_flight(kind, told.owner_id, asset, pair)
        keeping = chart.allotted(kind, told.owner_id, asset, pair)
        # A trade turns one asset into the other, and a release returns either: open all at once.
        both = [chart.allotted(kind, told.owner_id, other, pair) for other in assets]
        back = [chart.trading(kind, told.owner_id, other) for other in assets]
        ids = self.opened([flight, *both, *back], time_ns)
        moves = ((ids[trading], -told.amount), (ids[flight], told.amount))
        balance = self.balance(ids[trading])
        if allot and balance < told.amount:
            raise Refused(_beyond_trading(told.owner_id, balance, told.amount))
        transfer_id = self.entry(told.kind, time_ns, moves if allot else (), Phase.PENDING)
        source, hold, target = ids[trading], ids[flight], ids[keeping]
        if not allot:
            source, hold, target = ids[keeping], ids[keeping], ids[trading]
        self.commit.add("pendings", [(transfer_id, source, hold, target, told.amount, 0)])
        query = "SELECT coalesce(max(number), 0) + 1 FROM instructions WHERE stream = %s"
        row = self.connection.execute(query, (stream,)).fetchone()
        assert row is not None
        values = (int(told.kind), told.owner_id, int(told.asset), told.amount)
        self.commit.add("instructions", [(stream, int(row[0]), transfer_id, *values)])
        self.commit.add("requests", [(request, transfer_id, digest, actor, "")])
        return Instructed(int(row[0]), balance - told.amount if allot else balance)

    def balance(self, account_id: int) -> int:
        """Read a balance and hold it until the commit: a release may be about to raise it."""
        query = "SELECT amount FROM balances WHERE account_id = %s FOR UPDATE"
        row = self.connection.execute(query, (account_id,), prepare=True).fetchone()
        assert row is not None, f"account {account_id} has no balance"
        return int(row[0])

    def _refuse_never_allotted(self, pair: str, owner_id: int) -> None:
        query = """
            SELECT FROM accounts JOIN balances ON account_id = id
            WHERE owner_id = %s AND purpose = %s AND pair = %s AND owner_kind IN (1, 2, 5)
                AND version > 0
            LIMIT 1
        """
        given = (owner_id, int(Purpose.ALLOTTED), pair)
        if self.connection.execute(query, given, prepare=True).fetchone() is None:
            sentence = f"no money of owner {owner_id} has ever arrived in {pair}"
            raise Refused(
                Refusal(
                    Code.FAILED_PRECONDITION,
                    "NEVER_ALLOTTED",
                    sentence,
                    "owner_id",
                    str(owner_id),
                    f"an owner with money that arrived in {pair}",
                )
            )

    def _pair(self, pair: str) -> tuple[int, tuple[str, str]]:
        query = "SELECT id, base, quote FROM streams WHERE pair = %s AND pair <> ''"
        row = self.connection.execute(query, (pair,)).fetchone()
        if row is None:
            raise Refused(unknown_pair(pair))
        return int(row[0]), (str(row[1]), str(row[2]))

    def _trader(self, owner_id: int) -> OwnerKind:
        query = "SELECT owner_kind FROM accounts WHERE owner_id = %s AND owner_kind IN (1, 2, 5)"
        row = self.connection.execute(query + " LIMIT 1", (owner_id,), prepare=True).fetchone()
        if row is None:
            limit = "an owner with a trading account"
            raise Refused(Refusal.of_field("ACCOUNT_UNKNOWN", "owner_id", owner_id, limit))
        return OwnerKind(row[0])
