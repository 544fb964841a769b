"""Real processes of one pair for integration tests: start, kill -9, restart, watch their health."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent.parent
PAIR = "BTC-USDT"


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PairProcesses:
    """One engine and one order-entry process over a run folder and segments of their own."""

    def __init__(self, run: Path, segments: Path, durability: str, pair: str = PAIR) -> None:
        self.run = run
        self.segments = segments
        self.durability = durability
        self.pair = pair
        self.port = free_port()
        self.entry_arguments: tuple[str, ...] = ()
        self.engine: subprocess.Popen[bytes] | None = None
        self.entry: subprocess.Popen[bytes] | None = None

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"HOLDFAST_SEGMENTS": str(self.segments)}
        with (self.run / f"{name}.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *arguments, "--pair", self.pair, "--run", str(self.run)],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
            )

    def start_engine(self, *arguments: str) -> None:
        self.engine = self._start(
            "engine", "engine", "--durability", self.durability, "--inboxes", "1", *arguments
        )

    def start_entry(self) -> None:
        self.entry = self._start(
            "entry",
            *("engine.entry_server", "--ring", "0", "--port", str(self.port)),
            *self.entry_arguments,
        )

    def start(self) -> None:
        self.start_engine()
        self.start_entry()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self, process: subprocess.Popen[bytes] | None) -> None:
        assert process is not None
        process.send_signal(signal.SIGKILL)
        process.wait()

    def await_health(self, service: str = "orders") -> None:
        """Return once the service is serving; a dead process is an error with its log."""
        # A connection of its own: one that others hold may still lead to a process just killed.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self.target, options=options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=service)
            for answer in stub.Watch(request, wait_for_ready=True, timeout=300):
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.run.glob("*.log")))

    def stop(self) -> None:
        """End what still runs, in good order."""
        for process in (self.entry, self.engine):
            if process is not None and process.poll() is None:
                process.terminate()
        for process in (self.entry, self.engine):
            if process is not None:
                process.wait(timeout=60)


@contextlib.contextmanager
def pair_processes(run: Path, durability: str = "fsync") -> Iterator[PairProcesses]:
    """Give a pair's processes, not yet started; everything is gone afterwards."""
    segments = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    processes = PairProcesses(run, segments, durability)
    try:
        yield processes
    finally:
        for process in (processes.entry, processes.engine):
            if process is not None and process.poll() is None:
                processes.kill(process)
        shutil.rmtree(segments)
