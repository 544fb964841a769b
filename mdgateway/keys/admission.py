"""How much each caller has open, and whether it may have more.

A caller is a key or, without one, an address; what it may have is its tier. The counts are of one
gateway process. Addresses are IPv4 addresses and IPv6 networks of 64 bits, because a household has
a whole one of those. Time is an argument. Refusals are raised as `Refused`.
"""

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote

from exchange.refusal import Code, Refusal, Refused
from mdgateway.keys.forwarding import FORWARDED_HEADER, Network, caller_of
from mdgateway.keys.key_file import Key, Keyring
from mdgateway.keys.tiers import ANONYMOUS, TIERS, Tier

GRPC_METADATA_KEY: Final = "holdfast-market-data-key"
BURST_S: Final = 5
"""So many seconds' worth of requests may come at once."""
BUCKET_CAPACITY: Final = 65_536
"""Callers whose recent requests are remembered; those with nothing to remember go first."""
SECOND_NS: Final = 1_000_000_000


class Bucket:
    """Allows so many things a second, and some seconds' worth of them at once."""

    __slots__ = ("_full_ns", "_per_thing_ns", "_spent_until_ns")

    def __init__(self, per_second: int, burst_s: int = BURST_S) -> None:
        self._per_thing_ns = SECOND_NS // per_second
        self._full_ns = burst_s * SECOND_NS
        self._spent_until_ns = 0

    def take(self, now_ns: int) -> bool:
        """Take one if there is one."""
        start_ns = max(self._spent_until_ns, now_ns)
        if start_ns + self._per_thing_ns - now_ns > self._full_ns:
            return False
        self._spent_until_ns = start_ns + self._per_thing_ns
        return True

    def is_full(self, now_ns: int) -> bool:
        """Say whether nothing was taken lately."""
        return self._spent_until_ns <= now_ns


class Visitor(NamedTuple):
    """A caller: who it counts as and what it may do."""

    holder: str
    """The key's name, or the address."""
    tier: Tier
    key: Key | None


class Admission:
    """The book of who has what open."""

    def __init__(
        self,
        keyring: Keyring,
        tiers: Mapping[str, Tier] = TIERS,
        anonymous: str = ANONYMOUS.name,
        trusted_proxies: tuple[Network, ...] = (),
    ) -> None:
        self.keyring = keyring
        self.tiers = tiers
        self.anonymous = tiers[anonymous]
        """What callers without a key may have."""
        self.trusted_proxies = trusted_proxies
        """Who is believed for whom it calls."""
        self._open: Counter[str] = Counter()
        self._buckets: dict[str, Bucket] = {}

    def visitor(self, address: str, secret: str | None, time_ns: int) -> Visitor:
        """Return who calls; raises Refused for a key that does not hold."""
        if secret is None:
            return Visitor(f"address {network_of(address)}", self.anonymous, None)
        key = self.keyring.find(secret, time_ns)
        return Visitor(f"key {key.id}", self.tiers[key.tier], key)

    def admit(self, address: str, secret: str | None, now_ns: int, time_ns: int) -> Visitor:
        """Return who calls, after counting the call; raises Refused.

        A call whose key does not hold counts for its address, so that guessing is no way around
        the limits; what else is wrong with it is judged afterwards. `now_ns` is of the monotonic
        clock, `time_ns` of the wall clock.
        """
        try:
            visitor = self.visitor(address, secret, time_ns)
        except Refused:
            self._take_request(self.visitor(address, None, time_ns), now_ns)
            raise
        self._take_request(visitor, now_ns)
        return visitor

    def enter(self, visitor: Visitor, what: str) -> None:
        """Count one more thing that stays open (connections, streams); raises Refused."""
        limit = visitor.tier.connection_limit
        if self._open[f"{what} {visitor.holder}"] >= limit:
            raise Refused(
                Refusal(
                    Code.RESOURCE_EXHAUSTED,
                    "CONNECTION_LIMIT",
                    f"{visitor.holder} has {limit} open {what}, as many as the tier"
                    f" {visitor.tier.name} may have",
                    what,
                    visitor.holder,
                    str(limit),
                )
            )
        self._open[f"{what} {visitor.holder}"] += 1

    def leave(self, visitor: Visitor, what: str) -> None:
        """Count one less; every `enter` has its `leave`."""
        name = f"{what} {visitor.holder}"
        assert self._open[name] > 0, f"{name} leaves more often than it entered"
        self._open[name] -= 1
        if not self._open[name]:
            del self._open[name]

    def open_count(self, visitor: Visitor, what: str) -> int:
        """Return how many of these the caller has open."""
        return self._open[f"{what} {visitor.holder}"]

    def _take_request(self, visitor: Visitor, now_ns: int) -> None:
        bucket = self._buckets.get(visitor.holder)
        if bucket is None:
            self._make_room(now_ns)
            bucket = self._buckets[visitor.holder] = Bucket(visitor.tier.requests_per_second)
        if not bucket.take(now_ns):
            raise Refused(
                Refusal(
                    Code.RESOURCE_EXHAUSTED,
                    "RATE_LIMIT",
                    f"{visitor.holder} asks too often for the tier {visitor.tier.name}",
                    "requests_per_second",
                    "",
                    str(visitor.tier.requests_per_second),
                )
            )

    def _make_room(self, now_ns: int) -> None:
        if len(self._buckets) < BUCKET_CAPACITY:
            return
        full = [holder for holder, bucket in self._buckets.items() if bucket.is_full(now_ns)]
        for holder in full or list(self._buckets)[: BUCKET_CAPACITY // 8]:
            del self._buckets[holder]


def network_of(address: str) -> str:
    """Return what counts as one address: an IPv4 address, or the first 64 bits of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def grpc_credentials(
    metadata: Iterable[tuple[str, str | bytes]], peer: str, trusted: tuple[Network, ...] = ()
) -> tuple[str, str | None]:
    """Return address and secret of a gRPC call, from its metadata and `context.peer()`."""
    secret, forwarded = None, []
    for name, value in metadata:
        text = value if isinstance(value, str) else value.decode("utf-8", "replace")
        if name == GRPC_METADATA_KEY:
            secret = text
        elif name == FORWARDED_HEADER.lower():
            forwarded.append(text)
    family, _, rest = unquote(peer).partition(":")
    if family not in {"ipv4", "ipv6"}:
        return peer, secret
    return caller_of(rest.rpartition(":")[0].strip("[]"), forwarded, trusted), secret
