"""What has to be said twice is compared here: sources and generated code, enums, documentation.

Generated code is compared with a fresh generation, protobuf enums with `exchange.enums`, service
definitions with the style of the house, locks with each other, and the README with the Makefile.
"""

import enum
import filecmp
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor, FileDescriptor

import exchange.enums
from exchange.generate import PACKAGE, PROTO_ROOT, generate, proto_files

ROOT = Path(__file__).resolve().parent.parent
# The types a contract about money has no use for.
FLOATING = frozenset({FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT})


def descriptors() -> Iterator[FileDescriptor]:
    """Walk the descriptors of the committed contract."""
    for path in proto_files():
        module = f"{PACKAGE.as_posix().replace('/', '.')}.{path.stem}_pb2"
        yield importlib.import_module(module).DESCRIPTOR


def enum_descriptors() -> Iterator[EnumDescriptor]:
    """Walk all enums of the contract, those inside messages too."""

    def inside(message: object) -> Iterator[EnumDescriptor]:
        yield from message.enum_types  # type: ignore[attr-defined]
        for nested in message.nested_types:  # type: ignore[attr-defined]
            yield from inside(nested)

    for file in descriptors():
        yield from file.enum_types_by_name.values()
        for message in file.message_types_by_name.values():
            yield from inside(message)


def screaming(name: str) -> str:
    """Turn `TimeInForce` into `TIME_IN_FORCE`, the prefix of its values."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def enums_of_ours() -> dict[str, type[enum.IntEnum]]:
    """Return the enums of `exchange.enums` by name."""
    return {
        name: value
        for name, value in vars(exchange.enums).items()
        if isinstance(value, type) and issubclass(value, enum.IntEnum) and value is not enum.IntEnum
    }


def differences(left: Path, right: Path) -> list[str]:
    """Return the files of two folders that are not byte for byte the same."""
    names = {path.name for path in (*left.iterdir(), *right.iterdir()) if path.is_file()}
    _, unequal, missing = filecmp.cmpfiles(left, right, sorted(names), shallow=False)
    return sorted(unequal + missing)


def test_the_generated_code_is_what_the_sources_say(tmp_path: Path) -> None:
    generate(tmp_path)
    assert differences(ROOT / PACKAGE, tmp_path / PACKAGE) == [], "run `make proto`"


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    protos = tmp_path / "protos"
    for path in proto_files():
        copy = protos / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((PROTO_ROOT / path).read_bytes())
    copy.write_text(copy.read_text() + "\nmessage Stowaway { int64 weight_units = 1; }\n")
    generate(tmp_path, protos)
    stem = copy.stem
    assert f"{stem}_pb2.py" in differences(ROOT / PACKAGE, tmp_path / PACKAGE)


def test_a_source_the_compiler_refuses_leaves_the_old_code_alone(tmp_path: Path) -> None:
    source = tmp_path / "protos" / PACKAGE / "broken.proto"
    source.parent.mkdir(parents=True)
    source.write_text('syntax = "proto3";\npackage exchange.v1;\nmessage Fine {}\n')
    generate(tmp_path, tmp_path / "protos")
    before = (tmp_path / PACKAGE / "broken_pb2.py").read_bytes()
    source.write_text("this is no contract")
    with pytest.raises(RuntimeError, match="refused"):
        generate(tmp_path, tmp_path / "protos")
    assert (tmp_path / PACKAGE / "broken_pb2.py").read_bytes() == before
    assert not (tmp_path / ".generated").exists()


def test_the_contract_is_lint_free() -> None:
    buf = Path(sys.executable).parent / "buf"
    comments = ["COMMENT_ENUM", "COMMENT_MESSAGE", "COMMENT_RPC", "COMMENT_SERVICE"]
    config = json.dumps({"version": "v2", "lint": {"use": ["STANDARD", *comments]}})
    outcome = subprocess.run(
        [buf, "lint", str(PROTO_ROOT), "--config", config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_the_contract_carries_no_floating_point() -> None:
    floating = [
        field.full_name
        for file in descriptors()
        for message in file.message_types_by_name.values()
        for field in message.fields
        if field.type in FLOATING
    ]
    assert floating == []


def test_each_protobuf_enum_of_ours_has_our_names_and_numbers() -> None:
    ours = enums_of_ours()
    compared = []
    for descriptor in enum_descriptors():
        if descriptor.name in ours:
            prefix = screaming(descriptor.name) + "_"
            wire = {value.name.removeprefix(prefix): value.number for value in descriptor.values}
            assert wire == {item.name: item.value for item in ours[descriptor.name]}, (
                f"{descriptor.full_name} and exchange.enums.{descriptor.name} differ"
            )
            compared.append(descriptor.name)
    # The words of an order exist on both sides of every door.
    assert {"Side", "OrderType", "TimeInForce", "Reason"} <= set(compared)


@pytest.mark.parametrize("kind", enums_of_ours().values(), ids=lambda kind: kind.__name__)
def test_zero_is_unspecified_and_numbers_are_dense(kind: type[enum.IntEnum]) -> None:
    assert kind(0).name == "UNSPECIFIED"
    # Append only: a gap would mean that a released number was taken back.
    assert sorted(kind) == list(range(len(kind)))


def locked(name: str) -> dict[str, str]:
    """Return {package: version} of a lock file and check that each entry carries a hash."""
    text = (ROOT / name).read_text()
    entries = re.split(r"\n(?=\w)", re.sub(r"(?m)^\s*#.*\n?", "", text).strip())
    versions = {}
    for entry in entries:
        match = re.match(r"([\w.-]+)==([\w.]+)", entry)
        assert match, f"{name}: {entry.splitlines()[0]!r} is not pinned to one version"
        assert "--hash=sha256:" in entry, f"{name}: {match[1]} has no hash"
        versions[match[1]] = match[2]
    return versions


def test_the_locks_pin_every_requirement_and_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w.-]", item)[0] for item in requirements}

    everything, running = locked("requirements.txt"), locked("requirements-runtime.txt")
    assert names(project["dependencies"]) <= running.keys()
    assert names(project["optional-dependencies"]["dev"]) <= everything.keys()
    assert running.items() <= everything.items()


def test_the_image_is_built_from_every_package() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {pattern.rstrip("*") for pattern in setuptools["packages"]["find"]["include"]}
    copied = set(re.findall(r"(?m)^COPY (\w+) \1$", (ROOT / "Dockerfile").read_text()))
    admitted = set(re.findall(r"(?m)^!(\w+)$", (ROOT / ".dockerignore").read_text()))
    assert packages == copied == admitted


def make_targets() -> set[str]:
    """Return the targets of the Makefile that `make help` lists."""
    return set(re.findall(r"(?m)^([a-z]+):.*##", (ROOT / "Makefile").read_text()))


def fenced_commands(path: Path) -> list[str]:
    """Return the command lines of the shell blocks of a page."""
    blocks = re.findall(r"```(?:sh|bash|console|shell)\n(.*?)```", path.read_text(), re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_readme_names_commands_that_exist() -> None:
    commands = fenced_commands(ROOT / "README.md")
    asked = {
        word
        for line in commands
        if line.split()[0] == "make"
        for word in line.split("#")[0].split()[1:]
        if re.fullmatch(r"[a-z]+", word)
    }
    assert {"run", "test", "bench"} <= asked <= make_targets()


def test_the_readme_names_files_that_exist() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    dangling = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert dangling == []


def test_every_make_target_is_declared_and_explained() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    declared = set(re.findall(r"(?m)^\.PHONY: (.*)$", makefile)[0].split())
    assert declared == make_targets()


def test_each_dependency_is_argued_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs/decisions/0003-dependencies.md").read_text()
    argued = set(re.findall(r"(?m)^\| `([\w.-]+)`", page))
    required = {
        re.split(r"[^\w.-]", item)[0]
        for item in [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    }
    assert argued == required
