"""Every enumeration that crosses a process boundary.

One number per meaning: the value here is the number in protobuf, in the command and execution
records and in the ledger's columns. Values are append only; a released number is never reused.
Zero is always "unspecified" and never stored. This module knows no wire and no storage.
"""

from enum import IntEnum


class Side(IntEnum):
    """Which side of the book an order stands on."""

    UNSPECIFIED = 0
    BUY = 1
    SELL = 2


class Asset(IntEnum):
    """Which of the pair's two assets an amount is counted in."""

    UNSPECIFIED = 0
    BASE = 1
    QUOTE = 2


class OrderType(IntEnum):
    """How the price and size of an order are given."""

    UNSPECIFIED = 0
    LIMIT = 1
    MARKET = 2
    MARKET_BY_AMOUNT = 3


class TimeInForce(IntEnum):
    """What happens to the part of an order that does not trade at once."""

    UNSPECIFIED = 0
    GOOD_TILL_CANCELLED = 1
    IMMEDIATE_OR_CANCEL = 2
    FILL_OR_KILL = 3


class SelfTradePrevention(IntEnum):
    """What happens when an incoming order meets a resting order of the same account."""

    UNSPECIFIED = 0
    NONE = 1
    CANCEL_NEWEST = 2
    CANCEL_OLDEST = 3
    CANCEL_BOTH = 4
    DECREMENT = 5


class PairStatus(IntEnum):
    """What a pair accepts from traders."""

    UNSPECIFIED = 0
    OPEN = 1
    CANCEL_ONLY = 2
    HALTED = 3


class CommandKind(IntEnum):
    """What a command asks of the kernel."""

    UNSPECIFIED = 0
    NEW_ORDER = 1
    CANCEL_ORDER = 2
    AMEND_ORDER = 3
    CANCEL_ALL = 4
    ALLOT_FUNDS = 5
    RELEASE_FUNDS = 6
    SET_FEES = 7
    SET_LIMITS = 8
    SET_KILL_SWITCH = 9
    SET_PAIR_STATUS = 10
    SET_PRICE_BAND = 11
    DIGEST_ACCOUNTS = 12


class ExecutionKind(IntEnum):
    """What a fact in the execution log says."""

    UNSPECIFIED = 0
    ACCEPTED = 1
    REJECTED = 2
    TRADE = 3
    CANCELLED = 4
    EXPIRED = 5
    AMENDED = 6
    REPLAYED = 7
    PREVENTED = 8
    ALLOTTED = 9
    RELEASED = 10
    ACCOUNT_SET = 11
    PAIR_SET = 12
    ALL_CANCELLED = 13
    DIGEST = 14


class Reason(IntEnum):
    """Why the kernel refused a command, or why an order left the book without trading.

    The order in which a new order is judged is the order of the ladder in
    ``docs/trading-rules.md``, not the order of these numbers.
    """

    UNSPECIFIED = 0
    COMMAND_KIND_INVALID = 1
    ACCOUNT_UNKNOWN = 2
    CLIENT_ORDER_ID_INVALID = 3
    CLIENT_ORDER_ID_REUSED = 4
    PAIR_HALTED = 5
    PAIR_CANCEL_ONLY = 6
    ACCOUNT_KILLED = 7
    SIDE_INVALID = 8
    ORDER_TYPE_INVALID = 9
    TIME_IN_FORCE_INVALID = 10
    SELF_TRADE_PREVENTION_INVALID = 11
    POST_ONLY_INVALID = 12
    PRICE_OUT_OF_RANGE = 13
    PRICE_OUTSIDE_BAND = 14
    QUANTITY_OUT_OF_RANGE = 15
    AMOUNT_OUT_OF_RANGE = 16
    NOTIONAL_BELOW_MINIMUM = 17
    ORDER_SIZE_LIMIT = 18
    ORDER_NOTIONAL_LIMIT = 19
    OPEN_ORDERS_LIMIT = 20
    ORDER_CAPACITY = 21
    POST_ONLY_WOULD_TRADE = 22
    FILL_OR_KILL_UNFILLED = 23
    INSUFFICIENT_FUNDS = 24
    ORDER_UNKNOWN = 25
    ASSET_INVALID = 26
    TRANSFER_REPEATED = 27
    TRANSFER_GAP = 28
    BALANCE_OVERFLOW = 29
    FEE_RATE_OUT_OF_RANGE = 30
    LIMIT_OUT_OF_RANGE = 31
    PAIR_STATUS_INVALID = 32
    PRICE_BAND_INVALID = 33
    IMMEDIATE_REMAINDER = 34
    LIQUIDITY_EXHAUSTED = 35
    FUNDS_EXHAUSTED = 36
    SELF_TRADE_PREVENTED = 37
    CANCEL_REQUESTED = 38
    CANCEL_ALL_REQUESTED = 39
    DISCONNECTED = 40
    KILL_SWITCH = 41
    AMENDED_BELOW_FILLED = 42
