"""Computing the journal of money again, and comparing every row of custody with what it says.

Three things together leave no row out: the chain says that no event was changed, left out or moved;
the tips, which the seals of the books' own stream cover, say where it ends; and the events, played
again, say what every row holds. A page of subjects at a time, so that a long journal needs no more
memory than a short one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from ledgerd.books.commit import Connection
from ledgerd.trail.progress import Progress
from ledgerd.trail.replay import Event, Key, Replay, Row, differences, plain_row, shown

CHUNK: Final = 5_000
"""Events read at a time."""
PAGE_EVENTS: Final = 50_000
"""About so many events are played again at a time; a subject's are never parted."""
Complain = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose rows events make."""

    name: str
    key: Sequence[str]
    columns: Sequence[str]
    subject: str
    """SQL of a row's subject."""
    kind: int = 0
    content: Callable[[tuple[Any, ...]], bytes] | None = None
    """The content that the last event of this kind must have, from the columns of the row."""


def verify_tips(connection: Connection, last: int, complain: Complain) -> None:
    """Hold the events against the tips that are sealed: the last tip is the last event."""
    query = (
        "SELECT tips.number FROM money_tips AS tips"
        " LEFT JOIN money_events AS events ON events.number = tips.number"
        " WHERE events.hash IS DISTINCT FROM tips.hash ORDER BY 1 LIMIT 10"
    )
    for (number,) in connection.execute(query).fetchall():
        complain(f"event {number} is not the one that was sealed")
    row = connection.execute("SELECT coalesce(max(number), 0) FROM money_tips").fetchone()
    assert row is not None
    if row[0] != last:
        complain(f"the journal of money ends with event {last}; what is sealed says {row[0]}")


def verify_rows(
    connection: Connection, tables: Sequence[Table], complain: Complain, progress: Progress
) -> None:
    """Play all events again and compare every row of every table with them. Raises Abandoned."""
    count = 0
    for page in _pages(connection):
        replay = Replay(complain)
        for event in _events(connection, page):
            if count % CHUNK == 0:
                progress.at(f"journal of money: {count:,} events played again")
            count += 1
            replay.take(event)
        for table in tables:
            _compare(connection, table, page, replay, complain)
        known = {table.name for table in tables}
        for name, key in replay.rows:
            if name not in known:
                complain(f"{name} {shown(key)} is of no table that there is")


@dataclass(frozen=True, slots=True)
class _Page:
    """The subjects beyond `after` and up to `last`; None: from the first, to the last."""

    after: UUID | None
    last: UUID | None

    def of(self, expression: str) -> tuple[str, tuple[UUID, ...]]:
        """Return a condition on a subject, and its values."""
        parts = [(">", self.after), ("<=", self.last)]
        given = [(sign, subject) for sign, subject in parts if subject is not None]
        condition = " AND ".join(f"{expression} {sign} %s" for sign, _ in given)
        return condition or "true", tuple(subject for _, subject in given)


def _pages(connection: Connection) -> Iterator[_Page]:
    after: UUID | None = None
    while True:
        condition, values = _Page(after, None).of("subject")
        query: Any = (
            f"SELECT subject FROM money_events WHERE {condition} ORDER BY subject OFFSET %s LIMIT 1"
        )
        row = connection.execute(query, (*values, PAGE_EVENTS)).fetchone()
        last = None if row is None else row[0]
        yield _Page(after, last)
        if last is None:
            return
        after = last


def _events(connection: Connection, page: _Page) -> Iterator[Event]:
    condition, values = page.of("subject")
    query: Any = (
        "SELECT number, subject, kind, state_from, state_to, content, wrote FROM money_events"
        f" WHERE {condition} ORDER BY subject, number"
    )
    # Read as it is needed: one subject alone may have very many, such as the custodian's cursor.
    with connection.cursor(name="money_events_again") as cursor:
        cursor.itersize = CHUNK
        cursor.execute(query, values)
        for number, subject, kind, state_from, state_to, content, wrote in cursor:
            yield Event(number, subject, kind, state_from, state_to, bytes(content), wrote)


def _compare(
    connection: Connection, table: Table, page: _Page, replay: Replay, complain: Complain
) -> None:
    condition, values = page.of(table.subject)
    query: Any = f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE {condition}"
    expected, found = replay.of_table(table.name), dict[Key, Row]()
    for values_found in connection.execute(query, values):
        row = plain_row(dict(zip(table.columns, values_found, strict=True)))
        key = tuple(row[name] for name in table.key)
        found[key] = row
        if table.content is not None and expected.get(key) == row:
            # Rows from before events told them are what they were at the upgrade; and are they
            # what was decided on before it?
            said = replay.contents.get((table.kind, values_found[0]), b"")
            if table.content(values_found) != said:
                complain(f"{table.name} {shown(key)} is not what was decided on")
    for sentence in differences(table.name, expected, found):
        complain(sentence)
