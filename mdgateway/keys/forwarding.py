"""Whose call it is when a proxy passes it on.

A proxy that is trusted is believed one thing: from which address the call came to it. It appends
that address to ``X-Forwarded-For``; whatever stands left of the first address that is not trusted
may be made up by that caller and is never read (RFC 7239, 8.1). From callers that are no trusted
proxy the header is worth nothing. Pure.
"""

import ipaddress
from collections.abc import Iterable
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

FORWARDED_HEADER: Final = "X-Forwarded-For"
"""As metadata of gRPC it is written small."""


def networks_of(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return the networks that texts such as 10.1.0.0/16 name. Raises ValueError for others."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def is_trusted(peer: str, trusted: Iterable[Network]) -> bool:
    """Say whether a peer's address is in one of the networks."""
    address = _address(peer)
    return address is not None and _within(address, trusted)


def caller_of(peer: str, lines: Iterable[str], trusted: Iterable[Network]) -> str:
    """Return the address that a call counts for.

    `lines` are those of X-Forwarded-For in their order. The answer is the rightmost address that is
    not trusted. An entry that is no address ends the search: the call counts for the proxy that
    wrote it, as it does if there is no entry.
    """
    networks = tuple(trusted)
    caller = _address(peer)
    if caller is None or not _within(caller, networks):
        return peer
    for entry in reversed(",".join(lines).split(",")):
        address = _address(_without_port(entry.strip()))
        if address is None:
            break
        caller = address
        if not _within(caller, networks):
            break
    return str(caller)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _without_port(entry: str) -> str:
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry
