"""Waiting for another process: spin for a bounded time, then sleep until it rings.

The bell is a named pipe in a folder both sides can reach, so it works between the containers of a
pod. Ringing costs a system call and waking a sleeper costs microseconds, so nobody rings unless
the listener has said that it is asleep, by a word in its *own* memory that the ringer borrows:

    listener                                ringer
    asleep word = 1                         publish (release store)
    full fence                              full fence
    look once more at what is published     look at the asleep word, ring if it is 1
    sleep until rung                        (`Ringer.ring_if_asleep`)

One of the two always sees the other's store, so no wake-up is lost. A ring too many is harmless.

Invariants: one listener a bell, by an OS lock; ringing never blocks, whether nobody listens, the
pipe is full, or the listener died and came back; a bell carries no information beyond "look".

Not here: what is waited for (the caller gives addresses and values seen), fairness, priorities.
"""

import contextlib
import errno
import fcntl
import os
import select
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from exchange.atomics import (
    Words,
    fence_full,
    load_acquire_at,
    load_relaxed,
    pause,
    store_relaxed,
)
from exchange.compiled import kernel

SPINS: Final = 2_000
"""Looks before falling asleep: 50 to 100 microseconds, a few times what a wake-up costs."""
_PIPE_BYTES: Final = 65_536


class AlreadyListening(Exception):
    """Another process listens to this bell; two listeners would each miss half of the rings."""


@kernel
def fall_asleep(words: Words, index: int) -> None:
    """Set the listener's asleep word; look at what is published once more after this."""
    store_relaxed(words, index, 1)
    fence_full()


@kernel
def wake_up(words: Words, index: int) -> None:
    """Clear the listener's asleep word."""
    store_relaxed(words, index, 0)


@kernel
def is_asleep(words: Words, index: int) -> bool:
    """Say, after something was published, whether the listener has to be rung for."""
    fence_full()
    return load_relaxed(words, index) != 0


@kernel
def spin_until_changed(addresses: Words, seen: Words, spins: int) -> int:
    """Look at most `spins` times at words by address; return the index of one that changed or -1.

    `addresses` holds the addresses of 64-bit words, `seen` the value last seen at each.
    """
    for _ in range(spins):
        for i in range(addresses.shape[0]):
            if load_acquire_at(addresses[i]) != seen[i]:
                return i
        pause()
    return -1


class Doorbell:
    """The listening end of a bell. Get it from `listen`."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    @classmethod
    def listen(cls, path: str | os.PathLike[str], *, mode: int = 0o660) -> "Doorbell":
        """Create the named pipe if need be and listen to it.

        Raises AlreadyListening, or OSError if there is something else at `path`.
        """
        path = Path(path)
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, mode)
        # Open for writing too: without any writer a pipe reads as ended, for ever.
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            if not stat.S_ISFIFO(status.st_mode):
                raise OSError(errno.EINVAL, f"{path} is not a named pipe")
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyListening(f"another process listens to {path}") from None
            if status.st_uid == os.geteuid():
                os.fchmod(fd, mode)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the bell rings (for add_reader)."""
        return self._fd

    def drain(self) -> bool:
        """Forget all rings so far; say whether there were any."""
        rung = False
        while True:
            try:
                content = os.read(self._fd, _PIPE_BYTES)
            except BlockingIOError:
                return rung
            rung = True
            if len(content) < _PIPE_BYTES:
                return rung

    def wait(self, timeout_s: float | None = None) -> bool:
        """Sleep until rung or until `timeout_s` passed, then drain; say whether it was rung."""
        self._poll.poll(None if timeout_s is None else timeout_s * 1000)
        return self.drain()

    def close(self, *, unlink: bool = False) -> None:
        """Stop listening; with `unlink` remove the pipe as well. Closing twice does nothing."""
        if self._fd < 0:
            return
        if unlink:
            self.path.unlink(missing_ok=True)
        self._poll.unregister(self._fd)
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Sleeper:
    """A listener that spins first: `asleep_words[asleep_index]` lies in its own memory.

    For asyncio: watch `bell.fileno()`; when there is nothing to do call `fall_asleep`, look once
    more, and return to the loop; in the callback call `wake_up` and `bell.drain`.
    """

    def __init__(
        self, bell: Doorbell, asleep_words: Words, asleep_index: int, *, spins: int = SPINS
    ) -> None:
        self.bell = bell
        self.words = asleep_words
        self.index = asleep_index
        self.spins = spins

    def wait(self, addresses: Words, seen: Words, timeout_s: float | None = None) -> int:
        """Return the index of a word that is no longer what was `seen`, or -1.

        -1 means that `timeout_s` passed, or that the bell rang for something else. Spins, then
        sleeps; the asleep word is clear whenever this is not sleeping.
        """
        changed = spin_until_changed(addresses, seen, self.spins)
        if changed >= 0:
            return changed
        fall_asleep(self.words, self.index)
        try:
            changed = spin_until_changed(addresses, seen, 1)
            if changed >= 0:
                return changed
            self.bell.wait(timeout_s)
        finally:
            wake_up(self.words, self.index)
        return spin_until_changed(addresses, seen, 1)


class Ringer:
    """The ringing end of a bell; opens it when it first rings."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd = -1

    def _open(self) -> bool:
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == errno.ENXIO:  # A pipe without a listener.
                return False
            raise
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, f"{self.path} is not a named pipe")
        self._fd = fd
        return True

    def ring(self) -> bool:
        """Ring; never blocks. Return False if nobody listens.

        Raises OSError if this user may not ring, or if there is no pipe but something else.
        """
        for _ in range(2):
            if self._fd < 0 and not self._open():
                return False
            try:
                os.write(self._fd, b"\0")
            except BlockingIOError:
                return True  # Full of rings that the listener has yet to notice.
            except BrokenPipeError:
                self.close()  # The listener went away; another may listen by now.
            else:
                return True
        return False

    def ring_if_asleep(self, asleep_words: Words, asleep_index: int) -> bool:
        """Ring if the listener's borrowed word says that it sleeps; say whether it was rung."""
        return is_asleep(asleep_words, asleep_index) and self.ring()

    def close(self) -> None:
        """Let go of the pipe; the next ring opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
