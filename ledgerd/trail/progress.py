"""How far a proof is, for whoever waits for it, and whether anybody does.

A proof of millions of rows takes minutes. Between two pieces it comes by here, with a sentence that
says how far it is; one is said every few seconds, so that a short proof says nothing.
"""

import time
from collections.abc import Callable
from typing import Final

EVERY_S: Final = 5.0
"""Between two sentences, and before the first."""


class Abandoned(Exception):
    """Nobody waits for what a proof finds."""


def _unsaid(sentence: str) -> None:
    """Take a sentence that nobody wants to hear."""


class Progress:
    """What a proof passes between two pieces of its work."""

    def __init__(
        self,
        say: Callable[[str], None] = _unsaid,
        wanted: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`say` is given sentences; `wanted` is asked whether to go on; `clock` counts seconds."""
        self._say, self._wanted, self._clock = say, wanted, clock
        self._said_s = clock()

    def at(self, sentence: str) -> None:
        """Say how far the proof is unless that was done just now. Raises Abandoned."""
        if not self._wanted():
            raise Abandoned
        now_s = self._clock()
        if now_s - self._said_s >= EVERY_S:
            self._said_s = now_s
            self._say(sentence)
