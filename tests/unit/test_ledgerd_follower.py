"""Settling from a feed over the wire: once through faults of feed and database, stopped by lies.

The feed's server is the contract's, over a list of executions the test grows; it breaks off, leaves
out and repeats as it is told. Nothing here waits by the clock: a test waits for a state.
"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import pytest
from grpc import aio

from exchange.enums import Asset, ExecutionKind
from exchange.feed import ExecutionFeed, FeedBroken, FeedOutOfRange, FeedRefused
from exchange.v1 import execution_feed_pb2, execution_feed_pb2_grpc
from ledgerd.audit import verify
from ledgerd.chart import Purpose
from ledgerd.database import OWNER, SERVICE, EmbeddedPostgres, connect, migrate
from ledgerd.follower import PairFollower, State, Status
from ledgerd.ledger import Ledger
from tests.books import OTHER, PAIR, TestBooks, fresh_books, server, user
from tests.unit.test_ledgerd_ledger import funded, moved, rows_of, trade

Answer = execution_feed_pb2.FollowExecutionsResponse


class Feed(execution_feed_pb2_grpc.ExecutionFeedServiceServicer):
    """The feed of one pair: rows from a first number on, and what goes wrong."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows
        self.first = 0
        self.confirmed = 0
        self.chunk = 3
        self.break_after = 0
        """End each stream with an error after so many messages; 0: never."""
        self.skip = 0
        """Numbers left out before each message."""
        self.refuse: grpc.StatusCode | None = None
        self.stream_count = 0
        self.grown = asyncio.Condition()
        self.told = asyncio.Condition()

    async def add(self, *rows: list[int]) -> None:
        async with self.grown:
            self.rows += rows
            self.grown.notify_all()

    async def FollowExecutions(self, request: Any, context: Any) -> AsyncIterator[Answer]:
        self.stream_count += 1
        if self.refuse is not None:
            await context.abort(self.refuse, "refused by the test")
        number, sent = request.from_number, 0
        if not self.first <= number <= len(self.rows):
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "not held")
        yield Answer(first_number=number, committed_number=len(self.rows))
        while True:
            async with self.grown:
                while len(self.rows) <= number:
                    await self.grown.wait()
            part = self.rows[number : number + self.chunk]
            yield Answer(
                first_number=number + self.skip,
                records=rows_of(*part).tobytes(),
                committed_number=len(self.rows),
            )
            number, sent = number + len(part), sent + 1
            if sent == self.break_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken off by the test")

    async def ConfirmExecutions(self, request: Any, context: Any) -> Any:
        async with self.told:
            self.confirmed = max(self.confirmed, request.number)
            self.told.notify_all()
        return execution_feed_pb2.ConfirmExecutionsResponse(number=self.confirmed)


@asynccontextmanager
async def served(feed: Feed) -> AsyncIterator[str]:
    door = aio.server()
    execution_feed_pb2_grpc.add_ExecutionFeedServiceServicer_to_server(feed, door)
    port = door.add_insecure_port("127.0.0.1:0")
    await door.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await door.stop(None)


async def until(follower: PairFollower, condition: Callable[[Status], bool]) -> None:
    """Return once the follower's status is so."""
    while not condition(follower.status):
        await follower.changed()


def at(cursor: int) -> Callable[[Status], bool]:
    return lambda status: status.cursor == cursor


def is_in(state: State) -> Callable[[Status], bool]:
    return lambda status: status.state == state


def played(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await scene()

    asyncio.run(bounded())


@asynccontextmanager
async def settling(
    ledger: Ledger, target: str, pair: Any = PAIR
) -> AsyncIterator[tuple[PairFollower, "asyncio.Task[None]"]]:
    follower = PairFollower(ledger, pair, target, time.time_ns)
    task = asyncio.create_task(follower.run())
    try:
        yield follower, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def history(books: TestBooks) -> list[list[int]]:
    """Fund two traders; return the executions that said so, which are settled."""
    funded(books)
    rows = []
    for number, (owner, asset) in enumerate(
        ((o, a) for o in (1, 2) for a in (Asset.BASE, Asset.QUOTE)), 1
    ):
        words = {"w5": int(asset), "w6": 10**8, "w7": 10**8}
        rows.append(moved(ExecutionKind.ALLOTTED, owner, number, number, **words))
    return rows


def bought(books: TestBooks) -> int:
    name = user(1, "BTC", Purpose.ALLOTTED, PAIR.pair)
    return (books.balance(name) - 10**8) // PAIR.base_units_per_lot


def trades(count: int, first: int = 9) -> list[list[int]]:
    return [trade(1, 2, first + n, lots=1) for n in range(count)]


def test_a_feed_that_breaks_off_again_and_again_is_settled_once() -> None:
    with fresh_books() as books:
        feed = Feed(history(books))
        feed.break_after = 2

        async def scene() -> None:
            await feed.add(*trades(40))
            async with served(feed) as target, settling(books.ledger, target) as (follower, _):
                await until(follower, at(44))
                feed.break_after = 0
                await feed.add(*trades(5, first=60))
                await until(follower, at(49))
                async with feed.told:
                    await feed.told.wait_for(lambda: feed.confirmed == 49)
                assert follower.status.state == State.RUNNING

        played(scene)
        assert feed.stream_count > 3
        assert bought(books) == 45
        assert verify(books.engine).complaints == []


def test_settlement_goes_on_where_the_books_are() -> None:
    with fresh_books() as books:
        feed = Feed(history(books) + trades(10))

        async def scene() -> None:
            async with served(feed) as target:
                for step in (14, 20):
                    async with settling(books.ledger, target) as (follower, _):
                        await until(follower, at(step))
                    await feed.add(*trades(6, first=40))

        played(scene)
        assert bought(books) == 16


def lies(kind: str) -> list[list[int]]:
    return {
        "a trade of a stranger": [trade(1, 7, 20)],
        "an allotment never given": [moved(ExecutionKind.ALLOTTED, 1, 20, 55, w5=1, w6=5, w7=5)],
        "money that is not there": [trade(1, 2, 20, lots=10**6, w5=10**6)],
        "an execution of the past": [trade(1, 2, 1)],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("a trade of a stranger", "allotted nothing"),
        ("an allotment never given", "never gave"),
        ("money that is not there", "would leave account"),
        ("an execution of the past", "go back behind"),
    ],
)
def test_a_contradiction_stops_this_pair_loudly_and_no_other(
    kind: str, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    with fresh_books() as books:
        feed, other = Feed(history(books) + trades(2)), Feed([])
        books.ledger.list_pair(OTHER)

        async def scene() -> None:
            async with (
                served(feed) as target,
                served(other) as second,
                settling(books.ledger, target) as (follower, task),
                settling(books.ledger, second, OTHER) as (neighbour, _),
            ):
                await until(follower, at(6))
                await feed.add(*lies(kind))
                await task
                assert follower.status.state == State.STOPPED
                assert sentence in follower.status.sentence
                await other.add([1, 1, ExecutionKind.PAIR_SET | 1 << 24, *[0] * 13])
                await until(neighbour, at(1))

        played(scene)
        assert books.ledger.cursor(PAIR.pair) == 6
        assert "settlement of BTC-USDT stopped" in caplog.text


@pytest.mark.parametrize("skip", [1, -1])
def test_a_gap_or_repeat_in_the_feed_stops_settlement(skip: int) -> None:
    with fresh_books() as books:
        feed = Feed(history(books) + trades(2))

        async def scene() -> None:
            async with served(feed) as target, settling(books.ledger, target) as (follower, task):
                await until(follower, at(6))
                feed.skip = skip
                await feed.add(*trades(2, first=30))
                await task
                assert "was due" in follower.status.sentence

        played(scene)
        assert bought(books) == 2


def test_books_older_than_what_the_engine_was_told_are_not_settled() -> None:
    with fresh_books() as books:
        feed = Feed(history(books) + trades(2))
        feed.confirmed = 6

        async def scene() -> None:
            async with served(feed) as target, settling(books.ledger, target) as (follower, task):
                await task
                assert "older backup" in follower.status.sentence

        played(scene)
        assert bought(books) == 0


def test_a_log_that_does_not_reach_back_is_waited_for_and_said() -> None:
    with fresh_books() as books:
        feed = Feed(history(books) + trades(2))
        feed.first = 5

        async def scene() -> None:
            async with served(feed) as target, settling(books.ledger, target) as (follower, _):
                await until(follower, lambda status: "cannot go on at 4" in status.sentence)
                assert follower.status.state == State.WAITING_FOR_FEED
                feed.first = 0
                await until(follower, at(6))

        played(scene)


def test_another_process_that_settles_the_pair_stops_this_one() -> None:
    with fresh_books() as books:
        feed = Feed(history(books))

        async def scene() -> None:
            async with served(feed) as target, settling(books.ledger, target) as (follower, task):
                await until(follower, is_in(State.RUNNING))
                rows = trades(3)
                await asyncio.to_thread(books.ledger.settle, PAIR, rows_of(rows[0]), 4)
                await feed.add(*rows)
                await task
                assert "somebody else settles" in follower.status.sentence

        played(scene)
        assert bought(books) == 1


@contextmanager
def fleeting_books() -> Iterator[tuple[TestBooks, EmbeddedPostgres]]:
    """Books on a server of their own that the test may stop."""
    postgres = EmbeddedPostgres(server().folder.parent / "fleeting")
    postgres.start()
    try:
        postgres.create()
        migrate(postgres.url(OWNER))
        engine = connect(postgres.url(SERVICE), 4)
        ledger = Ledger(engine, time.time_ns)
        yield TestBooks("holdfast", engine, ledger, None), postgres  # type: ignore[arg-type]
        engine.dispose()
    finally:
        postgres.stop()
        shutil.rmtree(postgres.folder)


def test_a_database_that_crashes_under_settlement_costs_nothing() -> None:
    with fleeting_books() as (books, postgres):
        feed = Feed(history(books))

        async def scene() -> None:
            async with served(feed) as target, settling(books.ledger, target) as (follower, _):
                for step in range(3):
                    await feed.add(*trades(50, first=100 * (step + 1)))
                    await asyncio.to_thread(postgres.stop, "immediate")
                    await feed.add(*trades(1, first=100 * (step + 1) + 60))
                    await asyncio.to_thread(postgres.start)
                await until(follower, at(4 + 153))
                await asyncio.to_thread(postgres.stop, "immediate")
                await feed.add(*trades(1, first=500))
                await until(follower, is_in(State.WAITING_FOR_DATABASE))
                await asyncio.to_thread(postgres.start)
                await until(follower, at(4 + 154))
                assert follower.status.state == State.RUNNING

        played(scene)
        assert bought(books) == 154
        assert verify(books.engine).complaints == []


def test_the_client_raises_what_will_not_pass() -> None:
    feed = Feed(trades(3))

    async def scene() -> None:
        async with served(feed) as target, ExecutionFeed(target, PAIR.pair) as client:
            with pytest.raises(FeedOutOfRange):
                await anext(client.chunks(9))
            feed.refuse = grpc.StatusCode.INVALID_ARGUMENT
            with pytest.raises(FeedRefused):
                await anext(client.chunks(0))
            feed.refuse, feed.skip = None, 2
            with pytest.raises(FeedBroken, match="0 was due and 2 came"):
                async for _ in client.chunks(0):
                    pass

    played(scene)
