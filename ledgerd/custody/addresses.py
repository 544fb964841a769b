"""The list of addresses that an owner may withdraw to, and moves between an owner's own accounts.

An address waits after it was listed, so that whoever took over an owner's access cannot list one
and empty the account at once. Removed and listed again it waits again.
"""

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from exchange.refusal import Code, Refusal, Refused
from ledgerd.books.commit import Connection
from ledgerd.chart import AccountName, OwnerKind, Purpose, TransferKind
from ledgerd.custody.adapter import Custody
from ledgerd.custody.journal import Change, MoneyBooks, Step, Subject, digest_of, text_refusal
from ledgerd.custody.withdrawal_rules import Policy, judge_amount, judge_owner
from ledgerd.ledger import Ledger
from ledgerd.transfers import Leg, NewTransfer, Posted

LIST_LIMIT: Final = 100
"""An owner lists so many addresses of an asset at most."""
_COLUMNS: Final = "id, owner_kind, owner_id, asset, address, actor, added_ns, usable_ns, removed_ns"


@dataclass(frozen=True, slots=True)
class Address:
    """An address of an owner's list."""

    id: UUID
    owner_kind: OwnerKind
    owner_id: int
    asset: str
    address: str
    actor: str
    added_ns: int = 0
    usable_ns: int = 0
    removed_ns: int = 0
    """0: it is listed."""

    @property
    def content(self) -> bytes:
        """Return the digest of what never changes."""
        owner = int(self.owner_kind), self.owner_id
        return digest_of(self.id, *owner, self.asset, self.address, self.actor)


def _address(row: tuple[Any, ...]) -> Address:
    return Address(row[0], OwnerKind(row[1]), *row[2:])


class Addresses:
    """The lists of all owners."""

    def __init__(self, books: MoneyBooks, custody: Custody, policy: Policy) -> None:
        self._books = books
        self._custody = custody
        self._policy = policy

    def add(self, wanted: Address) -> Address:
        """List an address; the same id with the same content is answered as it stands."""
        refusal = judge_owner(wanted.owner_kind, wanted.owner_id)
        refusal = refusal or text_refusal("actor", wanted.actor)
        if refusal is None and not self._custody.carries(wanted.asset):
            limit = "an asset that the custodian keeps"
            refusal = Refusal.of_field("ASSET_NOT_CARRIED", "asset", wanted.asset, limit)
        if refusal is None:
            limit = self._custody.address_fault(wanted.asset, wanted.address) or ""
            if limit:
                given = wanted.address
                refusal = Refusal.of_field("ADDRESS_INVALID", "address", given, limit)
        if refusal is not None:
            raise Refused(refusal)
        return self._books.done(lambda step: self._added(step, wanted))

    def _added(self, step: Step, wanted: Address) -> Address:
        row = step.row(f"SELECT {_COLUMNS} FROM withdrawal_addresses WHERE id = %s", wanted.id)
        if row is not None:
            known = _address(row)
            if known.content != wanted.content:
                limit = "an id that was never used, or the content it was used with"
                raise Refused(Refusal.of_field("ADDRESS_ID_REUSED", "id", wanted.id, limit))
            return known
        query = (
            "SELECT count(*) FROM withdrawal_addresses WHERE owner_id = %s AND asset = %s"
            " AND removed_ns = 0"
        )
        count = step.row(query, wanted.owner_id, wanted.asset)
        if count is not None and count[0] >= LIST_LIMIT:
            sentence = f"owner {wanted.owner_id} lists {LIST_LIMIT} addresses; remove one first"
            raise Refused(Refusal(Code.RESOURCE_EXHAUSTED, "ADDRESSES_FULL", sentence))
        step.insert(
            "withdrawal_addresses",
            {"id": wanted.id},
            {
                "owner_kind": wanted.owner_kind,
                "owner_id": wanted.owner_id,
                "asset": wanted.asset,
                "address": wanted.address,
                "actor": wanted.actor,
                "added_ns": step.now_ns,
                "usable_ns": step.now_ns + self._policy.address_waiting_ns,
                "removed_ns": 0,
            },
        )
        told = (wanted.actor, "listed", wanted.content)
        step.record(Change(wanted.id, Subject.ADDRESS, 0, 1, *told))
        row = step.row(f"SELECT {_COLUMNS} FROM withdrawal_addresses WHERE id = %s", wanted.id)
        assert row is not None
        return _address(row)

    def remove(self, subject: UUID, actor: str) -> Address:
        """Take an address off the list at once; what was not sent there yet goes back."""
        refusal = text_refusal("actor", actor)
        if refusal is not None:
            raise Refused(refusal)

        def work(step: Step) -> Address:
            query = f"SELECT {_COLUMNS} FROM withdrawal_addresses WHERE id = %s FOR UPDATE"
            row = step.row(query, subject)
            if row is None:
                sentence = f"there is no address {subject}"
                raise Refused(Refusal(Code.NOT_FOUND, "ADDRESS_UNKNOWN", sentence))
            known = _address(row)
            if known.removed_ns:
                return known
            step.update("withdrawal_addresses", {"id": subject}, {"removed_ns": step.now_ns})
            told = (actor, "removed", known.content)
            step.record(Change(subject, Subject.ADDRESS, 1, 2, *told))
            return _address((*row[:8], step.now_ns))

        return self._books.done(work)

    def of_owner(self, owner_id: int) -> list[Address]:
        """Return what an owner lists now, oldest first."""
        query = (
            f"SELECT {_COLUMNS} FROM withdrawal_addresses WHERE owner_id = %s AND removed_ns = 0"
            " ORDER BY added_ns"
        )

        def work(connection: Connection) -> list[Address]:
            return [_address(row) for row in connection.execute(query, (owner_id,))]

        return self._books.read(work)


def move_own(
    books: MoneyBooks,
    ledger: Ledger,
    made: UUID,
    owner: tuple[OwnerKind, int],
    asset: str,
    amount_units: int,
    purposes: tuple[Purpose, Purpose],
    actor: str,
) -> Posted:
    """Move an owner's money between funding and trading, once for each id.

    The account it goes to is opened if the owner has the one it comes from. From trading only what
    is there can go: what engines hold, free or not, has to be released first. Raises Refused.
    """
    refusal = judge_amount(amount_units) or judge_owner(*owner) or text_refusal("actor", actor)
    if refusal is None and set(purposes) != {Purpose.FUNDING, Purpose.TRADING}:
        given = " to ".join(purpose.name for purpose in purposes)
        limit = "FUNDING to TRADING or TRADING to FUNDING"
        refusal = Refusal.of_field("PURPOSE_INVALID", "purposes", given, limit)
    if refusal is not None:
        raise Refused(refusal)
    source, target = (AccountName(*owner, purpose, asset) for purpose in purposes)
    if not books.read(lambda connection: _is_open(connection, source)):
        limit = f"an owner with a {source.purpose.name.lower()} account in {asset}"
        raise Refused(Refusal.of_field("ACCOUNT_UNKNOWN", "owner_id", owner[1], limit))
    ledger.open_accounts([target])
    legs = (Leg(source, -amount_units), Leg(target, amount_units))
    try:
        return ledger.post([NewTransfer(made, TransferKind.INTERNAL, legs, actor=actor)])[0]
    except Refused as error:
        if error.refusal.reason == "INSUFFICIENT_FUNDS" and purposes[0] == Purpose.TRADING:
            sentence = (
                f"owner {owner[1]} has less than {amount_units} {asset} units outside the engines;"
                " what a pair holds has to be released first"
            )
            code = Code.FAILED_PRECONDITION
            raise Refused(Refusal(code, "INSUFFICIENT_RELEASED_FUNDS", sentence)) from error
        raise


def _is_open(connection: Connection, name: AccountName) -> bool:
    query = (
        "SELECT 1 FROM accounts WHERE owner_kind = %s AND owner_id = %s AND purpose = %s"
        " AND pair = %s AND asset = %s"
    )
    key = (int(name.owner_kind), name.owner_id, int(name.purpose), name.pair, name.asset)
    return connection.execute(query, key).fetchone() is not None
