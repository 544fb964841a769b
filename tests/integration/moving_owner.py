"""An owner of a pair's segments that trades in them, and hands them to the next one when told.

Started as a module: folder of the segments, instrument file, file to record in, socket to receive
from (-1: claim), socket to give to. It speaks in lines: what it owns when it begins, what it gave
when it was told to `move`. It records the book after each of its batches, from its own arrays.
"""

import json
import select
import socket as sockets
import sys
import time
from pathlib import Path
from typing import Final, TextIO

import numpy as np

from engine.state_machine import Engine, Rows
from engine.vault_layout import TRADE_COUNT, vault_layout
from exchange.book_layout import ENGINE_STATE, STATE_READY, book_layout, segment_name
from exchange.config import load_instrument
from exchange.enums import Asset, CommandKind, OrderType, SelfTradePrevention, TimeInForce
from exchange.instrument import Instrument
from exchange.ownership import Owned, UseAfterMove
from exchange.records import command_price, command_verb
from tests.integration.market_data_processes import PAIR

TRADERS: Final = (1, 2)
REST_S: Final = 0.002
"""Between two batches."""


def allotments() -> Rows:
    """Return commands that give both traders all they could spend."""
    rows: list[list[int]] = []
    for trader in TRADERS:
        for asset in Asset.BASE, Asset.QUOTE:
            verb = command_verb(CommandKind.ALLOT_FUNDS, trader)
            rows.append([verb, len(rows) + 1, 0, asset, 1 << 55, 0, 0, 0])
    return np.array(rows, np.int64)


def batch_after(sequence: int) -> Rows:
    """Return the commands that follow a sequence, whoever owns the segments then."""
    chance = np.random.default_rng(sequence)
    rows = []
    for number in range(sequence + 1, sequence + int(chance.integers(2, 60))):
        trader, side = (int(one) for one in chance.integers(1, 3, 2))
        if chance.random() < 0.01:
            rows.append([command_verb(CommandKind.CANCEL_ALL, trader, side), *[0] * 7])
            continue
        shape = OrderType.LIMIT, TimeInForce.GOOD_TILL_CANCELLED
        away = int(chance.geometric(0.02)) - 5
        price = min(max(20_000 + away * (2 * side - 3), 1), 65_535)
        verb = command_verb(CommandKind.NEW_ORDER, trader, side, *shape)
        terms = command_price(price, SelfTradePrevention.NONE), int(chance.integers(1, 1_000))
        rows.append([verb, number, 0, *terms, 0, 0, 0])
    return np.array(rows, np.int64)


class Owner:
    """The process while it owns the segments."""

    def __init__(self, instrument: Instrument, book: Owned, vault: Owned) -> None:
        self.book, self.vault = book, vault
        self.engine = Engine(instrument, vault.arrays, book.arrays)
        self.engine.check()
        book["scalars"][ENGINE_STATE] = STATE_READY

    def trade(self, commands: Rows) -> None:
        """Apply a batch."""
        self.engine.apply(commands, time.time_ns())
        for owned in self.book, self.vault:
            owned.set_sequence(self.engine.sequence)

    def beat(self) -> None:
        """Say that the owner lives."""
        for owned in self.book, self.vault:
            owned.heartbeat(time.monotonic_ns())

    def record(self, file: TextIO) -> None:
        """Write down the book as it is."""
        levels = self.book["levels"].reshape(2, -1, 2)
        sides, ticks = np.nonzero(levels[:, :, 0])
        rows = np.column_stack((sides + 1, ticks, levels[sides, ticks]))
        trades = int(self.vault["scalars"][TRADE_COUNT])
        json.dump([self.book.epoch, self.engine.sequence, trades, rows.tolist()], file)
        file.write("\n")

    def describe(self) -> str:
        """Return epoch, sequence and hash of the state."""
        return f"{self.book.epoch} {self.engine.sequence} {self.engine.state_hash()}"

    def move(self, socket: sockets.socket) -> None:
        """Hand both segments over and see that nothing of them is left here."""
        given = self.describe()
        # Whoever receives the last segment owns all of them.
        self.book.move_to(socket)
        self.vault.move_to(socket)
        for owned in self.book, self.vault:
            try:
                dead = str(owned.arrays)
            except UseAfterMove as refusal:
                dead = str(refusal)
            say("refused" if "was moved" in dead else "alive")
        say("gave", given)

    def trade_all_the_same(self) -> None:
        """Apply a batch to what was given away; it must not come to that."""
        self.engine.apply(allotments(), time.time_ns())
        say("still alive")


def say(*words: object) -> None:
    """Send a line to the test."""
    print(*words, flush=True)


def hear(patience_s: float | None) -> str:
    """Return a line of the test, "go on" if there is none in time; empty when the pipe ended."""
    if select.select([sys.stdin], [], [], patience_s)[0]:
        return sys.stdin.readline().strip()
    return "go on"


def warm_up(instrument: Instrument) -> None:
    """Load the compiled kernel before anything depends on this process."""
    engine = Engine.in_memory(instrument)
    engine.apply(allotments(), 1)
    engine.check()


def first_owner(instrument: Instrument, folder: Path) -> Owner:
    """Claim both segments and give the traders money."""
    book = Owned.claim(
        segment_name(PAIR, "book"), book_layout(instrument), mode=0o644, directory=folder
    )
    vault = Owned.claim(segment_name(PAIR, "vault"), vault_layout(instrument), directory=folder)
    owner = Owner(instrument, book, vault)
    owner.trade(allotments())
    return owner


def heir(instrument: Instrument, socket: sockets.socket) -> Owner:
    """Receive both segments when it is told to, and not before."""
    say("ready")
    hear(None)
    book = Owned.receive(socket, book_layout(instrument))
    return Owner(instrument, book, Owned.receive(socket, vault_layout(instrument)))


def main(folder: str, instruments: str, record: str, source: str, target: str) -> None:
    """Own, trade and record; move when told; trade no more when told; end with the pipe."""
    instrument = load_instrument(PAIR, Path(instruments))
    warm_up(instrument)
    if source == "-1":
        owner = first_owner(instrument, Path(folder))
    else:
        owner = heir(instrument, sockets.socket(fileno=int(source)))
    say("owns", owner.describe())
    with Path(record).open("w", buffering=1) as file:
        owner.record(file)
        word = "go on"
        while word == "go on":
            owner.trade(batch_after(owner.engine.sequence))
            owner.record(file)
            owner.beat()
            word = hear(REST_S)
    if word == "move":
        owner.move(sockets.socket(fileno=int(target)))
        if hear(None) == "trade":
            owner.trade_all_the_same()
    while word == "rest":
        say("rests", owner.describe())
        while (word := hear(REST_S)) == "go on":
            owner.beat()


if __name__ == "__main__":
    main(*sys.argv[1:])
