"""A writer of the books that kills itself with SIGKILL before its n-th step towards the database.

Run as a program: `ledgerd_children.py URL WORK`. It forks once for each n, from 0 on, until a child
gets through alive, and prints one line a child. A step is anything a transaction does through the
driver: a statement, a row of COPY, the commit; the last is after the commit, before the answer.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any
from uuid import UUID

import numpy as np
import psycopg

from exchange.enums import Asset
from ledgerd.books.commit import CursorMoved
from ledgerd.chart import Phase, Purpose, TransferKind
from ledgerd.database import connect
from ledgerd.ledger import Ledger
from ledgerd.transfers import Leg, NewTransfer
from tests.books import PAIR, START_NS, custody, user
from tests.unit.test_ledgerd_ledger import rows_of, trade

CURSOR = 4
STEPS = ((psycopg.Cursor, "execute"), (psycopg.Cursor, "executemany"), (psycopg.Copy, "write"))


class Fate:
    """Counts steps and ends the process before one of them."""

    def __init__(self, last: int) -> None:
        self.left = last

    def step(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def before(self, owner: type, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def counted(*given: Any, **more: Any) -> Any:
            self.step()
            return original(*given, **more)

        setattr(owner, name, counted)


def settle(ledger: Ledger) -> None:
    """Settle ten trades and a move of funds, as a follower would after a restart."""
    rows = rows_of(*(trade(1, 2, 9 + n, lots=1) for n in range(10)))
    if ledger.cursor(PAIR.pair) == CURSOR:
        ledger.settle(PAIR, np.ascontiguousarray(rows), CURSOR)


def post(ledger: Ledger) -> None:
    """Post a deposit and set a part of it aside, in one commit."""
    deposit = (Leg(custody("BTC"), -7), Leg(user(1, "BTC"), 7))
    aside = (Leg(user(1, "BTC"), -5), Leg(user(1, "BTC", Purpose.FUNDING), 5))
    ledger.post(
        [
            NewTransfer(UUID(int=7001), TransferKind.CORRECTION, deposit),
            NewTransfer(UUID(int=7002), TransferKind.INTERNAL, aside, Phase.PENDING),
        ]
    )


def allot(ledger: Ledger) -> None:
    """Give an instruction; its number must be the same each time."""
    done = ledger.allot(UUID(int=7003), PAIR.pair, 1, Asset.BASE, 11)
    assert done.number == CURSOR + 1


WORK: dict[str, Callable[[Ledger], None]] = {"settle": settle, "post": post, "allot": allot}


def child(url: str, work: str, last: int) -> None:
    """Do the work and die before step `last`."""
    fate = Fate(last)
    engine = connect(url, 1)
    ledger = Ledger(engine, lambda: START_NS)
    # As every process does at its start.
    ledger.list_pair(PAIR)
    for owner, name in STEPS:
        fate.before(owner, name)
    fate.before(psycopg.Connection, "commit")
    try:
        WORK[work](ledger)
    except CursorMoved:
        sys.exit(3)
    fate.step()


def main() -> None:
    """Fork until one child gets through."""
    url, work = sys.argv[1:]
    last = 0
    while True:
        number = os.fork()
        if number == 0:
            child(url, work, last)
            os._exit(0)
        _, status = os.waitpid(number, 0)
        outcome = "through" if status == 0 else f"signal {os.WTERMSIG(status)}"
        print(f"{last} {outcome} {status}", flush=True)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            break
        # The parent of the test looks at the books between two children.
        assert sys.stdin.readline(), "the test went away"
        last += 1


if __name__ == "__main__":
    main()
