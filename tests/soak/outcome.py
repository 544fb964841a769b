"""What a soak found out, however it ended."""

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What was acknowledged to somebody, and what is wrong."""

    acknowledged: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Client order ids of the witnesses' acknowledged orders, by pair."""
    complaints: list[str] = field(default_factory=list)

    def complain(self, sentence: str) -> None:
        """Note that something is wrong."""
        self.complaints.append(sentence)
