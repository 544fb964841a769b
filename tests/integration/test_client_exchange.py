"""The client, asyncio and blocking, against a running pair: every door, refusals, kill -9."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

import numpy as np
import pytest

from exchange.enums import ExecutionKind, Reason, Side, TimeInForce
from holdfast import (
    AsyncClient,
    Client,
    InvalidRequest,
    NotFound,
    OrderRejected,
    OutOfRange,
    Retry,
    Unauthenticated,
    Unavailable,
    accepted,
    packed,
)
from holdfast.running import demonstration
from tests.integration.run_process import (
    BTC,
    ROOT,
    RunProcess,
    run_folder,
    running,
    segment_folder,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# One has its money in the pair ahead of time, the other one with the first order that lacks it.
MAKER, TAKER = demonstration.MAKER, demonstration.TRADERS[0]
PATIENT = Retry(patience_s=120.0)
Item = TypeVar("Item")


@pytest.fixture(scope="module")
def exchange() -> Iterator[RunProcess]:
    with (
        run_folder() as run,
        segment_folder() as segments,
        running(run, segments, "--no-flow", pairs=(BTC,)) as process,
    ):
        process.until("open, new")
        yield process
        process.stop()


@pytest.fixture
def targets(exchange: RunProcess) -> Iterator[dict[str, Any]]:
    """Where the exchange is; the accounts' orders are gone before and after."""
    found: dict[str, Any] = {
        "target": exchange.orders_target,
        "market_data": exchange.market_data_target,
        "retry": PATIENT,
    }
    yield found
    for account in (MAKER, TAKER):
        with Client("BTC-USDT", account, **found) as client:
            client.cancel_all()


async def first(items: AsyncIterator[Item], count: int) -> list[Item]:
    found = []
    async for item in items:
        found.append(item)
        if len(found) == count:
            break
    return found


def kind(report: Any) -> ExecutionKind:
    return ExecutionKind(report.kind)


def test_single_orders_through_the_blocking_client(targets: dict[str, Any]) -> None:
    with (
        Client("BTC-USDT", MAKER, **targets) as maker,
        Client("BTC-USDT", TAKER, **targets) as taker,
    ):
        resting = accepted(maker.submit(Side.SELL, price="64000.10", quantity="0.5"))
        assert resting.leaves == "0.50000"
        again = maker.submit(
            Side.SELL, client_order_id=resting.client_order_id, price="64000.10", quantity="0.5"
        )
        assert (kind(again), again.order_id) == (ExecutionKind.REPLAYED, resting.order_id)
        taken = accepted(taker.submit(Side.BUY, amount="6400.01"))
        assert [e.price for e in taken.executions if kind(e) is ExecutionKind.TRADE] == ["64000.10"]
        order = maker.order(client_order_id=resting.client_order_id)
        assert order.filled_lots == taken.filled_lots > 0
        assert [one.order_id for one in maker.open_orders()] == [resting.order_id]
        amended = maker.amend(resting.order_id, price="64001", quantity="0.3")
        assert kind(amended) is ExecutionKind.AMENDED
        assert kind(maker.cancel(resting.order_id)) is ExecutionKind.CANCELLED
        assert maker.open_orders() == []


def test_refusals_are_errors_with_reason_field_and_value(targets: dict[str, Any]) -> None:
    with Client("BTC-USDT", MAKER, **targets) as client:
        with pytest.raises(InvalidRequest) as caught:
            client.submit(Side.BUY, price="64000.001", quantity="1")
        assert (caught.value.field, caught.value.value) == ("price", "64000.001")
        assert caught.value.reason.startswith("PRICE")
        with pytest.raises(NotFound, match="ORDER_UNKNOWN"):
            client.order(order_id=12345)
        with pytest.raises(OrderRejected) as rejected:
            accepted(client.submit(Side.SELL, price="64000", quantity="40000"))
        assert rejected.value.reason is Reason.INSUFFICIENT_FUNDS
        with pytest.raises(OutOfRange):
            next(client.executions(1 << 40))
    with Client("ETH-USDT", MAKER, **targets) as other, pytest.raises(InvalidRequest, match="PAIR"):
        other.submit(Side.BUY, price="1", quantity="1")
    with Client("BTC-USDT", 0, **targets) as nobody, pytest.raises(Unauthenticated):
        nobody.open_orders()
    impatient = targets | {"target": "127.0.0.1:1", "retry": Retry(patience_s=0.2)}
    with Client("BTC-USDT", MAKER, **impatient) as lost, pytest.raises(Unavailable):
        lost.open_orders()


def test_a_session_answers_many_commands_at_a_time_and_refuses_one(targets: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with AsyncClient("BTC-USDT", MAKER, **targets) as client:
            async with client.session(cancel_on_disconnect=True) as session:
                orders = [
                    session.submit(Side.BUY, price=f"{60_000 + i}", quantity="0.01")
                    for i in range(200)
                ]
                wrong = session.submit(Side.BUY, price="x", quantity="0.01")
                answers: list[Any] = await asyncio.gather(*orders, wrong, return_exceptions=True)
                *reports, refused = answers
                assert isinstance(refused, InvalidRequest)
                assert refused.field == "price"
                assert len({accepted(report).order_id for report in reports}) == 200
                amended = await session.amend(reports[0].order_id, quantity="0.02")
                assert kind(amended) is ExecutionKind.AMENDED
                cancelled = await session.cancel(reports[1].order_id)
                assert kind(cancelled) is ExecutionKind.CANCELLED
                assert len(await client.open_orders()) == 199
            with pytest.raises(Unavailable):
                await session.cancel_all()
            # What was agreed at the start: the session has ended, so its orders go.
            number = reports[-1].last_number + 1
            ended = await first(client.executions(number), 202)
            assert sum(Reason(e.reason) is Reason.DISCONNECTED for e in ended) == 199
            assert await client.open_orders() == []

    asyncio.run(scenario())


def test_batches_are_arrays_in_and_arrays_out(targets: dict[str, Any]) -> None:
    with Client("BTC-USDT", MAKER, **targets) as client, client.batches(window=4) as batches:
        ids = client._client.next_client_order_id.block(1_000) + np.arange(1_000) * (1 << 12)
        records = packed.new_orders(ids, Side.BUY, 6_000_000 + np.arange(1_000), 1_000)
        acks = batches.submit(records)
        assert acks["client_order_id"].tolist() == ids.tolist()
        assert set(acks["kind"].tolist()) == {int(ExecutionKind.ACCEPTED)}
        assert acks["leaves_lots"].tolist() == [1_000] * 1_000
        assert set(batches.submit(records)["kind"].tolist()) == {int(ExecutionKind.REPLAYED)}
        waiting = [batches.submit_soon(packed.cancels(ids[i::10])) for i in range(10)]
        kinds = {one for future in waiting for one in future.result()["kind"].tolist()}
        assert kinds == {int(ExecutionKind.CANCELLED)}
        with pytest.raises(ValueError, match="RECORD_DTYPE"):
            batches.submit(np.zeros(3))  # type: ignore[arg-type]


def test_private_executions_go_on_where_they_stopped(targets: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with AsyncClient("BTC-USDT", MAKER, **targets) as client:
            began = await client.submit(Side.BUY, price="60000", quantity="0.01")
            for _ in range(5):
                await client.submit(Side.BUY, price="60000", quantity="0.01")
            whole = await first(client.executions(began.first_number), 6)
            part = await first(client.executions(began.first_number), 2)
            rest = await first(client.executions(part[-1].number + 1), 4)
            assert part + rest == whole
            assert {one.account for one in whole} == {MAKER}

    asyncio.run(scenario())


def test_a_watched_book_becomes_the_depth_and_trades_are_seen(targets: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with (
            AsyncClient("BTC-USDT", MAKER, **targets) as maker,
            AsyncClient("BTC-USDT", TAKER, **targets) as taker,
        ):
            number = (await maker.ticker()).trade_count + 1
            async for book in maker.watch_book(50):
                if book.live:
                    break
            for i in range(30):
                await maker.submit(Side.SELL, price=f"{64_000 + i}", quantity="0.1")
                await maker.submit(Side.BUY, price=f"{63_000 - i}", quantity="0.1")
            last = await taker.submit(
                Side.BUY,
                price="64004",
                quantity="0.45",
                time_in_force=TimeInForce.IMMEDIATE_OR_CANCEL,
            )
            async for book in maker.watch_book(50):
                if book.sequence >= last.sequence:
                    break
            depth = await maker.depth(50)
            assert [level.price for level in book.asks(50)] == [level.price for level in depth.asks]
            assert [(level.price_ticks, level.quantity_lots) for level in book.bids(50)] == [
                (level.price_ticks, level.quantity_lots) for level in depth.bids
            ]
            assert book.asks(1)[0].quantity == "0.05000"
            trades = await first(maker.watch_trades(number), 5)
            assert [trade.trade_number for trade in trades] == list(range(number, number + 5))
            ticker = await first(maker.watch_ticker(), 1)
            assert ticker[0].last_trade.price == "64004.00"

    asyncio.run(scenario())


@pytest.mark.parametrize("victim", ["engine", "entry-0", "entry-1"])
def test_kill_9_is_a_delay_and_no_order_is_lost_or_doubled(
    exchange: RunProcess, targets: dict[str, Any], victim: str
) -> None:
    """Orders go on through single calls and batches while a process is killed under them."""

    async def scenario() -> None:
        pid = exchange.pid(victim)
        async with AsyncClient("BTC-USDT", MAKER, **targets) as client:
            began = await client.submit(Side.BUY, price="60000", quantity="0.01")
            singles, packs = 60, 30
            given = [client.next_client_order_id() for _ in range(singles)]
            block = client.next_client_order_id.block(packs * 10)
            ids = block + np.arange(packs * 10).reshape(packs, 10) * (1 << 12)

            async def single(client_order_id: int) -> None:
                report = await client.submit(
                    Side.BUY, client_order_id=client_order_id, price="60000", quantity="0.01"
                )
                assert kind(report) in (ExecutionKind.ACCEPTED, ExecutionKind.REPLAYED)

            async def batch(part: Any) -> None:
                records = packed.new_orders(part, Side.BUY, 6_000_000, 1_000)
                while True:
                    try:
                        acks = await batches.submit(records)
                        break
                    except Unavailable:
                        await asyncio.sleep(0)  # The engine is being started; the ids are safe.
                expected = {int(ExecutionKind.ACCEPTED), int(ExecutionKind.REPLAYED)}
                assert set(acks["kind"].tolist()) <= expected

            async with client.batches() as batches:
                for i in range(packs):
                    if i == packs // 3:
                        os.kill(pid, signal.SIGKILL)
                    await asyncio.gather(batch(ids[i]), *map(single, given[2 * i : 2 * i + 2]))
            wanted = sorted([*given, *ids.ravel().tolist()])
            found = await client.open_orders()
            assert (
                sorted({one.client_order_id for one in found} - {began.client_order_id}) == wanted
            )
            assert len(found) == len(wanted) + 1, "an order was entered twice"
            number = began.last_number + 1
            accepted_ids = []
            async for execution in client.executions(number):
                if kind(execution) is ExecutionKind.ACCEPTED:
                    accepted_ids.append(execution.client_order_id)
                if len(accepted_ids) == len(wanted):
                    break
            assert sorted(accepted_ids) == wanted
            await client.cancel_all()

    asyncio.run(scenario())
    log = exchange.run / "btc-usdt" / "logs" / f"{victim}.log"
    assert f"{victim} ended with SIGKILL" in log.read_text()


@pytest.mark.parametrize("index", [0, 1])
def test_the_programs_of_the_quick_start_run(
    exchange: RunProcess, targets: dict[str, Any], index: int, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(programs) == 2
    here = f'account=100, target="{targets["target"]}", market_data="{targets["market_data"]}"'
    program = programs[index].replace("account=100", here)
    assert program != programs[index]
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    assert ("0.01000", "[1 1 1")[index] in capfd.readouterr().out
