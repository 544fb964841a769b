"""The ring of remembered client order ids, literally as the page on trading rules tells it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Remembered:
    """One accepted order, as a later retry of it needs it."""

    account: int
    client_order_id: int
    content: tuple[int, ...]
    order_id: int
    execution_number: int
    """Position of its ACCEPTED in the execution log."""


class ClientIds:
    """A ring of `window` places, and an index into it."""

    def __init__(self, window: int) -> None:
        self.places: list[Remembered | None] = [None] * window
        self.index: dict[tuple[int, int], Remembered] = {}
        self.turn = 0

    def find(self, account: int, client_order_id: int) -> Remembered | None:
        """Return what is remembered under an account's client order id."""
        return self.index.get((account, client_order_id))

    def remember(self, entry: Remembered, rests: Callable[[int], bool]) -> None:
        """Write an entry into the next place whose present entry is not of a resting order."""
        while True:
            self.turn = (self.turn + 1) % len(self.places)
            present = self.places[self.turn]
            if present is None:
                break
            if not rests(present.order_id):
                del self.index[present.account, present.client_order_id]
                break
            # It stands in this place anew, as the newest entry; the next place is tried.
        self.places[self.turn] = entry
        self.index[entry.account, entry.client_order_id] = entry
