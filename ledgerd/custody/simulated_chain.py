"""A chain of blocks that behaves like one, and a custodian on it.

`Chain` is pure: a seed and the commands given to it decide every block, reorganisation, lost
payment and notice. `SimulatedCustody` keeps the commands in a file, one line each, synced before
anything is answered; whoever opens the file gets the same chain, so it outlives every process,
as a chain would, and several processes may use it at once.

A reorganisation takes the newest blocks away and puts one more in their place. Payments in them
go back to those waiting, or are lost for good, as when their sender spent the coins elsewhere.
Notices come late, twice, and in any order; a notice of a block that is gone still comes.

It has no fees, no keys and no network.
"""

import fcntl
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

from ledgerd.custody.adapter import (
    CustodyUnavailable,
    Incoming,
    Notice,
    Payout,
    PayoutConflict,
    PayoutState,
    PayoutStatus,
)

ADDRESS_PREFIX: Final = "sim1"
ADDRESS_CHARACTERS: Final = 40
T = TypeVar("T")
NOTICE_DEPTH: Final = 12
"""A payment is announced again with each block until it is so deep."""


class PaymentConflict(Exception):
    """An id of a payment from outside was given again for another payment."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How unruly the chain is."""

    reorganise_percent: int = 10
    """How many of a hundred blocks replace the ones before."""
    depth_limit: int = 3
    """How many blocks a reorganisation takes at most."""
    lose_percent: int = 30
    """How many of a hundred payments in blocks taken away are lost for good."""
    fail_percent: int = 5
    """How many of a hundred payouts are never taken into a block."""
    wait_percent: int = 30
    """How many of a hundred waiting payments miss a block."""
    twice_percent: int = 30
    late_percent: int = 30
    late_blocks: int = 5


CALM: Final = Weather(0, 0, 0, 0, 0, 0, 0, 0)
"""Every payment is in the next block, for ever, and is announced once and at once."""


@dataclass(slots=True)
class Transaction:
    """A payment: to us from outside, or a payout from us."""

    id: str
    outputs: tuple[tuple[str, str, int], ...]
    """Asset, address, amount of each."""
    ours: bool
    """True for a payout."""
    height: int = 0
    """Of the block it is in; 0: none."""
    lost: bool = False


@dataclass(slots=True)
class Chain:
    """Blocks, waiting payments and notices: a function of the seed and the calls so far."""

    seed: int
    weather: Weather = Weather()
    blocks: list[list[str]] = field(default_factory=list)
    """Ids of the transactions in each block, from height 1."""
    waiting: list[str] = field(default_factory=list)
    transactions: dict[str, Transaction] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    """Our addresses and the keys they were made for."""
    payouts: dict[str, tuple[str, str, str, int]] = field(default_factory=dict)
    """Transaction id and content of each payout id."""
    payments: dict[str, str] = field(default_factory=dict)
    """Transaction id of each id that somebody outside gave a payment."""
    notices: list[tuple[str, int]] = field(default_factory=list)
    taken_count: int = 0
    """How many blocks reorganisations took away."""
    _coming: list[tuple[int, str, int]] = field(default_factory=list)
    _chance: random.Random = field(default_factory=random.Random, compare=False)
    _mined: int = 0

    def __post_init__(self) -> None:
        self._chance.seed(self.seed)

    def _happens(self, percent: int) -> bool:
        return percent > 0 and self._chance.randrange(100) < percent

    def _digest(self, *parts: object) -> str:
        return hashlib.sha256(json.dumps([self.seed, *map(str, parts)]).encode()).hexdigest()

    def _address_of(self, asset: str, key: str) -> str:
        return ADDRESS_PREFIX + self._digest("address", asset, key)[:ADDRESS_CHARACTERS]

    def known_address(self, asset: str, key: str) -> str | None:
        """Return our address for a key if it was made before."""
        made = self._address_of(asset, key)
        return made if made in self.addresses else None

    def address(self, asset: str, key: str) -> str:
        """Make our address for a key."""
        made = self._address_of(asset, key)
        self.addresses[made] = key
        return made

    def receive(self, outputs: Sequence[tuple[str, str, int]], payment_id: str = "") -> str:
        """Let somebody outside pay, once for an id if there is one; return the transaction's id."""
        given = tuple((asset, address, amount) for asset, address, amount in outputs)
        known = self.payments.get(payment_id)
        if known is not None:
            paid = self.transactions[known].outputs
            if paid != given:
                raise PaymentConflict(f"payment {payment_id} was {paid} and is now {given}")
            return known
        made = self._digest("receive", payment_id or len(self.transactions))
        if payment_id:
            self.payments[payment_id] = made
        self._add(Transaction(made, given, ours=False))
        return made

    def pay(self, payout_id: str, asset: str, address: str, amount: int) -> str:
        """Make a payout, once for each id; return its transaction's id."""
        known = self.payouts.get(payout_id)
        if known is not None:
            if known[1:] != (asset, address, amount):
                raise PayoutConflict(
                    f"payout {payout_id} was {known[1:]} and is now {(asset, address, amount)}"
                )
            return known[0]
        made = self._digest("pay", payout_id)
        self.payouts[payout_id] = (made, asset, address, amount)
        self._add(Transaction(made, ((asset, address, amount),), ours=True))
        return made

    def _add(self, transaction: Transaction) -> None:
        self.transactions[transaction.id] = transaction
        self.waiting.append(transaction.id)
        self._announce(transaction)

    def mine(self) -> None:
        """Add a block, or replace the newest ones by one more than they were."""
        depth = 0
        if self.blocks and self._happens(self.weather.reorganise_percent):
            depth = self._chance.randint(1, min(self.weather.depth_limit, len(self.blocks)))
        self.reorganise(depth)

    def reorganise(self, depth: int, lose: Sequence[str] = ()) -> None:
        """Take `depth` blocks away and add one more; `lose` the transactions named for good."""
        for _ in range(min(depth, len(self.blocks))):
            self.taken_count += 1
            for name in self.blocks.pop():
                transaction = self.transactions[name]
                transaction.height = 0
                self.waiting.append(name)
                if self._happens(self.weather.lose_percent):
                    self._lose(transaction)
                self._announce(transaction)
        for name in lose:
            self._lose(self.transactions[name])
        for _ in range(depth + 1):
            self._block()

    def _lose(self, transaction: Transaction) -> None:
        assert transaction.height == 0, f"{transaction.id} is in a block"
        if not transaction.lost:
            transaction.lost = True
            self.waiting.remove(transaction.id)
            self._announce(transaction)

    def _block(self) -> None:
        self._mined += 1
        block: list[str] = []
        for name in list(self.waiting):
            transaction = self.transactions[name]
            if transaction.ours and self._happens(self.weather.fail_percent):
                self._lose(transaction)
            elif not self._happens(self.weather.wait_percent):
                self.waiting.remove(name)
                transaction.height = len(self.blocks) + 1
                block.append(name)
        self.blocks.append(block)
        for at in self.blocks[-NOTICE_DEPTH:]:
            for name in at:
                self._announce(self.transactions[name])
        self._deliver()

    def _announce(self, transaction: Transaction) -> None:
        if transaction.ours:
            return
        for index in range(len(transaction.outputs)):
            for _ in range(2 if self._happens(self.weather.twice_percent) else 1):
                late = self._happens(self.weather.late_percent)
                blocks = self._chance.randint(0, self.weather.late_blocks) if late else 0
                self._coming.append((self._mined + blocks, transaction.id, index))

    def _deliver(self) -> None:
        due = [notice for notice in self._coming if notice[0] <= self._mined]
        self._coming = [notice for notice in self._coming if notice[0] > self._mined]
        if self.weather.late_percent:
            self._chance.shuffle(due)
        self.notices += [(name, index) for _, name, index in due]

    def confirmations(self, transaction: Transaction) -> int:
        """Count the blocks from a transaction's to the newest, both included."""
        return len(self.blocks) - transaction.height + 1 if transaction.height else 0

    def incoming(self, transaction_id: str, index: int) -> Incoming | None:
        """Return a payment to us as it stands now."""
        transaction = self.transactions.get(transaction_id)
        if transaction is None or transaction.ours or not 0 <= index < len(transaction.outputs):
            return None
        asset, address, amount = transaction.outputs[index]
        if address not in self.addresses:
            return None
        depth = self.confirmations(transaction)
        return Incoming(transaction_id, index, asset, address, amount, depth)

    def unsettled(self, depth: int) -> bool:
        """Say whether any payment waits for a block, or lies less than `depth` blocks deep."""
        return bool(self.waiting or self._coming) or any(
            self.blocks[max(0, len(self.blocks) - depth + 1) :]
        )

    def payout(self, payout_id: str) -> PayoutStatus:
        """Return what became of a payout."""
        known = self.payouts.get(payout_id)
        if known is None:
            return PayoutStatus(PayoutState.UNKNOWN)
        transaction = self.transactions[known[0]]
        state = PayoutState.FAILED if transaction.lost else PayoutState.ACCEPTED
        return PayoutStatus(state, transaction.id, self.confirmations(transaction))

    def holdings_units(self, asset: str) -> int:
        """Return what came to our addresses less what we paid, in blocks only."""
        total = 0
        for transaction in self.transactions.values():
            for code, address, amount in transaction.outputs if transaction.height else ():
                if code == asset:
                    total -= amount if transaction.ours else 0
                    total += amount if address in self.addresses else 0
        return total


class SimulatedCustody:
    """A custodian on a simulated chain whose commands are lines of a file."""

    def __init__(
        self, path: Path, seed: int, assets: Sequence[str], weather: Weather | None = None
    ) -> None:
        self.path = path
        self._assets = frozenset(assets)
        self._seed, self._weather = seed, weather or Weather()
        self._chain = Chain(seed, self._weather)
        self._read_bytes = 0
        path.touch()

    @contextmanager
    def _current(self) -> Iterator[tuple[Chain, int]]:
        """Give the chain with everybody's commands in it, and keep others away meanwhile."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file).st_size
            if size < self._read_bytes:
                raise CustodyUnavailable(f"{self.path} is shorter than it was")
            tail = os.pread(file, size - self._read_bytes, self._read_bytes)
            whole = tail.rfind(b"\n") + 1
            for line in tail[:whole].splitlines():
                self._apply(json.loads(line))
            self._read_bytes += whole
            if whole < len(tail):
                # Its writer died within the line, so nobody was told that it was done.
                os.ftruncate(file, self._read_bytes)
            yield self._chain, file
        finally:
            os.close(file)

    def _apply(self, command: list[Any]) -> Any:
        name, *arguments = command
        return getattr(self._chain, name)(*arguments)

    def _do(self, *command: Any) -> Any:
        with self._current() as (_, file):
            line = json.dumps(command).encode() + b"\n"
            try:
                result = self._apply(json.loads(line))
                os.pwrite(file, line, self._read_bytes)
                os.fdatasync(file)
            except BaseException as error:
                # What memory holds now was never written: read it all again when next asked.
                self._chain, self._read_bytes = Chain(self._seed, self._weather), 0
                if not isinstance(error, OSError):
                    raise
                raise CustodyUnavailable(f"{self.path} takes no more: {error}") from error
            self._read_bytes += len(line)
            return result

    def _ask(self, question: Callable[[Chain], T]) -> T:
        with self._current() as (chain, _):
            return question(chain)

    # What the world does.

    def receive(self, *outputs: tuple[str, str, int], payment_id: UUID | None = None) -> str:
        """Let somebody outside pay (asset, address, amount); return the transaction's id.

        A payment with an id is made once. Raises PaymentConflict: the id is another payment's.
        """
        return str(self._do("receive", outputs, str(payment_id or "")))

    def mine(self, count: int = 1) -> None:
        """Let `count` blocks be found."""
        for _ in range(count):
            self._do("mine")

    def reorganise(self, depth: int, lose: Sequence[str] = ()) -> None:
        """Replace the newest blocks, losing some transactions for good."""
        self._do("reorganise", depth, list(lose))

    def mine_if_unsettled(self, depth: int) -> bool:
        """Let a block be found if any payment has to get deeper; say whether there was one.

        A chain on which nothing happens stands still, so that its file does not grow.
        """
        unsettled = self._ask(lambda chain: chain.unsettled(depth))
        if unsettled:
            self.mine()
        return unsettled

    # What a custodian does.

    def carries(self, asset: str) -> bool:
        """Say whether this chain has the asset."""
        return asset in self._assets

    def new_address(self, asset: str, key: str) -> str:
        """Return the address for a key: the same one whenever asked."""
        made = self._ask(lambda chain: chain.known_address(asset, key))
        return made or str(self._do("address", asset, key))

    def address_fault(self, asset: str, address: str) -> str | None:
        """Return what an address to pay to must be, if it is not; None if it is."""
        if not self.carries(asset):
            return "an address of an asset that the custodian keeps"
        if not 0 < len(address) <= 100 or not address.isascii() or not address.isalnum():
            return "1 to 100 letters and digits"
        if self._ask(lambda chain: address in chain.addresses):
            return "outside: this one is ours, and money sent to it would not leave"
        return None

    def notices(self, start: int, limit: int) -> Sequence[Notice]:
        """Return what was announced so far, from a number on."""
        return self._ask(
            lambda chain: [
                Notice(number, name, index)
                for number, (name, index) in enumerate(chain.notices[start : start + limit], start)
            ]
        )

    def incoming(self, transaction_id: str, output_index: int) -> Incoming | None:
        """Return a payment as the chain has it now."""
        return self._ask(lambda chain: chain.incoming(transaction_id, output_index))

    def broadcast(self, payout: Payout) -> PayoutStatus:
        """Pay, once for each id."""
        self._do("pay", str(payout.id), payout.asset, payout.address, payout.amount_units)
        return self.payout(payout.id)

    def payout(self, payout_id: UUID) -> PayoutStatus:
        """Return what became of a payout."""
        return self._ask(lambda chain: chain.payout(str(payout_id)))

    def payouts(self) -> Sequence[Payout]:
        """Return all payouts that it was ever asked to make, oldest first."""
        return self._ask(
            lambda chain: [
                Payout(UUID(made), asset, address, units)
                for made, (_, asset, address, units) in chain.payouts.items()
            ]
        )

    def holdings_units(self, asset: str) -> int:
        """Return the coins that are in blocks and under our keys now."""
        return self._ask(lambda chain: chain.holdings_units(asset))

    def paid_units(self, asset: str, address: str) -> int:
        """Return what all our payouts to an address come to, in blocks or on their way."""
        return self._ask(
            lambda chain: sum(
                amount
                for made in chain.transactions.values()
                for code, target, amount in made.outputs
                if made.ours and not made.lost and (code, target) == (asset, address)
            )
        )
