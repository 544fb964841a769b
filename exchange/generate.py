"""Generate `exchange/v1` from `protos/`: run as `python -m exchange.generate`.

The message classes, their gRPC stubs and their type stubs are committed, so that nobody needs the
compiler to read or install the code, and never edited. `generate` writes a complete package into
any root; a test generates into an empty folder and compares, which is how drift is found.

A development tool: nothing that runs imports it, and it needs the packages of the `dev` extra.
"""

import shutil
import sys
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO_ROOT = ROOT / "protos"
PACKAGE = Path("exchange", "v1")

_INIT = '"""Generated from protos/exchange/v1 by `make proto`: never edited by hand."""\n'


def proto_files(proto_root: Path = PROTO_ROOT) -> list[Path]:
    """Return the contract's files below `proto_root`, sorted, relative to it."""
    return sorted(path.relative_to(proto_root) for path in (proto_root / PACKAGE).glob("*.proto"))


def generate(target_root: Path, proto_root: Path = PROTO_ROOT) -> list[Path]:
    """Write `exchange/v1` below `target_root` afresh and return the files, relative to it.

    Files that no longer have a source disappear. Raises RuntimeError when the compiler refuses a
    source; it has then printed why, and the old package is still in place.
    """
    from grpc_tools import protoc

    sources = proto_files(proto_root)
    if not sources:
        raise RuntimeError(f"no .proto files in {proto_root / PACKAGE}")
    staging = target_root / ".generated"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        _run_compiler(protoc, staging, proto_root, sources)
        package = staging / PACKAGE
        (package / "__init__.py").write_text(_INIT)
        target = target_root / PACKAGE
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        package.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return sorted(path.relative_to(target_root) for path in target.iterdir())


def _run_compiler(protoc: object, out: Path, proto_root: Path, sources: list[Path]) -> None:
    scripts = Path(sys.executable).parent
    well_known = resources.files("grpc_tools") / "_proto"
    code = protoc.main(  # type: ignore[attr-defined]
        [
            "protoc",
            f"--proto_path={proto_root}",
            f"--proto_path={well_known}",
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *map(str, sources),
        ]
    )
    if code != 0:
        raise RuntimeError(f"the protobuf compiler refused protos/ (exit status {code})")


def main() -> None:
    """Regenerate the package beside the sources and name the files."""
    for path in generate(ROOT):
        print(path)


if __name__ == "__main__":
    main()
