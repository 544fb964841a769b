"""When to try again, how long to wait before it, and when to give up."""

import asyncio
import random
from dataclasses import dataclass
from typing import Final

_FACTOR: Final = 2


@dataclass(frozen=True, slots=True)
class Retry:
    """How patient a client is."""

    patience_s: float = 10.0
    """How long one call may take in all, with its retries."""
    attempt_s: float = 3.0
    """How long one attempt may take before it is given up and made again."""
    first_pause_s: float = 0.02
    longest_pause_s: float = 1.0
    silence_s: float = 5.0
    """How long a stream of market data, which beats once a second, may say nothing before its
    connection is given up as lost."""

    def validate(self) -> "Retry":
        """Return self, or raise ValueError naming the first setting that cannot work."""
        for name in ("patience_s", "attempt_s", "first_pause_s", "longest_pause_s", "silence_s"):
            value = getattr(self, name)
            if not 0 < value <= 3_600:
                raise ValueError(f"{name} is {value}; it must be above 0 and at most 3600")
        return self


class Attempts:
    """The course of one call, or of one stream that wants to go on."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._clock = asyncio.get_running_loop().time
        self.begin()

    def begin(self) -> None:
        """Start anew: the last attempt got somewhere."""
        self._ends = self._clock() + self._retry.patience_s
        self._pause_s = self._retry.first_pause_s

    def attempt_s(self) -> float:
        """Return how long the next attempt may take."""
        return max(0.001, min(self._retry.attempt_s, self._ends - self._clock()))

    def spent(self) -> bool:
        """Say whether there is no time left for another attempt."""
        return self._clock() + self._pause_s >= self._ends

    async def pause(self) -> None:
        """Wait before the next attempt, longer each time and never in step with others."""
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))
        self._pause_s = min(self._pause_s * _FACTOR, self._retry.longest_pause_s)
