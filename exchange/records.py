"""Fixed-width records: what goes into an engine and what comes out of it.

Both are rows of plain int64 arrays. Several narrow values share one word; the functions here and
nowhere else know how. A command is one cache line, an execution two.

    command (8 words, 64 bytes)
      0  kind u8 | side u8 | order type u8 | time in force u8 | account << 32
      1  client order id            (ALLOT/RELEASE: transfer number)
      2  order id                   (0: the order is named by its client order id)
      3  price ticks u32 | self-trade prevention << 32 | flags << 40
      4  quantity lots              (MARKET_BY_AMOUNT, ALLOT, RELEASE: amount units)
      5  source: inbox ring << 56 | position in that ring
      6  first value of a SET command
      7  second value of a SET command

    execution (16 words, 128 bytes)
      0  sequence of the command that caused it
      1  time in ns, as stamped on the command's batch
      2  kind u8 | reason u8 | side u8 | flags u8 | account << 32
      3  order id                   (DIGEST: the digest, `exchange.account_digest`)
      4  client order id            (ALLOTTED/RELEASED: transfer number; DIGEST: number of accounts
                                    that have anything)
      5  price ticks u32 | order type << 32 | time in force << 40 | prevention << 48
         | post-only << 56
                                    (ALLOTTED/RELEASED: the asset in place of the price)
      6  quantity lots              (order: its quantity; TRADE, CANCELLED, EXPIRED, PREVENTED: the
                                    lots concerned; ALLOTTED/RELEASED: amount units;
                                    ALL_CANCELLED: number of orders; DIGEST: base units of all
                                    accounts, free and held)
      7  leaves lots                (ALLOTTED/RELEASED: free units of the account afterwards;
                                    DIGEST: quote units of all accounts, free and held)
      8  filled lots in all         (ALLOTTED/RELEASED: held units of the account afterwards)
      9  fee units of this account, in the quote asset; negative is a rebate
                                    (REPLAYED: number of the first ACCEPTED in the execution log;
                                    REJECTED: kind of the command refused;
                                    DIGEST: fees taken, in quote units)
      10 source of the command
      11 maker order id             (11 to 15: TRADE and PREVENTED only, else zero)
      12 maker client order id
      13 maker account << 32
      14 maker leaves lots
      15 maker fee units

The values of the SET commands: SET_FEES taker, maker (parts per million); SET_LIMITS largest order
in lots (word 4), largest order notional in quote units, most open orders (zero lifts a limit);
SET_KILL_SWITCH 1 or 0; SET_PAIR_STATUS the status; SET_PRICE_BAND low and high ticks, and in
word 4 a width in parts per million around the last trade (zero: the band stands still).
DIGEST_ACCOUNTS has no value; nothing but its kind and source is looked at.

Every command causes at least one execution; the last one carries FLAG_LAST. The record is
self-contained: a follower needs no other to understand it.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

COMMAND_WORDS: Final = 8
COMMAND_BYTES: Final = 64
EXECUTION_WORDS: Final = 16
EXECUTION_BYTES: Final = 128

C_VERB: Final = 0
C_CLIENT_ORDER_ID: Final = 1
C_TRANSFER_NUMBER: Final = 1
C_ORDER_ID: Final = 2
C_PRICE: Final = 3
C_QUANTITY: Final = 4
C_AMOUNT: Final = 4
C_SOURCE: Final = 5
C_FIRST: Final = 6
C_SECOND: Final = 7

COMMAND_FLAG_POST_ONLY: Final = 1
COMMAND_FLAG_LEAVES: Final = 2
"""AMEND: the quantity given is what shall be left open, not the order's whole quantity."""
COMMAND_FLAG_DISCONNECTED: Final = 4
"""CANCEL, CANCEL_ALL: caused by a lost session; the executions say DISCONNECTED."""

E_SEQUENCE: Final = 0
E_TIME_NS: Final = 1
E_VERB: Final = 2
E_ORDER_ID: Final = 3
E_DIGEST: Final = 3
E_CLIENT_ORDER_ID: Final = 4
E_TRANSFER_NUMBER: Final = 4
E_ACCOUNT_COUNT: Final = 4
E_PRICE: Final = 5
E_QUANTITY: Final = 6
E_AMOUNT: Final = 6
E_BASE_TOTAL: Final = 6
E_LEAVES: Final = 7
E_FREE: Final = 7
E_QUOTE_TOTAL: Final = 7
E_FILLED: Final = 8
E_HELD: Final = 8
E_FEE: Final = 9
E_FIRST_NUMBER: Final = 9
E_COMMAND_KIND: Final = 9
"""REJECTED: kind of the command refused, as given, so that a refused amendment cannot be taken for
a refused move of funds."""
E_FEES_TAKEN: Final = 9
E_SOURCE: Final = 10
E_MAKER_ORDER_ID: Final = 11
E_MAKER_CLIENT_ORDER_ID: Final = 12
E_MAKER_ACCOUNT: Final = 13
E_NEEDED_ASSET: Final = 13
"""REJECTED, INSUFFICIENT_FUNDS, of an order or amendment: the asset that lacks."""
E_MAKER_LEAVES: Final = 14
E_NEEDED: Final = 14
"""The same: so many units of it had to be free."""
E_MAKER_FEE: Final = 15
E_HOLD_RATE: Final = 15
"""The same: the hold rate of the account, parts per million."""

FLAG_LAST: Final = 1
"""Execution flag: the last record of its command."""

SOURCE_SHIFT: Final = 56
SOURCE_POSITION_MASK: Final = (1 << SOURCE_SHIFT) - 1
RING_CAPACITY: Final = 64
"""Most inbox rings of one engine; ring numbers are 0 to 63."""

ORDER_SLOT_BITS: Final = 24
"""An order id is order number << 24 | slot, so that an id leads to its row without a search."""


def command_verb(kind: int, account: int, side: int = 0, order_type: int = 0, tif: int = 0) -> int:
    """Return word 0 of a command."""
    return kind | side << 8 | order_type << 16 | tif << 24 | account << 32


def command_price(price_ticks: int, prevention: int = 0, flags: int = 0) -> int:
    """Return word 3 of a command."""
    return price_ticks | prevention << 32 | flags << 40


def source(ring: int, position: int) -> int:
    """Return word 5 of a command: who brought it, and as which record."""
    return ring << SOURCE_SHIFT | position


def kind_of(rows: Rows) -> Rows:
    """Return the execution kind of each row."""
    return rows[..., E_VERB] & 0xFF


def reason_of(rows: Rows) -> Rows:
    """Return the reason of each row."""
    return (rows[..., E_VERB] >> 8) & 0xFF


def side_of(rows: Rows) -> Rows:
    """Return the side of each row."""
    return (rows[..., E_VERB] >> 16) & 0xFF


def flags_of(rows: Rows) -> Rows:
    """Return the flags of each row."""
    return (rows[..., E_VERB] >> 24) & 0xFF


def account_of(rows: Rows) -> Rows:
    """Return the account of each row."""
    return rows[..., E_VERB] >> 32


def maker_account_of(rows: Rows) -> Rows:
    """Return the maker's account of each row."""
    return rows[..., E_MAKER_ACCOUNT] >> 32


def price_of(rows: Rows) -> Rows:
    """Return the price in ticks (or the asset) of each row."""
    return rows[..., E_PRICE] & 0xFFFFFFFF


assert COMMAND_BYTES == COMMAND_WORDS * 8
assert EXECUTION_BYTES == EXECUTION_WORDS * 8
