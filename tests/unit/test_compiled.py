"""The cache of compiled code: an edit of anything that shapes a kernel leads to fresh code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exchange import compiled

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Lay out a small project of a kernel, a helper of another file and a constant of a third."""
    files = {
        "engine/limits.py": "LIMIT = 7\n",
        "engine/counting.py": (
            "from engine.limits import LIMIT\n"
            "from exchange.compiled import inlined\n\n\n"
            "@inlined\ndef add_limit(value):\n    return value + LIMIT\n"
        ),
        "engine/run.py": (
            "from engine.counting import add_limit\n"
            "from exchange.compiled import cache_directory, kernel\n\n\n"
            "@kernel\ndef answer(value):\n    return add_limit(value)\n\n\n"
            "print(answer(100), cache_directory)\n"
        ),
        "engine/unrelated.py": "NAME = 'no kernel sees this'\n",
        "exchange/__init__.py": "",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    shutil.copy(PROJECT / "exchange" / "compiled.py", tmp_path / "exchange" / "compiled.py")
    return tmp_path


def run(project: Path, **environment: str) -> list[str]:
    inherited = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    inherited |= {"PYTHONPATH": str(project), "XDG_CACHE_HOME": str(project / "cache")}
    completed = subprocess.run(
        [sys.executable, "-m", "engine.run"],
        cwd=project,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return completed.stdout.split()


def test_sources_are_the_kernels_and_what_they_import(project: Path) -> None:
    assert list(compiled.kernel_sources(project)) == [
        "engine/counting.py",
        "engine/limits.py",
        "engine/run.py",
        "exchange/compiled.py",
    ]


def test_the_hash_follows_content_and_names(project: Path) -> None:
    before = compiled.sources_hash(project)
    (project / "engine/unrelated.py").write_text("NAME = 'changed'\n")
    assert compiled.sources_hash(project) == before
    (project / "engine/limits.py").write_text("LIMIT = 8\n")
    changed = compiled.sources_hash(project)
    assert changed != before
    (project / "engine/run.py").rename(project / "engine/start.py")
    assert compiled.sources_hash(project) not in {before, changed}


def test_an_edit_of_a_constant_in_another_file_reaches_the_compiled_code(project: Path) -> None:
    first, directory = run(project)
    assert first == "107"
    assert any(Path(directory).rglob("*.nbi")), "the kernel was not cached at all"
    assert run(project) == [first, directory]
    (project / "engine/limits.py").write_text("LIMIT = 8\n")
    second, other_directory = run(project)
    assert (second, other_directory != directory) == ("108", True)


def test_a_directory_inherited_from_older_sources_is_not_used(project: Path) -> None:
    stale = project / "cache" / "holdfast" / "kernels-0000000000000000"
    _, directory = run(project, NUMBA_CACHE_DIR=str(stale))
    assert Path(directory).parent == stale.parent
    assert Path(directory) != stale


def test_a_directory_chosen_by_the_user_wins(project: Path) -> None:
    chosen = project / "mine"
    assert run(project, NUMBA_CACHE_DIR=str(chosen)) == ["107", str(chosen)]


def test_a_directory_that_others_may_write_is_never_read(project: Path) -> None:
    shared = project / "cache" / "holdfast"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    _, directory = run(project, HOME=str(project / "home"))
    assert Path(directory).parent == project / "home" / ".cache" / "holdfast"


def test_another_checkout_and_a_touched_file_are_other_stamps_of_the_same_sources(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "checkout"
    shutil.copytree(project, other)
    assert compiled.sources_hash(other) == compiled.sources_hash(project)
    stamps = {compiled.sources_stamp(project), compiled.sources_stamp(other)}
    os.utime(project / "engine" / "limits.py", ns=(1, 1))
    stamps.add(compiled.sources_stamp(project))
    assert len(stamps) == 3
    (project / "engine" / "unrelated.py").write_text("NAME = 'still not'\n")
    assert compiled.sources_stamp(project) in stamps
