"""The rendered manifests by workload, and the few questions that tests of all of them ask."""

import copy
import functools
from pathlib import Path
from typing import Any

from tests.kustomize import render

Object = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
OVERLAYS = sorted((ROOT / "k8s" / "overlays").iterdir())
SHARED = ROOT / "k8s" / "namespace"
EXCHANGE = ROOT / "k8s" / "exchange"
DIRECTORIES = [ROOT / "k8s" / "base", SHARED, EXCHANGE, *OVERLAYS]
SERVICES = ("ledgerd", "riskd")
COMPONENT = "app.kubernetes.io/component"
UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


@functools.cache
def _rendered(directory: Path) -> list[Object]:
    return render(directory)


def objects_of(name: str) -> list[Object]:
    """Return what makes up a workload: an overlay by its folder's name, or a service; a copy."""
    if name not in SERVICES:
        return copy.deepcopy(_rendered(ROOT / "k8s" / "overlays" / name))
    found = [
        item
        for item in _rendered(EXCHANGE)
        if item["metadata"].get("labels", {}).get(COMPONENT) == name
        or (item["kind"], item["metadata"]["name"]) == ("ConfigMap", "pairs")
    ]
    return copy.deepcopy(found)


WORKLOADS = (*SERVICES, *(path.name for path in OVERLAYS))


def quantity_bytes(text: str) -> int:
    """Turn a Kubernetes quantity such as 512Mi into bytes."""
    return int(text[:-2]) * UNITS[text[-2:]]


def only(objects: list[Object], kind: str) -> Object:
    """Return the one object of a kind."""
    found = [item for item in objects if item["kind"] == kind]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}, one expected"
    return found[0]


def pod_of(objects: list[Object]) -> Object:
    """Return the pod template of the workload."""
    template = only(objects, "StatefulSet")["spec"]["template"]
    assert isinstance(template, dict)
    return template


def containers(objects: list[Object]) -> list[Object]:
    """Return every container of the workload, those of its start first."""
    spec = pod_of(objects)["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def container(objects: list[Object], name: str) -> Object:
    """Return the container of that name."""
    found = {item["name"]: item for item in containers(objects)}
    return found[name]


def mounts(objects: list[Object], name: str) -> dict[str, Object]:
    """Return {volume: mount} of a container."""
    return {mount["name"]: mount for mount in container(objects, name).get("volumeMounts", [])}


def opened(item: Object) -> dict[str, int]:
    """Return {name: number} of the ports that a container opens."""
    return {port["name"]: port["containerPort"] for port in item.get("ports", [])}


def settings(item: Object) -> set[str]:
    """Return the names of the variables that a container is given by itself."""
    return {variable["name"] for variable in item.get("env", [])}


def environment(objects: list[Object], name: str, secrets: dict[str, str]) -> dict[str, str]:
    """Return what a container finds in its environment; `secrets` by "name/key"."""
    item, found = container(objects, name), {}
    for source in item.get("envFrom", []):
        assert source["configMapRef"]["name"] == only(objects, "ConfigMap")["metadata"]["name"]
        found.update(only(objects, "ConfigMap")["data"])
    for variable in item.get("env", []):
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            found[variable["name"]] = secrets[f"{reference['name']}/{reference['key']}"]
    return found


def secrets_of(objects: list[Object]) -> set[str]:
    """Return the Secrets that a workload needs: "name/key", or "name" for one that is mounted."""
    found = {
        f"{reference['name']}/{reference['key']}"
        for item in containers(objects)
        for variable in item.get("env", [])
        if (reference := variable.get("valueFrom", {}).get("secretKeyRef"))
    }
    volumes = pod_of(objects)["spec"]["volumes"]
    return found | {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Say whether a label selector matches, by labels and by `In` expressions."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True
