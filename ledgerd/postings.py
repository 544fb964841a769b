"""From executions to balanced postings, for a whole batch at once. Pure.

What moves money: TRADE (two legs of the base asset, two of the quote asset, two fees), ALLOTTED
(from in flight into the engine's keeping), RELEASED (out of it to trading), and a refused
allotment (back from in flight to trading). Everything else an engine says moves nothing.

Legs keep their order: what a transfer takes comes first where it can, fees last and the taker's
before the maker's, so that a rebate never finds the fee account empty.

Integers wrap silently here, and may: a running balance is exact as long as it fits, and the first
step out of its bounds, at most 2**61 beyond one of them, still does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from exchange import records
from exchange.enums import Asset, CommandKind, ExecutionKind, Reason, Side
from exchange.instrument import Instrument
from ledgerd.books.copying import (
    P_ACCOUNT,
    P_AMOUNT,
    P_BALANCE,
    P_LEG,
    P_TRANSFER,
    P_VERSION,
    POSTING_COLUMNS,
    T_ID,
    T_KIND,
    T_PHASE,
    T_SEQUENCE,
    T_TIME_NS,
    TRANSFER_COLUMNS,
    Rows,
)
from ledgerd.chart import Phase, TransferKind
from ledgerd.models import STREAM_SHIFT

TRADE_LEGS: Final = 6
MONEY_KINDS: Final = (ExecutionKind.TRADE, ExecutionKind.ALLOTTED, ExecutionKind.RELEASED)
REFUSED_FUNDS: Final = (Reason.BALANCE_OVERFLOW, Reason.INSUFFICIENT_FUNDS)
"""The refusals of a move of funds that use up its number."""
FUNDS_COMMANDS: Final = (CommandKind.ALLOT_FUNDS, CommandKind.RELEASE_FUNDS)


class FeedContradiction(Exception):
    """The feed says what cannot be; settlement of the pair must stop. Names number and reason."""


class AccountMissing(FeedContradiction):
    """The feed moves money of an account that the books, as far as they are read, do not have."""


@dataclass(frozen=True, slots=True)
class PairAccounts:
    """Where a pair's money stands in the books: account ids by engine account and asset.

    The two arrays (accounts, 2) hold 0 where there is no account; the second index is the asset
    less 1.
    """

    stream: int
    allotted: Rows
    trading: Rows
    in_flight: Rows
    fees: int


@dataclass(frozen=True, slots=True)
class Told:
    """An instruction as the books gave it, with the id of its pending transfer."""

    kind: TransferKind
    owner_id: int
    asset: Asset
    amount: int
    transfer_id: int
    resolved: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """What a range of executions does to the books."""

    transfers: Rows
    """(t, 6), sorted by id; the row check is still 0."""
    postings: Rows
    """(p, 6), in order of transfer and leg; version and balance are still 0."""
    resolved: list[tuple[int, int]]
    """(pending transfer, resolving transfer) of each instruction that the engine carried out."""
    claims: Rows
    """(c, 3): account id, transfer id, and what the engine says it holds for it afterwards."""


def settled(
    pair: Instrument,
    accounts: PairAccounts,
    rows: Rows,
    first_number: int,
    told: Callable[[list[int]], Mapping[int, Told]],
) -> Batch:
    """Return what executions (n, 16), numbered from `first_number`, do to the books.

    `told` gives the instructions of the numbers it is asked for, as far as there are any. Raises
    FeedContradiction.
    """
    kinds = records.kind_of(rows)
    numbers = np.arange(first_number, first_number + len(rows), dtype=np.int64)
    ids = (accounts.stream << STREAM_SHIFT) | numbers
    trades = np.flatnonzero(kinds == ExecutionKind.TRADE)
    parts = [_trade_postings(pair, accounts, rows[trades], ids[trades])]
    heads = [_heads(rows[trades], ids[trades], TransferKind.TRADE, Phase.SINGLE)]
    moves = _funds(accounts, rows, kinds, ids, told)
    if moves.transfers:
        heads.append(np.array(moves.transfers, np.int64))
        parts.append(np.array(moves.postings, np.int64).reshape(-1, POSTING_COLUMNS))
    transfers, postings = np.concatenate(heads), np.concatenate(parts)
    if moves.transfers:
        transfers = transfers[np.argsort(transfers[:, T_ID], kind="stable")]
        postings = postings[np.argsort(postings[:, P_TRANSFER], kind="stable")]
    claims = np.array(moves.claims, np.int64).reshape(-1, 3)
    return Batch(transfers, postings, moves.resolved, claims)


def _heads(rows: Rows, ids: Rows, kind: TransferKind, phase: Phase) -> Rows:
    heads = np.zeros((len(rows), TRANSFER_COLUMNS), np.int64)
    heads[:, T_ID] = ids
    heads[:, T_TIME_NS] = rows[:, records.E_TIME_NS]
    heads[:, T_SEQUENCE] = rows[:, records.E_SEQUENCE]
    heads[:, T_KIND] = kind
    heads[:, T_PHASE] = phase
    return heads


def _trade_postings(pair: Instrument, accounts: PairAccounts, rows: Rows, ids: Rows) -> Rows:
    """Return the postings of trades: taker and maker in base, in quote, and their fees."""
    takers, makers = records.account_of(rows), records.maker_account_of(rows)
    _known(accounts, takers, ids)
    _known(accounts, makers, ids)
    lots = rows[:, records.E_QUANTITY]
    worth = records.price_of(rows) * lots * pair.quote_units_per_tick_lot
    coins = lots * pair.base_units_per_lot
    taker_fees, maker_fees = rows[:, records.E_FEE], rows[:, records.E_MAKER_FEE]
    sells = records.side_of(rows) == Side.SELL
    sign = np.where(sells, np.int64(-1), np.int64(1))
    legs = np.zeros((len(rows), TRADE_LEGS, POSTING_COLUMNS), np.int64)
    legs[:, :, P_TRANSFER] = ids[:, None]
    legs[:, :, P_LEG] = np.arange(TRADE_LEGS)
    base, quote = Asset.BASE - 1, Asset.QUOTE - 1
    owners = (takers, makers, takers, makers)
    amounts = (sign * coins, -sign * coins, -sign * worth - taker_fees, sign * worth - maker_fees)
    for leg, (owner, asset) in enumerate(zip(owners, (base, base, quote, quote), strict=True)):
        legs[:, leg, P_ACCOUNT] = accounts.allotted[owner, asset]
        legs[:, leg, P_AMOUNT] = amounts[leg]
    legs[:, 4:, P_ACCOUNT] = accounts.fees
    legs[:, 4, P_AMOUNT] = taker_fees
    legs[:, 5, P_AMOUNT] = maker_fees
    flat = legs.reshape(-1, POSTING_COLUMNS)
    moving: Rows = flat[flat[:, P_AMOUNT] != 0]
    return moving


def _known(accounts: PairAccounts, owners: Rows, ids: Rows) -> None:
    inside = (owners > 0) & (owners < len(accounts.allotted))
    places = np.where(inside, owners, 0)
    unknown = np.flatnonzero(~inside | (accounts.allotted[places] == 0).any(axis=1))
    if len(unknown):
        first = int(unknown[0])
        number = int(ids[first]) & ((1 << STREAM_SHIFT) - 1)
        raise AccountMissing(
            f"execution {number} is a trade of account {int(owners[first])}, to which the books"
            " allotted nothing"
        )


class _Moves:
    def __init__(self) -> None:
        self.transfers: list[list[int]] = []
        self.postings: list[list[int]] = []
        self.resolved: list[tuple[int, int]] = []
        self.claims: list[tuple[int, int, int]] = []


def _funds(
    accounts: PairAccounts,
    rows: Rows,
    kinds: Rows,
    ids: Rows,
    told: Callable[[list[int]], Mapping[int, Told]],
) -> _Moves:
    """Return what the moves of funds do: few a batch, so one at a time."""
    refused = _refused_funds(rows, kinds)
    moved = (kinds == ExecutionKind.ALLOTTED) | (kinds == ExecutionKind.RELEASED)
    places = np.flatnonzero(moved | refused)
    moves = _Moves()
    if not len(places):
        return moves
    known = dict(told([int(number) for number in rows[places, records.E_TRANSFER_NUMBER]]))
    for place in places:
        row, transfer_id = rows[place], int(ids[place])
        kind = ExecutionKind(int(kinds[place]))
        instruction = known.get(int(row[records.E_TRANSFER_NUMBER]))
        _check_told(instruction, kind, row, transfer_id)
        assert instruction is not None
        _move(moves, accounts, instruction, kind, row, transfer_id)
        known[int(row[records.E_TRANSFER_NUMBER])] = replace(instruction, resolved=True)
    return moves


def _refused_funds(rows: Rows, kinds: Rows) -> Rows:
    """Say of each execution whether it is a refused move of funds that used up its number."""
    refused = (kinds == ExecutionKind.REJECTED) & np.isin(records.reason_of(rows), REFUSED_FUNDS)
    asked = rows[:, records.E_COMMAND_KIND]
    of_funds: Rows = refused & np.isin(asked, FUNDS_COMMANDS)
    return of_funds


def _check_told(instruction: Told | None, kind: ExecutionKind, row: Rows, transfer_id: int) -> None:
    number, told_number = transfer_id & ((1 << STREAM_SHIFT) - 1), row[records.E_TRANSFER_NUMBER]
    start = f"execution {number} says {kind.name} for transfer {told_number}"
    if instruction is None:
        raise FeedContradiction(f"{start}, which the books never gave")
    if instruction.resolved:
        raise FeedContradiction(f"{start}, which the books know as resolved already")
    allot = instruction.kind == TransferKind.ALLOT
    if kind == ExecutionKind.REJECTED:
        expected = int(CommandKind.ALLOT_FUNDS if allot else CommandKind.RELEASE_FUNDS)
        said = int(row[records.E_COMMAND_KIND])
    else:
        expected = int(ExecutionKind.ALLOTTED if allot else ExecutionKind.RELEASED)
        said = int(kind)
    asks = (expected, instruction.owner_id, instruction.asset, instruction.amount)
    owner, asset = int(records.account_of(row)), int(records.price_of(row))
    says = (said, owner, asset, int(row[records.E_AMOUNT]))
    if asks != says:
        raise FeedContradiction(
            f"{start} of account {owner}, asset {asset}, amount {says[3]}; the books gave"
            f" {instruction.kind.name} of account {instruction.owner_id}, asset"
            f" {int(instruction.asset)}, amount {instruction.amount}"
        )


def _move(
    moves: _Moves,
    accounts: PairAccounts,
    told: Told,
    kind: ExecutionKind,
    row: Rows,
    transfer_id: int,
) -> None:
    phase = Phase.VOIDED if kind == ExecutionKind.REJECTED else Phase.POSTED
    head = [0] * TRANSFER_COLUMNS
    head[T_ID], head[T_KIND], head[T_PHASE] = transfer_id, told.kind, phase
    head[T_TIME_NS], head[T_SEQUENCE] = int(row[records.E_TIME_NS]), int(row[records.E_SEQUENCE])
    moves.transfers.append(head)
    moves.resolved.append((told.transfer_id, transfer_id))
    place = (told.owner_id, told.asset - 1)
    if told.owner_id >= len(accounts.allotted) or not accounts.allotted[place]:
        raise AccountMissing(f"account {told.owner_id} was told funds without an account for them")
    keeping, trading = int(accounts.allotted[place]), int(accounts.trading[place])
    flight = int(accounts.in_flight[place])
    if told.kind == TransferKind.ALLOT and not flight:
        # Opened with the owner's first allotment of this very asset, after these were read.
        raise AccountMissing(f"account {told.owner_id} was told funds that were never on their way")
    if told.kind == TransferKind.ALLOT:
        source, target = flight, trading if phase == Phase.VOIDED else keeping
    elif phase == Phase.VOIDED:
        return
    else:
        source, target = keeping, trading
    for leg, (account, amount) in enumerate(((source, -told.amount), (target, told.amount))):
        posting = [0] * POSTING_COLUMNS
        posting[P_TRANSFER], posting[P_LEG] = transfer_id, leg
        posting[P_ACCOUNT], posting[P_AMOUNT] = account, amount
        moves.postings.append(posting)
    if phase == Phase.POSTED:
        held = int(row[records.E_FREE]) + int(row[records.E_HELD])
        moves.claims.append((keeping, transfer_id, held))


@dataclass(frozen=True, slots=True)
class Changes:
    """The net effect of postings, one entry an account, sorted by account."""

    order: Rows
    """The postings' places, sorted by account, each account's in order."""
    starts: Rows
    """Where each account's postings begin in `order`."""
    accounts: Rows
    deltas: Rows
    counts: Rows


def changes(postings: Rows) -> Changes:
    """Sum postings up per account."""
    column = postings[:, P_ACCOUNT]
    order = np.argsort(column, kind="stable")
    accounts, starts = np.unique(column[order], return_index=True)
    if not len(accounts):
        empty = np.zeros(0, np.int64)
        return Changes(empty, empty, empty, empty, empty)
    deltas = np.add.reduceat(postings[order, P_AMOUNT], starts)
    counts = np.diff(np.append(starts, len(order)))
    return Changes(order, starts, accounts, deltas, counts)


def with_balances(postings: Rows, net: Changes, amounts: Rows, versions: Rows) -> Rows:
    """Return the postings sorted by account, with each one's version and balance afterwards.

    `amounts` and `versions` are the accounts' after the whole batch, in the order of `net`.
    """
    done = postings[net.order]
    if not len(done):
        return done
    running = np.cumsum(done[:, P_AMOUNT])
    ends = np.append(net.starts[1:], len(done)) - 1
    # What must be added to the running sum within each account, so that it ends where it must.
    done[:, P_BALANCE] = running + np.repeat(amounts - running[ends], net.counts)
    places = np.arange(len(done)) - np.repeat(net.starts, net.counts)
    done[:, P_VERSION] = places + np.repeat(versions - net.counts + 1, net.counts)
    return done


def unbalanced(postings: Rows, asset_of: Rows) -> int | None:
    """Return a transfer whose postings do not sum to zero in some asset, or None.

    `asset_of` gives the asset's number of each posting.
    """
    order = np.lexsort((asset_of, postings[:, P_TRANSFER]))
    ids, assets = postings[order, P_TRANSFER], asset_of[order]
    new = np.ones(len(order), bool)
    new[1:] = (ids[1:] != ids[:-1]) | (assets[1:] != assets[:-1])
    starts = np.flatnonzero(new)
    if not len(starts):
        return None
    wrong = np.flatnonzero(np.add.reduceat(postings[order, P_AMOUNT], starts))
    return int(ids[starts[wrong[0]]]) if len(wrong) else None


def moves_money(rows: Rows) -> bool:
    """Say whether any execution of these could move money."""
    kinds = records.kind_of(rows)
    return bool((np.isin(kinds, MONEY_KINDS) | _refused_funds(rows, kinds)).any())
