"""The manifests render, are valid Kubernetes, and agree with each other and with the code.

Rendered without a cluster and without kubectl; where kubectl is installed, the renderer is
compared with it. The rules across objects are functions from objects to complaints, and each is
shown a breach.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from engine.vault_layout import vault_layout
from exchange.book_layout import book_layout
from exchange.config import load_instrument
from exchange.intake import inbox_layout, intake_layout
from exchange.service import ServerOptions
from tests.kustomize import render
from tests.manifests import (
    COMPONENT,
    DIRECTORIES,
    OVERLAYS,
    SERVICES,
    WORKLOADS,
    Object,
    container,
    containers,
    mounts,
    objects_of,
    only,
    opened,
    pod_of,
    quantity_bytes,
    selects,
    settings,
)

Rule = Callable[[list[Object]], list[str]]

# The oldest minor with every field we use (recursiveReadOnly became stable in 1.33), and the
# newest that the validator knows.
MINORS = ("1.33", "1.37")
PROCESS_BYTES = 512 << 20
"""What an engine process needs beside its segments: interpreter, compiled code, buffers."""
STATEMENT_S = 30
"""What the longest statement in a database may take; a thread that waits for one is waited for."""
MARGIN_S = 10
CERTIFIED = {"entry", *SERVICES}
"""Who shows a certificate. Nobody else has one, least of all mdgateway."""
READY = {
    "entry": "orders",
    "mdgateway": "marketdata",
    "ledgerd": "ledger",
    "riskd": "exchange.v1.RiskService",
}
"""What each says it serves when it can do its work."""
READY_GRPC = {"port": 50081, "service": "alive"}

overlay = pytest.mark.parametrize("name", [path.name for path in OVERLAYS])
workload = pytest.mark.parametrize("name", WORKLOADS)


def memory_volumes(objects: list[Object]) -> dict[str, int]:
    """Return {memory volume: its limit in bytes} of the pod."""
    return {
        volume["name"]: quantity_bytes(volume["emptyDir"]["sizeLimit"])
        for volume in pod_of(objects)["spec"]["volumes"]
        if volume.get("emptyDir", {}).get("medium") == "Memory"
    }


# ---- rules: objects of one overlay in, complaints out ------------------------------------------


def selector_rule(objects: list[Object]) -> list[str]:
    labels = pod_of(objects)["metadata"]["labels"]
    selectors = {
        "StatefulSet": only(objects, "StatefulSet")["spec"]["selector"],
        "Service": {"matchLabels": only(objects, "Service")["spec"]["selector"]},
        "PodDisruptionBudget": only(objects, "PodDisruptionBudget")["spec"]["selector"],
    }
    whose = "holdfast.exchange/pair" if labels[COMPONENT] == "pair" else COMPONENT
    return [
        f"{kind} does not select exactly the pods of this workload"
        for kind, selector in selectors.items()
        if not selects(selector, labels) or whose not in selector.get("matchLabels", {})
    ]


def reference_rule(objects: list[Object]) -> list[str]:
    names = {(item["kind"], item["metadata"]["name"]) for item in objects}
    wanted = {("Service", only(objects, "StatefulSet")["spec"]["serviceName"])}
    for item in containers(objects):
        sources = item.get("envFrom", [])
        wanted.update(("ConfigMap", source["configMapRef"]["name"]) for source in sources)
    return [f"nothing is called {name}" for name in sorted(wanted - names)]


def volume_rule(objects: list[Object]) -> list[str]:
    spec = only(objects, "StatefulSet")["spec"]
    there = {volume["name"] for volume in pod_of(objects)["spec"]["volumes"]}
    there |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    complaints = []
    for item in containers(objects):
        for name in mounts(objects, item["name"]).keys() - there:
            complaints.append(f"{item['name']} mounts {name}, which is not there")
    return complaints


def probe_complaints(item: Object, kind: str) -> list[str]:
    """Return what is wrong with a probe of a container that serves."""
    asked = item[kind]
    if "exec" in asked:
        # The kubelet shows no certificate: only whoever asks for one is asked from inside.
        *start, address, service = asked["exec"]["command"]
        host, _, port = address.rpartition(":")
        sound = start == ["python", "-m", "exchange.probe"] and host == "127.0.0.1"
        sound = sound and "HOLDFAST_IDENTITY" in settings(item)
    else:
        port, service = asked["grpc"]["port"], asked["grpc"]["service"]
        sound = "HOLDFAST_IDENTITY" not in settings(item)
    wanted = READY[item["name"]] if kind == "readinessProbe" else "alive"
    complaints = [] if sound else [f"the {kind} of {item['name']} cannot ask"]
    if int(port) not in opened(item).values():
        complaints.append(f"the {kind} of {item['name']} asks a port it does not open")
    if service != wanted:
        complaints.append(f"the {kind} of {item['name']} asks for {service!r}, not for {wanted!r}")
    return complaints


def probe_rule(objects: list[Object]) -> list[str]:
    complaints = []
    for item in pod_of(objects)["spec"]["containers"]:
        # The engine opens no socket; order entry watches its heartbeat.
        if item["command"][2] == "engine":
            continue
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            if kind not in item:
                complaints.append(f"{item['name']} serves and has no {kind}")
            else:
                complaints += probe_complaints(item, kind)
    return complaints


def service_port_rule(objects: list[Object]) -> list[str]:
    there: dict[str, int] = {}
    for item in containers(objects):
        there |= opened(item)
    service = only(objects, "Service")["spec"]
    served = {port["targetPort"]: port["port"] for port in service["ports"]}
    complaints = [] if served == there else [f"the Service offers {served}, the pod opens {there}"]
    if not service.get("publishNotReadyAddresses"):
        complaints.append("the Service hides the only pod there is")
    return complaints


def identity_rule(objects: list[Object]) -> list[str]:
    name = only(objects, "StatefulSet")["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in pod_of(objects)["spec"]["volumes"]}
    complaints = []
    if volumes["identity"]["secret"]["secretName"] != f"{name}-identity":
        complaints.append(f"{name} shows somebody else's certificate")
    for item in containers(objects):
        mount = mounts(objects, item["name"]).get("identity")
        if ("HOLDFAST_IDENTITY" in settings(item)) != (item["name"] in CERTIFIED):
            complaints.append(f"{item['name']} has an identity and needs none, or the reverse")
        if (mount is not None) != (item["name"] in CERTIFIED):
            complaints.append(f"{item['name']} could read a key it does not need, or lacks its own")
        if mount is not None and not mount.get("readOnly"):
            complaints.append(f"{item['name']} could write to its identity")
    return complaints


def grace_rule(objects: list[Object]) -> list[str]:
    seconds = pod_of(objects)["spec"]["terminationGracePeriodSeconds"]
    needed = ServerOptions().grace_s + STATEMENT_S + MARGIN_S
    return [] if seconds >= needed else [f"a drain may need {needed} s and has {seconds}"]


def one_writer_rule(objects: list[Object]) -> list[str]:
    spec = only(objects, "StatefulSet")["spec"]
    complaints = [] if spec["replicas"] == 1 else ["there could be two at a time"]
    for claim in spec.get("volumeClaimTemplates", []):
        if claim["spec"]["accessModes"] != ["ReadWriteOncePod"]:
            complaints.append(f"the claim {claim['metadata']['name']} admits a second pod")
    budget = only(objects, "PodDisruptionBudget")["spec"]
    if budget["unhealthyPodEvictionPolicy"] != "AlwaysAllow":
        complaints.append("a drain could never take a broken one")
    return complaints


def one_owner_rule(objects: list[Object]) -> list[str]:
    complaints = []
    if only(objects, "StatefulSet")["spec"]["updateStrategy"] != {"type": "OnDelete"}:
        complaints.append("a new image would restart the engine unasked")
    if only(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] != 0:
        complaints.append("a drain could take the engine")
    return complaints


def borrow_rule(objects: list[Object]) -> list[str]:
    complaints = []
    gateway, entry = mounts(objects, "mdgateway"), mounts(objects, "entry")
    if not gateway["book"].get("readOnly"):
        complaints.append("mdgateway could write to the book")
    if gateway.keys() & {"vault", "journal"}:
        complaints.append("mdgateway could see the vault or the journal")
    if "vault" in entry:
        complaints.append("order entry could see the vault")
    if not entry["journal"].get("readOnly"):
        complaints.append("order entry could write to the journal's claim")
    if len({mounts(objects, name)["book"]["mountPath"] for name in ("engine", "mdgateway")}) > 1:
        complaints.append("the book lies in different places")
    users = [item["securityContext"]["runAsUser"] for item in pod_of(objects)["spec"]["containers"]]
    if len(set(users)) < len(users):
        complaints.append("two processes share a user")
    return complaints


def memory_rule(objects: list[Object]) -> list[str]:
    complaints = []
    limits = memory_volumes(objects)
    for item in pod_of(objects)["spec"]["containers"]:
        if item["resources"]["requests"] != item["resources"]["limits"]:
            complaints.append(f"{item['name']} requests less than its limit: it may be evicted")
    written = sum(
        limits.get(name, 0)
        for name, mount in mounts(objects, "engine").items()
        if not mount.get("readOnly")
    )
    memory = quantity_bytes(container(objects, "engine")["resources"]["limits"]["memory"])
    if memory < written + PROCESS_BYTES:
        complaints.append(f"the engine may use {memory} bytes and write {written} of segments")
    return complaints


def resource_rule(objects: list[Object]) -> list[str]:
    complaints = []
    for item in containers(objects):
        requests, limits = item["resources"]["requests"], item["resources"]["limits"]
        if "cpu" not in requests:
            complaints.append(f"{item['name']} does not say what it needs")
        for kind in ("memory", "ephemeral-storage"):
            if requests.get(kind) is None or requests.get(kind) != limits.get(kind):
                complaints.append(f"{item['name']} may be evicted for its {kind}")
    return complaints


def segment_rule(objects: list[Object]) -> list[str]:
    instrument = load_instrument(only(objects, "ConfigMap")["data"]["HOLDFAST_PAIR"])
    inboxes = intake_layout().size_bytes + 8 * inbox_layout().size_bytes
    needed = {
        "book": book_layout(instrument).size_bytes + inboxes,
        "vault": vault_layout(instrument).size_bytes,
    }
    limits = memory_volumes(objects)
    return [
        f"{name} needs {size} bytes, its volume holds {limits[name]}"
        for name, size in needed.items()
        if size > limits[name]
    ]


def restricted_rule(objects: list[Object]) -> list[str]:
    pod, complaints = pod_of(objects)["spec"], []
    context = pod["securityContext"]
    if not context["runAsNonRoot"] or context["seccompProfile"] != {"type": "RuntimeDefault"}:
        complaints.append("the pod is not restricted")
    if pod["automountServiceAccountToken"] or pod.keys() & {"hostNetwork", "hostIPC", "hostPID"}:
        complaints.append("the pod reaches what it has no use for")
    wanted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for item in containers(objects):
        given = {key: item["securityContext"].get(key) for key in wanted}
        if given != wanted or item["securityContext"]["runAsUser"] < 10_000:
            complaints.append(f"{item['name']} is not restricted")
        if item["image"].partition(":")[2] in {"", "latest"}:
            complaints.append(f"{item['name']} does not say which image it runs")
    return complaints


COMMON_RULES: list[Rule] = [
    selector_rule,
    reference_rule,
    volume_rule,
    probe_rule,
    service_port_rule,
    identity_rule,
    grace_rule,
    one_writer_rule,
    resource_rule,
    restricted_rule,
]
PAIR_RULES: list[Rule] = [one_owner_rule, borrow_rule, memory_rule, segment_rule]


@workload
@pytest.mark.parametrize("rule", COMMON_RULES, ids=lambda rule: rule.__name__)
def test_the_objects_of_a_workload_agree(name: str, rule: Rule) -> None:
    assert rule(objects_of(name)) == []


@overlay
@pytest.mark.parametrize("rule", PAIR_RULES, ids=lambda rule: rule.__name__)
def test_the_objects_of_a_pair_agree(name: str, rule: Rule) -> None:
    assert rule(objects_of(name)) == []


Breach = Callable[[list[Object]], Any]


def _in(name: str, change: Callable[[Object], Any]) -> Breach:
    def breach(objects: list[Object]) -> None:
        change(container(objects, name))

    return breach


def _spec(kind: str, **changes: Any) -> Breach:
    return lambda objects: only(objects, kind)["spec"].update(changes)


def _pod(**changes: Any) -> Breach:
    return lambda objects: pod_of(objects)["spec"].update(changes)


def _mounted(name: str) -> Callable[[Object], None]:
    return lambda item: item["volumeMounts"].append({"name": name, "mountPath": "/x"})


def _asking(service: str) -> Callable[[Object], None]:
    return lambda item: item["readinessProbe"]["exec"]["command"].__setitem__(-1, service)


PAIR = OVERLAYS[0].name
BREACHES: list[tuple[str, Rule, Breach]] = [
    (PAIR, selector_rule, lambda o: only(o, "Service")["spec"]["selector"].update(extra="label")),
    ("riskd", selector_rule, lambda o: only(o, "Service")["spec"]["selector"].pop(COMPONENT)),
    (PAIR, reference_rule, lambda o: only(o, "Service")["metadata"].update(name="else")),
    ("ledgerd", reference_rule, lambda o: only(o, "ConfigMap")["metadata"].update(name="else")),
    ("ledgerd", volume_rule, _spec("StatefulSet", volumeClaimTemplates=[])),
    (PAIR, probe_rule, _in("mdgateway", lambda c: c["livenessProbe"]["grpc"].update(port=1))),
    (PAIR, probe_rule, _in("mdgateway", lambda c: c["readinessProbe"]["grpc"].update(service="x"))),
    (PAIR, probe_rule, _in("entry", lambda c: c.pop("livenessProbe"))),
    (PAIR, probe_rule, _in("entry", _asking("alive"))),
    ("riskd", probe_rule, _in("riskd", _asking("ledger"))),
    ("riskd", probe_rule, _in("riskd", lambda c: c.update(livenessProbe={"grpc": READY_GRPC}))),
    ("ledgerd", probe_rule, _in("ledgerd", lambda c: c["ports"][0].update(containerPort=1))),
    (PAIR, service_port_rule, _in("mdgateway", lambda c: c["ports"].pop())),
    ("riskd", service_port_rule, _spec("Service", publishNotReadyAddresses=False)),
    (PAIR, identity_rule, _in("mdgateway", _mounted("identity"))),
    (PAIR, identity_rule, lambda o: only(o, "StatefulSet")["metadata"].update(name="pair-x")),
    ("riskd", identity_rule, _in("riskd", lambda c: c["env"].clear())),
    ("ledgerd", identity_rule, _in("ledgerd", lambda c: c["volumeMounts"][2].pop("readOnly"))),
    ("ledgerd", grace_rule, _pod(terminationGracePeriodSeconds=30)),
    (PAIR, one_writer_rule, _spec("StatefulSet", replicas=2)),
    ("ledgerd", one_writer_rule, _spec("PodDisruptionBudget", unhealthyPodEvictionPolicy="x")),
    (PAIR, one_owner_rule, _spec("StatefulSet", updateStrategy={"type": "RollingUpdate"})),
    (PAIR, one_owner_rule, _spec("PodDisruptionBudget", maxUnavailable=1)),
    (PAIR, borrow_rule, _in("mdgateway", lambda c: c["volumeMounts"][0].pop("readOnly"))),
    (PAIR, borrow_rule, _in("mdgateway", _mounted("vault"))),
    (PAIR, borrow_rule, _in("entry", lambda c: [m.pop("readOnly", 0) for m in c["volumeMounts"]])),
    (PAIR, memory_rule, _in("engine", lambda c: c["resources"]["limits"].update(memory="1Gi"))),
    (
        PAIR,
        segment_rule,
        lambda o: [
            volume["emptyDir"].update(sizeLimit="64Mi")
            for volume in pod_of(o)["spec"]["volumes"]
            if volume["name"] == "book"
        ],
    ),
    ("riskd", resource_rule, _in("riskd", lambda c: c["resources"]["limits"].pop("memory"))),
    (PAIR, restricted_rule, _in("engine", lambda c: c["securityContext"].update(runAsUser=0))),
    ("ledgerd", restricted_rule, _in("migrate", lambda c: c.update(image="holdfast:latest"))),
    ("riskd", restricted_rule, _pod(hostNetwork=True)),
]


@pytest.mark.parametrize(("name", "rule", "breach"), BREACHES)
def test_each_rule_complains_about_a_breach(name: str, rule: Rule, breach: Breach) -> None:
    objects = objects_of(name)
    breach(objects)
    assert rule(objects)


# ---- Kubernetes itself --------------------------------------------------------------------------


@pytest.mark.parametrize("minor", MINORS)
@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
def test_every_object_is_valid(directory: Path, minor: str) -> None:
    for item in render(directory):
        kubernetes_validate.validate(item, minor, strict=True)


def test_the_validator_refuses_a_misspelt_field() -> None:
    objects = render(OVERLAYS[0])
    only(objects, "StatefulSet")["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(only(objects, "StatefulSet"), MINORS[0], strict=True)


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
def test_the_renderer_does_what_kubectl_does(directory: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return  # The renderer is compared wherever there is something to compare it with.
    outcome = subprocess.run(
        [kubectl, "kustomize", directory], capture_output=True, text=True, check=True
    )

    def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
        return {(item["kind"], item["metadata"]["name"]): item for item in objects}

    assert by_name(render(directory)) == by_name(list(yaml.safe_load_all(outcome.stdout)))
