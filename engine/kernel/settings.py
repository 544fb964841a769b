"""Money in and out of the engine, what operators set, and the digest of all money."""

from engine.kernel.changes import cancel_orders
from engine.kernel.entry import (
    ACCOUNT_UNKNOWN,
    AMOUNT_OUT_OF_RANGE,
    INSUFFICIENT_FUNDS,
    account_is_open,
    account_is_valid,
    command_account,
    command_price,
    reject,
)
from engine.kernel.publication import emit, publish_event
from engine.kernel.state import State
from engine.vault_layout import (
    A_FLAGS,
    A_FREE_BASE,
    A_FREE_QUOTE,
    A_HELD_BASE,
    A_HELD_QUOTE,
    A_MAKER_PPM,
    A_MAX_LOTS,
    A_MAX_NOTIONAL,
    A_MAX_ORDERS,
    A_TAKER_PPM,
    ACCOUNT_KILLED,
    ACCOUNT_OPEN,
    ALLOTTED_BASE,
    BAND_HIGH,
    BAND_LOW,
    BAND_PPM,
    DEFAULT_MAKER_PPM,
    DEFAULT_TAKER_PPM,
    FEES_TAKEN,
    LAST_PRICE,
    OPEN_ACCOUNT_COUNT,
    PAIR_STATUS,
    PRICE_CAPACITY,
    TAKER_FLOOR_PPM,
    TRANSFER_NUMBER,
)
from exchange.account_digest import row_digest
from exchange.atomics import prefetch
from exchange.book_layout import EVENT_STATUS
from exchange.compiled import inlined
from exchange.enums import Asset, CommandKind, ExecutionKind, Reason
from exchange.instrument import AMOUNT_LIMIT_UNITS, FEE_RATE_LIMIT_PPM
from exchange.records import C_AMOUNT, C_FIRST, C_QUANTITY, C_SECOND, C_TRANSFER_NUMBER, C_VERB
from exchange.tables import address_of, int64, uint64

BASE = int(Asset.BASE)
QUOTE = int(Asset.QUOTE)
ALLOT = int(CommandKind.ALLOT_FUNDS)
ALLOTTED = int(ExecutionKind.ALLOTTED)
RELEASED = int(ExecutionKind.RELEASED)
ACCOUNT_SET = int(ExecutionKind.ACCOUNT_SET)
PAIR_SET = int(ExecutionKind.PAIR_SET)
DIGEST = int(ExecutionKind.DIGEST)
ASSET_INVALID = int(Reason.ASSET_INVALID)
TRANSFER_REPEATED = int(Reason.TRANSFER_REPEATED)
TRANSFER_GAP = int(Reason.TRANSFER_GAP)
BALANCE_OVERFLOW = int(Reason.BALANCE_OVERFLOW)
FEE_RATE_OUT_OF_RANGE = int(Reason.FEE_RATE_OUT_OF_RANGE)
LIMIT_OUT_OF_RANGE = int(Reason.LIMIT_OUT_OF_RANGE)
PAIR_STATUS_INVALID = int(Reason.PAIR_STATUS_INVALID)
PRICE_BAND_INVALID = int(Reason.PRICE_BAND_INVALID)
KILL_SWITCH = int(Reason.KILL_SWITCH)
MILLION = 1_000_000
ACCOUNTS_AHEAD = 16


@inlined
def open_account(s: State, account: int) -> None:
    """Make an account known, with the pair's default fees, if it is not yet."""
    if s.accounts[account, A_FLAGS] & ACCOUNT_OPEN == 0:
        s.accounts[account, A_FLAGS] |= ACCOUNT_OPEN
        s.accounts[account, A_TAKER_PPM] = s.scalars[DEFAULT_TAKER_PPM]
        s.accounts[account, A_MAKER_PPM] = s.scalars[DEFAULT_MAKER_PPM]
        count = s.scalars[OPEN_ACCOUNT_COUNT]
        s.open_accounts[count] = account
        s.scalars[OPEN_ACCOUNT_COUNT] = count + 1


@inlined
def asset_column(asset: int) -> int:
    """Return the account column of an asset's free units; held is the next one."""
    return A_FREE_BASE if asset == BASE else A_FREE_QUOTE


@inlined
def transfer_refusal(s: State, i: int, incoming: bool) -> int:
    """Return why a transfer's shape or number is wrong, or 0."""
    account = command_account(s, i)
    known = account_is_valid(s, account) if incoming else account_is_open(s, account)
    if not known:
        return ACCOUNT_UNKNOWN
    asset = command_price(s, i)
    if asset != BASE and asset != QUOTE:
        return ASSET_INVALID
    amount = s.commands[i, C_AMOUNT]
    if amount < 1 or amount > AMOUNT_LIMIT_UNITS:
        return AMOUNT_OUT_OF_RANGE
    number = s.commands[i, C_TRANSFER_NUMBER]
    if number <= s.scalars[TRANSFER_NUMBER]:
        return TRANSFER_REPEATED
    return TRANSFER_GAP if number > s.scalars[TRANSFER_NUMBER] + 1 else 0


@inlined
def move_funds(s: State, i: int) -> None:
    """Take allotted funds in, or release free funds; the ledger numbers both in one stream."""
    incoming = s.commands[i, C_VERB] & 0xFF == ALLOT
    reason = transfer_refusal(s, i, incoming)
    if reason != 0:
        reject(s, i, reason)
        return
    account = command_account(s, i)
    asset = command_price(s, i)
    amount = s.commands[i, C_AMOUNT]
    number = s.commands[i, C_TRANSFER_NUMBER]
    s.scalars[TRANSFER_NUMBER] = number
    column = asset_column(asset)
    total = ALLOTTED_BASE + asset - BASE
    if incoming and s.scalars[total] > AMOUNT_LIMIT_UNITS - amount:
        reject(s, i, BALANCE_OVERFLOW)
        return
    if not incoming and amount > s.accounts[account, column]:
        reject(s, i, INSUFFICIENT_FUNDS)
        return
    if incoming:
        open_account(s, account)
    signed = amount if incoming else -amount
    s.accounts[account, column] += signed
    s.scalars[total] += signed
    kind = ALLOTTED if incoming else RELEASED
    free = s.accounts[account, column]
    held = s.accounts[account, column + 1]
    emit(s, kind | account << 32, 0, number, asset, amount, free, held, 0)


@inlined
def account_set(s: State, account: int) -> None:
    """Confirm a setting of an account."""
    emit(s, ACCOUNT_SET | account << 32, 0, 0, 0, 0, 0, 0, 0)


@inlined
def set_fees(s: State, i: int) -> None:
    """Set an account's fee rates; resting orders keep the rates they remember."""
    account = command_account(s, i)
    taker = s.commands[i, C_FIRST]
    maker = s.commands[i, C_SECOND]
    floor = s.scalars[TAKER_FLOOR_PPM]
    if not account_is_valid(s, account):
        reject(s, i, ACCOUNT_UNKNOWN)
        return
    taker_fits = floor <= taker and taker <= FEE_RATE_LIMIT_PPM
    if not taker_fits or maker < -floor or maker > FEE_RATE_LIMIT_PPM:
        reject(s, i, FEE_RATE_OUT_OF_RANGE)
        return
    open_account(s, account)
    s.accounts[account, A_TAKER_PPM] = taker
    s.accounts[account, A_MAKER_PPM] = maker
    account_set(s, account)


@inlined
def set_limits(s: State, i: int) -> None:
    """Set an account's limits; zero lifts one."""
    account = command_account(s, i)
    lots = s.commands[i, C_QUANTITY]
    notional = s.commands[i, C_FIRST]
    orders = s.commands[i, C_SECOND]
    if not account_is_valid(s, account):
        reject(s, i, ACCOUNT_UNKNOWN)
        return
    if lots < 0 or notional < 0 or orders < 0:
        reject(s, i, LIMIT_OUT_OF_RANGE)
        return
    open_account(s, account)
    s.accounts[account, A_MAX_LOTS] = lots
    s.accounts[account, A_MAX_NOTIONAL] = notional
    s.accounts[account, A_MAX_ORDERS] = orders
    account_set(s, account)


@inlined
def set_kill_switch(s: State, i: int) -> None:
    """Stop or free an account; stopping it cancels all its orders."""
    account = command_account(s, i)
    killed = s.commands[i, C_FIRST]
    if not account_is_valid(s, account):
        reject(s, i, ACCOUNT_UNKNOWN)
        return
    if killed != 0 and killed != 1:
        reject(s, i, LIMIT_OUT_OF_RANGE)
        return
    open_account(s, account)
    account_set(s, account)
    if killed == 1:
        s.accounts[account, A_FLAGS] |= ACCOUNT_KILLED
        cancel_orders(s, account, 0, KILL_SWITCH)
    else:
        s.accounts[account, A_FLAGS] &= ~ACCOUNT_KILLED


@inlined
def set_pair_status(s: State, i: int) -> None:
    """Open the pair, restrict it to cancels, or halt it."""
    status = s.commands[i, C_FIRST]
    if status < 1 or status > 3:
        reject(s, i, PAIR_STATUS_INVALID)
        return
    s.scalars[PAIR_STATUS] = status
    publish_event(s, EVENT_STATUS, 0, 0, status, 0)
    emit(s, PAIR_SET, 0, 0, 0, 0, 0, 0, 0)


@inlined
def set_price_band(s: State, i: int) -> None:
    """Set the prices orders may have, and how the band follows the last trade."""
    low = s.commands[i, C_FIRST]
    high = s.commands[i, C_SECOND]
    width = s.commands[i, C_QUANTITY]
    ordered = low >= 1 and high >= low and high < s.scalars[PRICE_CAPACITY]
    if not ordered or width < 0 or width > MILLION:
        reject(s, i, PRICE_BAND_INVALID)
        return
    s.scalars[BAND_LOW] = low
    s.scalars[BAND_HIGH] = high
    s.scalars[BAND_PPM] = width
    emit(s, PAIR_SET, 0, 0, 0, 0, 0, 0, 0)


@inlined
def follow_band(s: State) -> None:
    """Move the price band with the last trade."""
    last = s.scalars[LAST_PRICE]
    width = last * s.scalars[BAND_PPM] // MILLION
    s.scalars[BAND_LOW] = max(1, last - width)
    s.scalars[BAND_HIGH] = min(s.scalars[PRICE_CAPACITY] - 1, last + width)


@inlined
def digest_accounts(s: State) -> None:
    """Say what all accounts have, as one number and in sums; it changes nothing.

    The cost grows with the accounts ever opened, not with the capacity.
    """
    digest = uint64(0)
    filled = 0
    base_total = 0
    quote_total = 0
    count = s.scalars[OPEN_ACCOUNT_COUNT]
    for i in range(count):
        ahead = s.open_accounts[min(i + ACCOUNTS_AHEAD, count - 1)]
        prefetch(address_of(s.accounts, ahead))
        account = s.open_accounts[i]
        base = s.accounts[account, A_FREE_BASE] + s.accounts[account, A_HELD_BASE]
        quote = s.accounts[account, A_FREE_QUOTE] + s.accounts[account, A_HELD_QUOTE]
        if base != 0 or quote != 0:
            digest += row_digest(uint64(account), uint64(base), uint64(quote))
            filled += 1
            base_total += base
            quote_total += quote
    fees = s.scalars[FEES_TAKEN]
    if fees != 0:
        digest += row_digest(uint64(0), uint64(0), uint64(fees))
    emit(s, DIGEST, int64(digest), filled, 0, base_total, quote_total, 0, fees)
