"""Noticing a database that is older than what it once said: the heads of all chains, kept aside.

A file beside the database, in the run folder, holds each stream's last cursor and hash that
anybody may have acted on. A database restored from an older backup, or another one, does not have
that seal: `Heads.check` says so and the books must not be written. Whoever restored on purpose
removes the file, after having settled what is missing.

The file is replaced atomically, after the commit it speaks of; being late only makes it see less.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine, text

Known = dict[int, tuple[int, bytes]]


class BooksAreOlder(Exception):
    """The database does not know a commit that it once made; the sentence names stream and file."""


class Heads:
    """The last known head of each stream, in memory and in a file."""

    def __init__(self, path: Path, on_older: Callable[[str], None] | None = None) -> None:
        self.path = path
        self.sentence = ""
        """Why the books must not be used; empty while they may."""
        self._on_older = on_older
        self._known = _read(path)
        self._lock = threading.Lock()

    def check(self, engine: Engine) -> None:
        """Compare with the database, then keep what it says. Raises BooksAreOlder, for ever."""
        with self._lock:
            if not self.sentence:
                self.sentence = self._compare(engine)
                if self.sentence and self._on_older is not None:
                    self._on_older(self.sentence)
            if self.sentence:
                raise BooksAreOlder(self.sentence)

    def older(self, engine: Engine) -> str:
        """Return why the database must be older than it was; empty if it is not. Keeps nothing."""
        with self._lock:
            return self.sentence or self._compared(engine)[0]

    def _compare(self, engine: Engine) -> str:
        sentence, now = self._compared(engine)
        if not sentence and now != self._known:
            self._known = now
            _write(self.path, now)
        return sentence

    def _compared(self, engine: Engine) -> tuple[str, Known]:
        query = text("SELECT id, cursor, head FROM streams")
        seal = text("SELECT hash FROM seals WHERE stream = :stream AND cursor_to = :cursor")
        with engine.connect() as connection:
            now = {row[0]: (int(row[1]), bytes(row[2])) for row in connection.execute(query)}
            for stream, (cursor, head) in sorted(self._known.items()):
                if now.get(stream) == (cursor, head) or cursor == 0:
                    continue
                given = {"stream": stream, "cursor": cursor}
                found = connection.execute(seal, given).fetchone()
                if found is None or bytes(found[0]) != head:
                    sentence = (
                        f"the database is older than these books: stream {stream} had reached"
                        f" {cursor}, sealed {head.hex()[:16]}, and now stands at"
                        f" {now.get(stream, (0, b''))[0]} without that seal; it was restored from"
                        f" a backup or replaced ({self.path})"
                    )
                    return sentence, now
        return "", now


def _read(path: Path) -> Known:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return {}
    known = {}
    for line in lines:
        stream, cursor, head = line.split(" ")
        known[int(stream)] = (int(cursor), bytes.fromhex(head))
    return known


def _write(path: Path, known: Known) -> None:
    lines = [f"{stream} {cursor} {head.hex()}\n" for stream, (cursor, head) in known.items()]
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_text("".join(lines), encoding="ascii")
    unfinished.replace(path)
