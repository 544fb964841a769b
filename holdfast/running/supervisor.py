"""Starts the processes of an exchange, starts again what dies, stops everything in good order.

Invariants: one supervisor a run folder, by an OS lock; nothing is started before the ports are
known to be free and what dead owners left in memory is gone; stopping goes from the doors inwards,
so that the engine drains what the doors took and the books settle what the engine said. Every
child writes to a file of its own in the run folder.

Not here: what the processes do, whether they answer, anything about orders or money. The services
are reached by their command lines only.
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from exchange.book_layout import segment_name
from exchange.ownership import remove_stale
from exchange.segment import lock
from holdfast.running.child import Child, ProcessState, last_words
from holdfast.running.plan import PATIENCE_S, Plan, Process, Stage

HOPELESS_COUNT: Final = 3
"""So many deaths in a row at the start are a reason to give up, with what was said last."""
_LOOK_S: Final = 0.02


class SupervisorError(Exception):
    """Why the exchange was not started, in one sentence."""


class RunFolderInUse(SupervisorError):
    """Another supervisor works on this run folder."""


class PortTaken(SupervisorError):
    """Something else listens on a port that is needed."""


class PairRunning(SupervisorError):
    """Another run of this pair owns its segments."""


class StartFailed(SupervisorError):
    """A process died again and again instead of starting."""


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
    """The processes of one plan, and whoever else is added. Use as an async context manager.

    Entering locks the run folder, checks and cleans, and raises SupervisorError with a sentence if
    the exchange cannot be started; leaving stops whatever runs.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan.validate()
        self.cleaned: list[str] = []
        """Segments of dead owners that were removed at the start."""
        self.children: list[Child] = []
        self._stages: dict[int, Stage] = {}
        self._lock = -1

    async def __aenter__(self) -> Self:
        self._lock = _lock_run_folder(self.plan.run)
        try:
            for port in self.plan.ports().values():
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
        """Start all processes of the plan; whether they answer is for the caller to see.

        Raises StartFailed with its last words if the database does not start.
        """
        self.plan.addresses.unlink(missing_ok=True)
        for process in self.plan.first():
            await self.add(process)
        if self.plan.money is not None:
            while not self.plan.addresses.exists():
                self.check_hopeless()
                await asyncio.sleep(_LOOK_S)
            addresses = json.loads(self.plan.addresses.read_text(encoding="utf-8"))
            for process in self.plan.second(addresses):
                await self.add(process)

    def _clean(self) -> None:
        segments = Path(self.plan.segments)
        segments.mkdir(parents=True, exist_ok=True)
        for one in self.plan.pairs:
            prefix = segment_name(one.pair, "")
            self.cleaned += remove_stale(prefix, segments)
            left = sorted(path.name for path in segments.glob(prefix + "*") if _owned(path))
            if left:
                raise PairRunning(
                    f"{one.pair} is running already: {', '.join(left)} in {segments} belong to"
                    " living processes; stop them, or set HOLDFAST_SEGMENTS to another folder"
                )

    async def add(self, process: Process) -> Child:
        """Start one more process and keep it alive from now on."""
        key = (process.pair, process.name)
        known = {(child.pair, child.name) for child in self.children}
        assert key not in known, f"{key} is supervised already"
        settings = {"HOLDFAST_SEGMENTS": self.plan.segments}
        log = self.plan.log(process)
        child = Child(process.name, process.arguments, log, settings, process.pair)
        self._stages[id(child)] = process.stage
        self.children.append(child)
        await child.start()
        return child

    def check_hopeless(self) -> None:
        """Raise StartFailed with its last words if a process dies again and again."""
        for child in self.children:
            if child.deaths_in_a_row >= HOPELESS_COUNT:
                raise StartFailed(
                    f"{child.title} does not start: {last_words(child.log)}"
                    f" (all of it: {child.log})"
                )

    async def stop(self, told: Callable[[str], None] = lambda _: None) -> None:
        """Stop everything, stage by stage; calling twice does no harm.

        `told` hears one line for each process.
        """
        for stage in Stage:
            await self.stop_stage(stage, told)
        if self._lock >= 0:
            if self.children:
                for one in self.plan.pairs:
                    # Nobody of the pair is left to read them, and they are memory.
                    remove_stale(segment_name(one.pair, ""), self.plan.segments)
            os.close(self._lock)
            self._lock = -1

    def close_doors(self) -> None:
        """Ask every engine to take no more orders; one that closes already is not disturbed."""
        for child in self.children:
            if self._stages[id(child)] == Stage.ENGINES and child.state == ProcessState.RUNNING:
                child.send(signal.SIGUSR1)

    async def stop_stage(self, stage: Stage, told: Callable[[str], None] = lambda _: None) -> None:
        """Stop the processes of one stage, all at a time."""
        chosen = [child for child in self.children if self._stages[id(child)] == stage]
        for child in chosen:
            if child.state != ProcessState.STOPPED:
                told(f"stopping {child.title}")
        await asyncio.gather(*(child.stop(PATIENCE_S[stage]) for child in chosen))
