"""When a closing pair may say that no order is on its way any more."""

from typing import Any

from engine.closing import VISIBLE_NS, Closing
from exchange.book_layout import STATE_CLOSED, STATE_CLOSING

START_NS = 1_000


class Said:
    """Keeps what the engine says of itself."""

    def __init__(self) -> None:
        self.states: list[int] = []

    def take(self, state: int) -> None:
        self.states.append(state)


class Ring:
    """An order-entry process: when it looked around last, and whether it wrote something."""

    def __init__(self) -> None:
        self.heartbeat_ns = 0
        self.waiting = False

    def seen_after(self, moment_ns: int, now_ns: int) -> bool:
        return self.heartbeat_ns > moment_ns


def closing(*rings: Ring) -> tuple[Any, Said]:
    said = Said()
    return Closing(said, rings), said  # type: ignore[arg-type]


def test_nothing_happens_before_somebody_asks() -> None:
    begun, said = closing()
    begun.look(START_NS)
    assert said.states == []


def test_every_process_must_have_looked_around_since_and_every_ring_be_empty() -> None:
    quick, slow = Ring(), Ring()
    begun, said = closing(quick, slow)
    begun.ask()
    begun.look(START_NS)
    assert said.states == [STATE_CLOSING]
    since_ns = START_NS + VISIBLE_NS
    quick.heartbeat_ns, slow.heartbeat_ns = since_ns + 1, since_ns
    begun.look(since_ns + 1)
    assert said.states == [STATE_CLOSING]
    slow.heartbeat_ns, slow.waiting = since_ns + 1, True
    begun.look(since_ns + 2)
    assert said.states == [STATE_CLOSING]
    slow.waiting = False
    begun.look(since_ns + 3)
    assert said.states == [STATE_CLOSING, STATE_CLOSED]


def test_asking_again_begins_nothing_anew() -> None:
    begun, said = closing()
    for now_ns in range(START_NS, START_NS + 3):
        begun.ask()
        begun.look(now_ns)
    assert said.states == [STATE_CLOSING, STATE_CLOSED, STATE_CLOSED]
