"""What a gateway process is told: arguments first, then the environment, then defaults."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exchange.config import segment_folder

DEFAULT_PORT: Final = 50_061
DEFAULT_TICK_MS: Final = 10


class InvalidSetting(ValueError):
    """A setting that cannot work; the message names field, value and limit."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Settings of one process; every number bounds memory or work."""

    pairs: tuple[str, ...]
    """The pairs whose books are shown."""
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    segments: str = ""
    """Folder of the segments; empty: where the system's shared memory lies."""
    upstream: str = ""
    """host:port of the gateway to follow; empty: the segments on this host are read."""
    upstream_key: Path | None = None
    """File of the key that is shown to `upstream`; None: none is."""
    instruments: Path | None = None
    """Instrument file; None: the one that is installed with the program."""
    tick_ms: int = DEFAULT_TICK_MS
    """How often the books are read and subscribers told; the least interval of a stream."""
    eager: bool = False
    """Read on as soon as something was published instead of at the next tick. Over a segment this
    takes about a third of a processor; a relay is told and needs none."""
    heartbeat_ms: int = 1_000
    """How long a stream may be silent."""
    stale_after_ms: int = 1_000
    """How old an engine's heartbeat may be."""
    level_capacity: int = 65_536
    """Levels a side that are kept of each book; 24 bytes each, twice."""
    depth_limit: int = 1_000
    """Most levels a side that a caller may ask for."""
    full_depth_limit: int = 10_000
    """Most levels a side of the streams that ask for all; what is deeper is not told. At most half
    of `level_capacity`, because a full side forgets its worst levels."""
    trade_capacity: int = 1 << 16
    """Trades kept for resuming and for slow subscribers; 48 bytes each. Power of two."""
    order_event_capacity: int = 1 << 16
    """Order events kept for resuming and for slow subscribers; 80 bytes each. Power of two."""
    resume_ms: int = 30_000
    """How long a view without subscribers goes on, so that they can resume."""
    subscriber_limit: int = 4_000
    """Most open streams a pair; a further one is refused."""

    @property
    def full_level_count(self) -> int:
        """Return how many levels a side the streams of every level show."""
        return min(self.full_depth_limit, self.level_capacity // 2)

    def validate(self) -> "GatewayConfig":
        """Return self, or raise InvalidSetting naming the first setting that cannot work."""
        _demand(bool(self.pairs), "pairs", self.pairs, "at least one pair")
        twice = len(set(self.pairs)) != len(self.pairs)
        _demand(not twice, "pairs", self.pairs, "each pair once")
        host, _, port = self.upstream.rpartition(":")
        fits = not self.upstream or (bool(host) and port.isascii() and port.isdigit())
        _demand(fits, "upstream", self.upstream, "host:port")
        alone = self.upstream_key is not None and not self.upstream
        _demand(not alone, "upstream_key", self.upstream_key, "given together with upstream")
        _between("port", self.port, 0, 65_535)
        _between("tick_ms", self.tick_ms, 1, 1_000)
        _between("heartbeat_ms", self.heartbeat_ms, self.tick_ms, 60_000)
        _between("stale_after_ms", self.stale_after_ms, 100, 60_000)
        _between("depth_limit", self.depth_limit, 1, 10_000)
        _between("resume_ms", self.resume_ms, 0, 3_600_000)
        _between("level_capacity", self.level_capacity, 2 * self.depth_limit, 1 << 20)
        _between("full_depth_limit", self.full_depth_limit, 1, 1 << 19)
        _between("trade_capacity", self.trade_capacity, 64, 1 << 24)
        power = self.trade_capacity & (self.trade_capacity - 1) == 0
        _demand(power, "trade_capacity", self.trade_capacity, "a power of two")
        _between("order_event_capacity", self.order_event_capacity, 64, 1 << 24)
        power = self.order_event_capacity & (self.order_event_capacity - 1) == 0
        _demand(power, "order_event_capacity", self.order_event_capacity, "a power of two")
        _between("subscriber_limit", self.subscriber_limit, 1, 100_000)
        return self


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the environment says; the command line goes before it."""

    pairs: tuple[str, ...]
    host: str
    port: int
    segments: str


def surroundings(environment: Mapping[str, str] | None = None) -> Surroundings:
    """Read HOLDFAST_PAIR (several: separated by commas), HOLDFAST_MARKET_DATA_ADDRESS (host:port).

    Raises InvalidSetting for an address that is none.
    """
    source = os.environ if environment is None else environment
    pairs = tuple(pair for pair in source.get("HOLDFAST_PAIR", "").split(",") if pair)
    address = source.get("HOLDFAST_MARKET_DATA_ADDRESS", f"127.0.0.1:{DEFAULT_PORT}")
    host, _, port = address.rpartition(":")
    fits = bool(host) and port.isascii() and port.isdigit()
    _demand(fits, "HOLDFAST_MARKET_DATA_ADDRESS", address, "host:port")
    return Surroundings(pairs, host, int(port), segment_folder())


def _demand(condition: bool, field: str, value: object, limit: str) -> None:
    if not condition:
        raise InvalidSetting(f"{field} is {value!r}; it must be {limit}")


def _between(field: str, value: int, low: int, high: int) -> None:
    _demand(low <= value <= high, field, value, f"from {low} to {high}")
