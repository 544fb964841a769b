"""Recorded account rows and balances through everything money passes: engine, order entry, books.

What the log of a trading competition says of an account at each of its ticks is asked of the
ledger, as of the command at which the tick lies. exchange-core's scenario of a held and released
balance runs with money that was deposited and that order entry asked for by itself.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from engine.vault_layout import A_FREE_BASE, A_FREE_QUOTE, A_HELD_BASE, A_HELD_QUOTE
from exchange.enums import Asset
from exchange.feed import ExecutionFeed
from exchange.instrument import Instrument
from exchange.packed import ACK_DTYPE, RECORD_DTYPE
from exchange.records import (
    C_CLIENT_ORDER_ID,
    C_PRICE,
    C_QUANTITY,
    C_VERB,
    E_SEQUENCE,
    Rows,
)
from exchange.v1 import (
    enums_pb2,
    ledger_pb2,
    order_entry_pb2,
    order_entry_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)
from holdfast.replay.formats import CommandList, scaled
from tests.data import test_optiver as optiver
from tests.data.drivers import Venue, allotments
from tests.data.test_exchange_core import FEATURE, INSTRUMENTS, Scenario, Table, steps_of
from tests.integration.risk_processes import DEADLINE_S, Exchange, exchange

pytestmark = pytest.mark.integration

FUND = optiver.INSTRUMENT
SYMBOL = "ETH_XBT"


def toml_of(instrument: Instrument) -> str:
    """Return an instrument file that holds this one."""
    lines = [f'["{instrument.pair}"]']
    for field in fields(instrument):
        value = getattr(instrument, field.name)
        if field.name != "pair":
            lines.append(f"{field.name} = {value!r}".replace("'", '"'))
    return "\n".join(lines) + "\n"


class Recorder(Venue):
    """A venue that keeps every command it was given."""

    def __init__(self, instrument: Instrument) -> None:
        self.commands: list[Rows] = []
        super().__init__(instrument, 2)

    def apply(self, commands: Rows) -> Rows:
        self.commands.append(commands.copy())
        return super().apply(commands)

    @property
    def sequence(self) -> int:
        return sum(map(len, self.commands))


Tick = tuple[int, int, int]
"""Commands before the tick; position and quote units gained that the log says there were."""


@pytest.fixture(scope="module")
def recorded(recorded_data: Callable[[str], Path]) -> tuple[Recorder, list[Tick]]:
    """Return the fund's commands, and what the log says at each of its account rows.

    The recorded balance is in cents, with each fee rounded to a cent and the hedges of another
    venue: taken off, it says to the unit what the account must have.
    """
    recorder, hedges = Recorder(FUND), optiver.Hedges()
    log = optiver.Log({"0": Venue(FUND, 2), optiver.FUND: recorder})
    events = optiver.rows_of(recorded_data(optiver.EVENTS))
    event = next(events, None)
    ticks: list[Tick] = []
    for row in optiver.rows_of(recorded_data(optiver.ACCOUNTS)):
        moment = scaled(row["Time"], 6)
        while event is not None and scaled(event["Time"], 6) < moment:
            hedges.take(event) if event["Operation"] == "Hedge" else log.take(event)
            event = next(events, None)
        cents = int(row["AccountBalance"]) + int(row["TotalFees"]) - hedges.cents
        gained_units = cents * optiver.UNITS_PER_CENT - log.fee_units
        ticks.append((recorder.sequence, int(row["EtfPosition"]), gained_units))
    return recorder, ticks


def records_of(commands: Rows) -> bytes:
    """Return commands of one account in the packed form of order entry."""
    records = np.zeros(len(commands), RECORD_DTYPE)
    verbs, prices = commands[:, C_VERB], commands[:, C_PRICE]
    records["client_order_id"] = commands[:, C_CLIENT_ORDER_ID]
    records["quantity_lots"] = commands[:, C_QUANTITY]
    records["price_ticks"] = prices & 0xFFFFFFFF
    records["kind_side"] = (verbs & 0xF) | (verbs >> 8 & 0xF) << 4
    records["order_type_time_in_force"] = (verbs >> 16 & 0xF) | (verbs >> 24 & 0xF) << 4
    records["self_trade_prevention"] = prices >> 32 & 0xFF
    records["flags"] = prices >> 40 & 0xFF
    return records.tobytes()


def runs_of_accounts(commands: Rows) -> Iterator[tuple[int, Rows]]:
    """Yield consecutive commands of one account, 1,000 at most."""
    accounts = commands[:, C_VERB] >> 32
    edges = np.flatnonzero(np.diff(accounts)) + 1
    for run in np.split(commands, edges):
        for start in range(0, len(run), 1_000):
            yield int(run[0, C_VERB] >> 32), run[start : start + 1_000]


def send(whole: Exchange, pair: str, commands: Rows) -> Rows:
    """Enter commands in their order, each account on its own stream.

    Returns the number of each command's last execution in the log.
    """
    stub = order_entry_pb2_grpc.OrderEntryServiceStub(whole.channels[pair])

    def entered(account: int, run: Rows) -> Rows:
        request = order_entry_pb2.SubmitBatchesRequest(
            pair=pair, record_version=1, batch_number=1, records=records_of(run)
        )
        metadata = (("holdfast-account", str(account)),)
        [answer] = stub.SubmitBatches(iter([request]), metadata=metadata, timeout=DEADLINE_S)
        assert not answer.HasField("refusal"), answer
        numbers: Rows = np.frombuffer(answer.acks, ACK_DTYPE)["last_number"]
        return numbers

    return np.concatenate([entered(*run) for run in runs_of_accounts(commands)])


async def sequences_of(whole: Exchange, pair: str) -> Rows:
    """Return the sequence of every execution in the log: others enter commands, too."""
    async with ExecutionFeed(whole.pairs[pair].target, pair) as feed:
        parts = []
        async with aclosing(feed.chunks(0)) as chunks:
            async for chunk in chunks:
                parts.append(chunk.rows[:, E_SEQUENCE])
                if chunk.next_number >= chunk.committed_number:
                    return np.concatenate(parts)
    raise AssertionError("the log has no end")


def allot(whole: Exchange, pair: str, command: Rows) -> int:
    """Hand money to the engine as riskd does; return the sequence of the engine's command."""
    account, asset = int(command[C_VERB] >> 32), Asset(int(command[C_PRICE]))
    units = int(command[C_QUANTITY])
    name = FUND.base_asset if asset is Asset.BASE else FUND.quote_asset
    whole.deposit(account, name, units, account << 8 | asset)
    request = ledger_pb2.AllotTradingFundsRequest(
        id=(1 << 16 | account << 8 | asset).to_bytes(16, "big"),
        pair=pair,
        owner_id=account,
        asset=int(asset),  # type: ignore[arg-type]
        amount_units=units,
        actor="test",
    )
    number = whole.books.AllotTradingFunds(request, timeout=DEADLINE_S).transfer_number
    instructions = whole.books.ListInstructions(
        ledger_pb2.ListInstructionsRequest(pair=pair, from_number=number), timeout=DEADLINE_S
    ).instructions
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(whole.channels[pair])
    report = admin.AllotFunds(
        pair_admin_pb2.AllotFundsRequest(
            pair=pair,
            account=account,
            asset=int(asset),  # type: ignore[arg-type]
            amount=instructions[0].amount,
            transfer_number=number,
        ),
        timeout=DEADLINE_S,
    ).report
    assert report.kind == enums_pb2.EXECUTION_KIND_ALLOTTED, report
    return int(report.sequence)


def as_of(whole: Exchange, pair: str, account: int, sequence: int) -> dict[str, int]:
    """Return what the books have of an account in an engine, by asset, as of a command."""
    moment = ledger_pb2.Moment(pair_sequence=ledger_pb2.PairSequence(pair=pair, sequence=sequence))
    request = ledger_pb2.ListBalancesRequest(
        owner_kind=ledger_pb2.OWNER_KIND_USER, owner_id=account, as_of=moment
    )
    answer = whole.books.ListBalances(request, timeout=DEADLINE_S)
    return {
        item.name.asset: item.amount_units
        for item in answer.balances
        if item.name.purpose == ledger_pb2.ACCOUNT_PURPOSE_ALLOTTED
    }


def test_every_recorded_account_row_is_in_the_books(recorded: tuple[Recorder, list[Tick]]) -> None:
    recorder, ticks = recorded
    first, *rest = recorder.commands
    assert (first == allotments(2)).all()
    with exchange(pairs=(FUND.pair,), instruments=toml_of(FUND)) as whole:
        funded = [allot(whole, FUND.pair, command) for command in first]
        numbers = send(whole, FUND.pair, np.concatenate(rest))
        whole.await_settled()
        sequences = asyncio.run(sequences_of(whole, FUND.pair))
        start = as_of(whole, FUND.pair, optiver.COMPETITOR, funded[-1])
        for count, position, gained_units in ticks:
            entered = count - len(first)
            sequence = int(sequences[numbers[entered - 1]]) if entered else funded[-1]
            held = as_of(whole, FUND.pair, optiver.COMPETITOR, sequence)
            assert held[FUND.base_asset] - start[FUND.base_asset] == position
            assert held[FUND.quote_asset] - start[FUND.quote_asset] == gained_units
    print(f"{len(ticks)} account rows, {recorder.sequence:,} commands")
    assert len(ticks) == 316


class RealScenario(Scenario):
    """exchange-core's steps, done in the kernel and by real processes at once.

    Clients deposit into the books; order entry asks for what an order lacks. What is in the books
    and not held by an order must be what the scenario says is free.
    """

    def __init__(self, symbol: str, whole: Exchange) -> None:
        super().__init__(symbol)
        self.whole = whole

    def allot(self, name: str, asset: str, units: int) -> None:
        super().allot(name, asset, units)
        if asset in (self.instrument.base_asset, self.instrument.quote_asset):
            self.whole.deposit(self.clients[name], asset, units, self.transfers)

    def send(self, commands: CommandList) -> None:
        super().send(commands)
        send(self.whole, self.symbol, commands.columns()[0])

    def check_balance(self, name: str, table: Table) -> None:
        super().check_balance(name, table)
        self.whole.await_settled()
        account = self.clients[name]
        vault = self.venue.engine.vault["accounts"][account]
        held = {
            self.instrument.base_asset: int(vault[A_HELD_BASE]),
            self.instrument.quote_asset: int(vault[A_HELD_QUOTE]),
        }
        found = self.whole.balances(account)
        for asset, free in table:
            total = sum(units for (_, name_, _), units in found.items() if name_ == asset)
            assert total - held[asset] == int(free)
            assert found.get(("ALLOTTED", asset, self.symbol), 0) >= held[asset]


@pytest.mark.parametrize("name", ["basic full cycle test", "cancel BID order"])
def test_scenario_with_money_from_the_books(
    recorded_data: Callable[[str], Path], name: str
) -> None:
    steps = steps_of(recorded_data(FEATURE), name, SYMBOL)
    assert len(steps) >= 9
    instrument = INSTRUMENTS[SYMBOL]
    with exchange(asks=True, pairs=(SYMBOL,), instruments=toml_of(instrument)) as whole:
        scenario = RealScenario(SYMBOL, whole)
        for step in steps:
            scenario.run(step)
        whole.await_settled()
        for account in scenario.clients.values():
            vault = scenario.venue.engine.vault["accounts"][account]
            found = whole.balances(account)
            for asset, free, held in (
                (instrument.base_asset, A_FREE_BASE, A_HELD_BASE),
                (instrument.quote_asset, A_FREE_QUOTE, A_HELD_QUOTE),
            ):
                total = sum(units for (_, name_, _), units in found.items() if name_ == asset)
                assert total == int(vault[free] + vault[held])
