"""Start and crash are one path: newest valid snapshot, then the journal behind it.

Every frame of the journal carries the hash of all executions before it. It is compared before the
frame is applied, so a kernel that would decide differently is found before it trades. Executions
that followers may have seen must come out the same, byte for byte.
"""

import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.durability.execution_log import ExecutionLogWriter
from engine.durability.frames import DurabilityError
from engine.durability.journal import Durability, Journal, sync_folder
from engine.durability.snapshot import (
    Capture,
    Image,
    Snapshot,
    Stamp,
    capture,
    newest_snapshot,
    restore,
)
from engine.sequencer import chain
from engine.state_machine import Engine
from engine.vault_layout import TIME_NS, vault_layout
from exchange.book_layout import book_layout
from exchange.config import RunFolder
from exchange.instrument import Instrument
from exchange.ownership import Owned
from exchange.segment import hash_of

_log = logging.getLogger(__name__)

BOOK_STATE = ("bits0", "bits1", "bits2", "bits3", "levels")


class RecoveryDiverged(DurabilityError):
    """The kernel decides differently from the one that wrote the journal."""


@dataclass(slots=True)
class Recovered:
    """An engine as it was after its last durable command."""

    engine: Engine
    journal: Journal
    log: ExecutionLogWriter
    chain_hash: int
    replayed_count: int
    journal_number: int
    """Drawn once for this journal; inboxes written for another one are left alone."""


def layout_hash(instrument: Instrument) -> int:
    """Return what a snapshot must have been made with to be of use."""
    return vault_layout(instrument).hash ^ book_layout(instrument).hash


def images(engine: Engine, vault: Owned | None, book: Owned | None) -> dict[str, Image]:
    """Return the arrays that make up the state; of segments only the pages in use are read."""
    found = {}
    for prefix, arrays, owned, names in (
        ("vault.", engine.vault, vault, tuple(engine.vault)),
        ("book.", engine.book, book, BOOK_STATE),
    ):
        for name in names:
            array = arrays[name]
            if owned is None:
                found[prefix + name] = Image(array)
            else:
                offset = owned.layout.offsets[name]
                found[prefix + name] = Image(array, owned.shared_memory.fd, offset)
    return found


def take_snapshot(
    engine: Engine, chain_hash: int, vault: Owned | None = None, book: Owned | None = None
) -> Capture:
    """Copy the state between two batches; writing it may happen elsewhere."""
    stamp = Stamp(
        sequence=engine.sequence,
        execution_count=engine.execution_count,
        chain_hash=chain_hash,
        state_hash=engine.state_hash(),
        layout_hash=layout_hash(engine.instrument),
        identity=hash_of(engine.instrument.pair),
    )
    return capture(stamp, images(engine, vault, book))


def _restore(engine: Engine, snapshot: Snapshot) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {f"vault.{k}": v for k, v in engine.vault.items()}
    arrays |= {f"book.{name}": engine.book[name] for name in BOOK_STATE}
    engine.vault["scalars"][:] = 0
    restore(snapshot, arrays)
    engine.configure()
    if engine.state_hash() != snapshot.stamp.state_hash:
        raise RecoveryDiverged(
            f"{snapshot.path}: the restored state has hash {engine.state_hash():#x},"
            f" the snapshot says {snapshot.stamp.state_hash:#x}"
        )
    _log.info("restored %s", snapshot.path)


def recover(
    folder: RunFolder,
    instrument: Instrument,
    durability: Durability,
    vault: Mapping[str, npt.NDArray[Any]],
    book: Mapping[str, npt.NDArray[Any]],
) -> Recovered:
    """Bring zeroed arrays to the state after the last durable command.

    Raises JournalDamaged, ExecutionLogDiverged, RecoveryDiverged or JournalBlocked, each with a
    sentence; nothing has traded then.
    """
    identity = hash_of(instrument.pair)
    for path in (folder.journal, folder.executions):
        path.mkdir(parents=True, exist_ok=True)
    snapshot = newest_snapshot(
        folder.journal, layout_hash=layout_hash(instrument), identity=identity
    )
    engine = Engine(instrument, vault, book)
    log = ExecutionLogWriter.open(folder.executions, identity=identity)
    chain_hash = 0
    if snapshot is not None:
        _restore(engine, snapshot)
        chain_hash = snapshot.stamp.chain_hash
    journal = Journal.open(
        folder.journal,
        durability=durability,
        applied_sequence=max(log.last_sequence(), engine.sequence),
        identity=identity,
    )
    log.rewind(engine.execution_count)
    first = engine.sequence
    chain_hash = _replay(engine, journal, log, chain_hash)
    log.end_recovery()
    # An empty batch decides nothing, but the kernel is compiled before anybody waits for it.
    engine.apply_at(0, 0, int(engine.vault["scalars"][TIME_NS]))
    engine.publish_again()
    number = _journal_number(folder.journal)
    return Recovered(engine, journal, log, chain_hash, engine.sequence - first, number)


def _journal_number(folder: Path) -> int:
    """Return the number drawn when the journal was made; draw it if there is none."""
    path = folder / "number"
    if not path.exists():
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("w", encoding="ascii") as file:
            file.write(str(secrets.randbits(62) | 1))
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        sync_folder(folder)
    return int(path.read_text(encoding="ascii"))


def _replay(engine: Engine, journal: Journal, log: ExecutionLogWriter, chain_hash: int) -> int:
    """Apply every frame behind the engine's sequence; return the hash of all executions."""
    for frame in journal.replay(engine.sequence):
        if frame.chain_hash != chain_hash:
            raise RecoveryDiverged(
                f"sequence {frame.first_sequence - 1}: this kernel's executions have hash"
                f" {chain_hash:#x}, the journal says {frame.chain_hash:#x}; it was written by"
                " a kernel that decides differently"
            )
        applied = 0
        count = len(frame.commands)
        address = frame.commands.ctypes.data
        while applied < count:
            applied += engine.apply_at(address + applied * 64, count - applied, frame.time_ns)
            executions = engine.executions
            chain_hash = chain(executions, chain_hash)
            log.append_or_verify(np.ascontiguousarray(executions))
    return chain_hash


def reserve_pages(vault: Owned, book: Owned) -> None:
    """Have the system provide the memory that every pair will use, now instead of at first touch.

    All but what grows with the price range: levels, queues and the finest bitmap stay sparse.
    Raises OSError when the memory is not there: better at the start than by a fault in a store.
    """
    for owned, sparse in ((vault, {"queues"}), (book, {"levels", "bits0"})):
        for one in owned.layout.fields:
            if one.name not in sparse:
                offset = owned.layout.offsets[one.name]
                os.posix_fallocate(owned.shared_memory.fd, offset, one.size_bytes)


def own_fresh(name: str, layout: Any, *, mode: int, directory: str, group: str | None) -> Owned:
    """Claim a segment and make sure it is empty: what a dead owner left is replaced.

    Readers of the old one notice that its name leads elsewhere and open the new one, whose epoch
    is a later one.
    """
    owned = Owned.claim(name, layout, mode=mode, directory=directory, group=group)
    if owned.created:
        return owned
    epoch = owned.epoch

    def continue_epochs(fresh: Owned) -> None:
        fresh.epoch = epoch

    owned.close(unlink=True)
    return Owned.claim(
        name, layout, mode=mode, directory=directory, group=group, prepare=continue_epochs
    )
