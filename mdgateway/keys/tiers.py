"""What a caller may ask for, by tier.

Tiers bound work and memory, not knowledge: all of it is public. The numbers of the anonymous tier
suit a person with a few browser tabs, those of the professional one a relay with many clients of
its own. Pure.
"""

from dataclasses import dataclass
from typing import Final

CHANNELS: Final = ("status", "depth", "ticker", "trades", "candles", "orders", "heartbeat")
"""Every channel there is, in the order in which a connection is told of one moment."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Limits of one tier; connections and requests count per key, without a key per address."""

    name: str
    connection_limit: int
    """Open WebSocket connections, and as many gRPC streams."""
    subscription_limit: int
    """Subscriptions of one connection."""
    messages_per_second: int
    """Messages a client may send on one connection; five seconds' worth may come at once."""
    requests_per_second: int
    """Requests at any door; five seconds' worth may come at once."""
    level_limit: int
    """Most levels a side."""
    shortest_interval_ms: int
    """Least time between two messages of a conflated channel; 0: the server's tick."""
    channels: tuple[str, ...] = CHANNELS
    full_depth: bool = False
    """Whether depth of every level may be asked for."""


_WITHOUT_ORDERS: Final = tuple(channel for channel in CHANNELS if channel != "orders")

ANONYMOUS: Final = Tier("anonymous", 20, 50, 10, 20, 100, 100, _WITHOUT_ORDERS)
BASIC: Final = Tier("basic", 50, 500, 50, 100, 1_000, 0, _WITHOUT_ORDERS)
PROFESSIONAL: Final = Tier("professional", 2_000, 2_000, 200, 1_000, 1_000, 0, CHANNELS, True)

TIERS: Final = {tier.name: tier for tier in (ANONYMOUS, BASIC, PROFESSIONAL)}
