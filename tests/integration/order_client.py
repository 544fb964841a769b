"""Independent followers of a pair's orders: of the messages of a gateway, and of the ring itself.

Both rebuild the queues with the plain follower of the documentation and complain about everything
it rules out; beside that, every event is seen once and in order.
"""

import threading
from collections.abc import Callable

import grpc

from exchange.config import load_instrument
from exchange.v1 import market_data_pb2, market_data_pb2_grpc
from mdgateway.book.reader import BookReader
from tests.integration.market_data_processes import PAIR, PATIENCE_S, Levels, Processes
from tests.reference.order_follower import ADDED, DELETED, REDUCED, Key, OrderFollower

Queues = dict[Key, list[tuple[int, int]]]
"""Public number and lots of the orders at each side and price, first in turn first."""
EXECUTE = market_data_pb2.ORDER_ACTION_EXECUTE


def queues_of(follower: OrderFollower) -> Queues:
    """Return the queues that are not empty."""
    return {
        key: [(order.number, order.lots) for order in queue]
        for key, queue in follower.queues.items()
        if queue
    }


class Truth:
    """Follows the ring of the engine's segment from its first event on."""

    def __init__(self, processes: Processes) -> None:
        instrument = load_instrument(PAIR, processes.instruments)
        self.reader = BookReader(instrument, processes.segments, level_capacity=4_096)
        assert self.reader.open()
        self.follower = OrderFollower()
        self.events: dict[int, int] = {}
        """Public numbers by position, of the events that are about an order."""
        self._cursor = 0

    def read(self) -> Queues:
        """Follow what was published since; return the queues."""
        touch = self.reader.touch()
        assert touch is not None
        while True:
            run = self.reader.events(self._cursor, touch.sequence)
            assert not run.lost, "the test let the ring run over"
            for place, event in enumerate(run.rows.tolist(), run.position):
                self.follower.take(event)
                if event[7]:
                    self.events[place] = event[7]
            self._cursor = run.next_position
            if run.caught_up:
                return queues_of(self.follower)

    def close(self) -> None:
        """Let go of the segment."""
        self.reader.close()


class OrderBooks:
    """What messages of the order stream tell, whichever way they came."""

    def __init__(self) -> None:
        self.follower = OrderFollower({})
        self.epoch = self.position = self.snapshot_count = 0
        self.is_whole = False
        """Whether all parts of the snapshot were told."""
        self.books: dict[tuple[int, int], Levels] = {}
        """The levels by epoch and sequence of the last event."""
        self.events: dict[int, int] = {}
        """Public numbers by position of the events that were told."""

    @property
    def levels(self) -> Levels:
        """Return lots and orders of each level: known orders and unknown ones."""
        return self.follower.levels

    def begin(self, part: int) -> None:
        """Take the first part of a snapshot."""
        if part == 0:
            self.snapshot_count += 1
            self.follower = OrderFollower({})

    def rest(self, number: int, key: Key, lots: int, count: int = 1) -> None:
        """Take an order of a snapshot; number zero: a level's unknown ones."""
        self._change_level(key, lots, count)
        if number:
            self.follower.change(number, key, ADDED, lots)

    def follow(self, previous: int, position: int) -> None:
        """Take the chain of a batch."""
        assert (self.is_whole, previous) == (True, self.position)
        self.position = position

    def take(
        self, place: int, action: int, number: int, key: Key, lots: int, *, is_gone: bool
    ) -> None:
        """Take one event."""
        assert place not in self.events, f"event {place} came twice"
        self.events[place] = number
        sign = 1 if action == ADDED else -1
        self._change_level(key, sign * lots, 1 if action == ADDED else -is_gone)
        if action == EXECUTE:
            self.follower.trade(number, *key, lots, DELETED if is_gone else REDUCED)
        else:
            self.follower.change(number, key, action, lots)
        hidden = self.follower.unknown(key)
        assert min(hidden) >= 0, (place, hidden)
        assert (hidden[0] == 0) == (hidden[1] == 0), (place, hidden)

    def settle(self, sequence: int) -> None:
        """Note that the orders are those of the end of a command."""
        self.books[self.epoch, sequence] = dict(self.levels)

    def _change_level(self, key: Key, lots: int, count: int) -> None:
        held_lots, held_count = self.levels.get(key, (0, 0))
        self.levels[key] = held_lots + lots, held_count + count
        if not self.levels[key][1]:
            assert not self.levels.pop(key)[0]


class OrderClient:
    """Follows a gateway's order stream in a thread."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.told = OrderBooks()
        self.notices: list[int] = []
        self.trouble: BaseException | None = None
        self._changed = threading.Condition()
        request = market_data_pb2.StreamOrdersRequest(pair=PAIR)
        self._call = market_data_pb2_grpc.MarketDataServiceStub(channel).StreamOrders(request)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, condition: Callable[["OrderClient"], bool]) -> None:
        """Wait until the client's state fulfils a condition."""
        with self._changed:
            held = self._changed.wait_for(lambda: self.trouble or condition(self), PATIENCE_S)
        if self.trouble is not None:
            raise AssertionError("the stream is wrong") from self.trouble
        assert held, f"nothing after {PATIENCE_S} s: position {self.told.position}"

    def close(self) -> None:
        """End the stream."""
        self._call.cancel()
        self._thread.join()

    def _run(self) -> None:
        try:
            for message in self._call:
                with self._changed:
                    self._take(message)
                    self._changed.notify_all()
        except BaseException as error:
            if isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.CANCELLED:
                return
            with self._changed:
                self.trouble = error
                self._changed.notify_all()

    def _take(self, message: market_data_pb2.StreamOrdersResponse) -> None:
        match message.WhichOneof("event"):
            case "snapshot":
                self._take_part(message.snapshot)
            case "events":
                self._take_batch(message.events)
            case "notice":
                self.notices.append(message.notice.kind)

    def _take_part(self, part: market_data_pb2.OrderSnapshot) -> None:
        told = self.told
        told.begin(part.part)
        for rest in part.unknown:
            key = rest.side, rest.price_ticks
            told.rest(0, key, rest.quantity_lots, rest.order_count)
        for one in part.orders:
            told.rest(one.order_number, (one.side, one.price_ticks), one.quantity_lots)
        told.epoch, told.position, told.is_whole = part.epoch, part.position, part.is_last

    def _take_batch(self, batch: market_data_pb2.OrderBatch) -> None:
        told = self.told
        assert batch.epoch == told.epoch
        told.follow(batch.previous_position, batch.position)
        for event in batch.events:
            key = event.side, event.price_ticks
            what = event.action, event.order_number, key, event.quantity_lots
            told.take(event.position, *what, is_gone=event.is_gone)
        if batch.events and not batch.more_follows:
            told.settle(batch.events[-1].sequence)
