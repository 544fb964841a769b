"""When a day is closed: once it is over and settlement of every pair has passed its end.

One day after the other, oldest first, so that a ledgerd that was away for a week closes seven. A
close that fails is an alarm in the log, and is tried again; nothing else waits for it.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import date
from typing import Final

from ledgerd.database import GONE
from ledgerd.days.close import DayClose, end_ns_of
from ledgerd.ledger import Ledger

LOOK_S: Final = 10.0
"""Between two looks at the clock."""
AGAIN_S: Final = 60.0
"""Between a close that failed and the next attempt."""
GRACE_NS: Final = 5_000_000_000
"""Settlement must have come so far beyond the day: the clocks of engines are not ours."""
LATE_NS: Final = 3_600_000_000_000
"""A day that cannot be closed so long after its end is an alarm."""

log = logging.getLogger(__name__)


class DailyClose:
    """Closes each day of one ledger when it is due."""

    def __init__(
        self, ledger: Ledger, passed_ns: Callable[[], int], clock: Callable[[], int]
    ) -> None:
        """Take the ledger, and who knows up to which moment everything executed is settled."""
        self._ledger = ledger
        self._passed_ns = passed_ns
        self._clock = clock
        self._next: date | None = None
        self._late: date | None = None

    async def run(self) -> None:
        """Close what is due, for ever."""
        while True:
            pause_s = LOOK_S
            try:
                while await asyncio.to_thread(self.step) is not None:
                    pass
            except GONE as error:
                log.warning("no day can be closed: %s", str(error).split("\n")[0])
            except Exception as error:
                # Whatever it was: the next attempt may succeed, and settlement needs no close.
                log.critical("the close of %s failed: %s", self._next, error)
                pause_s = AGAIN_S
            await asyncio.sleep(pause_s)

    def step(self) -> DayClose | None:
        """Close one day if one is due; return it. Raises what the ledger raises."""
        self._next = self._next or self._ledger.next_day()
        if self._next is None or self._clock() < end_ns_of(self._next) + GRACE_NS:
            return None
        if self._passed_ns() < end_ns_of(self._next) + GRACE_NS:
            self._say_late(self._next)
            return None
        closed = self._ledger.close_day(self._next)
        self._next = None
        log.info(
            "closed %s: all balances sum to zero; swept %s",
            closed.day,
            ", ".join(f"{one.amount} {one.asset} of {one.pair}" for one in closed.sweeps) or "-",
        )
        return closed

    def _say_late(self, day: date) -> None:
        """Raise the alarm, once a day, over settlement that keeps a day open."""
        if self._late != day and self._clock() > end_ns_of(day) + LATE_NS:
            self._late = day
            log.critical("%s is not closed: settlement has not passed its end", day)
