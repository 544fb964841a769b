"""The obvious twin of `kubectl kustomize` for the few features our manifests use.

It lets the manifests be tested on a machine with nothing but Python. Where kubectl is installed,
`tests/unit/test_k8s.py` compares the two on every directory. Anything it does not know it refuses.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

_KNOWN = {
    *("apiVersion", "kind", "namespace", "resources", "images"),
    *("nameSuffix", "labels", "patches"),
}
# The lists that a strategic merge patch joins by a key; all others it replaces.
_MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "initContainers": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
# Kinds whose name is not ours to change.
_UNNAMED = {"Namespace"}


def render(directory: Path) -> list[Object]:
    """Return the objects of a kustomization, as `kubectl kustomize` would print them."""
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    unknown = kustomization.keys() - _KNOWN
    assert not unknown, f"{directory}: this twin of kustomize does not know {sorted(unknown)}"
    objects: list[Object] = []
    for resource in kustomization.get("resources", []):
        path = (directory / resource).resolve()
        if path.is_dir():
            objects.extend(render(path))
        else:
            loaded = [item for item in yaml.safe_load_all(path.read_text()) if item]
            objects.extend(map(_unshared, loaded))
    for patch in kustomization.get("patches", []):
        _patch(objects, patch)
    for item in objects:
        if "namespace" in kustomization and item["kind"] not in _UNNAMED:
            item["metadata"]["namespace"] = kustomization["namespace"]
    _add_suffix(objects, kustomization.get("nameSuffix", ""))
    for label in kustomization.get("labels", []):
        _add_labels(objects, label)
    for image in kustomization.get("images", []):
        _set_image(objects, image)
    return objects


def _unshared(value: Any) -> Any:
    """Copy, so that what a YAML anchor shares can be changed in one place alone."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _patch(objects: list[Object], patch: Object) -> None:
    assert patch.keys() == {"patch"}, f"only inline strategic merge patches are known: {patch}"
    change = yaml.safe_load(patch["patch"])
    assert isinstance(change, dict), f"only inline strategic merge patches are known: {patch}"
    wanted = change["kind"], change["metadata"]["name"]
    targets = [item for item in objects if (item["kind"], item["metadata"]["name"]) == wanted]
    assert len(targets) == 1, f"the patch of {wanted} meets {len(targets)} objects"
    _merge(targets[0], change)


def _merge(target: Object, change: Object) -> None:
    for key, value in change.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        elif isinstance(value, list) and key in _MERGE_KEYS and key in target:
            _merge_list(target[key], value, _MERGE_KEYS[key])
        else:
            target[key] = value


def _merge_list(target: list[Object], changes: list[Object], key: str) -> None:
    by_key = {item[key]: item for item in target}
    changed = []
    for change in changes:
        assert "$patch" not in change, "patch directives are not known"
        item = by_key.get(change[key], change)
        if item is not change:
            _merge(item, change)
        changed.append(item)
    # What a patch names comes first.
    rest = [item for item in target if item not in changed]
    target[:] = changed + rest


def _add_suffix(objects: list[Object], suffix: str) -> None:
    """Rename the objects and what refers to them by name."""
    renamed = {
        (item["kind"], item["metadata"]["name"]) for item in objects if item["kind"] not in _UNNAMED
    }
    for item in objects:
        if item["kind"] not in _UNNAMED:
            item["metadata"]["name"] += suffix
        if item["kind"] == "StatefulSet" and ("Service", item["spec"]["serviceName"]) in renamed:
            item["spec"]["serviceName"] += suffix
        for container in _containers(item):
            for source in container.get("envFrom", []):
                reference = source["configMapRef"]
                if ("ConfigMap", reference["name"]) in renamed:
                    reference["name"] += suffix


def _containers(item: Object) -> Iterator[Object]:
    pod = item.get("spec", {}).get("template", {}).get("spec", {})
    yield from pod.get("initContainers", [])
    yield from pod.get("containers", [])


def _add_labels(objects: list[Object], label: Object) -> None:
    assert label.keys() == {"pairs", "includeSelectors"}, f"unknown in {label}"
    assert label["includeSelectors"] is True, "labels without selectors are not known"
    for item in objects:
        targets = [item["metadata"].setdefault("labels", {})]
        if item["kind"] == "Service":
            targets.append(item["spec"]["selector"])
        elif item["kind"] == "PodDisruptionBudget":
            targets.append(item["spec"]["selector"]["matchLabels"])
        elif item["kind"] == "StatefulSet":
            targets.append(item["spec"]["selector"]["matchLabels"])
            targets.append(item["spec"]["template"]["metadata"]["labels"])
            claims = item["spec"].get("volumeClaimTemplates", [])
            targets.extend(claim["metadata"].setdefault("labels", {}) for claim in claims)
        else:
            assert item["kind"] == "ConfigMap", f"labels of {item['kind']} are not known"
        for target in targets:
            target.update(label["pairs"])


def _set_image(objects: list[Object], image: Object) -> None:
    assert image.keys() == {"name", "newTag"}, f"unknown in {image}"
    for item in objects:
        for container in _containers(item):
            if container["image"].split(":")[0] == image["name"]:
                container["image"] = f"{image['name']}:{image['newTag']}"
