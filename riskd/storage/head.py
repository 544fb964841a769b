"""Noticing a database that is older than what was decided: how much there was, kept aside.

A file in the run folder says how many changes and withdrawals the database held. One that was
restored from an older backup, or replaced, holds fewer: limits, kill switches and what was
withdrawn today would roll back without a word, so the service does not start. Whoever restored on
purpose removes the file, after having decided again what is missing.

The file is replaced atomically, within a second of the commit it speaks of; being late only makes
it see less. What is in the rows is guarded by the database (grants and triggers), not here.
"""

from pathlib import Path
from typing import Final, NamedTuple


class DatabaseIsOlder(RuntimeError):
    """The database has forgotten something; the sentence says what, and names the file."""


class Head(NamedTuple):
    """How much was decided: neither number ever falls."""

    change: int
    """Number of the last change of limits, profiles, targets or kill switches."""
    withdrawal_count: int


NOTHING: Final = Head(0, 0)


class HeadFile:
    """The last head that was seen."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "riskd.storage.head"
        self._known = NOTHING
        if self._path.exists():
            change, count = self._path.read_text(encoding="ascii").split()
            self._known = Head(int(change), int(count))

    def check(self, found: Head) -> None:
        """Raise DatabaseIsOlder if less is found than was known."""
        known = self._known
        if found.change < known.change or found.withdrawal_count < known.withdrawal_count:
            raise DatabaseIsOlder(
                f"the database is older than what was decided: it ends at change {found.change}"
                f" with {found.withdrawal_count} withdrawals, and had reached change {known.change}"
                f" with {known.withdrawal_count}; it was restored from a backup or replaced"
                f" ({self._path})"
            )

    def keep(self, found: Head) -> None:
        """Write a head that is not the one known already."""
        if found != self._known:
            unfinished = self._path.with_name(f"{self._path.name}.new")
            unfinished.write_text(f"{found.change} {found.withdrawal_count}\n", encoding="ascii")
            unfinished.replace(self._path)
            self._known = found
