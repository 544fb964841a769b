"""From rows of the execution log to what an account is shown: executions, reports, orders.

Pure: a function of rows and instrument. A row of a trade is about two accounts; each is shown its
own side with its own ids, what it has left and its own fee, and nothing of the other's.
"""

from typing import Any, Final

import numpy as np

from engine.entry.order_index import IndexedOrder
from exchange.compiled import kernel
from exchange.enums import Asset, ExecutionKind, OrderType, Reason, Side
from exchange.instrument import AMOUNT_LIMIT_UNITS, Instrument
from exchange.packed import (
    ACK_CLIENT_ORDER_ID,
    ACK_FILLED,
    ACK_LAST_NUMBER,
    ACK_LEAVES,
    ACK_ORDER_ID,
    ACK_VERB,
)
from exchange.records import (
    E_CLIENT_ORDER_ID,
    E_COMMAND_KIND,
    E_FEE,
    E_FILLED,
    E_FIRST_NUMBER,
    E_FREE,
    E_HELD,
    E_LEAVES,
    E_MAKER_ACCOUNT,
    E_MAKER_CLIENT_ORDER_ID,
    E_MAKER_FEE,
    E_MAKER_LEAVES,
    E_MAKER_ORDER_ID,
    E_ORDER_ID,
    E_PRICE,
    E_QUANTITY,
    E_SEQUENCE,
    E_TIME_NS,
    E_TRANSFER_NUMBER,
    E_VERB,
    Rows,
)
from exchange.units import lots_to_quantity, ticks_to_price, units_to_amount
from exchange.v1 import execution_pb2, order_entry_pb2

_TWO_SIDED: Final = (int(ExecutionKind.TRADE), int(ExecutionKind.PREVENTED))
_TRANSFERS: Final = (int(ExecutionKind.ALLOTTED), int(ExecutionKind.RELEASED))
_WITHOUT_ORDER: Final = (
    int(ExecutionKind.ACCOUNT_SET),
    int(ExecutionKind.PAIR_SET),
    int(ExecutionKind.ALL_CANCELLED),
    int(ExecutionKind.DIGEST),
)
_OTHER_SIDE: Final[dict[int, Any]] = {Side.BUY: Side.SELL, Side.SELL: Side.BUY}

_SENTENCES: Final[dict[int, str]] = {
    Reason.COMMAND_KIND_INVALID: "the kind of command is unknown at this door",
    Reason.ACCOUNT_UNKNOWN: "account {account} was never opened in this pair",
    Reason.CLIENT_ORDER_ID_INVALID: "client_order_id is {client_order_id}; it must be at least 1",
    Reason.CLIENT_ORDER_ID_REUSED: "client_order_id {client_order_id} names an order with other"
    " content; a new order needs a new id",
    Reason.PAIR_HALTED: "{pair} is halted",
    Reason.PAIR_CANCEL_ONLY: "{pair} takes cancels only",
    Reason.ACCOUNT_KILLED: "the kill switch of account {account} is set",
    Reason.SIDE_INVALID: "side is {side}; it must be 1 (buy) or 2 (sell)",
    Reason.ORDER_TYPE_INVALID: "order_type is {order_type}; it must be 1 (limit), 2 (market) or 3"
    " (market by amount)",
    Reason.TIME_IN_FORCE_INVALID: "time_in_force is {time_in_force}; a limit order takes 1 to 3,"
    " a market order 2 (immediate or cancel)",
    Reason.SELF_TRADE_PREVENTION_INVALID: "self_trade_prevention is {prevention}; it must be 1"
    " to 5",
    Reason.POST_ONLY_INVALID: "post_only is for limit orders good till cancelled",
    Reason.PRICE_OUT_OF_RANGE: "price is {price_ticks} ticks; it must be 1 to {price_limit}",
    Reason.PRICE_OUTSIDE_BAND: "price is {price_ticks} ticks, outside the present price band",
    Reason.QUANTITY_OUT_OF_RANGE: "quantity is {quantity} lots; it must be 1 to {quantity_limit}",
    Reason.AMOUNT_OUT_OF_RANGE: "amount is {quantity} units; it must be 1 to {amount_limit}",
    Reason.NOTIONAL_BELOW_MINIMUM: "the order is worth less than {notional_limit} quote units",
    Reason.ORDER_SIZE_LIMIT: "{quantity} lots are above the account's largest order",
    Reason.ORDER_NOTIONAL_LIMIT: "the order is worth more than the account's largest notional",
    Reason.OPEN_ORDERS_LIMIT: "the account has as many open orders as it may have",
    Reason.ORDER_CAPACITY: "the book holds its {order_capacity} orders",
    Reason.POST_ONLY_WOULD_TRADE: "the post-only order would trade at {price_ticks} ticks",
    Reason.FILL_OR_KILL_UNFILLED: "fewer than {quantity} lots can trade at once",
    Reason.INSUFFICIENT_FUNDS: "account {account} has not enough free funds in this pair",
    Reason.ORDER_UNKNOWN: "account {account} has no such order resting",
    Reason.ASSET_INVALID: "asset is {price_ticks}; it must be 1 (base) or 2 (quote)",
    Reason.TRANSFER_REPEATED: "transfer {client_order_id} was applied before",
    Reason.TRANSFER_GAP: "a transfer before {client_order_id} is missing",
    Reason.BALANCE_OVERFLOW: "the pair would hold more than {amount_limit} units",
    Reason.FEE_RATE_OUT_OF_RANGE: "a fee rate is outside what the pair allows",
    Reason.LIMIT_OUT_OF_RANGE: "a limit or switch value is outside its range",
    Reason.PAIR_STATUS_INVALID: "status must be 1 (open), 2 (cancel only) or 3 (halted)",
    Reason.PRICE_BAND_INVALID: "the band must be 1 <= low <= high <= {price_limit} ticks, with a"
    " width of 0 to 1,000,000 parts per million",
}


@kernel
def rows_of_account(rows: Rows, account: int, out: Rows) -> int:
    """Write the indices of the rows that concern an account to `out`; return how many."""
    count = 0
    for i in range(rows.shape[0]):
        kind = rows[i, E_VERB] & 0xFF
        mine = rows[i, E_VERB] >> 32 == account
        theirs = kind in _TWO_SIDED and rows[i, E_MAKER_ACCOUNT] >> 32 == account
        if mine or theirs:
            out[count] = i
            count += 1
    return count


def executions_of(
    instrument: Instrument, rows: Rows, first_number: int, account: int, limit: int
) -> tuple[list[execution_pb2.Execution], int]:
    """Return an account's executions in consecutive rows (n, 16), and how many rows were used.

    The list has at most `limit` entries, or one more when a trade shows the account twice. All
    rows are used unless the limit was reached.
    """
    chosen = np.empty(len(rows), np.int64)
    count = int(rows_of_account(rows, account, chosen))
    found: list[execution_pb2.Execution] = []
    for index in chosen[:count].tolist():
        if len(found) >= limit:
            return found, index
        words = rows[index].tolist()
        number = first_number + index
        if words[E_VERB] >> 32 == account:
            found.append(execution_of(instrument, words, number))
        if words[E_VERB] & 0xFF in _TWO_SIDED and words[E_MAKER_ACCOUNT] >> 32 == account:
            found.append(_maker_execution(instrument, words, number))
    return found, len(rows)


def execution_of(instrument: Instrument, words: list[int], number: int) -> execution_pb2.Execution:
    """Return a row as its main account sees it; `words` are the row's sixteen integers."""
    verb, shape = words[E_VERB], words[E_PRICE]
    kind = verb & 0xFF
    found = execution_pb2.Execution(
        number=number,
        sequence=words[E_SEQUENCE],
        time_ns=words[E_TIME_NS],
        kind=kind,  # type: ignore[arg-type]
        reason=(verb >> 8) & 0xFF,  # type: ignore[arg-type]
        account=verb >> 32,
    )
    if kind in _TRANSFERS:
        _put_transfer(found, instrument, words)
        return found
    if kind == ExecutionKind.DIGEST:
        # What all accounts have is nothing that an account is shown.
        return found
    if kind in _WITHOUT_ORDER:
        found.quantity_lots = words[E_QUANTITY]
        return found
    found.order_id = words[E_ORDER_ID]
    found.client_order_id = words[E_CLIENT_ORDER_ID]
    found.side = (verb >> 16) & 0xFF  # type: ignore[assignment]
    _put_shape(found, instrument, shape)
    by_amount = (shape >> 32) & 0xFF == OrderType.MARKET_BY_AMOUNT
    if by_amount and kind != ExecutionKind.TRADE:
        found.amount_units = words[E_QUANTITY]
        found.amount = units_to_amount(instrument.quote_decimals, words[E_QUANTITY])
    else:
        found.quantity_lots = words[E_QUANTITY]
        found.quantity = lots_to_quantity(instrument, words[E_QUANTITY])
    if by_amount:
        found.leaves_amount_units = words[E_LEAVES]
    else:
        found.leaves_lots = words[E_LEAVES]
        found.leaves = lots_to_quantity(instrument, words[E_LEAVES])
    found.filled_lots = words[E_FILLED]
    found.filled = lots_to_quantity(instrument, words[E_FILLED])
    if kind == ExecutionKind.TRADE:
        found.fee_units = words[E_FEE]
        found.fee = units_to_amount(instrument.quote_decimals, words[E_FEE])
    elif kind == ExecutionKind.REPLAYED:
        found.first_number = words[E_FIRST_NUMBER]
    elif kind == ExecutionKind.REJECTED:
        found.command_kind = words[E_COMMAND_KIND]  # type: ignore[assignment]
    return found


def _maker_execution(
    instrument: Instrument, words: list[int], number: int
) -> execution_pb2.Execution:
    """Return a trade or prevention as its maker sees it.

    The row says nothing of what the maker has filled in all; that stays unset.
    """
    found = execution_pb2.Execution(
        number=number,
        sequence=words[E_SEQUENCE],
        time_ns=words[E_TIME_NS],
        kind=words[E_VERB] & 0xFF,  # type: ignore[arg-type]
        account=words[E_MAKER_ACCOUNT] >> 32,
        order_id=words[E_MAKER_ORDER_ID],
        client_order_id=words[E_MAKER_CLIENT_ORDER_ID],
        side=_OTHER_SIDE.get((words[E_VERB] >> 16) & 0xFF, 0),
        order_type=OrderType.LIMIT,  # type: ignore[arg-type]
        maker=True,
        quantity_lots=words[E_QUANTITY],
        quantity=lots_to_quantity(instrument, words[E_QUANTITY]),
        leaves_lots=words[E_MAKER_LEAVES],
        leaves=lots_to_quantity(instrument, words[E_MAKER_LEAVES]),
    )
    found.price_ticks = words[E_PRICE] & 0xFFFFFFFF
    found.price = ticks_to_price(instrument, found.price_ticks)
    if words[E_VERB] & 0xFF == ExecutionKind.TRADE:
        found.fee_units = words[E_MAKER_FEE]
        found.fee = units_to_amount(instrument.quote_decimals, words[E_MAKER_FEE])
    return found


def _put_shape(
    found: execution_pb2.Execution | order_entry_pb2.Order, instrument: Instrument, shape: int
) -> None:
    """Set what the price word of an execution holds."""
    found.price_ticks = shape & 0xFFFFFFFF
    if found.price_ticks:
        found.price = ticks_to_price(instrument, found.price_ticks)
    found.order_type = (shape >> 32) & 0xFF  # type: ignore[assignment]
    found.time_in_force = (shape >> 40) & 0xFF  # type: ignore[assignment]
    found.self_trade_prevention = (shape >> 48) & 0xFF  # type: ignore[assignment]
    found.post_only = bool((shape >> 56) & 1)


def _put_transfer(found: execution_pb2.Execution, instrument: Instrument, words: list[int]) -> None:
    asset = words[E_PRICE] & 0xFFFFFFFF
    base = asset == Asset.BASE
    decimals = instrument.base_decimals if base else instrument.quote_decimals
    found.asset = asset  # type: ignore[assignment]
    found.transfer_number = words[E_TRANSFER_NUMBER]
    found.amount_units = words[E_QUANTITY]
    found.amount = units_to_amount(decimals, words[E_QUANTITY])
    found.free_units = words[E_FREE]
    found.held_units = words[E_HELD]


def sentence_of(instrument: Instrument, words: list[int]) -> str:
    """Return one sentence about a REJECTED row, naming value and limit."""
    verb, shape = words[E_VERB], words[E_PRICE]
    template = _SENTENCES.get((verb >> 8) & 0xFF, "")
    return template.format(
        pair=instrument.pair,
        account=verb >> 32,
        client_order_id=words[E_CLIENT_ORDER_ID],
        side=(verb >> 16) & 0xFF,
        order_type=(shape >> 32) & 0xFF,
        time_in_force=(shape >> 40) & 0xFF,
        prevention=(shape >> 48) & 0xFF,
        price_ticks=shape & 0xFFFFFFFF,
        price_limit=instrument.price_capacity_ticks - 1,
        quantity=words[E_QUANTITY],
        quantity_limit=instrument.quantity_limit_lots,
        amount_limit=AMOUNT_LIMIT_UNITS,
        notional_limit=instrument.minimum_notional_units,
        order_capacity=instrument.order_capacity,
    )


def report_of(
    instrument: Instrument, ack: list[int], rows: Rows, account: int, limit: int
) -> execution_pb2.CommandReport:
    """Return the answer to one command.

    `ack` are the words of its acknowledgement, `rows` its executions from the first on: all, or as
    many of the first ones as were read. `account` is 0 for commands about the pair.
    """
    count = (ack[ACK_VERB] >> 32) & 0xFFFFFFFF
    first_number = ack[ACK_LAST_NUMBER] - count + 1
    kind, reason = ack[ACK_VERB] & 0xFF, (ack[ACK_VERB] >> 8) & 0xFF
    head = rows[0].tolist()
    executions, used = executions_of(instrument, rows, first_number, account, limit)
    by_amount = (head[E_PRICE] >> 32) & 0xFF == OrderType.MARKET_BY_AMOUNT
    report = execution_pb2.CommandReport(
        kind=kind,  # type: ignore[arg-type]
        reason=reason,  # type: ignore[arg-type]
        message=sentence_of(instrument, head) if kind == ExecutionKind.REJECTED else "",
        sequence=head[E_SEQUENCE],
        time_ns=head[E_TIME_NS],
        order_id=0 if kind == ExecutionKind.DIGEST else ack[ACK_ORDER_ID],
        client_order_id=0 if kind == ExecutionKind.DIGEST else ack[ACK_CLIENT_ORDER_ID],
        first_number=first_number,
        last_number=ack[ACK_LAST_NUMBER],
        executions=executions,
        truncated=used < count,
    )
    if kind not in (*_TRANSFERS, *_WITHOUT_ORDER):
        report.filled_lots = ack[ACK_FILLED]
        report.filled = lots_to_quantity(instrument, ack[ACK_FILLED])
        if not by_amount:
            report.leaves_lots = ack[ACK_LEAVES]
            report.leaves = lots_to_quantity(instrument, ack[ACK_LEAVES])
    return report


_STATUS: Final[dict[int, Any]] = {
    0: order_entry_pb2.ORDER_STATUS_OPEN,
    int(ExecutionKind.TRADE): order_entry_pb2.ORDER_STATUS_FILLED,
    int(ExecutionKind.CANCELLED): order_entry_pb2.ORDER_STATUS_CANCELLED,
    int(ExecutionKind.EXPIRED): order_entry_pb2.ORDER_STATUS_EXPIRED,
}


def order_of(instrument: Instrument, indexed: IndexedOrder) -> order_entry_pb2.Order:
    """Return an order of the index in readable form."""
    order = order_entry_pb2.Order(
        order_id=indexed.order_id,
        client_order_id=indexed.client_order_id,
        status=_STATUS[indexed.end_kind],
        reason=indexed.reason,  # type: ignore[arg-type]
        side=indexed.side,  # type: ignore[arg-type]
        filled_lots=indexed.filled_lots,
        filled=lots_to_quantity(instrument, indexed.filled_lots),
        accepted_time_ns=indexed.accepted_time_ns,
    )
    _put_shape(order, instrument, indexed.price_word)
    if (indexed.price_word >> 32) & 0xFF == OrderType.MARKET_BY_AMOUNT:
        order.amount_units = indexed.quantity
    else:
        order.quantity_lots = indexed.quantity
        order.quantity = lots_to_quantity(instrument, indexed.quantity)
        order.leaves_lots = indexed.leaves
        order.leaves = lots_to_quantity(instrument, indexed.leaves)
    return order
