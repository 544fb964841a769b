"""From a readable request to a command, and from executions to a readable report.

Pure: no clock, no input or output, no state. What can be refused without state is refused here
(`Refusal`: wrong in itself); everything else is the engine's to judge, in the order of
docs/trading-rules.md, and comes back as an execution with a reason.

Invariants: the packed door (`engine.entry.batches`) writes the same row for the same order; an enum
number that does not exist is passed on as the highest its field holds, for the engine to refuse;
self-trade prevention that is not given means CANCEL_NEWEST. A report shows its account's side of
a trade and nothing of the other's.
"""

from dataclasses import replace
from typing import Final, NamedTuple

from exchange.enums import Asset, CommandKind, OrderType, SelfTradePrevention
from exchange.instrument import Instrument
from exchange.records import (
    C_SOURCE,
    COMMAND_FLAG_DISCONNECTED,
    COMMAND_FLAG_POST_ONLY,
    COMMAND_WORDS,
    command_price,
    command_verb,
)
from exchange.refusal import Code, Refusal
from exchange.units import InvalidDecimal, amount_to_units, price_to_ticks, quantity_to_lots
from exchange.v1 import order_entry_pb2, pair_admin_pb2

ACCOUNT_LIMIT: Final = (1 << 31) - 1
"""Largest account number that the word of a command holds."""
PRICE_WORD_LIMIT: Final = (1 << 32) - 1
WORD_LIMIT: Final = (1 << 63) - 1
NIBBLE: Final = 0xF
"""What an enum number becomes that its field in a record cannot hold."""
BYTE: Final = 0xFF
EXECUTIONS_LIMIT: Final = 1_000
"""Most executions in one report; the rest is in the log."""


def account_in(field: str, number: int) -> int | Refusal:
    """Return an account number that a command can carry; whether it exists the engine knows."""
    if 1 <= number <= ACCOUNT_LIMIT:
        return number
    return Refusal.of_field("ACCOUNT_INVALID", field, number, f"from 1 to {ACCOUNT_LIMIT}")


def account_of_text(field: str, text: str | bytes) -> int | Refusal:
    """Return the account number that a caller names in its metadata."""
    limit = f"an account number from 1 to {ACCOUNT_LIMIT}"
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 10:
        account = int(text)
        if 1 <= account <= ACCOUNT_LIMIT:
            return account
    reason = "ACCOUNT_INVALID" if text else "ACCOUNT_MISSING"
    refusal = Refusal.of_field(reason, field, text, limit)
    return replace(refusal, code=Code.UNAUTHENTICATED)


class Command(NamedTuple):
    """The words of a command but its source, which is known when it is written."""

    verb: int
    client_order_id: int = 0
    order_id: int = 0
    price: int = 0
    quantity: int = 0
    first: int = 0
    second: int = 0

    def words(self, source: int) -> tuple[int, ...]:
        """Return all eight words of the row."""
        words = (*self[:C_SOURCE], source, self.first, self.second)
        assert len(words) == COMMAND_WORDS
        return words


def _narrow(number: int, highest: int = NIBBLE) -> int:
    return number if 0 <= number <= highest else highest


def _missing(field: str, limit: str) -> Refusal:
    return Refusal.of_field("FIELD_MISSING", field, "", limit)


def _unwanted(field: str, value: str, order_type: str) -> Refusal:
    return Refusal.of_field("FIELD_UNWANTED", field, value, f"left out of a {order_type} order")


def price_in(instrument: Instrument, field: str, text: str) -> int | Refusal:
    """Return a price in ticks, or what is wrong with its text."""
    try:
        ticks = price_to_ticks(instrument, text)
    except InvalidDecimal as error:
        return Refusal.of_field("PRICE_INVALID", field, text, error.limit)
    if ticks > PRICE_WORD_LIMIT:
        return Refusal.of_field("PRICE_INVALID", field, text, f"at most {PRICE_WORD_LIMIT} ticks")
    return ticks


def quantity_in(instrument: Instrument, field: str, text: str) -> int | Refusal:
    """Return a quantity in lots, or what is wrong with its text."""
    try:
        return _fitting(quantity_to_lots(instrument, text))
    except InvalidDecimal as error:
        return Refusal.of_field("QUANTITY_INVALID", field, text, error.limit)


def amount_in(instrument: Instrument, field: str, text: str, asset: Asset) -> int | Refusal:
    """Return an amount of one asset in its smallest units, or what is wrong with its text."""
    base = asset == Asset.BASE
    try:
        decimals = instrument.base_decimals if base else instrument.quote_decimals
        return _fitting(amount_to_units(decimals, text))
    except InvalidDecimal as error:
        return Refusal.of_field("AMOUNT_INVALID", field, text, error.limit)


def _fitting(number: int) -> int:
    if number > WORD_LIMIT:
        limit = f"at most {WORD_LIMIT} of its smallest steps"
        raise InvalidDecimal(f"{number} is not {limit}", limit)
    return number


def _named(kind: CommandKind, account: int, order_id: int, client_order_id: int) -> Command:
    """Return a command that names an order by its id, or, when that is 0, by the client's."""
    return Command(
        command_verb(kind, account),
        client_order_id=0 if order_id else client_order_id,
        order_id=order_id,
    )


def submit_command(
    instrument: Instrument, account: int, request: order_entry_pb2.SubmitOrderRequest
) -> Command | Refusal:
    """Return the command of a new order, or what is wrong with the request in itself."""
    price = quantity = 0
    order_type = int(request.order_type)
    by_amount = order_type == OrderType.MARKET_BY_AMOUNT
    if order_type in (OrderType.MARKET, OrderType.MARKET_BY_AMOUNT):
        if request.price:
            return _unwanted("price", request.price, "market")
    elif request.price:
        given = price_in(instrument, "price", request.price)
        if isinstance(given, Refusal):
            return given
        price = given
    elif order_type == OrderType.LIMIT:
        return _missing("price", "decimal text on the tick grid")
    wanted, unwanted = ("amount", "quantity") if by_amount else ("quantity", "amount")
    if getattr(request, unwanted):
        kind = "market-by-amount" if by_amount else "limit or market"
        return _unwanted(unwanted, getattr(request, unwanted), kind)
    if not getattr(request, wanted):
        return _missing(wanted, "decimal text above zero")
    if by_amount:
        given = amount_in(instrument, "amount", request.amount, Asset.QUOTE)
    else:
        given = quantity_in(instrument, "quantity", request.quantity)
    if isinstance(given, Refusal):
        return given
    quantity = given
    prevention = request.self_trade_prevention or SelfTradePrevention.CANCEL_NEWEST
    flags = COMMAND_FLAG_POST_ONLY if request.post_only else 0
    return Command(
        command_verb(
            CommandKind.NEW_ORDER,
            account,
            _narrow(request.side),
            _narrow(order_type),
            _narrow(request.time_in_force),
        ),
        client_order_id=request.client_order_id,
        price=command_price(price, _narrow(prevention, BYTE), flags),
        quantity=quantity,
    )


def cancel_command(account: int, request: order_entry_pb2.CancelOrderRequest) -> Command:
    """Return the command of a cancel."""
    return _named(CommandKind.CANCEL_ORDER, account, request.order_id, request.client_order_id)


def amend_command(
    instrument: Instrument, account: int, request: order_entry_pb2.AmendOrderRequest
) -> Command | Refusal:
    """Return the command of a change, or what is wrong with the request in itself."""
    price = 0
    if request.price:
        given = price_in(instrument, "price", request.price)
        if isinstance(given, Refusal):
            return given
        if given == 0:
            # Zero ticks would mean "as it is".
            limit = "left out, or above zero"
            return Refusal.of_field("PRICE_OUT_OF_RANGE", "price", request.price, limit)
        price = given
    if not request.quantity:
        return _missing("quantity", "the whole quantity of the order as decimal text")
    quantity = quantity_in(instrument, "quantity", request.quantity)
    if isinstance(quantity, Refusal):
        return quantity
    named = _named(CommandKind.AMEND_ORDER, account, request.order_id, request.client_order_id)
    return named._replace(price=command_price(price), quantity=quantity)


def cancel_all_command(account: int, side: int) -> Command:
    """Return the command of a cancel-all; side 0 means both."""
    return Command(command_verb(CommandKind.CANCEL_ALL, account, _narrow(side)))


def disconnect_command(account: int) -> Command:
    """Return the cancel-all of a session that ended and had asked for it."""
    return Command(
        command_verb(CommandKind.CANCEL_ALL, account),
        price=command_price(0, 0, COMMAND_FLAG_DISCONNECTED),
    )


def transfer_command(
    instrument: Instrument,
    kind: CommandKind,
    request: pair_admin_pb2.AllotFundsRequest | pair_admin_pb2.ReleaseFundsRequest,
) -> Command | Refusal:
    """Return the command that puts funds into the engine or takes them out."""
    if not request.amount:
        return _missing("amount", "decimal text above zero")
    if int(request.asset) not in (Asset.BASE, Asset.QUOTE):
        limit = "ASSET_BASE or ASSET_QUOTE"
        return Refusal.of_field("ASSET_INVALID", "asset", request.asset, limit)
    amount = amount_in(instrument, "amount", request.amount, Asset(request.asset))
    if isinstance(amount, Refusal):
        return amount
    return Command(
        command_verb(kind, request.account),
        client_order_id=request.transfer_number,
        price=command_price(request.asset),
        quantity=amount,
    )


def fees_command(request: pair_admin_pb2.SetFeesRequest) -> Command:
    """Return the command that sets an account's fee rates."""
    verb = command_verb(CommandKind.SET_FEES, request.account)
    return Command(verb, first=request.taker_fee_ppm, second=request.maker_fee_ppm)


def limits_command(request: pair_admin_pb2.SetLimitsRequest) -> Command:
    """Return the command that sets an account's limits."""
    return Command(
        command_verb(CommandKind.SET_LIMITS, request.account),
        quantity=request.largest_order_lots,
        first=request.largest_notional_units,
        second=request.most_open_orders,
    )


def kill_switch_command(request: pair_admin_pb2.SetKillSwitchRequest) -> Command:
    """Return the command that stops an account or lets it trade again."""
    verb = command_verb(CommandKind.SET_KILL_SWITCH, request.account)
    return Command(verb, first=int(request.killed))


def pair_status_command(request: pair_admin_pb2.SetPairStatusRequest) -> Command:
    """Return the command that opens, restricts or halts the pair."""
    return Command(command_verb(CommandKind.SET_PAIR_STATUS, 0), first=request.status)


def digest_command() -> Command:
    """Return the command that sums up what all accounts have."""
    return Command(command_verb(CommandKind.DIGEST_ACCOUNTS, 0))


def price_band_command(
    instrument: Instrument, request: pair_admin_pb2.SetPriceBandRequest
) -> Command | Refusal:
    """Return the command that sets the price band, or what is wrong with its texts."""
    ticks = []
    for field in ("low_price", "high_price"):
        text = getattr(request, field)
        given = price_in(instrument, field, text) if text else _missing(field, "decimal text")
        if isinstance(given, Refusal):
            return given
        ticks.append(given)
    return Command(
        command_verb(CommandKind.SET_PRICE_BAND, 0),
        quantity=request.width_ppm,
        first=ticks[0],
        second=ticks[1],
    )
