"""Settlement: trades into a real PostgreSQL, in the full form, and what its parts cost.

The full form is what ledgerd does: six postings a trade with running balances and versions, the
overdraft check, row checks, the seal, the self-check, a synchronous commit. Against it runs one
transaction per trade, one statement each, over the same tables with the same guards.

CPU is that of this process and of all processes of the database. Both pairs share their owners and
nothing else. Accounts are filled by hand, beside the books: only settlement is measured here.
"""

import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg

from bench.harness import Rounds, Row, in_turns, rate, span
from exchange import records
from exchange.account_digest import digest_of
from exchange.config import load_instrument
from exchange.enums import ExecutionKind, Side
from exchange.instrument import Instrument
from exchange.records import Rows
from ledgerd.books.commit import Connection
from ledgerd.books.engine_money import EngineMoney, Step
from ledgerd.books.settling import SettledPair, read_pair
from ledgerd.chart import OwnerKind, allotted, trading
from ledgerd.database import OWNER, SERVICE, SUPERUSER, EmbeddedPostgres, connect, migrate
from ledgerd.ledger import Ledger
from ledgerd.models import STREAM_SHIFT
from ledgerd.postings import PairAccounts

PAIRS: Final = ("BTC-USDT", "ETH-USDT")
COMMITS: Final = (1_000, 5_000)
EACH_UNITS: Final = 1 << 55
OPENED_AT_ONCE: Final = 4_000
WARM_TRADES: Final = 100
SINGLE_S: Final = 2.0
"""How long one transaction per trade runs in a turn."""

_SINGLE: Final = """
WITH stream AS (
    UPDATE streams SET cursor = cursor + 1, sequence = %(sequence)s
    WHERE id = %(stream)s AND cursor = %(cursor)s RETURNING head
), moved AS (
    UPDATE balances SET amount = amount + delta, version = version + moves
    FROM unnest(%(accounts)s::int8[], %(deltas)s::int8[], %(counts)s::int8[])
        AS given (id, delta, moves)
    WHERE account_id = id RETURNING account_id, amount, version
), transfer AS (
    INSERT INTO transfers (id, time_ns, sequence, row_check, kind, phase)
    SELECT %(id)s, %(time_ns)s, %(sequence)s, 0, 9, 1 FROM stream
), posting AS (
    INSERT INTO postings (account_id, version, transfer_id, amount, balance_after, leg)
    SELECT account, version - later, %(id)s, leg.amount, moved.amount, number
    FROM unnest(%(leg_accounts)s::int4[], %(leg_amounts)s::int8[], %(legs)s::int2[],
        %(laters)s::int2[]) AS leg (account, amount, number, later)
    JOIN moved ON account_id = account
)
INSERT INTO seals (stream, cursor_to, cursor_from, sequence, transfer_count, posting_count,
    posted_ns, previous, hash)
SELECT %(stream)s, %(cursor)s + 1, %(cursor)s, %(sequence)s, 1, 6, %(time_ns)s, head,
    sha256(head || %(row)s::bytea)
FROM stream
"""


class _NothingKept(EngineMoney):
    """The money of an engine without the self-check: nothing is kept, nothing is told."""

    def step(self, done: Rows, asked: list[int], cursor_to: int) -> Step:
        del done
        none = np.zeros(0, np.int64)
        return Step(cursor_to, none, none.reshape(0, 2), self.digest, [self.digest] * len(asked))


class _UncheckedPair(SettledPair):
    def read(self, connection: Connection) -> None:
        super().read(connection)
        assert self.accounts is not None
        assert self.money is not None
        nothing = np.zeros((0, 2), np.int64)
        self.money = _NothingKept(self.accounts, nothing, 0, self.money.cursor)


class _UncheckedLedger(Ledger):
    """The books without the self-check."""

    def _pair_of(self, instrument: Instrument) -> SettledPair:
        return self._pairs.setdefault(instrument.pair, _UncheckedPair(instrument))


@dataclass(slots=True)
class Market:
    """The engine's side of one pair: what it holds, and where its log is."""

    instrument: Instrument
    accounts: PairAccounts
    units: Rows
    generator: np.random.Generator
    weights: Any
    cursor: int = 0
    fee_units: int = 0

    def batch(self, size: int, *, digest: bool = False) -> Rows:
        """Return trades of the heavier and the lighter traders, and perhaps a digest after them."""
        pair, draw = self.instrument, self.generator
        rows = np.zeros((size + digest, records.EXECUTION_WORDS), np.int64)
        rows[:, records.E_SEQUENCE] = 1 + self.cursor + np.arange(len(rows))
        rows[:, records.E_TIME_NS] = time.time_ns()
        takers, makers = draw.choice(len(self.weights), (2, size), p=self.weights) + 1
        sides = draw.integers(Side.BUY, Side.SELL + 1, size)
        lots, price = draw.integers(1, 1_000, size), draw.integers(6_000_000, 6_010_000, size)
        worth = price * lots * pair.quote_units_per_tick_lot
        trades = rows[:size]
        trades[:, records.E_VERB] = ExecutionKind.TRADE | sides << 16 | 1 << 24 | takers << 32
        trades[:, records.E_PRICE], trades[:, records.E_QUANTITY] = price, lots
        trades[:, records.E_MAKER_ACCOUNT] = makers << 32
        fees = worth // 1_000 + 1, worth // 2_000
        trades[:, records.E_FEE], trades[:, records.E_MAKER_FEE] = fees
        sign = np.where(sides == Side.BUY, 1, -1)
        coins = lots * pair.base_units_per_lot
        for owners, way, fee in ((takers, sign, fees[0]), (makers, -sign, fees[1])):
            np.add.at(self.units, (owners, 0), way * coins)
            np.add.at(self.units, (owners, 1), -way * worth - fee)
            self.fee_units += int(fee.sum())
        if digest:
            rows[size, records.E_VERB] = int(ExecutionKind.DIGEST)
            held = digest_of(
                np.arange(len(self.units)), self.units[:, 0], self.units[:, 1], self.fee_units
            )
            words = (
                records.E_DIGEST,
                records.E_ACCOUNT_COUNT,
                records.E_BASE_TOTAL,
                records.E_QUOTE_TOTAL,
                records.E_FEES_TAKEN,
            )
            rows[size, list(words)] = held
        self.cursor += len(rows)
        return rows


class Books:
    """Books of their own, with two pairs whose owners are rich."""

    def __init__(self, postgres: EmbeddedPostgres, owner_count: int) -> None:
        self.postgres = postgres
        engine = connect(postgres.url(SERVICE))
        self.checked = Ledger(engine, time.time_ns)
        self.unchecked = _UncheckedLedger(connect(postgres.url(SERVICE)), time.time_ns)
        pairs = [load_instrument(pair) for pair in PAIRS]
        for pair in pairs:
            self.checked.list_pair(pair)
        self._open(pairs, owner_count)
        weights = 1 / np.arange(1, owner_count + 1) ** 0.8
        self.markets = []
        with psycopg.connect(self._address(SERVICE)) as connection:
            for seed, pair in enumerate(pairs):
                accounts, money = read_pair(connection, pair)
                self.markets.append(
                    Market(
                        pair,
                        accounts,
                        money.units,
                        np.random.default_rng(seed),
                        weights / weights.sum(),
                    )
                )

    def _address(self, role: str) -> str:
        return f"host={self.postgres.socket} user={role} dbname=holdfast"

    def _open(self, pairs: list[Instrument], owner_count: int) -> None:
        names = []
        for owner in range(1, owner_count + 1):
            for pair in pairs:
                for asset in (pair.base_asset, pair.quote_asset):
                    names.append(trading(OwnerKind.USER, owner, asset))
                    names.append(allotted(OwnerKind.USER, owner, asset, pair.pair))
        for place in range(0, len(names), OPENED_AT_ONCE):
            self.checked.open_accounts(names[place : place + OPENED_AT_ONCE])
        with psycopg.connect(self._address(SUPERUSER)) as connection:
            connection.execute(
                "UPDATE balances SET amount = %s FROM accounts"
                " WHERE id = account_id AND purpose = 3",
                (EACH_UNITS,),
            )

    def warm(self, market: Market, *, checked: bool) -> None:
        """Have a ledger read what one that runs has in memory: another one settled last."""
        batch = market.batch(WARM_TRADES)
        self.settle(market, [batch], market.cursor - len(batch), checked=checked)

    def settle(
        self, market: Market, batches: list[Rows], cursor: int, *, checked: bool = True
    ) -> None:
        """Settle batches that begin at a cursor, one commit each."""
        ledger = self.checked if checked else self.unchecked
        for batch in batches:
            cursor = ledger.settle(market.instrument, batch, cursor)

    def single(self, market: Market, seconds: float) -> float:
        """Settle trades one by one for so long; return trades per second."""
        rows = market.batch(1)
        stream, done = market.accounts.stream, 0
        with psycopg.connect(self._address(SERVICE), autocommit=True) as connection:
            start = time.perf_counter()
            while time.perf_counter() - start < seconds:
                given = _one(market, rows[0], market.cursor - 1)
                connection.execute(_SINGLE, given | {"stream": stream}, prepare=True)
                rows, done = market.batch(1), done + 1
            took = time.perf_counter() - start
            given = _one(market, rows[0], market.cursor - 1)
            connection.execute(_SINGLE, given | {"stream": stream}, prepare=True)
        return done / took

    def database_cpu_s(self) -> float:
        """Return the CPU time that all processes of the database have used."""
        postmaster = int((self.postgres.data / "postmaster.pid").read_text().split()[0])
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                words = path.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue  # It has ended since.
            if int(path.parent.name) == postmaster:
                # With those of its children that have ended.
                ticks += sum(int(word) for word in words[11:15])
            elif int(words[1]) == postmaster:
                ticks += int(words[11]) + int(words[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def _one(market: Market, row: Rows, cursor: int) -> dict[str, Any]:
    """Return what the single statement needs of one trade."""
    pair, owned = market.instrument, market.accounts.allotted
    taker, maker = int(row[records.E_VERB]) >> 32, int(row[records.E_MAKER_ACCOUNT]) >> 32
    lots, fees = int(row[records.E_QUANTITY]), (int(row[records.E_FEE]), int(row[15]))
    worth = int(row[records.E_PRICE]) * lots * pair.quote_units_per_tick_lot
    sign = 1 if (int(row[records.E_VERB]) >> 16) & 0xFF == Side.BUY else -1
    coins = sign * lots * pair.base_units_per_lot
    legs = [
        (int(owned[taker, 0]), coins),
        (int(owned[maker, 0]), -coins),
        (int(owned[taker, 1]), -sign * worth - fees[0]),
        (int(owned[maker, 1]), sign * worth - fees[1]),
        (market.accounts.fees, fees[0]),
        (market.accounts.fees, fees[1]),
    ]
    net: dict[int, list[int]] = {}
    for account, amount in legs:
        entry = net.setdefault(account, [0, 0])
        entry[0], entry[1] = entry[0] + amount, entry[1] + 1
    return {
        "sequence": int(row[records.E_SEQUENCE]),
        "cursor": cursor,
        "id": (market.accounts.stream << STREAM_SHIFT) | cursor,
        "time_ns": int(row[records.E_TIME_NS]),
        "accounts": list(net),
        "deltas": [entry[0] for entry in net.values()],
        "counts": [entry[1] for entry in net.values()],
        "leg_accounts": [account for account, _ in legs],
        "leg_amounts": [amount for _, amount in legs],
        "legs": list(range(len(legs))),
        "laters": [
            sum(later == account for later, _ in legs[place + 1 :])
            for place, (account, _) in enumerate(legs)
        ],
        "row": row.tobytes(),
    }


@contextmanager
def _books(owner_count: int) -> Iterator[Books]:
    folder = Path(
        tempfile.mkdtemp(prefix="holdfast-bench-", dir=os.environ.get("TMPDIR", "/var/tmp"))
    )
    # PostgreSQL may run as another user, who has to reach its folder.
    folder.chmod(0o755)
    postgres = EmbeddedPostgres(folder / "postgres")
    try:
        postgres.start()
        postgres.create()
        migrate(postgres.url(OWNER))
        yield Books(postgres, owner_count)
    finally:
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Meter:
    """Runs settlement and keeps the CPU time of each turn beside its rate."""

    def __init__(self, books: Books, total: int) -> None:
        self.books = books
        self.total = total
        self.cpu_us: dict[str, list[float]] = {}

    def contestant(
        self, name: str, size: int, market_count: int = 1, *, checked: bool = True
    ) -> Callable[[], float]:
        """Return what settles so many trades in commits of a size; it returns trades per second."""
        return partial(self._run, name, size, self.books.markets[:market_count], checked)

    def _run(self, name: str, size: int, markets: list[Market], checked: bool) -> float:
        work = []
        for market in markets:
            self.books.warm(market, checked=checked)
            cursor = market.cursor
            batches = [market.batch(size, digest=checked) for _ in range(self.total // size)]
            work.append((market, batches, cursor))
        trades = len(markets) * self.total // size * size
        own_s, their_s = time.process_time(), self.books.database_cpu_s()
        start = time.perf_counter()
        threads = [
            threading.Thread(target=self.books.settle, args=given, kwargs={"checked": checked})
            for given in work
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - start
        used_s = time.process_time() - own_s + self.books.database_cpu_s() - their_s
        self.cpu_us.setdefault(name, []).append(used_s / trades * 1e6)
        return trades / took

    def single(self) -> float:
        """Settle trades one by one; return trades per second."""
        own_s, their_s = time.process_time(), self.books.database_cpu_s()
        rate_ = self.books.single(self.books.markets[0], SINGLE_S)
        used_s = time.process_time() - own_s + self.books.database_cpu_s() - their_s
        self.cpu_us.setdefault("single", []).append(used_s / (rate_ * SINGLE_S) * 1e6)
        return rate_

    def cpu_s(self, name: str) -> float:
        """Return the median CPU time a trade; the first turn only warms up."""
        return statistics.median(self.cpu_us[name][1:]) / 1e6

    def cpu(self, name: str) -> str:
        """Return the same for people."""
        return f"{span(self.cpu_s(name))} CPU a trade"


_MUST: Final = {"1,000": "15 x", "5,000": "28 x"}


def run_settlement(rounds: Rounds) -> list[Row]:
    """Measure settlement by the size of its commits, one and two pairs, with and without check."""
    with _books(rounds.size(10_000, 2_000)) as books:
        meter = Meter(books, rounds.size(25_000, 10_000))
        contestants: dict[str, Callable[[], float]] = {"single": meter.single}
        for size in COMMITS:
            for pairs in (1, 2):
                name = f"{size:,} a commit, {pairs} pair{'s' if pairs > 1 else ''}"
                contestants[name] = meter.contestant(name, size, pairs)
            name = f"{size:,} a commit, unchecked"
            contestants[name] = meter.contestant(name, size, checked=False)
        figures = {
            name: statistics.median(found) for name, found in in_turns(rounds, contestants).items()
        }
    return _rows(meter, figures)


def _rows(meter: Meter, figures: dict[str, float]) -> list[Row]:
    single = figures["single"]
    rows = [Row("one transaction per trade", rate(single), note=meter.cpu("single"))]
    for name, figure in figures.items():
        commit, _, kind = name.partition(" a commit, ")
        if kind == "unchecked":
            # What it costs is too little to see beside the disk: compared by CPU time.
            checked = f"{commit} a commit, 1 pair"
            rows.append(
                Row(
                    f"self-check in every commit of {commit}",
                    meter.cpu(checked),
                    f"without: {meter.cpu(name)}",
                    meter.cpu_s(checked) / meter.cpu_s(name),
                    note=f"{rate(figures[checked])} with, {rate(figure)} without",
                )
            )
        elif name != "single":
            must = _MUST[commit] if kind == "1 pair" else ""
            against = f"one per trade: {rate(single)}"
            rows.append(Row(name, rate(figure), against, figure / single, must, meter.cpu(name)))
    return rows
