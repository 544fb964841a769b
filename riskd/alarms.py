"""What is wrong, with which pair, since when, and in one sentence. Pure: time is given.

An alarm is raised again without harm: its time stays, its sentence is the newest.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

SECOND_NS: Final = 1_000_000_000
SAID_AGAIN_NS: Final = 60 * SECOND_NS
"""While it lasts, silence is spoken of once in so long."""
SOUND_NS: Final = 5 * SECOND_NS
"""Who answered, and failed nobody for so long, answers again. Longer than a call may take."""


class Alarm(IntEnum):
    """What can be wrong. Numbers are those of the wire: append only."""

    UNSPECIFIED = 0
    FEED_STALE = 1
    FEED_BROKEN = 2
    SETTLEMENT_LATE = 3
    MOVES_BLOCKED = 4
    SETTINGS_UNCONFIRMED = 5


@dataclass(frozen=True, slots=True)
class Raised:
    """One alarm as it stands."""

    alarm: Alarm
    sentence: str
    since_ns: int


class Alarms:
    """All alarms of all pairs."""

    def __init__(self) -> None:
        self._raised: dict[tuple[str, Alarm], Raised] = {}

    def set(self, pair: str, alarm: Alarm, sentence: str, now_ns: int) -> bool:
        """Raise an alarm, or, with an empty sentence, end it; return True when that is news."""
        key = (pair, alarm)
        before = self._raised.get(key)
        if not sentence:
            self._raised.pop(key, None)
            return before is not None
        self._raised[key] = Raised(alarm, sentence, before.since_ns if before else now_ns)
        return before is None

    def has(self, pair: str, *alarms: Alarm) -> bool:
        """Say whether one of some alarms stands."""
        return any((pair, alarm) in self._raised for alarm in alarms)

    def of(self, pair: str) -> list[Raised]:
        """Return the alarms of a pair, by kind."""
        return [self._raised[key] for key in sorted(self._raised) if key[0] == pair]


class Lateness:
    """Whether somebody who follows has not reached, in a given time, what was there before it.

    Independent of the rate: a follower a million records behind is on time if it gets there.
    """

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns
        self._mark = 0
        self._mark_ns = -1

    def late(self, reached: int | None, there: int, now_ns: int) -> bool:
        """Say whether the follower is late; `reached` is None when it does not answer."""
        if self._mark_ns < 0 or (reached is not None and reached >= self._mark):
            # It has what was there at the mark: what is there now is due next.
            self._mark, self._mark_ns = there, now_ns
            if reached is not None and reached >= there:
                return False
        return now_ns - self._mark_ns > self._limit_ns


@dataclass(slots=True)
class _Silence:
    since_ns: int
    said_ns: int
    failed_ns: int
    answered: bool = False


class Silences:
    """Who does not answer: worth a line when it begins, now and then, and when it is over.

    Many questions are asked at a time, and one that fails among others that do not is no end.
    """

    def __init__(self) -> None:
        self._silences: dict[str, _Silence] = {}

    def failed(self, whom: str, now_ns: int) -> bool:
        """Note that somebody did not answer; return True when that has to be said."""
        silence = self._silences.get(whom)
        if silence is None:
            self._silences[whom] = _Silence(now_ns, now_ns, now_ns)
            return True
        silence.failed_ns, silence.answered = now_ns, False
        if now_ns - silence.said_ns < SAID_AGAIN_NS:
            return False
        silence.said_ns = now_ns
        return True

    def answered(self, whom: str) -> None:
        """Note that somebody answered."""
        silence = self._silences.get(whom)
        if silence is not None:
            silence.answered = True

    def over(self, now_ns: int) -> list[tuple[str, int]]:
        """Return, once, who answers again, and from its first silence to its last how long."""
        found = [
            (whom, silence.failed_ns - silence.since_ns)
            for whom, silence in self._silences.items()
            if silence.answered and now_ns - silence.failed_ns >= SOUND_NS
        ]
        for whom, _ in found:
            del self._silences[whom]
        return found
