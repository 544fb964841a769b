"""The walls of the house: what may import what, how long things get, what pure rooms may hold.

Every rule is a function from source text to a list of complaints, so that each one is also shown
a text it must complain about: a rule that cannot fail protects nothing.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GENERATED = Path("exchange", "v1")
SERVICES = ("engine", "mdgateway", "riskd", "ledgerd", "holdfast")

FUNCTION_LINES = 70
MODULE_LINES = 500
FOLDER_MODULES = 12

# The ratchet: what was longer when it was written, with its length then. An entry may shrink and
# has to go when it is no longer needed; it never grows.
LONGER_FUNCTIONS: dict[str, int] = {}
LONGER_MODULES: dict[str, int] = {}
# The one room everybody shares: each module is a thing that two processes agree on.
LARGER_FOLDERS: dict[str, int] = {
    "exchange": 24,
    "engine/kernel": 13,
    "bench": 16,
    "holdfast/running": 13,
}

# Where prices, quantities and money are computed: integers only, and nothing from the world.
FLOAT_FREE = ("engine/kernel/*.py", "exchange/units.py", "exchange/records.py")
KERNEL_IMPORTS = frozenset(
    {
        "engine.kernel",
        "engine.vault_layout",
        "exchange.account_digest",
        "exchange.atomics",
        "exchange.book_layout",
        "exchange.compiled",
        "exchange.enums",
        "exchange.instrument",
        "exchange.records",
        "exchange.tables",
        "exchange.units",
        "numba",
        "numpy",
        "typing",
    }
)
# Who may read the environment beside the config modules: numba's cache has to be chosen before
# numba is imported, so before any configuration is read.
ENVIRONMENT_READERS = frozenset({"exchange/compiled.py"})
# Pure modules that know only the language and each other.
PURE = ("exchange/enums.py", "exchange/instrument.py", "exchange/records.py", "exchange/units.py")
PURE_IMPORTS = frozenset(
    {
        "collections.abc",
        "dataclasses",
        "decimal",
        "enum",
        "exchange.enums",
        "exchange.instrument",
        "exchange.records",
        "exchange.tables",
        "exchange.units",
        "math",
        "numpy",
        "re",
        "typing",
    }
)


def source_files(*suffixes: str) -> list[Path]:
    """Return the project's own files with one of `suffixes` (all of them without), relative."""
    found = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") for part in parts[:-1]) and parts[0] != ".ci"
        if hidden or "__pycache__" in parts or parts[0] in {"build", "dist", "run", "var"}:
            continue
        if any(part.endswith(".egg-info") for part in parts) or not path.is_file():
            continue
        if not suffixes or path.suffix in suffixes:
            found.append(path.relative_to(ROOT))
    return found


def python_files() -> list[Path]:
    """Return every Python file somebody wrote, relative to the root."""
    return [path for path in source_files(".py") if GENERATED not in path.parents]


def functions_in(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Walk all functions and methods, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def long_functions(source: str, limit: int = FUNCTION_LINES) -> dict[str, int]:
    """Return the functions with more than `limit` lines of code; docstrings do not count."""
    too_long = {}
    for function in functions_in(ast.parse(source)):
        first, last = function.lineno, function.end_lineno or function.lineno
        lines = last - first + 1
        statement = function.body[0]
        if ast.get_docstring(function) is not None:
            lines -= (statement.end_lineno or statement.lineno) - statement.lineno + 1
        if lines > limit:
            too_long[function.name] = lines
    return too_long


def float_uses(source: str) -> list[str]:
    """Return where `source` makes a float: a literal, a true division, a float type."""
    uses = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            uses.append(f"line {node.lineno}: the literal {node.value}")
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            uses.append(f"line {node.lineno}: a true division")
        elif isinstance(node, ast.Name) and "float" in node.id.lower():
            uses.append(f"line {node.lineno}: the name {node.id}")
        elif isinstance(node, ast.Attribute) and "float" in node.attr.lower():
            uses.append(f"line {node.lineno}: the attribute {node.attr}")
    return uses


def imports_of(source: str) -> set[str]:
    """Return the modules `source` imports, `from a import b` as `a`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def foreign_imports(source: str, allowed: frozenset[str]) -> set[str]:
    """Return the imports of `source` that are neither in `allowed` nor below one of them.

    `from engine import vault_layout` counts as `engine.vault_layout`, so that a package is not
    let in by the name of one of its modules.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if any(name.startswith(f"{module}.") for name in allowed) and module not in allowed:
                names.update(f"{module}.{alias.name}" for alias in node.names)
            else:
                names.add(module)
    return {
        name
        for name in names
        if not any(name == room or name.startswith(f"{room}.") for room in allowed)
    }


def uncompiled_functions(source: str) -> list[str]:
    """Return the top-level functions that do not go through `exchange.compiled`."""
    bare = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            decorators = {ast.unparse(item).split("(")[0] for item in node.decorator_list}
            if not decorators & {"kernel", "inlined", "compiled.kernel", "compiled.inlined"}:
                bare.append(node.name)
    return bare


def environment_reads(source: str) -> list[int]:
    """Return the lines that read the process environment."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "environb"}:
            lines.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            names = {alias.name for alias in node.names}
            lines.extend([node.lineno] if names & {"environ", "getenv"} else [])
    return lines


# One letter of each stands in brackets, so that this file does not complain about itself.
MACHINE = re.compile(
    r"/[w]ork/(?:main|shared)|/[r]oot/|/[t]mp/brief|/[o]pt/wheels|/[h]ome/[a-z]+/"
    r"|\b(?:[p]ypi|[p]ythonhosted|[n]pmjs|[g]hcr|[q]uay|[g]cr)\.(?:org|com|io)\b"
    r"|--(?:[e]xtra-)?[i]ndex-url|--[f]ind-links"
)
REMINDERS = re.compile(r"\b(?:[T]ODO|[F]IXME|[X]XX)\b")


def machine_traces(text: str) -> list[str]:
    """Return what in `text` is true on one machine only: private paths, package registries."""
    return [match.group() for match in MACHINE.finditer(text)]


def readable_files() -> Iterator[tuple[Path, str]]:
    """Walk the project's text files with their content."""
    for path in source_files():
        try:
            yield path, (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def matching(*patterns: str) -> list[Path]:
    """Return the files that match one of the glob patterns."""
    return [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]


@pytest.mark.parametrize("pattern", sorted({"exchange/*.py", *FLOAT_FREE, *PURE}))
def test_no_rule_holds_of_nothing(pattern: str) -> None:
    assert matching(pattern)


def test_imports_point_down_only() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_exchange_can_be_used_alone() -> None:
    for path in matching("exchange/*.py"):
        above = {name.split(".")[0] for name in imports_of(path.read_text())} & set(SERVICES)
        assert not above, f"{path.name} imports {sorted(above)}"


@pytest.mark.parametrize("path", matching("engine/kernel/*.py"), ids=lambda path: path.name)
def test_the_kernel_imports_nothing_but_what_it_is_granted(path: Path) -> None:
    assert foreign_imports(path.read_text(), KERNEL_IMPORTS) == set()


@pytest.mark.parametrize("path", matching(*PURE), ids=lambda path: path.name)
def test_pure_modules_import_nothing_of_the_world(path: Path) -> None:
    assert foreign_imports(path.read_text(), PURE_IMPORTS) == set()


@pytest.mark.parametrize("path", matching(*FLOAT_FREE), ids=lambda path: path.name)
def test_pure_rooms_are_free_of_floats(path: Path) -> None:
    assert float_uses(path.read_text()) == []


@pytest.mark.parametrize("path", matching("engine/kernel/*.py"), ids=lambda path: path.name)
def test_every_kernel_is_compiled_the_agreed_way(path: Path) -> None:
    source = path.read_text()
    assert uncompiled_functions(source) == []
    assert "njit" not in source, "decorate through exchange.compiled, which fixes the options"


def test_functions_stay_short() -> None:
    longest: dict[str, int] = {}
    for path in python_files():
        for name, lines in long_functions((ROOT / path).read_text()).items():
            longest[f"{path.as_posix()}::{name}"] = lines
    assert longest == {key: min(longest.get(key, 0), n) for key, n in LONGER_FUNCTIONS.items()}


def test_modules_stay_short() -> None:
    longest = {}
    for path in python_files():
        lines = (ROOT / path).read_text().count("\n")
        if lines > MODULE_LINES:
            longest[path.as_posix()] = lines
    assert longest == {key: min(longest.get(key, 0), n) for key, n in LONGER_MODULES.items()}


def test_folders_stay_small() -> None:
    sizes: dict[str, int] = {}
    for path in python_files():
        if path.parts[0] != "tests" and path.name != "__init__.py":
            folder = path.parent.as_posix()
            sizes[folder] = sizes.get(folder, 0) + 1
    too_large = {
        folder: count
        for folder, count in sizes.items()
        if count > LARGER_FOLDERS.get(folder, FOLDER_MODULES)
    }
    assert too_large == {}


def test_no_room_has_a_name_that_says_nothing() -> None:
    empty = {"util", "utils", "helper", "helpers", "common", "misc", "base", "core", "manager"}
    named = [path for path in python_files() if empty & {*path.parts[:-1], path.stem}]
    assert named == []


def test_the_environment_is_read_in_config_only() -> None:
    readers = {
        path.as_posix(): lines
        for path in python_files()
        if path.parts[0] not in {"tests", "bench"} and path.name != "config.py"
        if path.as_posix() not in ENVIRONMENT_READERS
        if (lines := environment_reads((ROOT / path).read_text()))
    }
    assert readers == {}


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    traces = {
        path.as_posix(): found for path, text in readable_files() if (found := machine_traces(text))
    }
    assert traces == {}


def test_no_file_holds_a_reminder_instead_of_the_work() -> None:
    reminders = {
        path.as_posix(): found
        for path, text in readable_files()
        if path.suffix in {".py", ".md", ".proto", ".yaml", ".toml", ".html", ".js"}
        if (found := REMINDERS.findall(text))
    }
    assert reminders == {}


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        (float_uses, "rate = 0.5"),
        (float_uses, "half = quantity_lots / 2"),
        (float_uses, "quantity_lots /= 2"),
        (float_uses, "x = np.float64(1)"),
        (float_uses, "x = float(1)"),
        (uncompiled_functions, "@njit\ndef add(a, b):\n    return a + b"),
        (environment_reads, "import os\nhome = os.environ['HOME']"),
        (environment_reads, "from os import getenv"),
        (machine_traces, "see /" + "root/notes"),
        (machine_traces, "--extra-index-" + "url somewhere"),
        (lambda text: foreign_imports(text, KERNEL_IMPORTS), "import time"),
        (lambda text: foreign_imports(text, KERNEL_IMPORTS), "from exchange import clock"),
        (
            lambda text: foreign_imports(text, KERNEL_IMPORTS),
            "from engine.durability.journal import Journal",
        ),
        (long_functions, "def f():\n" + "    x = 1\n" * FUNCTION_LINES),
    ],
)
def test_each_rule_complains_about_a_breach(rule: Callable[[str], object], bad: str) -> None:
    assert rule(bad)


@pytest.mark.parametrize(
    ("rule", "good"),
    [
        (float_uses, "half = quantity_lots // 2"),
        (uncompiled_functions, "@kernel\ndef add(a, b):\n    return a + b"),
        (uncompiled_functions, "@inlined(cache=True)\ndef add(a, b):\n    return a + b"),
        (lambda text: foreign_imports(text, KERNEL_IMPORTS), "from engine import vault_layout"),
        (lambda text: foreign_imports(text, KERNEL_IMPORTS), "from exchange.enums import Side"),
        (long_functions, "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1)),
    ],
)
def test_each_rule_is_content_with_what_is_right(rule: Callable[[str], object], good: str) -> None:
    assert not rule(good)
