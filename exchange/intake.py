"""How order entry reaches an engine: names, words and bells both sides agree on.

Each order-entry process owns one inbox segment (a ring of commands). The engine owns the intake
segment: how far it has read every inbox, whether it sleeps, what state it is in. So every word
has one writer: producers borrow the cursors, the engine borrows the inboxes.
"""

from typing import Final

from exchange.ownership import Field, Layout
from exchange.records import COMMAND_WORDS, RING_CAPACITY
from exchange.ring import ring_layout

INTAKE_ASLEEP: Final = 0
"""Word of ``control``: one while the engine waits for its bell."""
INTAKE_STATE: Final = 8
"""Word of ``control``: the engine's STATE_ of ``exchange.book_layout``."""
INTAKE_SEQUENCE: Final = 16
"""Word of ``control``: sequence of the last applied command."""
INTAKE_JOURNAL: Final = 24
"""Word of ``control``: a number drawn once for the journal the engine continues."""
INBOX_JOURNAL: Final = 24
"""Word of an inbox's ``control``: the journal its positions count for. Positions mean nothing to
another journal, so an engine leaves alone what was written for another one."""
CURSOR_STRIDE: Final = 8
"""Words between the cursors of two rings: a cache line each."""
INBOX_CAPACITY: Final = 1 << 15
"""Commands an inbox holds: 2 MiB, a third of a second at 100,000 orders a second."""


def intake_layout() -> Layout:
    """Return the layout of the engine's side."""
    return Layout(
        name="intake",
        version=1,
        fields=(
            Field("control", "int64", (64,)),
            Field("cursors", "int64", (RING_CAPACITY * CURSOR_STRIDE,)),
        ),
    )


def inbox_layout() -> Layout:
    """Return the layout of one order-entry process's side."""
    return ring_layout("inbox", INBOX_CAPACITY, COMMAND_WORDS)


def inbox_purpose(ring: int) -> str:
    """Return the purpose part of the segment name of an inbox."""
    return f"inbox-{ring}"
