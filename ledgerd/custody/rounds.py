"""Rows that a service looks at again and again: a page a round, and no bad row stops the others.

A page starts where the one before ended and wraps at the end, so that every row has its turn
however many there are, and whatever the ones before it do. What a row raises is kept beside its
id, told once, and the next row follows; only a database or service that is away ends a round,
because then nothing can be said about any row.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar
from uuid import UUID

from ledgerd.books.commit import Connection
from ledgerd.custody.adapter import Unanswered
from ledgerd.database import GONE

TROUBLE_LIMIT: Final = 1_000
"""So many bad rows are remembered; more are told, every time."""
T = TypeVar("T")
log = logging.getLogger("ledgerd.custody")


class Rows:
    """Where the rounds over rows of one kind are, and which rows are in trouble."""

    def __init__(self, what: str) -> None:
        """Name a row in sentences, such as "withdrawal"."""
        self.what = what
        self.troubles: dict[UUID, str] = {}
        """What each bad row raised last."""
        self._after: UUID | None = None
        """The row that had the last turn; any 16 bytes may be an id, so none stands for nowhere."""

    def page(
        self, connection: Connection, query: str, values: tuple[object, ...], limit: int
    ) -> list[tuple[Any, ...]]:
        """Return the rows of `query`, whose first column is an id, in the order of their turns.

        The query has to end in a condition; what follows it is added here.
        """
        following: Any = f"{query} AND (%s::uuid IS NULL OR id > %s) ORDER BY id LIMIT %s"
        place = (self._after, self._after)
        rows = connection.execute(following, (*values, *place, limit)).fetchall()
        if len(rows) < limit and self._after is not None:
            before: Any = f"{query} AND id <= %s ORDER BY id LIMIT %s"
            missing = limit - len(rows)
            rows += connection.execute(before, (*values, self._after, missing)).fetchall()
        return rows

    def each(
        self, rows: Iterable[T], identity: Callable[[T], UUID], work: Callable[[T], bool]
    ) -> int:
        """Do the work for each row; return for how many it returned True."""
        count = 0
        for row in rows:
            made = identity(row)
            # Before the work: a row that always ends the round must not have the next one, too.
            self._after = made
            try:
                count += work(row)
            except (Unanswered, *GONE):
                raise
            except Exception as error:
                self.failed(made, error)
            else:
                self.troubles.pop(made, None)
        return count

    def failed(self, made: UUID, error: Exception) -> None:
        """Note what a row raised; tell it when it is news."""
        sentence = f"{self.what} {made}: {type(error).__name__}: {error}"
        if self.troubles.get(made) == sentence:
            return
        if made in self.troubles or len(self.troubles) < TROUBLE_LIMIT:
            self.troubles[made] = sentence
        log.critical("%s", sentence, exc_info=error)
