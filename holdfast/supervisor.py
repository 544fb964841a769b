"""Starts the processes of a pair, starts again what dies, and stops everything in good order.

    engine ─ one          order entry ─ N, one shared port          mdgateway ─ one

Invariants: one supervisor a run folder, by an OS lock; nothing is started before the ports are
known to be free and what dead owners left in memory is gone; a child never outlives its
supervisor, however that ends (the kernel sends it SIGTERM); a child that dies is started again,
after a pause that doubles while it keeps dying; stopping goes from the doors inwards, so that the
engine drains what the doors took. Every child writes to a file of its own in the run folder.

Not here: what the processes do, whether they answer, anything about orders. The services are
reached by their command lines only.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from exchange.book_layout import segment_name
from exchange.config import RunFolder, segment_folder
from exchange.ownership import remove_stale
from exchange.segment import lock

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
STEADY_S: Final = 10.0
"""Who lived so long and died is started again at once; who did not waits longer each time."""
HOPELESS_COUNT: Final = 3
"""So many deaths in a row at the start are a reason to give up, with what was said last."""
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


class SupervisorError(Exception):
    """Why the pair was not started, in one sentence."""


class RunFolderInUse(SupervisorError):
    """Another supervisor works on this run folder."""


class PortTaken(SupervisorError):
    """Something else listens on a port that is needed."""


class PairRunning(SupervisorError):
    """Another run of this pair owns its segments."""


class StartFailed(SupervisorError):
    """A process died again and again instead of starting."""


class ProcessState(StrEnum):
    """What a supervised process is doing."""

    RUNNING = "running"
    PAUSING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class PairPlan:
    """Which processes of which pair, and where."""

    pair: str
    run: Path
    orders_port: int = 8850
    market_data_port: int = 8851
    """0: no market data gateway."""
    entry_count: int = 2
    durability: str = "fsync"
    instruments: Path | None = None
    """An instrument file instead of the installed one."""
    segments: str = field(default_factory=segment_folder)
    """Folder of the shared memory segments."""

    def validate(self) -> Self:
        """Return self, or raise ValueError naming the first field that cannot work."""
        for name, value, low, high in (
            ("orders_port", self.orders_port, 1, 65_535),
            ("market_data_port", self.market_data_port, 0, 65_535),
            ("entry_count", self.entry_count, 1, 64),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be from {low} to {high}")
        if self.orders_port == self.market_data_port:
            raise ValueError(f"market_data_port is {self.market_data_port}, as is orders_port")
        if self.durability not in ("fsync", "os"):
            raise ValueError(f"durability is {self.durability!r}; it must be fsync or os")
        return self

    @property
    def folder(self) -> Path:
        """Return the pair's own folder."""
        return RunFolder(self.run, self.pair).folder

    def commands(self) -> dict[str, tuple[str, ...]]:
        """Return the arguments of each process by its name, in the order of starting."""
        given: tuple[str, ...] = ("--pair", self.pair, "--run", str(self.run))
        if self.instruments is not None:
            given += ("--instruments", str(self.instruments))
        found: dict[str, tuple[str, ...]] = {
            "engine": (
                *("-m", "engine", *given),
                *("--durability", self.durability, "--inboxes", str(self.entry_count)),
            )
        }
        for ring in range(self.entry_count):
            port = str(self.orders_port)
            arguments = ("-m", "engine.entry_server", *given, "--ring", str(ring), "--port", port)
            found[f"entry-{ring}"] = arguments
        if self.market_data_port:
            port = str(self.market_data_port)
            found["mdgateway"] = ("-m", "mdgateway", *given, "--port", port)
        return found


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
        self, name: str, arguments: tuple[str, ...], log: Path, settings: dict[str, str]
    ) -> None:
        self.name = name
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

    async def stop(self, patience_s: float) -> None:
        """Ask the process to end; after `patience_s` end it. It stays stopped."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        process = self._process
        if process is not None and process.returncode is None:
            self.state = ProcessState.STOPPING
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), patience_s)
            except TimeoutError:
                self._note(f"{self.name} did not end within {patience_s:.0f} s and was killed")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        self.state = ProcessState.STOPPED


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def check_port_free(port: int) -> None:
    """Raise PortTaken with a sentence if somebody listens on a port of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # What a stopped server's last connections left must not count; a listener still does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "is in use" if error.errno == errno.EADDRINUSE else "is not allowed here"
            raise PortTaken(f"port {port} of 127.0.0.1 {why}; choose another one") from error


def free_ports(count: int) -> list[int]:
    """Return so many different ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
        return ports


def _lock_run_folder(run: Path) -> int:
    """Return the open lock file of a run folder. Raises RunFolderInUse."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / "holdfast.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise RunFolderInUse(
            f"run folder {run} is in use by process {owner}; stop it, or choose another folder"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode("ascii"))
    return fd


def _owned(path: Path) -> bool:
    """Say whether a living process holds a segment."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # Another user's.
    try:
        return not lock(fd)
    finally:
        os.close(fd)


class Supervisor:
    """The processes of one pair, and whoever else is added. Use as an async context manager.

    Entering locks the run folder, checks and cleans, and raises SupervisorError with a sentence if
    the pair cannot be started; leaving stops whatever runs.
    """

    def __init__(self, plan: PairPlan) -> None:
        self.plan = plan.validate()
        self.cleaned: list[str] = []
        """Segments of dead owners that were removed at the start."""
        self.children: dict[str, Child] = {}
        self._lock = -1

    async def __aenter__(self) -> Self:
        self._lock = _lock_run_folder(self.plan.run)
        try:
            for port in filter(None, (self.plan.orders_port, self.plan.market_data_port)):
                check_port_free(port)
            self._clean()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start all processes of the pair; whether they answer is for the caller to see."""
        for name, arguments in self.plan.commands().items():
            await self.add(name, arguments)

    def _clean(self) -> None:
        segments = Path(self.plan.segments)
        segments.mkdir(parents=True, exist_ok=True)
        prefix = segment_name(self.plan.pair, "")
        self.cleaned = remove_stale(prefix, segments)
        left = sorted(path.name for path in segments.glob(prefix + "*") if _owned(path))
        if left:
            raise PairRunning(
                f"{self.plan.pair} is running already: {', '.join(left)} in {segments} belong to"
                " living processes; stop them, or set HOLDFAST_SEGMENTS to another folder"
            )

    async def add(self, name: str, arguments: tuple[str, ...]) -> Child:
        """Start one more process, `arguments` being those of the Python interpreter."""
        assert name not in self.children, f"{name} is supervised already"
        settings = {"HOLDFAST_SEGMENTS": self.plan.segments}
        child = Child(name, arguments, self.plan.folder / "logs" / f"{name}.log", settings)
        self.children[name] = child
        await child.start()
        return child

    def check_hopeless(self) -> None:
        """Raise StartFailed with its last words if a process dies again and again."""
        for child in self.children.values():
            if child.deaths_in_a_row >= HOPELESS_COUNT:
                raise StartFailed(
                    f"{child.name} does not start: {last_words(child.log)} (all of it: {child.log})"
                )

    async def stop(self, told: Callable[[str], None] = lambda _: None) -> None:
        """Stop what was added, then the doors, then the engine; calling twice does no harm.

        `told` hears one line for each step.
        """
        doors = {name for name in self.plan.commands() if name != "engine"}
        added = self.children.keys() - doors - {"engine"}
        # Order entry lets open calls go on for five seconds; the engine writes a snapshot.
        await self._stop_some(added, 5, told)
        await self._stop_some(doors, 15, told)
        await self._stop_some({"engine"}, 120, told)
        if self._lock >= 0:
            if self.children:
                # Nobody of the pair is left to read them, and they are memory.
                remove_stale(segment_name(self.plan.pair, ""), self.plan.segments)
            os.close(self._lock)
            self._lock = -1

    async def _stop_some(
        self, names: Iterable[str], patience_s: float, told: Callable[[str], None]
    ) -> None:
        chosen = [child for name, child in self.children.items() if name in names and child.pid]
        for child in chosen:
            told(f"stopping {child.name}")
        waiting = [child for name, child in self.children.items() if name in names]
        await asyncio.gather(*(child.stop(patience_s) for child in waiting))
