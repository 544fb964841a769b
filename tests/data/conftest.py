"""The ways into what lies beside this checkout: recordings, and the common workload."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

WORKLOAD = "../design/anchors/workload.py"


@pytest.fixture(scope="session")
def workload(recorded_data: Callable[[str], Path]) -> ModuleType:
    """Return the generator and reference replayer of the common workload, loaded by path."""
    path = recorded_data(WORKLOAD).resolve()
    spec = importlib.util.spec_from_file_location("workload", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
