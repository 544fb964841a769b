"""The workloads together: who may call whom, who follows which pair, and what programs are told.

Every command line and environment of the manifests goes through the parser of its program, and what
comes out is compared with the ports and Services around it.
"""

import ast
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import engine.config
import engine.entry.config
import ledgerd.__main__
import mdgateway.__main__
import riskd.config
from mdgateway.http.config import http_config
from tests.certificates import make_certificates
from tests.kustomize import render
from tests.manifests import (
    COMPONENT,
    EXCHANGE,
    OVERLAYS,
    ROOT,
    SERVICES,
    SHARED,
    WORKLOADS,
    Object,
    container,
    containers,
    environment,
    objects_of,
    only,
    opened,
    pod_of,
    secrets_of,
    selects,
    settings,
)

PAIRS = [path.name for path in OVERLAYS]
PART_OF = {"app.kubernetes.io/part-of": "holdfast"}
DATABASE = "postgresql://holdfast_service@database/holdfast"
SECRETS = {
    "ledgerd-database/service-url": DATABASE,
    "ledgerd-database/owner-url": "postgresql://holdfast_owner@database/holdfast",
    "riskd-database/service-url": "postgresql://holdfast_risk@database/risk",
    "riskd-database/owner-url": "postgresql://holdfast_risk_owner@database/risk",
}
workload = pytest.mark.parametrize("name", WORKLOADS)


# ---- the network --------------------------------------------------------------------------------


def pods() -> dict[str, dict[str, str]]:
    """Return the labels of a pod of each component, of the operator's edge, and of a stranger."""
    found = {name: pod_of(objects_of(name))["metadata"]["labels"] for name in SERVICES}
    found["pair"] = pod_of(objects_of(PAIRS[0]))["metadata"]["labels"]
    for name in ("edge", "stranger"):
        found[name] = PART_OF | {COMPONENT: name}
    return found


def ports_of(component: str) -> dict[str, int]:
    """Return the ports that a component opens."""
    objects = objects_of(PAIRS[0] if component == "pair" else component)
    found: dict[str, int] = {}
    for item in containers(objects):
        found |= opened(item)
    return found


def edges(policies: list[Object], direction: str) -> set[tuple[str, str, str]]:
    """Return (caller, called, port name) that policies allow at one end, between pods of ours."""
    peers = "from" if direction == "ingress" else "to"
    found = set()
    for policy in policies:
        for rule in policy["spec"].get(direction, []):
            near = [
                n for n, labels in pods().items() if selects(policy["spec"]["podSelector"], labels)
            ]
            far = [
                name
                for name, labels in pods().items()
                for peer in rule[peers]
                if "namespaceSelector" not in peer and selects(peer["podSelector"], labels)
            ]
            called, callers = (near, far) if direction == "ingress" else (far, near)
            found |= {
                (caller, to, port["port"])
                for caller in callers
                for to in called
                for port in rule["ports"]
            }
    return found


def policies() -> list[Object]:
    """Return the policies that the exchange is applied with."""
    return [item for item in render(EXCHANGE) if item["kind"] == "NetworkPolicy"]


CALLS = {
    ("edge", "pair", "orders"),
    ("edge", "pair", "marketdata"),
    ("edge", "pair", "http"),
    ("riskd", "pair", "orders"),
    ("ledgerd", "pair", "orders"),
    ("pair", "riskd", "risk"),
    ("ledgerd", "riskd", "risk"),
    ("riskd", "ledgerd", "books"),
}
"""Who calls whom, and nobody else anybody."""


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_the_edges_of_the_call_graph_are_open_at_both_ends_and_no_others(direction: str) -> None:
    assert edges(policies(), direction) == CALLS


def test_every_port_of_a_policy_is_one_that_is_opened() -> None:
    for _, called, port in CALLS:
        assert port in ports_of(called), f"{called} opens no port {port}"


def test_an_edge_too_many_is_seen() -> None:
    widened = policies()
    (ledgerd_policy,) = [item for item in widened if item["metadata"]["name"] == "ledgerd"]
    selector = {"matchLabels": {COMPONENT: "edge"}}
    ledgerd_policy["spec"]["ingress"][0]["from"].append({"podSelector": selector})
    assert edges(widened, "ingress") - CALLS == {("edge", "ledgerd", "books")}


def test_everything_else_is_denied() -> None:
    (deny,) = [item for item in policies() if item["metadata"]["name"] == "default-deny"]
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert all(policy["metadata"]["namespace"] == "holdfast" for policy in policies())


def test_only_books_and_risk_reach_the_database_and_everybody_finds_names() -> None:
    outside = {
        (name, port["port"], tuple(peer["namespaceSelector"]["matchLabels"].values()))
        for policy in policies()
        for rule in policy["spec"].get("egress", [])
        for peer in rule["to"]
        if "namespaceSelector" in peer
        for port in rule["ports"]
        for name, labels in pods().items()
        if name != "stranger" and selects(policy["spec"]["podSelector"], labels)
    }
    database = {(name, 5432, ("holdfast-database",)) for name in SERVICES}
    assert outside == database | {
        (name, 53, ("kube-system",)) for name in ("pair", "edge", *SERVICES)
    }


def test_policies_name_labels_that_pods_have() -> None:
    there = {(key, value) for labels in pods().values() for key, value in labels.items()}
    selectors = [policy["spec"]["podSelector"] for policy in policies()]
    for policy in policies():
        for peers in ("ingress", "egress"):
            for rule in policy["spec"].get(peers, []):
                selectors += [
                    peer["podSelector"]
                    for peer in rule.get("from", rule.get("to", []))
                    if "namespaceSelector" not in peer
                ]
    named = {pair for selector in selectors for pair in selector.get("matchLabels", {}).items()}
    for selector in selectors:
        for one in selector.get("matchExpressions", []):
            named |= {(one["key"], value) for value in one["values"]}
    assert named <= there - {(COMPONENT, "stranger")}


def test_the_namespace_enforces_the_restricted_profile() -> None:
    labels = only(render(SHARED), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


# ---- the list of pairs --------------------------------------------------------------------------


def followed() -> dict[str, str]:
    """Return {pair: address} of the list that ledgerd and riskd follow."""
    lines = only(objects_of("ledgerd"), "ConfigMap")["data"]["HOLDFAST_FOLLOW"].splitlines()
    return dict(line.split("=") for line in lines)


def test_every_overlay_is_followed_and_no_other_pair() -> None:
    wanted = {}
    for name in PAIRS:
        objects = objects_of(name)
        service = only(objects, "Service")
        (port,) = [p["port"] for p in service["spec"]["ports"] if p["name"] == "orders"]
        pair = only(objects, "ConfigMap")["data"]["HOLDFAST_PAIR"]
        wanted[pair] = f"{service['metadata']['name']}:{port}"
    assert followed() == wanted
    for name in SERVICES:
        sources = container(objects_of(name), name)["envFrom"]
        assert sources == [{"configMapRef": {"name": "pairs"}}]


def test_each_instrument_has_an_overlay() -> None:
    pairs = tomllib.loads((ROOT / "exchange/instruments.toml").read_text())
    assert {name.upper() for name in PAIRS} == set(pairs)
    for name in PAIRS:
        objects = objects_of(name)
        assert only(objects, "ConfigMap")["data"]["HOLDFAST_PAIR"] == name.upper()
        assert only(objects, "StatefulSet")["metadata"]["name"] == f"pair-{name}"


def test_no_two_workloads_share_an_object_or_a_pod_or_differ_in_image_or_namespace() -> None:
    rendered = [render(EXCHANGE), *(objects_of(name) for name in PAIRS)]
    names = [(item["kind"], item["metadata"]["name"]) for objects in rendered for item in objects]
    assert len(names) == len(set(names))
    for name in WORKLOADS:
        selector = {"matchLabels": only(objects_of(name), "Service")["spec"]["selector"]}
        chosen = [
            n for n in WORKLOADS if selects(selector, pod_of(objects_of(n))["metadata"]["labels"])
        ]
        assert chosen == [name]
    assert len({item["image"] for name in WORKLOADS for item in containers(objects_of(name))}) == 1
    spaces = {
        item["metadata"].get("namespace")
        for objects in rendered
        for item in objects
        if item["kind"] != "Namespace"
    }
    assert spaces == {"holdfast"}


def test_no_two_containers_that_share_files_share_a_user() -> None:
    users = [
        (name, item["securityContext"]["runAsUser"])
        for name in (*SERVICES, PAIRS[0])
        for item in pod_of(objects_of(name))["spec"]["containers"]
    ]
    assert len({user for _, user in users}) == len(users)


# ---- what programs are told ---------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What a program understood."""

    listens: dict[str, str]
    """{port name: HOST:PORT}."""
    calls: frozenset[str] = frozenset()
    """Addresses of other workloads."""


def _entry(arguments: list[str]) -> Told:
    config = engine.entry.config.parse(arguments)
    return Told({"orders": f"{config.host}:{config.port}"}, frozenset({config.risk}))


def _gateway(arguments: list[str]) -> Told:
    given = mdgateway.__main__._arguments(arguments)
    config, http = mdgateway.__main__._config(given), http_config(given)
    return Told({"marketdata": f"{config.host}:{config.port}", "http": f"{http.host}:{http.port}"})


def _ledgerd(arguments: list[str]) -> Told:
    config = ledgerd.__main__._config(ledgerd.__main__._arguments(arguments))
    assert config.database_url == DATABASE
    owned = config.owner_url == SECRETS["ledgerd-database/owner-url"]
    assert owned == (arguments[0] == "migrate"), "only migrations are made as the owner"
    if owned:
        return Told({})
    calls = {target for _, target in config.pairs} | {config.funds.risk}
    return Told({"books": f"{config.host}:{config.port}"}, frozenset(calls))


def _riskd(arguments: list[str]) -> Told:
    config = riskd.config.parse(arguments)
    assert config.database_url == SECRETS["riskd-database/service-url"]
    owned = config.owner_url == SECRETS["riskd-database/owner-url"]
    assert owned == config.migrate_only, "only migrations are made as the owner"
    if owned:
        return Told({})
    calls = {target for _, target in config.pairs} | {config.ledger}
    return Told({"risk": f"{config.host}:{config.port}"}, frozenset(calls))


def _engine(arguments: list[str]) -> Told:
    config = engine.config.read_config(arguments)
    assert config.vault_segments != config.segments
    return Told({})


PARSERS: dict[str, Callable[[list[str]], Told]] = {
    "engine": _engine,
    "engine.entry_server": _entry,
    "mdgateway": _gateway,
    "ledgerd": _ledgerd,
    "riskd": _riskd,
}
TOLD = [(name, item["name"]) for name in WORKLOADS for item in containers(objects_of(name))]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"), *PAIRS)


def understood(name: str, inside: str, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """Return what a container's program makes of its command line and environment."""
    objects = objects_of(name)
    given = environment(objects, inside, SECRETS)
    if "HOLDFAST_IDENTITY" in given:
        identity = only(objects, "StatefulSet")["metadata"]["name"]
        given["HOLDFAST_IDENTITY"] = str(certificates / identity)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    python, option, module, *arguments = container(objects, inside)["command"]
    assert (python, option) == ("python", "-m")
    return PARSERS[module](arguments)


@pytest.mark.parametrize(("name", "inside"), TOLD)
def test_programs_listen_on_the_ports_they_open_and_call_services_that_are_there(
    name: str, inside: str, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = understood(name, inside, certificates, monkeypatch)
    ports = opened(container(objects_of(name), inside))
    assert told.listens == {port: f"0.0.0.0:{number}" for port, number in ports.items()}
    served = {
        f"{service['metadata']['name']}:{port['port']}"
        for service in (only(objects_of(one), "Service") for one in WORKLOADS)
        for port in service["spec"]["ports"]
    }
    assert told.calls <= served
    assert bool(told.calls) == (inside in {"entry", *SERVICES})


@pytest.mark.parametrize(("name", "inside"), [("ledgerd", "ledgerd"), ("riskd", "riskd")])
def test_a_program_that_lost_its_identity_does_not_listen(
    name: str, inside: str, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match=r"tls\.crt"):
        understood(name, inside, certificates / "nowhere", monkeypatch)


def constants_of(*packages: str) -> set[str]:
    """Return every word in capitals that the sources of packages contain."""
    texts = [
        node.value
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", "\n".join(texts)))


@pytest.mark.parametrize(("name", "inside"), TOLD)
def test_every_setting_is_one_that_the_program_reads(name: str, inside: str) -> None:
    objects = objects_of(name)
    item = container(objects, inside)
    given = settings(item)
    if item.get("envFrom"):
        given |= set(only(objects, "ConfigMap")["data"])
    package = item["command"][2].partition(".")[0]
    assert given <= constants_of(package, "exchange")


# ---- what operators are told --------------------------------------------------------------------


def page() -> str:
    """Return the page for operators."""
    return (ROOT / "docs" / "kubernetes.md").read_text()


@workload
def test_every_secret_is_on_the_page_for_operators(name: str) -> None:
    for secret in secrets_of(objects_of(name)):
        for word in secret.split("/"):
            # The identity of a pair is on it as that of any pair.
            assert word.replace(name, "PAIR") in page() or word in page(), word


def test_no_secret_is_in_the_manifests() -> None:
    rendered: list[Any] = [*render(EXCHANGE), *(o for name in PAIRS for o in objects_of(name))]
    assert not [item for item in rendered if item["kind"] == "Secret"]
    assert "postgresql://" not in "".join(
        path.read_text() for path in (ROOT / "k8s").rglob("*.yaml")
    )
