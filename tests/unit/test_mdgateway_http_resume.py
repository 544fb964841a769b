"""WebSocket clients that return: from what they held if it is still known, else from the start."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.unit.market_data_door import GOOD, PAIR, Book, Door, Json, Socket, depth, follow, run

ORDERS: Json = {"op": "subscribe", "channel": "orders", "pairs": [PAIR]}


def is_orders(message: Json) -> bool:
    return message.get("channel") == "orders" and message["type"] in {"snapshot", "events"}


class Orders:
    """An order subscriber that believes nothing: each event once, each batch after the last."""

    def __init__(self) -> None:
        self.socket: Socket
        self.epoch = self.position = self.snapshots = 0
        self.numbers: list[int] = []
        """Public numbers in the order in which they were told to have come."""

    async def subscribe(self, door: Door, **fields: object) -> Json:
        self.socket = await door.connect()
        return await self.socket.ask(**ORDERS, **fields)

    async def come_back(self, door: Door) -> None:
        await self.socket.inner.close()
        held = {"held_epoch": self.epoch, "held_position": self.position}
        answer = await self.subscribe(door, **held)
        assert {name: answer[name] for name in held} == held

    async def take(self) -> None:
        message = await self.socket.until(is_orders)
        if message["type"] == "snapshot":
            assert (message["part"], message["is_last"]) == (0, True)
            self.snapshots += 1
            self.epoch = message["epoch"]
            self.numbers = [int(number) for number, *_ in message["orders"]]
        else:
            assert message["epoch"] == self.epoch
            assert message["previous_position"] == self.position
            assert self.snapshots, "nothing precedes the first snapshot"
            for event in message["events"]:
                assert self.position <= event["position"] < message["position"]
                if event["action"] == "add":
                    self.numbers.append(int(event["order_number"]))
        self.position = message["position"]

    async def until(self, number: int) -> None:
        while not self.numbers or self.numbers[-1] != number:
            await self.take()


def test_a_client_that_is_cut_is_told_every_order_once(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        orders = Orders()
        await orders.subscribe(door)
        number = 0
        for round_ in range(1, 6):
            for _ in range(30):
                number += 1
                door.writer.add_order(number, 1, 200 + number, 1)
                if number % 7 == 0:
                    door.step()
            door.step()
            if round_ % 2:
                await orders.until(number)
            # What it was told and did not read is told again.
            await orders.come_back(door)
        await orders.until(number)
        assert (orders.snapshots, orders.numbers) == (1, list(range(1, number + 1)))
        # Back in step, it is told together with everybody else.
        door.writer.add_order(number + 1, 2, 9_000, 1)
        door.step()
        await orders.until(number + 1)
        assert orders.snapshots == 1

    run(tmp_path, test)


@pytest.mark.parametrize("held", ["another epoch", "too old", "far ahead"])
def test_what_is_not_known_any_more_begins_with_a_snapshot(tmp_path: Path, held: str) -> None:
    async def test(door: Door) -> None:
        door.writer.add_order(1, 1, 300, 1)
        door.step()
        orders = Orders()
        await orders.subscribe(door)
        await orders.take()
        if held == "another epoch":
            orders.epoch += 1
        elif held == "far ahead":
            orders.position += 1_000
        for number in range(2, 102):
            door.writer.add_order(number, 1, 300 + number, 1)
            door.step()
        await orders.come_back(door)
        await orders.take()
        assert orders.snapshots == 2
        assert set(orders.numbers) == set(range(1, 102))

    run(tmp_path, test, gateway={"order_event_capacity": 64})


def test_depth_goes_on_with_an_update_after_a_cut(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket, book = await depth(door)
        held = {"held_epoch": book.epoch, "held_sequence": book.sequence}
        await socket.inner.close()
        for price in 90, 91, 92:
            door.writer.level(1, price, price)
            door.step()
        socket = await door.connect()
        answer = await socket.ask(**GOOD, interval_ms=0, **held)
        assert {name: answer[name] for name in held} == held
        await follow(socket, book, door.market.publications[PAIR].sequence)
        door.writer.level(2, 120, 1)
        door.step()
        await follow(socket, book, door.market.publications[PAIR].sequence)
        assert (book.snapshots, book.updates) == (1, 2)
        # A sequence that was never told is no place to go on from.
        stranger, other = await door.connect(), Book()
        await stranger.ask(**GOOD, interval_ms=0, held_epoch=book.epoch, held_sequence=1 << 40)
        other.take(await stranger.until(lambda one: one["type"] == "snapshot"))
        assert other.flat() == book.flat()

    run(tmp_path, test)


BAD: list[tuple[Json, str, str]] = [
    ({"held_position": 5}, "FIELD_INVALID", "held_epoch"),
    ({"held_epoch": 5}, "FIELD_INVALID", "held_position"),
    ({"held_epoch": 0, "held_position": 5}, "FIELD_INVALID", "held_epoch"),
    ({"held_epoch": 1, "held_position": -1}, "FIELD_INVALID", "held_position"),
    ({"held_epoch": 1, "held_position": 1.5}, "FIELD_INVALID", "held_position"),
    ({"held_epoch": True, "held_position": 1}, "FIELD_INVALID", "held_epoch"),
    ({"held_epoch": 1, "held_position": 1 << 53}, "FIELD_INVALID", "held_position"),
    ({"held_epoch": 1, "held_sequence": 1}, "FIELD_UNKNOWN", "field"),
]


def test_a_wrong_place_is_refused_with_field_value_and_limit(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        socket = await door.connect()
        for fields, reason, field in BAD:
            answer = await socket.ask(**ORDERS, **fields)
            assert (answer["type"], answer["reason"], answer["field"]) == ("refused", reason, field)
        assert door.market.open_count == 0

    run(tmp_path, test)


def fill(door: Door, number: int) -> int:
    """Let orders come and go until the client that does not read is full."""
    while not any(member.is_full for member in door.server.hub.members):
        for _ in range(20):
            number += 1
            door.writer.add_order(number, 1, 5_000, 1)
            door.writer.delete_order(number, 1, 5_000, 1)
        door.step()
    return number


def pause(socket: Socket, *, reading: bool) -> None:
    transport = socket.inner._response.connection.transport  # type: ignore[union-attr]
    assert transport is not None
    (transport.resume_reading if reading else transport.pause_reading)()


@pytest.mark.parametrize("lost", [False, True])
def test_a_slow_client_goes_on_or_is_told_what_it_missed(tmp_path: Path, lost: bool) -> None:
    async def test(door: Door) -> None:
        orders = Orders()
        await orders.subscribe(door)
        await orders.take()
        pause(orders.socket, reading=False)
        number = fill(door, 0)
        for _ in range(300 if lost else 3):
            number += 1
            door.writer.add_order(number, 2, 1_000 + number, 1)
            door.step()
        pause(orders.socket, reading=True)
        await orders.until(number)
        door.writer.add_order(number + 1, 2, 60_000, 1)
        door.step()
        await orders.until(number + 1)
        missed = [one for one in orders.socket.told if one.get("notice") == "missed"]
        assert [one["channel"] for one in missed] == ["orders"] * lost
        assert orders.snapshots == 1 + lost
        if not lost:
            assert orders.numbers == list(range(1, number + 2))

    capacity = 64 if lost else 1 << 16
    gateway = {"order_event_capacity": capacity}
    run(tmp_path, test, gateway=gateway, buffer_bytes=16_384, slow_limit_ms=600_000)


def test_a_client_closed_for_being_slow_is_told_where_to_go_on(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        orders = Orders()
        await orders.subscribe(door)
        await orders.take()
        await orders.socket.ask(op="subscribe", channel="trades", pairs=[PAIR])
        pause(orders.socket, reading=False)
        number = fill(door, 0)
        member = next(iter(door.server.hub.members))
        while not member.ending:
            door.step()
            await asyncio.to_thread(os.sched_yield)
        pause(orders.socket, reading=True)
        assert await orders.socket.end() == (4002, "SLOW_CONSUMER")
        goodbye = orders.socket.told.pop()
        told = [one for one in orders.socket.told if is_orders(one)]
        place = {"held_epoch": 1, "held_position": told[-1]["position"]}
        assert goodbye["reason"] == "SLOW_CONSUMER"
        assert (goodbye["resume_from"], goodbye["resume_orders"]) == ({PAIR: 1}, {PAIR: place})
        # All of it was read, and what follows is told after it comes back.
        for _ in told:
            await orders.take()
        await orders.come_back(door)
        await orders.until(number)
        assert (orders.snapshots, orders.numbers) == (1, list(range(1, number + 1)))

    run(tmp_path, test, buffer_bytes=16_384, slow_limit_ms=300)


def test_trades_of_another_history_are_not_gone_on_with(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        for _ in range(5):
            door.writer.trade(1, 100, 1)
        door.step()
        time_ns = str(door.writer.time_ns)
        asked = {"op": "subscribe", "channel": "trades", "pairs": [PAIR], "from_trade_number": 4}

        socket = await door.connect()
        answer = await socket.ask(**asked, held_time_ns=time_ns)
        assert (answer["from_trade_number"], answer["held_time_ns"]) == (4, time_ns)
        told = await socket.until(lambda one: one["type"] == "trades")
        assert [one["trade_number"] for one in told["trades"]] == [4, 5]

        stranger = await door.connect()
        await stranger.ask(**asked, held_time_ns="1")
        first = await stranger.until(lambda one: one.get("channel") == "trades")
        assert (first["notice"], first["next_trade_number"]) == ("trades_restarted", 1)
        told = await stranger.until(lambda one: one["type"] == "trades")
        assert [one["trade_number"] for one in told["trades"]] == [1, 2, 3, 4, 5]
        for wrong in (1, "", "-1", "x", True):
            answer = await stranger.ask(**asked, held_time_ns=wrong)
            assert (answer["reason"], answer["field"]) == ("FIELD_INVALID", "held_time_ns")
        door.server.hub.say_goodbye(next(iter(door.server.hub.members)), "DRAINING")
        goodbye = await socket.until(lambda one: one["type"] == "goodbye")
        assert goodbye["resume_from"] == {PAIR: 6}

    run(tmp_path, test)
