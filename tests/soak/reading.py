"""Reads what `holdfast run` prints, in a thread of its own, so that its pipe never fills up."""

import asyncio
import re
import threading
from typing import Final

from tests.integration.run_process import SHARED, RunProcess

OPEN_S: Final = 180
_PROCESS: Final = re.compile(r"\b(engine|entry-\d+|mdgateway|ledgerd|riskd|postgres|flow) (\d+)")


class Reader:
    """The last that was said of every process."""

    def __init__(self, run: RunProcess) -> None:
        self.pids: dict[tuple[str, str], int] = {}
        """By name and pair (SHARED where it has none)."""
        self.lines: list[str] = []
        self._run = run
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._run.process.stdout is not None
        for line in self._run.process.stdout:
            self.lines = [*self.lines[-50:], line.rstrip()]
            of, bar, rest = line.partition(" | ")
            if bar and (of == SHARED or of in self._run.targets):
                found = {(name, of): int(pid) for name, pid in _PROCESS.findall(rest)}
                self.pids.update(found)
                self._opened.set()
        self._opened.set()

    async def opened(self) -> str:
        """Return the sentence with which the exchange opened. Raises RuntimeError if it did not."""
        await asyncio.to_thread(self._opened.wait, OPEN_S)
        if not self.pids:
            raise RuntimeError("the exchange did not open: " + " / ".join(self.lines[-5:]))
        return next(line for line in self.lines if " open, " in line)
