"""The common workload, one million commands a profile, through the kernel.

The generator and its independent reference replay lie beside this checkout. What every price-time
engine must reproduce is the ordered trade checksum and the final book.
"""

import contextlib
import io
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from engine.vault_layout import RESTING_COUNT
from exchange.enums import CommandKind, OrderType, SelfTradePrevention, Side, TimeInForce
from exchange.instrument import Instrument
from exchange.records import (
    C_CLIENT_ORDER_ID,
    C_PRICE,
    C_QUANTITY,
    C_VERB,
    COMMAND_FLAG_LEAVES,
    COMMAND_WORDS,
    Rows,
    command_price,
    command_verb,
)
from holdfast.replay.formats import fills_of
from tests.data.drivers import Venue

ACCOUNTS = 1000
CHECKSUM_START = 0xCBF29CE484222325
CHECKSUM_PRIME = 0x100000001B3
WORD = (1 << 64) - 1

INSTRUMENT = Instrument(
    pair="WORKLOAD",
    base_decimals=0,
    quote_decimals=0,
    tick_quote_units=1,
    base_units_per_lot=1,
    price_capacity_ticks=1 << 21,
    quantity_limit_lots=1 << 20,
    taker_fee_ppm=0,
    order_capacity=1 << 16,
    account_capacity=1 << 10,
    client_id_window=1 << 17,
)


def commands_of(workload: ModuleType, records: np.ndarray) -> Rows:
    rows = np.zeros((len(records), COMMAND_WORDS), np.int64)
    forces = {
        workload.NEW_GTC: TimeInForce.GOOD_TILL_CANCELLED,
        workload.NEW_IOC: TimeInForce.IMMEDIATE_OR_CANCEL,
    }
    verb = np.zeros(len(records), np.int64)
    for code, side in enumerate((Side.BUY, Side.SELL)):
        for op, force in forces.items():
            mask = (records["op"] == op) & (records["side"] == code)
            verb[mask] = command_verb(CommandKind.NEW_ORDER, 0, side, OrderType.LIMIT, force)
    verb[records["op"] == workload.CANCEL] = command_verb(CommandKind.CANCEL_ORDER, 0)
    verb[records["op"] == workload.AMEND] = command_verb(CommandKind.AMEND_ORDER, 0)
    amends = records["op"] == workload.AMEND
    rows[:, C_VERB] = verb | records["account"].astype(np.int64) << 32
    rows[:, C_CLIENT_ORDER_ID] = records["order"]
    rows[:, C_PRICE] = records["price"] | command_price(0, SelfTradePrevention.NONE)
    rows[amends, C_PRICE] = records["price"][amends] | command_price(0, 0, COMMAND_FLAG_LEAVES)
    rows[:, C_QUANTITY] = records["qty"]
    return rows


def checksum(fills: np.ndarray) -> str:
    value = CHECKSUM_START
    for word in fills.ravel().tolist():
        value = ((value ^ word) * CHECKSUM_PRIME) & WORD
    return f"{value:016x}"


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["deep", "wide"])
def test_checksum_and_final_book(workload: ModuleType, tmp_path: Path, profile: str) -> None:
    path = tmp_path / f"{profile}.bin"
    with contextlib.redirect_stdout(io.StringIO()):
        workload.main(["gen", profile, "--out", str(path)])
    records, meta = workload.load(path)
    assert meta["commands"] == 1_000_000
    expected = meta["expect"]
    venue = Venue(INSTRUMENT, ACCOUNTS)
    executions = venue.apply(commands_of(workload, records))
    fills = fills_of(executions)
    assert len(fills) == expected["trades"]
    assert int(fills[:, 3].sum()) == expected["volume"]
    assert checksum(fills) == expected["checksum"]
    bids, asks = venue.level_lots(Side.BUY), venue.level_lots(Side.SELL)
    assert max(bids) == expected["best_bid"]
    assert min(asks) == expected["best_ask"]
    assert sum(bids.values()) + sum(asks.values()) == expected["resting_qty"]
    assert venue.engine.vault["scalars"][RESTING_COUNT] == expected["resting"]
    assert len(venue.open_orders()) == expected["resting"]
    venue.engine.check()
