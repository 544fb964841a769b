"""The follower's self-check over the wire: when it asks, what it shows, what a lie does.

The pair behind the feed keeps a purse of its own and answers DigestAccounts as order entry does:
the digest is an execution of its own, and the answer names its number.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import aio

from exchange.enums import ExecutionKind
from exchange.v1 import (
    execution_feed_pb2_grpc,
    execution_pb2,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)
from ledgerd.follower import State
from tests.books import OTHER, PAIR, fresh_books
from tests.unit.test_ledgerd_digests import digest, owned
from tests.unit.test_ledgerd_follower import (
    Feed,
    at,
    history,
    is_in,
    played,
    served,
    settling,
    until,
)
from tests.unit.test_ledgerd_ledger import trade


class Entry(pair_admin_pb2_grpc.PairAdminServiceServicer):
    """Order entry of one pair: says what two traders have after so many trades of ten lots."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.asked = 0
        self.fail_next = 0
        self.lie: dict[str, int] = {}
        self.gate = asyncio.Event()
        """Answers wait for it."""
        self.gate.set()

    async def DigestAccounts(self, request: Any, context: Any) -> Any:
        self.asked += 1
        assert request.pair == PAIR.pair
        if self.fail_next:
            self.fail_next -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no answer")
        await self.gate.wait()
        rows = self.feed.rows
        done = sum(row[2] & 0xFF == ExecutionKind.TRADE for row in rows)
        number, sequence = len(rows), rows[-1][0] + 1
        await self.feed.add(digest(owned(done), 5 * done, sequence, **self.lie))
        report = execution_pb2.CommandReport(
            kind=int(ExecutionKind.DIGEST),  # type: ignore[arg-type]
            sequence=sequence,
            first_number=number,
            last_number=number,
        )
        return pair_admin_pb2.DigestAccountsResponse(report=report)


@asynccontextmanager
async def asked(feed: Feed) -> AsyncIterator[tuple[Entry, str]]:
    # The other calls of the service are not implemented here, and nobody makes them.
    entry, door = Entry(feed), aio.server()  # type: ignore[abstract]
    execution_feed_pb2_grpc.add_ExecutionFeedServiceServicer_to_server(feed, door)
    pair_admin_pb2_grpc.add_PairAdminServiceServicer_to_server(entry, door)
    port = door.add_insecure_port("127.0.0.1:0")
    await door.start()
    try:
        yield entry, f"127.0.0.1:{port}"
    finally:
        await door.stop(None)


def test_what_was_settled_is_compared_and_an_idle_pair_is_asked_nothing() -> None:
    with fresh_books() as books:
        feed = Feed(history(books))

        async def scene() -> None:
            async with asked(feed) as (entry, target), settling(books.ledger, target) as (one, _):
                # Once at the start, for what an earlier process settled.
                await until(one, lambda status: status.check_count == 1)
                assert (one.status.checked_number, entry.asked) == (4, 1)
                await feed.add(trade(1, 2, 20), trade(1, 2, 21))
                await until(one, lambda status: status.check_count == 2)
                assert one.status.checked_number == 7
                assert one.status.checked_sequence == feed.rows[7][0]
                assert one.status.checked_ns > 0
                # Settings move no money: they are settled, and nothing is asked.
                await feed.add([30, 1, ExecutionKind.PAIR_SET | 1 << 24, *[0] * 13])
                await until(one, at(9))
                assert (entry.asked, one.status.state) == (2, State.RUNNING)

        played(scene)


def test_one_question_at_a_time_covers_whatever_came_meanwhile() -> None:
    with fresh_books() as books:
        feed = Feed(history(books))

        async def scene() -> None:
            async with asked(feed) as (entry, target), settling(books.ledger, target) as (one, _):
                await until(one, lambda status: status.check_count == 1)
                entry.gate.clear()
                for step in range(5):
                    await feed.add(trade(1, 2, 20 + step))
                    await until(one, at(6 + step))
                assert entry.asked == 2
                entry.gate.set()
                await until(one, lambda status: status.check_count == 2)
                assert (one.status.checked_number, entry.asked) == (10, 2)

        played(scene)


def test_a_question_without_an_answer_is_asked_again_and_stops_nothing() -> None:
    with fresh_books() as books:
        feed = Feed(history(books))

        async def scene() -> None:
            async with asked(feed) as (entry, target):
                entry.fail_next = 2
                async with settling(books.ledger, target) as (one, _):
                    await feed.add(*(trade(1, 2, 20 + n) for n in range(3)))
                    await until(one, lambda status: status.cursor >= 7)
                    await until(one, lambda status: status.check_count == 1)
                    assert entry.asked == 3
                    assert one.status.state == State.RUNNING

        played(scene)


@pytest.mark.parametrize("word", ["w3", "w6", "w9"])
def test_a_digest_that_differs_stops_this_pair_loudly_and_no_other(
    word: str, caplog: pytest.LogCaptureFixture
) -> None:
    with fresh_books() as books:
        feed, other = Feed(history(books)), Feed([])
        books.ledger.list_pair(OTHER)

        async def scene() -> None:
            async with (
                asked(feed) as (entry, target),
                served(other) as second,
                settling(books.ledger, target) as (one, task),
                settling(books.ledger, second, OTHER) as (neighbour, _),
            ):
                await until(one, lambda status: status.check_count == 1)
                entry.lie = {word: 12_345}
                await feed.add(trade(1, 2, 20))
                await until(one, is_in(State.STOPPED))
                await task
                assert "differ at execution 6 of command 21" in one.status.sentence
                assert one.status.checked_number == 4
                await other.add([1, 1, ExecutionKind.PAIR_SET | 1 << 24, *[0] * 13])
                await until(neighbour, at(1))

        played(scene)
        assert books.ledger.cursor(PAIR.pair) == 6
        assert "settlement of BTC-USDT stopped" in caplog.text
        assert "the engine holds" in caplog.text
