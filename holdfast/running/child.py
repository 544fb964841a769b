"""One supervised process, through all its lives.

A child never outlives its supervisor, however that ends (the kernel sends it SIGTERM); one that
dies is started again, after a pause that doubles while it keeps dying. It writes to a file of its
own.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Final

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
STEADY_S: Final = 10.0
"""Who lived so long and died is started again at once; who did not waits longer each time."""
LOG_LIMIT_BYTES: Final = 8 << 20
"""A log beyond this is set aside at the next start; one old log is kept."""
_TAIL_BYTES: Final = 4_096
_NOTE: Final = "supervisor: "

# Runs first in every child, and then becomes the child. PR_SET_PDEATHSIG is 1. The parent may have
# died before it was set, hence the second look.
_BECOME: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.environ.update(item.split("=", 1) for item in sys.argv[3:3 + int(sys.argv[2])])
os.execv(sys.argv[3 + int(sys.argv[2])], sys.argv[3 + int(sys.argv[2]):])
"""


class ProcessState(StrEnum):
    """What a supervised process is doing."""

    RUNNING = "running"
    PAUSING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"


def last_words(log: Path) -> str:
    """Return the last line that a process wrote to its log; empty if there is none."""
    try:
        with log.open("rb") as content:
            size_bytes = content.seek(0, os.SEEK_END)
            content.seek(max(0, size_bytes - _TAIL_BYTES))
            lines = content.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    own = (line for line in reversed(lines) if not line.startswith(_NOTE))
    return next((line for line in own if line.strip()), "")


class Child:
    """One supervised process, through all its lives."""

    def __init__(
        self,
        name: str,
        arguments: tuple[str, ...],
        log: Path,
        settings: dict[str, str],
        pair: str = "",
    ) -> None:
        self.name = name
        self.pair = pair
        """The pair it serves; empty: the whole exchange."""
        self.log = log
        self.state = ProcessState.STOPPED
        self.restart_count = 0
        self.deaths_in_a_row = 0
        self.started_ns = 0
        self._arguments = arguments
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def title(self) -> str:
        """Return the name that people are told."""
        return f"{self.name} of {self.pair}" if self.pair else self.name

    @property
    def pid(self) -> int:
        """Return the number of the living process, or 0."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process is not None else 0

    def uptime_s(self, now_ns: int) -> int:
        """Return how long the present life has lasted."""
        return (now_ns - self.started_ns) // 1_000_000_000 if self.pid else 0

    async def start(self) -> None:
        """Start the process and keep it alive from now on."""
        self._set_aside()
        await self._begin()
        self._task = asyncio.create_task(self._keep_alive(), name=f"keep {self.name}")

    def _set_aside(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_LIMIT_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))

    async def _begin(self) -> None:
        settings = [f"{name}={value}" for name, value in self._settings.items()]
        # A session of its own: Ctrl-C at the terminal is for the supervisor, who stops in order.
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", _BECOME),
                *(str(os.getpid()), str(len(settings)), *settings),
                *(sys.executable, *self._arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started_ns = time.monotonic_ns()
        self.state = ProcessState.RUNNING

    async def _keep_alive(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            assert self._process is not None
            code = await self._process.wait()
            lived_ns = time.monotonic_ns() - self.started_ns
            if lived_ns >= STEADY_S * 1_000_000_000:
                pause_s, self.deaths_in_a_row = FIRST_PAUSE_S, 0
            self.deaths_in_a_row += 1
            self._note(f"{self.name} ended with {_ending(code)}; restarting in {pause_s:.1f} s")
            self.state = ProcessState.PAUSING
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self.restart_count += 1
            await self._begin()

    def _note(self, sentence: str) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{_NOTE}{sentence}\n")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the living process, if there is one."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self, patience_s: float) -> None:
        """Ask the process to end; after `patience_s` end it. It stays stopped."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        process = self._process
        if process is not None and process.returncode is None:
            self.state = ProcessState.STOPPING
            self.send(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), patience_s)
            except TimeoutError:
                self._note(f"{self.name} did not end within {patience_s:.0f} s and was killed")
                self.send(signal.SIGKILL)
                await process.wait()
        self.state = ProcessState.STOPPED


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
