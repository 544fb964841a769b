"""The processes of the Kubernetes manifests, on this machine.

Their command lines, environments and probes are those of the manifests, with volumes, addresses and
Secrets put in the place of what a cluster would give. Every pod gets ports of its own, because all
share one address here. Everything else is what the manifests say: where a process listens, whom it
calls, which certificate it shows.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import psycopg
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exchange.identity import Identity
from exchange.v1 import ledger_pb2_grpc, risk_pb2_grpc
from ledgerd.database import SUPERUSER, EmbeddedPostgres
from tests.certificates import make_certificates
from tests.integration.exchange_processes import ROOT, free_port
from tests.integration.risk_processes import Books
from tests.manifests import (
    EXCHANGE,
    OVERLAYS,
    SERVICES,
    WORKLOADS,
    Object,
    container,
    containers,
    environment,
    objects_of,
    only,
    pod_of,
)

START_S = 600
"""Bounds the start of one process, which may compile on a busy machine."""
PAIRS = tuple(path.name for path in OVERLAYS)
ROLES = {
    "ledgerd-database/service-url": ("holdfast_service", "holdfast"),
    "ledgerd-database/owner-url": ("holdfast_owner", "holdfast"),
    "riskd-database/service-url": ("holdfast_risk", "risk"),
    "riskd-database/owner-url": ("holdfast_risk_owner", "risk"),
}


class Pod:
    """One workload's pod: its volumes are folders, its ports are free ones."""

    def __init__(self, name: str, run: Path, memory: Path, certificates: Path) -> None:
        self.name, self.run = name, run
        self.objects = objects_of(name)
        self.service = only(self.objects, "Service")["metadata"]["name"]
        self.ports = {
            port["port"]: free_port() for port in only(self.objects, "Service")["spec"]["ports"]
        }
        self.volumes: dict[str, Path] = {}
        spec = pod_of(self.objects)["spec"]
        claims = only(self.objects, "StatefulSet")["spec"].get("volumeClaimTemplates", [])
        for volume in [*spec["volumes"], *(claim["metadata"] for claim in claims)]:
            where = memory if volume.get("emptyDir", {}).get("medium") == "Memory" else run
            self.volumes[volume["name"]] = where / name / volume["name"]
            if "secret" in volume:
                identity = volume["secret"]["secretName"].removesuffix("-identity")
                self.volumes[volume["name"]] = certificates / identity
        for folder in self.volumes.values():
            folder.mkdir(parents=True, exist_ok=True)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def _here(self, item: Object, text: str, addresses: dict[str, str]) -> str:
        """Return what a text of the manifest means on this machine."""
        for mount in sorted(item.get("volumeMounts", []), key=lambda m: -len(m["mountPath"])):
            folder = self.volumes[mount["name"]] / mount.get("subPath", "")
            if text.startswith(mount["mountPath"]):
                return str(folder) + text.removeprefix(mount["mountPath"])
        for port, free in self.ports.items():
            for host in ("0.0.0.0:", "127.0.0.1:", ""):
                if text == f"{host}{port}":
                    return f"{host}{free}"
        for address, here in addresses.items():
            text = text.replace(address, here)
        return text

    def _environment(
        self, item: Object, addresses: dict[str, str], secrets: dict[str, str]
    ) -> dict[str, str]:
        given = {
            name: self._here(item, value, addresses)
            for name, value in environment(self.objects, item["name"], secrets).items()
        }
        # What is compiled already on this machine is not compiled again.
        given.pop("XDG_CACHE_HOME", None)
        return os.environ | given

    def start(self, name: str, addresses: dict[str, str], secrets: dict[str, str]) -> None:
        """Start a container's process."""
        item = container(self.objects, name)
        _, *arguments = (self._here(item, word, addresses) for word in item["command"])
        with self.log(name).open("ab") as output:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=self._environment(item, addresses, secrets),
                stdout=output,
                stderr=output,
            )

    def log(self, name: str) -> Path:
        """Return the file of what a process said."""
        return self.run / f"{self.name}-{name}.log"

    def probe(self, name: str, kind: str) -> int:
        """Run a probe of a container as it would be run inside; return its exit status."""
        item = container(self.objects, name)
        _, *arguments = (self._here(item, word, {}) for word in item[kind]["exec"]["command"])
        given = self._environment(item, {}, dict.fromkeys(ROLES, ""))
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=given, check=False
        ).returncode

    def stop(self, name: str) -> int:
        """End a process as a kubelet does; fails if it needs longer than its grace."""
        process = self.processes.pop(name)
        process.terminate()
        grace_s = pod_of(self.objects)["spec"]["terminationGracePeriodSeconds"]
        return process.wait(timeout=grace_s)

    def peak_bytes(self, name: str) -> int:
        """Return the most memory that a process has had."""
        status = Path("/proc", str(self.processes[name].pid), "status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) << 10

    def end(self) -> None:
        """Kill what still runs."""
        for process in self.processes.values():
            process.kill()
            process.wait()


class Cluster(Books):
    """Every pod of an exchange, and the database that its operator brings."""

    def __init__(self, run: Path, memory: Path) -> None:
        self.certificates = make_certificates(run / "certificates", *PAIRS)
        self.postgres = EmbeddedPostgres(run / "postgres")
        self.pods = {name: Pod(name, run, memory, self.certificates) for name in WORKLOADS}
        self.addresses = {
            f"{pod.service}:{port}": f"127.0.0.1:{free}"
            for pod in self.pods.values()
            for port, free in pod.ports.items()
        }
        self._opened: list[grpc.Channel] = []
        self.books = ledger_pb2_grpc.LedgerServiceStub(self.channel("operator", "ledgerd"))
        self.risk = risk_pb2_grpc.RiskServiceStub(self.channel("operator", "riskd"))
        self.channels = {
            name.upper(): self.channel("edge", f"pair-{name}", "orders") for name in PAIRS
        }

    def target(self, service: str, port: str = "") -> str:
        """Return where a Service is called, at its only port or the one of that name."""
        (pod,) = [pod for pod in self.pods.values() if pod.service == service]
        ports = only(pod.objects, "Service")["spec"]["ports"]
        (number,) = [item["port"] for item in ports if port in ("", item["name"])]
        return f"127.0.0.1:{pod.ports[number]}"

    def channel(self, role: str, service: str, port: str = "") -> grpc.Channel:
        """Return a channel to a Service that shows the certificate of that name; "": none."""
        target = self.target(service, port)
        if role:
            shown = Identity.load(self.certificates / role).channel_credentials()
            made = grpc.secure_channel(target, shown)
        else:
            made = grpc.insecure_channel(target)
        self._opened.append(made)
        return made

    def start(self) -> None:
        """Start everything, in an order in which a cluster might; return when all can work."""
        self.postgres.start()
        with psycopg.connect(self._url(SUPERUSER, "postgres"), autocommit=True) as connection:
            for statement in _statements():
                connection.execute(statement.encode())
        secrets = {name: self._url(*whose) for name, whose in ROLES.items()}
        for name in (*PAIRS, *SERVICES):
            self._start(self.pods[name], secrets)
            if name == PAIRS[0]:
                # What the first pair compiles, the others find.
                self._await_ready(f"pair-{name}", "orders", "orders")
        for name in PAIRS:
            self._await_ready(f"pair-{name}", "orders", "orders")
        self._await_ready("ledgerd", "", "ledger")
        self._await_ready("riskd", "", "exchange.v1.RiskService")

    def _start(self, pod: Pod, secrets: dict[str, str]) -> None:
        for item in containers(pod.objects):
            pod.start(item["name"], self.addresses, secrets)
            if item in pod_of(pod.objects)["spec"].get("initContainers", []):
                status = pod.processes.pop(item["name"]).wait(START_S)
                assert status == 0, pod.log(item["name"]).read_text()

    def _await_ready(self, service: str, port: str, name: str) -> None:
        """Return once a process says that it can do its work."""
        stub = health_pb2_grpc.HealthStub(self.channel("operator", service, port))
        request = health_pb2.HealthCheckRequest(service=name)
        for answer in stub.Watch(request, wait_for_ready=True, timeout=START_S):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return

    def _url(self, role: str, database: str) -> str:
        """Return an address as it comes from a Secret: without the name of a driver."""
        url = self.postgres.url(role, database).set(drivername="postgresql")
        return url.render_as_string(hide_password=False)

    def end(self) -> None:
        """Kill what still runs and stop the database."""
        for channel in self._opened:
            channel.close()
        for pod in self.pods.values():
            pod.end()
        self.postgres.stop()


def _statements() -> list[str]:
    lines = (EXCHANGE / "database.sql").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("--"))
    return [statement for statement in text.split(";") if statement.strip()]


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Give a running exchange of the manifests; everything is gone afterwards."""
    run = Path(tempfile.mkdtemp(prefix="holdfast-run-"))
    # PostgreSQL may run as another user, who has to reach its folder.
    run.chmod(0o755)
    memory = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    whole = Cluster(run, memory)
    try:
        whole.start()
        yield whole
    finally:
        whole.end()
        shutil.rmtree(memory)
        shutil.rmtree(run, ignore_errors=True)
