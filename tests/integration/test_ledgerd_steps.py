"""Kill -9 between any two steps of a commit: the books are before it or after it, never between."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ledgerd.audit import trial_balance, verify
from tests.books import TestBooks, fresh_books
from tests.unit.test_ledgerd_ledger import funded

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.integration


def state(books: TestBooks) -> tuple[object, ...]:
    """Return what of the books a reader can see."""
    report = verify(books.engine)
    assert report.complaints == []
    return tuple(sorted(report.heads.items())), tuple(trial_balance(books.engine))


@pytest.mark.parametrize("work", ["settle", "post", "allot"])
def test_killed_between_any_two_steps_and_repeated_it_is_done_once(work: str) -> None:
    with fresh_books() as books:
        funded(books)
        seen = [state(books)]
        url = books.url().render_as_string(hide_password=False)
        program = [sys.executable, "-m", "tests.integration.ledgerd_children", url, work]
        with subprocess.Popen(
            program,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as parent:
            assert parent.stdin is not None
            assert parent.stdout is not None
            killed = 0
            for line in parent.stdout:
                if state(books) != seen[-1]:
                    seen.append(state(books))
                if " through " in line:
                    break
                assert "signal 9" in line, line
                killed += 1
                parent.stdin.write("\n")
                parent.stdin.flush()
        assert killed > 5
        # Before and after: the work was done once, whole, by whichever child came so far.
        assert len(seen) == 2
