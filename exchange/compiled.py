"""How the project compiles: one cache directory per state of the kernel sources, two decorators.

Numba keys its cache by the source of the *calling* file alone. A kernel that uses an intrinsic or
a helper of another file, or a constant of another file, would go on running the old machine code
after that file was edited. So the cache lives in a directory named after a hash of every project
file that holds compiled code and of every project file such a file imports: an edit in any of
them leads to an empty directory and fresh code everywhere.

Invariants: the directory belongs to the current user and to nobody else (numba unpickles what it
finds there), and it is chosen before the first kernel is defined. A NUMBA_CACHE_DIR set by the
user wins.

Not here: ahead-of-time compilation, choice of target, anything that runs at call time.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

_PROJECT = Path(__file__).resolve().parent.parent
# Tests and benchmarks are left out: nobody imports their kernels, and numba's own key covers a
# file that only its own kernels depend on.
_PACKAGES = ("exchange", "engine", "mdgateway", "riskd", "ledgerd", "surveild", "warehoused")
_MARKS = (b"numba", b"exchange.compiled")
_IMPORT = re.compile(rb"^[ \t]*from ([\w.]+) import (\([^)]*\)|[^\n]*)", re.MULTILINE)
_DIRECTORY_PREFIX = "kernels-"
_KEPT_NS = 7 * 24 * 3600 * 1_000_000_000

Function = TypeVar("Function", bound=Callable[..., Any])


def _imported_paths(project: Path, content: bytes) -> Iterator[Path]:
    """Yield the files that the `from ... import ...` lines of a source may mean."""
    for match in _IMPORT.finditer(content):
        module = match[1].decode().split(".")
        if module[0] in _PACKAGES:
            yield project.joinpath(*module).with_suffix(".py")
            for name in re.findall(r"\w+", match[2].decode()):
                yield project.joinpath(*module, name).with_suffix(".py")


def kernel_sources(project: Path = _PROJECT) -> dict[str, bytes]:
    """Return {path relative to the project: content} of all files that shape compiled code."""
    sources: dict[Path, bytes] = {}
    waiting: list[Path] = []
    for package in _PACKAGES:
        for path in (project / package).rglob("*.py"):
            content = path.read_bytes()
            if any(mark in content for mark in _MARKS):
                sources[path] = content
                waiting.append(path)
    while waiting:
        for path in _imported_paths(project, sources[waiting.pop()]):
            if path not in sources and path.is_file():
                sources[path] = path.read_bytes()
                waiting.append(path)
    return {str(path.relative_to(project)): sources[path] for path in sorted(sources)}


def sources_hash(project: Path = _PROJECT) -> str:
    """Hash names and contents of all kernel sources: equal hash, equal machine code wanted."""
    digest = hashlib.sha256()
    for name, content in kernel_sources(project).items():
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def sources_stamp(project: Path = _PROJECT) -> str:
    """Hash what numba looks at besides: where each kernel source lies, its time and its size.

    Another checkout of the same sources shares the directory and none of the machine code in it.
    """
    digest = hashlib.sha256()
    for name in kernel_sources(project):
        status = (project / name).stat()
        digest.update(f"{project / name}\0{status.st_mtime_ns}\0{status.st_size}\0".encode())
    return digest.hexdigest()[:16]


def _candidates() -> Iterator[Path]:
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        yield Path(base) / "holdfast"
    with contextlib.suppress(RuntimeError):  # A user without a home.
        yield Path.home() / ".cache" / "holdfast"
    yield Path(tempfile.gettempdir()) / f"holdfast-{os.geteuid()}"


def _usable(directory: Path) -> bool:
    """Create a directory for this user; say whether it is ours alone to write."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError:
        return False
    private = status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return private and os.access(directory, os.W_OK | os.X_OK)


def _forget_old(root: Path, keep: Path) -> None:
    """Drop caches of sources that nobody has compiled for a week, so the root stays small."""
    oldest_ns = time.time_ns() - _KEPT_NS
    for path in root.glob(_DIRECTORY_PREFIX + "*"):
        try:
            if path != keep and path.stat().st_mtime_ns < oldest_ns:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # Another process was quicker.


def _choose_cache_directory() -> str:
    given = os.environ.get("NUMBA_CACHE_DIR", "")
    # A directory of ours inherited from a parent may belong to sources edited since.
    if given and not Path(given).name.startswith(_DIRECTORY_PREFIX):
        return given
    name = _DIRECTORY_PREFIX + sources_hash()
    for root in _candidates():
        directory = root / name
        if _usable(root) and _usable(directory):
            _forget_old(root, directory)
            return str(directory)
    raise OSError("no private directory for compiled code: set NUMBA_CACHE_DIR to one")


cache_directory = _choose_cache_directory()
os.environ["NUMBA_CACHE_DIR"] = cache_directory

import numba  # noqa: E402  (numba reads the variable when it is imported)

vars(numba.config)["CACHE_DIR"] = cache_directory  # In case somebody imported numba before us.

_kernel = numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
_inlined = numba.njit(forceinline=True, boundscheck=False, error_model="numpy")


def kernel(function: Function) -> Function:
    """Compile an entry point: cached on disk, called without the interpreter's lock held."""
    return cast(Function, _kernel(function))


def inlined(function: Function) -> Function:
    """Compile a helper that always dissolves into its caller; the caller's cache holds it."""
    return cast(Function, _inlined(function))
