"""A market that repeats itself: the kernel at full speed, and what it must have published when.

A round of commands leaves the pair as it found it: every order is gone, and because its second half
is its first with the two traders exchanged, so is every balance. What the kernel publishes during
a round is therefore what it published during the one before, but for what counts up, and that
counts up by the same amount: each word is its word of the first round plus so many times what a
round adds (`Expected`, taken from the same kernel in plain memory).

So a reader that was told a sequence, a number or a position knows every other word. A copy that
is not word for word what the kernel published under that name cannot pass; one that mixes two
publications and passes all the same would be equal to a whole one.

Started as a module it is the writer: it owns the book segment and publishes until it is killed.
"""

import os
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from engine.kernel.apply import apply_batch, publish_idle
from engine.state_machine import Engine, Rows
from engine.vault_layout import vault_layout
from exchange import book_layout as layout
from exchange.compiled import inlined, kernel
from exchange.enums import Asset, CommandKind, OrderType, SelfTradePrevention, TimeInForce
from exchange.instrument import Instrument
from exchange.ownership import Owned
from exchange.records import C_CLIENT_ORDER_ID, COMMAND_WORDS, command_price, command_verb
from mdgateway.book import stable

INSTRUMENT: Final = Instrument(
    pair="FAST-USDT",
    base_decimals=0,
    quote_decimals=0,
    tick_quote_units=1,
    base_units_per_lot=1,
    price_capacity_ticks=2_048,
    quantity_limit_lots=1_000,
    taker_fee_ppm=0,
    order_capacity=1_024,
    account_capacity=4,
    client_id_window=2_048,
    # The fewest possible, so that readers are lapped as often as possible.
    event_capacity=128,
    depth_level_count=32,
    depth_copy_count=2,
).validate()
SEED: Final = 20_261_130
DAY_START_NS: Final = 1_767_225_600_000_000_000
STEP_NS: Final = 100
"""From one batch to the next; a day has so many that the day's figures never begin anew."""
ROUNDS_BEFORE: Final = 2
"""Rounds after which a day has its first and extreme prices, and every id was used before."""
ORDERS: Final = 80
FOR_EVER: Final = 1 << 40


def commands_of_a_round() -> tuple[Rows, Rows]:
    """Return the commands of a round and where its batches of one to four commands end."""
    chance = np.random.default_rng(SEED)
    half: list[tuple[int, ...]] = []
    for _ in range(ORDERS):
        trader, side = int(chance.integers(1, 3)), int(chance.integers(1, 3))
        # Buyers a little below, sellers a little above; often enough they meet.
        price = 1_000 + int(chance.integers(-8, 12)) * (2 * side - 3)
        half.append((CommandKind.NEW_ORDER, trader, side, price, int(chance.integers(1, 20))))
        if chance.random() < 0.3:
            half.append((CommandKind.CANCEL_ORDER, trader, int(chance.integers(0, len(half)))))
    half += [(CommandKind.CANCEL_ALL, trader) for trader in (1, 2)]
    rows: list[list[int]] = []
    for exchanged in False, True:
        first = len(rows)
        for kind, trader, *terms in half:
            account = 3 - trader if exchanged else trader
            rows.append(_command(kind, account, first, len(rows), terms))
    ends = np.unique(np.append(np.cumsum(chance.integers(1, 5, len(rows))), len(rows)))
    return np.array(rows, np.int64), ends[ends <= len(rows)]


def _command(kind: int, account: int, first: int, index: int, terms: list[int]) -> list[int]:
    if kind == CommandKind.NEW_ORDER:
        side, price, lots = terms
        shape = OrderType.LIMIT, TimeInForce.GOOD_TILL_CANCELLED
        verb = command_verb(kind, account, side, *shape)
        terms = [index + 1, 0, command_price(price, SelfTradePrevention.CANCEL_NEWEST), lots]
    elif kind == CommandKind.CANCEL_ORDER:
        # Of an order that may be gone, or the other trader's: then it is refused.
        verb, terms = command_verb(kind, account), [first + terms[0] + 1, 0, 0, 0]
    else:
        verb, terms = command_verb(kind, account), [0, 0, 0, 0]
    return [verb, *terms, 0, 0, 0]


@kernel
def run_rounds(
    context: int, commands: Rows, ends: Rows, out: int, out_capacity: int, time_ns: int, count: int
) -> int:
    """Apply so many rounds, batch by batch, a depth copy after each; return the time reached."""
    address = commands.ctypes.data
    for _ in range(count):
        start = 0
        for end in ends:
            time_ns += STEP_NS
            apply_batch(context, address + 64 * start, end - start, time_ns, out, out_capacity)
            publish_idle(context)
            start = end
        for index in range(commands.shape[0]):
            if commands[index, C_CLIENT_ORDER_ID] != 0:
                commands[index, C_CLIENT_ORDER_ID] += commands.shape[0]
    return time_ns


class Repeating:
    """An engine and the round it goes through."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.commands, self.ends = commands_of_a_round()
        self.time_ns = DAY_START_NS
        for number, (trader, asset) in enumerate(
            [(trader, asset) for trader in (1, 2) for asset in (Asset.BASE, Asset.QUOTE)], start=1
        ):
            verb = command_verb(CommandKind.ALLOT_FUNDS, trader)
            row = [verb, number, 0, asset, 1 << 40, 0, 0, 0]
            engine.apply(np.array([row], np.int64).reshape(-1, COMMAND_WORDS), self.time_ns)
        self.run(ROUNDS_BEFORE)

    def run(self, count: int) -> None:
        """Go through so many rounds at full speed."""
        engine = self.engine
        output = engine._output_address, engine._output_capacity
        self.time_ns = run_rounds(
            engine._context_address, self.commands, self.ends, *output, self.time_ns, count
        )

    def batches(self) -> Iterator[None]:
        """Go through one round as `run` does, step by step; yield after each batch."""
        start = 0
        for end in self.ends.tolist():
            self.time_ns += STEP_NS
            self.engine.apply(self.commands[start:end], self.time_ns)
            self.engine.publish_idle()
            start = end
            yield
        numbered = self.commands[:, C_CLIENT_ORDER_ID] != 0
        self.commands[numbered, C_CLIENT_ORDER_ID] += len(self.commands)


class Words(NamedTuple):
    """What rows of words are in the first round, and what each round adds to them."""

    first: Rows
    added: Rows


class Expected(NamedTuple):
    """What must be read when: by batch of the round, or by event of the round."""

    touch: Words
    depth: Words
    depth_numbers: Words
    events: Words
    batch_at: Rows
    """Which batch ends with a command of the round, or -1."""
    sequence: int
    """The sequence before the first round."""
    position: int
    """The event position before the first round."""


def _used(depth_row: Rows) -> Rows:
    """Return a depth copy without what earlier ones left behind its levels."""
    row, side_words = depth_row.copy(), (len(depth_row) - layout.DEPTH_HEADER_WORDS) // 2
    sides = row[layout.DEPTH_HEADER_WORDS :].reshape(2, side_words)
    for side, count in zip(
        sides, row[[layout.DEPTH_BID_COUNT, layout.DEPTH_ASK_COUNT]], strict=True
    ):
        assert count < INSTRUMENT.depth_level_count, "a copy has to hold the whole book"
        side[count * layout.DEPTH_LEVEL_WORDS :] = 0
    return row


class Round(NamedTuple):
    """What was published in one round: rows by batch, and rows by event."""

    touch: Rows
    depth: Rows
    depth_numbers: Rows
    events: Rows


def _record_round(market: Repeating) -> Round:
    book, capacity = market.engine.book, INSTRUMENT.event_capacity
    touches, depths, numbers, events = [], [], [], []
    position = int(book["scalars"][layout.EVENT_HEAD])
    for _ in market.batches():
        touches.append(book["touch"].copy())
        number = int(book["scalars"][layout.DEPTH_HEAD])
        numbers.append([number])
        depths.append(_used(book["depth"][number % INSTRUMENT.depth_copy_count]))
        head = int(book["scalars"][layout.EVENT_HEAD])
        assert head - position <= capacity, "a batch must not lap the ring"
        events += [book["events"][at % capacity].copy() for at in range(position, head)]
        position = head
    return Round(*map(np.array, (touches, depths, numbers, events)))


def expect() -> Expected:
    """Find out in plain memory what has to be read; what does not repeat fails here."""
    market = Repeating(Engine.in_memory(INSTRUMENT))
    sequence = market.engine.sequence
    position = int(market.engine.book["scalars"][layout.EVENT_HEAD])
    first, second = _record_round(market), _record_round(market)
    words = [Words(one, another - one) for one, another in zip(first, second, strict=True)]
    market.run(1)
    for rows, known in zip(_record_round(market), words, strict=True):
        assert (rows == known.first + 3 * known.added).all(), "the market does not repeat itself"
    batch_at = np.full(len(market.commands), -1, np.int64)
    batch_at[market.ends - 1] = np.arange(len(market.ends))
    touch, depth, depth_numbers, events = words
    return Expected(touch, depth, depth_numbers, events, batch_at, sequence, position)


@inlined
def _differs(
    row: Rows, first: Rows, added: Rows, at: int, rounds: int, start: int, end: int
) -> bool:
    """Say whether any word from `start` to `end` is another than it has to be in a round."""
    wrong = 0
    for word in range(start, end):
        wrong += row[word] != first[at, word] + rounds * added[at, word]
    return bool(wrong > 0)


@inlined
def _batch(sequence: int, before: int, batch_at: Rows) -> tuple[int, int]:
    """Return the batch that ends with a sequence, or -1, and its round."""
    index = sequence - before - 1
    if index < 0:
        return -1, 0
    return batch_at[index % batch_at.shape[0]], index // batch_at.shape[0]


@kernel
def touch_is_wrong(row: Rows, expected: Expected) -> bool:
    """Say whether a touch is none that the kernel published."""
    batch, rounds = _batch(row[layout.TOUCH_SEQUENCE], expected.sequence, expected.batch_at)
    if batch < 0:
        return True
    words = expected.touch
    return _differs(row, words.first, words.added, batch, rounds, 0, row.shape[0])


@kernel
def depth_is_wrong(row: Rows, number: int, expected: Expected) -> bool:
    """Say whether a depth copy is another than the one that bears this number."""
    batch, rounds = _batch(row[layout.DEPTH_SEQUENCE], expected.sequence, expected.batch_at)
    if batch < 0:
        return True
    numbers, words = expected.depth_numbers, expected.depth
    wrong = bool(number != numbers.first[batch, 0] + rounds * numbers.added[batch, 0])
    wrong |= _differs(row, words.first, words.added, batch, rounds, 0, layout.DEPTH_HEADER_WORDS)
    # The counts are right from here on, or the copy is wrong already.
    side_words = (row.shape[0] - layout.DEPTH_HEADER_WORDS) // 2
    for side in range(2):
        start = layout.DEPTH_HEADER_WORDS + side * side_words
        used = words.first[batch, layout.DEPTH_BID_COUNT + side] * layout.DEPTH_LEVEL_WORDS
        wrong |= _differs(row, words.first, words.added, batch, rounds, start, start + used)
    return wrong


@kernel
def book_is_wrong(sides: Rows, result: Rows, expected: Expected) -> bool:
    """Say whether a copy of the levels is another than the depth copy of the same sequence."""
    sequence = result[stable.COPIED_SEQUENCE]
    batch, rounds = _batch(sequence, expected.sequence, expected.batch_at)
    if batch < 0:
        return True
    first, added = expected.depth.first[batch], expected.depth.added[batch]
    position = first[layout.DEPTH_EVENT] + rounds * added[layout.DEPTH_EVENT]
    wrong = position - result[stable.COPIED_POSITION]
    at = layout.DEPTH_HEADER_WORDS
    for side in range(2):
        count = first[layout.DEPTH_BID_COUNT + side]
        wrong |= count - result[stable.COPIED_BIDS + side]
        for level in range(min(count, result[stable.COPIED_BIDS + side])):
            for word in range(layout.DEPTH_LEVEL_WORDS):
                known = first[at + level * layout.DEPTH_LEVEL_WORDS + word]
                wrong |= known - sides[side, level, word]
        at += sides.shape[1] * layout.DEPTH_LEVEL_WORDS
    return bool(wrong != 0)


@kernel
def event_is_wrong(row: Rows, position: int, expected: Expected) -> bool:
    """Say whether an event is another than the one at this position."""
    index, words = position - expected.position, expected.events
    if index < 0:
        return True
    at, rounds = index % words.first.shape[0], index // words.first.shape[0]
    return _differs(row, words.first, words.added, at, rounds, 0, layout.EVENT_WORDS)


def publish(directory: str, core: str) -> None:
    """Own the book and publish at full speed, on one core if told which, until killed."""
    if core:
        os.sched_setaffinity(0, {int(core)})
    vault = {one.name: np.zeros(one.shape, one.dtype) for one in vault_layout(INSTRUMENT).fields}
    with Owned.claim(
        layout.segment_name(INSTRUMENT.pair, "book"),
        layout.book_layout(INSTRUMENT),
        directory=directory,
    ) as book:
        market = Repeating(Engine(INSTRUMENT, vault, book.arrays))
        print("running", flush=True)
        market.run(FOR_EVER)


if __name__ == "__main__":
    publish(*sys.argv[1:])
