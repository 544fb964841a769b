"""What the HTTP door is told; every number bounds memory or work."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mdgateway.config import DEFAULT_PORT, InvalidSetting
from mdgateway.keys.forwarding import Network, networks_of
from mdgateway.keys.tiers import ANONYMOUS, PROFESSIONAL, TIERS

DEFAULT_HTTP_PORT: Final = 8852
NO_PORT: Final = -1
"""The door stays shut."""


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Settings of one process's HTTP door."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_HTTP_PORT
    """0: any free one; -1: no HTTP at all."""
    keys: Path | None = None
    """Key file; None: no key is known and everybody is anonymous."""
    anonymous_tier: str = ANONYMOUS.name
    """What callers without a key may have at every door."""
    trusted_proxies: tuple[Network, ...] = ()
    """Networks of proxies that are believed for whom they call, at this door and at gRPC's."""
    web: Path | None = None
    """Folder of the page; None: the one that is installed with the program."""
    connection_limit: int = 10_000
    """Open connections of all callers, of any kind."""
    address_connection_limit: int = 2_000
    """Open connections from one address, whatever keys they have."""
    header_timeout_s: int = 10
    """How long a connection may take to ask, from its start or from the answer before."""
    subscribe_timeout_ms: int = 5_000
    """How long a WebSocket may be open without a subscription."""
    message_limit_bytes: int = 4_096
    """Largest message a client may send: a hundred pairs fit in half of it."""
    buffer_bytes: int = 64 << 10
    """What may wait for a client before it is told nothing more."""
    buffer_low_bytes: int = 4 << 10
    """What may still wait for it when it is told again."""
    socket_buffer_bytes: int = 64 << 10
    """Send buffer of the system for each connection, which bounds what a client that never reads
    costs there; the system doubles it for its own needs."""
    slow_limit_ms: int = 10_000
    """How long a client may be told nothing before it is closed."""
    ping_interval_s: int = 20
    """How often a silent client is asked whether it lives; it has half as long to answer."""

    def validate(self) -> "HttpConfig":
        """Return self, or raise InvalidSetting naming the first setting that cannot work."""
        _between("http_port", self.port, NO_PORT, 65_535)
        if self.anonymous_tier not in TIERS:
            raise InvalidSetting(
                f"anonymous_tier is {self.anonymous_tier!r}; it must be one of {', '.join(TIERS)}"
            )
        if self.keys is not None and not self.keys.is_file():
            raise InvalidSetting(f"keys is {str(self.keys)!r}; it must be a key file")
        _between("connection_limit", self.connection_limit, 1, 1_000_000)
        _between("address_connection_limit", self.address_connection_limit, 1, 1_000_000)
        _between("header_timeout_s", self.header_timeout_s, 1, 600)
        _between("subscribe_timeout_ms", self.subscribe_timeout_ms, 100, 600_000)
        _between("message_limit_bytes", self.message_limit_bytes, 256, 1 << 20)
        _between("buffer_bytes", self.buffer_bytes, 4_096, 16 << 20)
        _between("buffer_low_bytes", self.buffer_low_bytes, 0, self.buffer_bytes)
        _between("socket_buffer_bytes", self.socket_buffer_bytes, 4_096, 16 << 20)
        _between("slow_limit_ms", self.slow_limit_ms, 100, 600_000)
        _between("ping_interval_s", self.ping_interval_s, 1, 3_600)
        return self


def add_arguments(
    parser: argparse.ArgumentParser, environment: Mapping[str, str] | None = None
) -> None:
    """Add the door's arguments.

    Defaults come from HOLDFAST_MARKET_DATA_HTTP_PORT, _KEYS and _TRUSTED_PROXIES.
    """
    source = os.environ if environment is None else environment
    port = source.get("HOLDFAST_MARKET_DATA_HTTP_PORT")
    keys = source.get("HOLDFAST_MARKET_DATA_KEYS")
    # argparse passes a default that is text through the type and refuses what is none.
    parser.add_argument(
        "--http-port",
        type=int,
        default=port,
        help=f"{DEFAULT_HTTP_PORT} unless given, any with another --port; 0: any, -1: none",
    )
    parser.add_argument("--http-host", default=None, help="--host unless given")
    parser.add_argument("--keys", type=Path, default=keys, help="market data key file")
    parser.add_argument(
        "--anonymous-tier",
        choices=list(TIERS),
        help=f"what one may have without a key: {ANONYMOUS.name} unless given, and"
        f" {PROFESSIONAL.name}, which is everything, where there is no key file",
    )
    parser.add_argument(
        "--trusted-proxy",
        action="append",
        metavar="CIDR",
        help="a proxy's network, whose X-Forwarded-For is believed; may be given several times",
    )
    proxies = source.get("HOLDFAST_MARKET_DATA_TRUSTED_PROXIES", "")
    parser.set_defaults(trusted_proxy_default=[one for one in proxies.split(",") if one])
    parser.add_argument("--web", type=Path, help="folder of the page")


def http_config(arguments: argparse.Namespace) -> HttpConfig:
    """Return what the arguments say; raises InvalidSetting."""
    # A gateway that is told another gRPC port is one of several on its host.
    default = DEFAULT_HTTP_PORT if arguments.port == DEFAULT_PORT else 0
    # Where nobody can have a key, as on a developer's machine, there is nothing to keep for keys.
    tier = PROFESSIONAL if arguments.keys is None else ANONYMOUS
    return HttpConfig(
        host=arguments.http_host or arguments.host,
        port=default if arguments.http_port is None else arguments.http_port,
        keys=arguments.keys,
        anonymous_tier=arguments.anonymous_tier or tier.name,
        trusted_proxies=_networks(arguments.trusted_proxy or arguments.trusted_proxy_default),
        web=arguments.web,
    ).validate()


def _networks(given: list[str]) -> tuple[Network, ...]:
    try:
        return networks_of(given)
    except ValueError as error:
        text = f"trusted_proxy is {', '.join(given)!r}; it must be networks like 10.1.0.0/16"
        raise InvalidSetting(f"{text}: {error}") from None


def _between(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidSetting(f"{field} is {value!r}; it must be from {low} to {high}")
