"""Who calls: the certificates that the exchange's own processes show each other, and who may what.

Without an identity a process believes its callers and therefore listens on the machine's own
address only. With one (HOLDFAST_IDENTITY, a folder with `tls.crt`, `tls.key` and `ca.crt`) every
connection is encrypted and both ends show a certificate of the exchange's own authority; whoever
has none is not heard. A caller's role is the common name of its certificate, and `GRANTS` says what
a role may call. A server's certificate names the address it is called at.

An identity is read when a server or channel is made: a renewed one takes effect with a restart.
Market data is public and shows no certificate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

import grpc
from grpc import aio

from exchange.config import identity_folder
from exchange.refusal import Code, Refusal

Options = Sequence[tuple[str, Any]]

OPERATOR: Final = "operator"
"""The role that may call everything."""
GRANTS: Final[Mapping[str, frozenset[str]]] = {
    # What traders reach; it has to know who they are, and is believed when it names an account.
    "edge": frozenset({"OrderEntryService"}),
    "entry": frozenset({"RiskService/RequestAllotment", "RiskService/GetEffectiveLimits"}),
    "ledgerd": frozenset(
        {
            "ExecutionFeedService",
            "PairAdminService/DigestAccounts",
            "RiskService/ReserveWithdrawal",
            "RiskService/ReleaseWithdrawal",
        }
    ),
    "riskd": frozenset(
        {
            "ExecutionFeedService",
            "PairAdminService/AllotFunds",
            "PairAdminService/ReleaseFunds",
            "PairAdminService/SetLimits",
            "PairAdminService/SetKillSwitch",
            "PairAdminService/SetPairStatus",
            "PairAdminService/SetPriceBand",
            "LedgerService/ListBalances",
            "LedgerService/AllotTradingFunds",
            "LedgerService/RecallTradingFunds",
            "LedgerService/ListInstructions",
            "LedgerService/ListSettlements",
        }
    ),
}
"""What each role but the operator may call: whole services, or single methods of one."""
OURS: Final = "/exchange.v1."
"""What the methods of our own services begin with."""
_PEM: Final = b"-----BEGIN "


class InvalidIdentity(OSError):
    """An identity that cannot be used; the sentence names the file."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its key, and the authority that others' certificates must come from."""

    certificate: bytes
    key: bytes
    authority: bytes

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the three files of a folder. Raises InvalidIdentity naming the one that is wrong."""
        return cls(*(_pem(folder / name) for name in ("tls.crt", "tls.key", "ca.crt")))

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return what a server shows, and asks of everybody."""
        pair = [(self.key, self.certificate)]
        return grpc.ssl_server_credentials(pair, self.authority, require_client_auth=True)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return what a caller shows, and asks of servers."""
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)


def _pem(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidIdentity(f"the identity's {path} cannot be read: {error.strerror}") from error
    if _PEM not in content:
        raise InvalidIdentity(f"the identity's {path} holds nothing in PEM")
    return content


def own_identity() -> Identity | None:
    """Return the identity of this process, None if it has none. Raises InvalidIdentity."""
    folder = identity_folder()
    return None if folder is None else Identity.load(folder)


def open_channel(target: str, options: Options = ()) -> aio.Channel:
    """Return a channel to a process of the exchange. Raises InvalidIdentity."""
    identity = own_identity()
    if identity is None:
        return aio.insecure_channel(target, options=options)
    return aio.secure_channel(target, identity.channel_credentials(), options=options)


def open_blocking_channel(target: str, options: Options = ()) -> grpc.Channel:
    """Return a channel for calls that block. Raises InvalidIdentity."""
    identity = own_identity()
    if identity is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, identity.channel_credentials(), options=options)


class Listener(Protocol):
    """A gRPC server of either kind."""

    def add_insecure_port(self, address: str) -> int:
        """Listen to everybody."""

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Listen to whoever shows a certificate."""


def listen(server: Listener, address: str, identity: Identity | None) -> int:
    """Have a server listen; return the port. Raises RuntimeError if it is taken."""
    if identity is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, identity.server_credentials())


class Call(Protocol):
    """What a handler of either kind knows of the call."""

    def auth_context(self) -> Mapping[str, Any]:
        """Return what the connection proved of the caller."""


def role_of(call: Call) -> str:
    """Return the role that the caller's certificate names, empty if it names none."""
    names = list(call.auth_context().get("x509_common_name", ()))
    return str(names[0], "utf-8", "replace") if names else ""


def may_call(role: str, method: str) -> bool:
    """Say whether a role may call a method, such as /exchange.v1.RiskService/GetExposure."""
    name = method.removeprefix(OURS)
    granted = GRANTS.get(role, frozenset())
    return role == OPERATOR or name in granted or name.partition("/")[0] in granted


def call_refusal(method: str, call: Call) -> Refusal | None:
    """Return why the caller may not call the method; None if it may."""
    role = role_of(call)
    if may_call(role, method):
        return None
    return Refusal(
        Code.PERMISSION_DENIED,
        "ROLE_FORBIDDEN",
        f"the role {role!r} of the certificate may not call {method[1:]}",
    )
