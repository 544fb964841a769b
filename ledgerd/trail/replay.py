"""What the journal of money says that the tables of custody hold. Pure.

Each event carries what its step wrote: of every row the table and key, and of every column that was
written the value before and after. Played again from the first event on, they give the rows that
must be there, column by column. The value before is what the step found: so a row that was tampered
with and then written by an honest step is found, too, and what it held is not believed.

Every row belongs to one subject (`subject_of`), whose events are all that is ever said of it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

Plain = int | str
"""A value as events tell it: an id or digest is its hexadecimal text."""
Row = dict[str, Plain]
Key = tuple[Plain, ...]
"""The values of a row's key, in the order of its columns."""
STATELESS: Final = 4
"""Kind of events that are of no subject's state: notices (`journal.Subject.NOTICE`)."""


def plain(value: object) -> Plain:
    """Return a value of a column as events tell it."""
    if isinstance(value, int):
        return int(value)
    return value.hex() if isinstance(value, bytes) else str(value)


def plain_row(values: Mapping[str, object]) -> Row:
    """Return columns as events tell them."""
    return {name: plain(value) for name, value in values.items()}


def text_id(text: str) -> UUID:
    """Return the subject of what is known by a text; PostgreSQL's ``md5(text)::uuid``."""
    return UUID(bytes=hashlib.md5(text.encode(), usedforsecurity=False).digest())


def subject_of(key: Key) -> UUID:
    """Return the subject that a row belongs to: the id its key begins with, or a text's."""
    first = str(key[0])
    try:
        return UUID(first)
    except ValueError:
        return text_id(first)


@dataclass(frozen=True, slots=True)
class Written:
    """One row as a step wrote it."""

    table: str
    key: Row
    before: Row
    """The columns that were changed, as they were found; empty for a new row."""
    after: Row

    @property
    def place(self) -> tuple[str, Key]:
        """Return table and key."""
        return self.table, tuple(self.key.values())


def told(rows: Iterable[Written]) -> str:
    """Return the text in which an event carries rows; empty for none."""
    parts = [[row.table, row.key, row.before, row.after] for row in rows]
    return json.dumps(parts, separators=(",", ":"), ensure_ascii=False) if parts else ""


def written(text: str) -> list[Written]:
    """Return the rows that an event carries. Raises ValueError if `told` never made that text."""
    found = []
    for parts in json.loads(text) if text else []:
        match parts:
            case [str(table), dict(key), dict(before), dict(after)] if key:
                found.append(Written(table, key, before, after))
            case _:
                raise ValueError(f"{parts} is no row")
    return found


@dataclass(frozen=True, slots=True)
class Event:
    """What counts of an event when it is played again."""

    number: int
    subject: UUID
    kind: int
    state_from: int
    state_to: int
    content: bytes
    wrote: str


@dataclass(slots=True)
class Replay:
    """The rows of some subjects as their events, taken in order, made them."""

    complain: Callable[[str], None]
    rows: dict[tuple[str, Key], Row] = field(default_factory=dict)
    contents: dict[tuple[int, UUID], bytes] = field(default_factory=dict)
    """The content of the last event, by kind and subject."""
    _states: dict[tuple[int, UUID], int] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Play one event; each contradiction to those before is a complaint."""
        who = event.kind, event.subject
        if event.kind != STATELESS:
            if event.state_from != self._states.get(who, 0):
                self.complain(
                    f"event {event.number} changes {event.subject} from a state that it was not in"
                )
            self._states[who], self.contents[who] = event.state_to, event.content
        try:
            rows = written(event.wrote)
        except ValueError:
            self.complain(f"event {event.number} tells no rows that can be read")
            return
        for row in rows:
            self._take(event, row)

    def _take(self, event: Event, row: Written) -> None:
        where = f"event {event.number}: {row.table} {shown(row.place[1])}"
        known = self.rows.get(row.place)
        if subject_of(row.place[1]) != event.subject:
            self.complain(f"{where} is not a row of {event.subject}")
        elif known is None and not row.before:
            self.rows[row.place] = row.key | row.after
        elif known is None or not row.before:
            self.complain(f"{where} is {'added twice' if known else 'changed and was never added'}")
        else:
            for column, value in row.before.items():
                if known.get(column) != value:
                    self.complain(
                        f"{where} had {column} {value!r} before that; the events before say"
                        f" {known.get(column)!r}"
                    )
            known.update(row.after)

    def of_table(self, table: str) -> dict[Key, Row]:
        """Return the rows that a table must have."""
        return {key: row for (name, key), row in self.rows.items() if name == table}


def shown(key: Key) -> str:
    """Return a key for people."""
    return " ".join(map(str, key))


def differences(table: str, expected: Mapping[Key, Row], found: Mapping[Key, Row]) -> Iterator[str]:
    """Name every row and column in which a table is not what its events made it."""
    for key in sorted(expected.keys() | found.keys(), key=shown):
        row, there, where = expected.get(key), found.get(key), f"{table} {shown(key)}"
        if there is None:
            yield f"{where} is gone; its events say that it is there"
        elif row is None:
            yield f"{where} is there and no event made it"
        else:
            for column in sorted(row.keys() | there.keys()):
                if row.get(column) != there.get(column):
                    yield (
                        f"{where}: {column} is {there.get(column)!r}; its events say"
                        f" {row.get(column)!r}"
                    )
