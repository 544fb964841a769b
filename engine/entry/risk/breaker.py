"""When to stop asking somebody who does not answer, and when to try again.

Pure: the time is an argument. After a failure nobody is let through for a second; then one is, and
its outcome decides for the others, so that at most one caller a second finds out that nothing has
changed.
"""

from typing import Final

PAUSE_NS: Final = 1_000_000_000


class Breaker:
    """Who may ask, judged by how the last ones fared."""

    def __init__(self) -> None:
        self._closed_until_ns = 0
        self._trying = False

    def allows(self, now_ns: int) -> bool:
        """Say whether a caller may ask now; whoever may has to report how it went."""
        if self._closed_until_ns == 0:
            return True
        if self._trying or now_ns < self._closed_until_ns:
            return False
        self._trying = True
        return True

    def succeeded(self) -> None:
        """Hear that somebody was answered."""
        self._closed_until_ns, self._trying = 0, False

    def failed(self, now_ns: int) -> None:
        """Hear that somebody was not."""
        self._closed_until_ns, self._trying = now_ns + PAUSE_NS, False
