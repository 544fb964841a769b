"""What every test may rely on: one Hypothesis profile and the way to the recorded data.

A failing Hypothesis test prints its example and the blob that brings it back
(`@reproduce_failure`), and `pytest --hypothesis-seed=N` repeats a whole run.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
RECORDED_DATA = ROOT.parent / "shared" / "data"

# No deadline: the first call of a compiled function compiles it, and no test asserts on time.
settings.register_profile(
    "holdfast",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("holdfast")


@pytest.fixture(scope="session")
def recorded_data() -> Callable[[str], Path]:
    """Return a function from a name in the recorded data to its path.

    The recordings are too large for the repository; where they are absent, the test that needs
    one is skipped and says which.
    """

    def path_of(name: str) -> Path:
        path = RECORDED_DATA / name
        if not path.exists():
            pytest.skip(f"the recorded data {name!r} is not beside this checkout, in shared/data")
        return path

    return path_of
