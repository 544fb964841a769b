"""The manifests render, are valid Kubernetes, and agree with each other and with the code.

Rendered without a cluster and without kubectl; where kubectl is installed, the renderer is
compared with it. The rules across objects are functions from objects to complaints, and each is
shown a breach.
"""

import ast
import copy
import importlib.util
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from engine.vault_layout import vault_layout
from exchange.book_layout import book_layout
from exchange.config import load_instrument
from exchange.intake import inbox_layout, intake_layout
from tests.kustomize import render

Object = dict[str, Any]
Rule = Callable[[list[Object]], list[str]]

ROOT = Path(__file__).resolve().parent.parent.parent
OVERLAYS = sorted((ROOT / "k8s" / "overlays").iterdir())
SHARED = ROOT / "k8s" / "namespace"
DIRECTORIES = [ROOT / "k8s" / "base", SHARED, *OVERLAYS]
# The oldest minor with every field we use (recursiveReadOnly became stable in 1.33), and the
# newest that the validator knows.
MINORS = ("1.33", "1.37")
PROCESS_BYTES = 512 << 20
"""What an engine process needs beside its segments: interpreter, compiled code, buffers."""
UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

overlay = pytest.mark.parametrize("directory", OVERLAYS, ids=lambda path: path.name)


def quantity_bytes(text: str) -> int:
    """Turn a Kubernetes quantity such as 512Mi into bytes."""
    return int(text[:-2]) * UNITS[text[-2:]]


def only(objects: list[Object], kind: str) -> Object:
    """Return the one object of a kind."""
    found = [item for item in objects if item["kind"] == kind]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}, one expected"
    return found[0]


def pod_of(objects: list[Object]) -> Object:
    """Return the pod template of the pair."""
    template = only(objects, "StatefulSet")["spec"]["template"]
    assert isinstance(template, dict)
    return template


def container(objects: list[Object], name: str) -> Object:
    """Return the container of that name."""
    found = {item["name"]: item for item in pod_of(objects)["spec"]["containers"]}
    item = found[name]
    assert isinstance(item, dict)
    return item


def mounts(objects: list[Object], name: str) -> dict[str, Object]:
    """Return {volume: mount} of a container."""
    return {mount["name"]: mount for mount in container(objects, name)["volumeMounts"]}


def memory_volumes(objects: list[Object]) -> dict[str, int]:
    """Return {memory volume: its limit in bytes} of the pod."""
    return {
        volume["name"]: quantity_bytes(volume["emptyDir"]["sizeLimit"])
        for volume in pod_of(objects)["spec"]["volumes"]
        if volume.get("emptyDir", {}).get("medium") == "Memory"
    }


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Say whether a label selector matches, by labels and by `In` expressions."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


# ---- rules: objects of one overlay in, complaints out ------------------------------------------


def selector_rule(objects: list[Object]) -> list[str]:
    labels = pod_of(objects)["metadata"]["labels"]
    selectors = {
        "StatefulSet": only(objects, "StatefulSet")["spec"]["selector"],
        "Service": {"matchLabels": only(objects, "Service")["spec"]["selector"]},
        "PodDisruptionBudget": only(objects, "PodDisruptionBudget")["spec"]["selector"],
    }
    return [
        f"{kind} does not select exactly this pair's pods"
        for kind, selector in selectors.items()
        if not selects(selector, labels)
        or "holdfast.exchange/pair" not in selector.get("matchLabels", {})
    ]


def reference_rule(objects: list[Object]) -> list[str]:
    names = {(item["kind"], item["metadata"]["name"]) for item in objects}
    wanted = {("Service", only(objects, "StatefulSet")["spec"]["serviceName"])}
    for item in pod_of(objects)["spec"]["containers"]:
        wanted.update(("ConfigMap", source["configMapRef"]["name"]) for source in item["envFrom"])
    return [f"nothing is called {name}" for name in sorted(wanted - names)]


def exec_probe_complaints(item: Object, kind: str) -> list[str]:
    """Return what is wrong with a probe that asks a loopback address from inside."""
    address = next(v["value"] for v in item["env"] if v["name"] == "HOLDFAST_ENTRY_ADDRESS")
    service = "orders" if kind == "readinessProbe" else "alive"
    wanted = ["python", "-m", "exchange.probe", address, service]
    if item[kind]["exec"]["command"] != wanted:
        return [f"the {kind} of {item['name']} does not run {' '.join(wanted)}"]
    return []


def probe_rule(objects: list[Object]) -> list[str]:
    complaints = []
    for item in pod_of(objects)["spec"]["containers"]:
        ports = {port["containerPort"] for port in item.get("ports", [])}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            if " ".join(item["command"]) == "python -m engine":
                continue
            if kind not in item:
                complaints.append(f"{item['name']} serves and has no {kind}")
            elif "exec" in item[kind]:
                complaints += exec_probe_complaints(item, kind)
            elif item[kind]["grpc"]["port"] not in ports:
                complaints.append(f"the {kind} of {item['name']} asks a port it does not open")
            else:
                service = item[kind]["grpc"]["service"]
                own = {port["name"] for port in item["ports"]}
                if service not in (own if kind == "readinessProbe" else {"alive"}):
                    complaints.append(f"the {kind} of {item['name']} asks for {service!r}")
    return complaints


def service_port_rule(objects: list[Object]) -> list[str]:
    opened = {
        port["name"]: port["containerPort"]
        for item in pod_of(objects)["spec"]["containers"]
        for port in item.get("ports", [])
    }
    ports = only(objects, "Service")["spec"]["ports"]
    served = {port["targetPort"]: port["port"] for port in ports}
    return [] if served == opened else [f"the Service offers {served}, the pod opens {opened}"]


def one_owner_rule(objects: list[Object]) -> list[str]:
    spec, complaints = only(objects, "StatefulSet")["spec"], []
    if spec["replicas"] != 1 or spec["updateStrategy"] != {"type": "OnDelete"}:
        complaints.append("the pair could have two engines or lose one unasked")
    for claim in spec["volumeClaimTemplates"]:
        if claim["spec"]["accessModes"] != ["ReadWriteOncePod"]:
            complaints.append(f"the claim {claim['metadata']['name']} admits a second pod")
    budget = only(objects, "PodDisruptionBudget")["spec"]
    if budget["maxUnavailable"] != 0 or budget["unhealthyPodEvictionPolicy"] != "AlwaysAllow":
        complaints.append("a drain could take the engine, or could never take a broken one")
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
    for item in pod["containers"]:
        given = {key: item["securityContext"].get(key) for key in wanted}
        if given != wanted or item["securityContext"]["runAsUser"] < 10_000:
            complaints.append(f"{item['name']} is not restricted")
        if item["image"].partition(":")[2] in {"", "latest"}:
            complaints.append(f"{item['name']} does not say which image it runs")
    return complaints


RULES: list[Rule] = [
    selector_rule,
    reference_rule,
    probe_rule,
    service_port_rule,
    one_owner_rule,
    borrow_rule,
    memory_rule,
    segment_rule,
    restricted_rule,
]


@overlay
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_objects_of_a_pair_agree(directory: Path, rule: Rule) -> None:
    assert rule(render(directory)) == []


def _container(name: str, change: Callable[[Object], Any]) -> Callable[[list[Object]], None]:
    def breach(objects: list[Object]) -> None:
        change(container(objects, name))

    return breach


@pytest.mark.parametrize(
    ("rule", "breach"),
    [
        (selector_rule, lambda o: only(o, "Service")["spec"]["selector"].update(extra="label")),
        (reference_rule, lambda o: only(o, "Service")["metadata"].update(name="else")),
        (probe_rule, _container("mdgateway", lambda c: c["livenessProbe"]["grpc"].update(port=1))),
        (
            probe_rule,
            _container("entry", lambda c: c["readinessProbe"]["exec"]["command"].append("x")),
        ),
        (probe_rule, _container("entry", lambda c: c.pop("livenessProbe"))),
        (
            probe_rule,
            _container("mdgateway", lambda c: c["readinessProbe"]["grpc"].update(service="orders")),
        ),
        (service_port_rule, _container("mdgateway", lambda c: c["ports"].clear())),
        (one_owner_rule, lambda o: only(o, "StatefulSet")["spec"].update(replicas=2)),
        (borrow_rule, _container("mdgateway", lambda c: c["volumeMounts"][0].pop("readOnly"))),
        (
            borrow_rule,
            _container(
                "mdgateway",
                lambda c: c["volumeMounts"].append({"name": "vault", "mountPath": "/vault"}),
            ),
        ),
        (
            borrow_rule,
            _container("entry", lambda c: [m.pop("readOnly", 0) for m in c["volumeMounts"]]),
        ),
        (
            memory_rule,
            _container("engine", lambda c: c["resources"]["limits"].update(memory="1Gi")),
        ),
        (
            segment_rule,
            lambda o: pod_of(o)["spec"]["volumes"][0]["emptyDir"].update(sizeLimit="64Mi"),
        ),
        (restricted_rule, _container("engine", lambda c: c["securityContext"].update(runAsUser=0))),
        (restricted_rule, _container("engine", lambda c: c.update(image="holdfast:latest"))),
    ],
)
def test_each_rule_complains_about_a_breach(
    rule: Rule, breach: Callable[[list[Object]], None]
) -> None:
    objects = copy.deepcopy(render(OVERLAYS[0]))
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


# ---- the network --------------------------------------------------------------------------------


def open_edges() -> set[tuple[str, str]]:
    """Return (component, port name) for everything that may call a pair."""
    labels = pod_of(render(OVERLAYS[0]))["metadata"]["labels"]
    part_of = {"app.kubernetes.io/part-of": "holdfast"}
    edges = set()
    for policy in render(SHARED):
        if policy["kind"] != "NetworkPolicy" or not selects(policy["spec"]["podSelector"], labels):
            continue
        assert not policy["spec"].get("egress"), "a pair calls nobody"
        for rule in policy["spec"].get("ingress", []):
            for component in ("edge", "riskd", "ledgerd", "mdgateway", "pair", "stranger"):
                caller = {**part_of, "app.kubernetes.io/component": component}
                if any(selects(peer["podSelector"], caller) for peer in rule["from"]):
                    edges |= {(component, port["port"]) for port in rule["ports"]}
    return edges


def test_only_the_edges_of_the_call_graph_are_open() -> None:
    assert open_edges() == {
        ("edge", "orders"),
        ("edge", "marketdata"),
        ("riskd", "orders"),
        ("ledgerd", "orders"),
    }


def test_everything_else_is_denied() -> None:
    (deny,) = [item for item in render(SHARED) if item["metadata"]["name"] == "default-deny"]
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_the_namespace_enforces_the_restricted_profile() -> None:
    labels = only(render(SHARED), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


# ---- the code -----------------------------------------------------------------------------------


def constants_of_the_sources() -> Iterator[str]:
    """Walk every string that the services' sources contain."""
    for package in ("exchange", "engine", "mdgateway"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


@overlay
def test_every_setting_is_one_that_the_code_reads(directory: Path) -> None:
    objects = render(directory)
    settings = set(only(objects, "ConfigMap")["data"])
    for item in pod_of(objects)["spec"]["containers"]:
        settings |= {variable["name"] for variable in item["env"]}
    read = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", "\n".join(constants_of_the_sources())))
    assert settings <= read


@overlay
def test_every_container_starts_a_module_that_exists(directory: Path) -> None:
    for item in pod_of(render(directory))["spec"]["containers"]:
        python, option, module = item["command"][:3]
        assert (python, option) == ("python", "-m")
        name = module if "." in module else f"{module}.__main__"
        assert importlib.util.find_spec(name) is not None, f"there is no module {name}"


def test_each_instrument_has_an_overlay() -> None:
    pairs = tomllib.loads((ROOT / "exchange/instruments.toml").read_text())
    overlays = {only(render(path), "ConfigMap")["data"]["HOLDFAST_PAIR"] for path in OVERLAYS}
    assert overlays == set(pairs)
    for path in OVERLAYS:
        objects = render(path)
        pair = only(objects, "ConfigMap")["data"]["HOLDFAST_PAIR"]
        assert path.name == pair.lower()
        assert only(objects, "StatefulSet")["metadata"]["name"] == f"pair-{pair.lower()}"


def test_two_pairs_share_no_object_and_no_pod() -> None:
    rendered = [render(path) for path in OVERLAYS]
    names = [(item["kind"], item["metadata"]["name"]) for objects in rendered for item in objects]
    assert len(names) == len(set(names))
    first, second = rendered[:2]
    selector = {"matchLabels": only(first, "Service")["spec"]["selector"]}
    assert not selects(selector, pod_of(second)["metadata"]["labels"])
