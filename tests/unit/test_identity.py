"""Who is heard: certificates on both ends, and roles that may call what they need.

Over real connections, with certificates made by the script that operators are given.
"""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exchange.identity import (
    GRANTS,
    OPERATOR,
    OURS,
    InvalidIdentity,
    may_call,
    open_blocking_channel,
    open_channel,
)
from exchange.service import GrpcService, NotLoopback, ServerOptions, refusal_in, require_loopback
from exchange.v1 import (
    execution_feed_pb2,
    funds_pb2,
    ledger_pb2,
    order_entry_pb2,
    order_entry_pb2_grpc,
    pair_admin_pb2,
    risk_pb2,
)
from tests.certificates import make_certificates

FILES = (
    *(order_entry_pb2, execution_feed_pb2, pair_admin_pb2),
    *(ledger_pb2, funds_pb2, risk_pb2),
)
METHODS = {
    f"{OURS}{service.name}/{method.name}"
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
SUBMIT = f"{OURS}OrderEntryService/SubmitOrder"
PATIENCE_S = 20
"""Bounds a hang; nothing is measured against it."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"), "btc-usdt")


@contextmanager
def being(folder: Path | None) -> Iterator[None]:
    """Be a process with that identity, or with none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HOLDFAST_IDENTITY", raising=False)
        if folder is not None:
            patch.setenv("HOLDFAST_IDENTITY", str(folder))
        yield


# ---- the table ----------------------------------------------------------------------------------


def test_every_grant_is_of_a_service_or_method_that_exists() -> None:
    known = {method.removeprefix(OURS) for method in METHODS}
    known |= {method.partition("/")[0] for method in known}
    granted = {name for names in GRANTS.values() for name in names}
    assert granted <= known


def test_an_operator_may_call_everything_and_nobody_without_a_role_anything() -> None:
    assert all(may_call(OPERATOR, method) for method in METHODS)
    for role in ("", "mdgateway", "pair"):
        assert not any(may_call(role, method) for method in METHODS)


def test_nobody_but_an_operator_moves_money_by_hand() -> None:
    by_hand = {
        method
        for method in METHODS
        if "Funds" in method or "PostTransfers" in method or "KillSwitch" in method
    }
    callers = {method: {role for role in GRANTS if may_call(role, method)} for method in by_hand}
    assert {method.removeprefix(OURS): roles for method, roles in callers.items() if roles} == {
        "PairAdminService/AllotFunds": {"riskd"},
        "PairAdminService/ReleaseFunds": {"riskd"},
        "PairAdminService/SetKillSwitch": {"riskd"},
        "LedgerService/AllotTradingFunds": {"riskd"},
        "LedgerService/RecallTradingFunds": {"riskd"},
    }


def test_only_the_edge_names_accounts_of_traders() -> None:
    assert {role for role in GRANTS if may_call(role, SUBMIT)} == {"edge"}


# ---- over the wire ------------------------------------------------------------------------------


async def answer(request: bytes, context: Any) -> bytes:
    """Answer a call that got through."""
    return b""


async def answers(request: bytes, context: Any) -> AsyncIterator[bytes]:
    """Answer a stream that got through."""
    yield b""


ORDERS = grpc.method_handlers_generic_handler(
    "exchange.v1.OrderEntryService",
    {
        "CancelAllOrders": grpc.unary_unary_rpc_method_handler(answer),
        "StreamExecutions": grpc.unary_stream_rpc_method_handler(answers),
    },
)


async def outcomes(server: Path, caller: Path | None) -> list[str]:
    """Return what a caller hears: of its health, a call and a stream."""
    with being(server):
        service = GrpcService(ServerOptions(), [], [])
    service.registry.add_generic_rpc_handlers((ORDERS,))
    port = await service.start()
    with being(caller):
        channel = open_channel(f"127.0.0.1:{port}")
    orders = order_entry_pb2_grpc.OrderEntryServiceStub(channel)
    health = health_pb2_grpc.HealthStub(channel)
    cancel, follow = (
        order_entry_pb2.CancelAllOrdersRequest(),
        order_entry_pb2.StreamExecutionsRequest(),
    )
    heard = []
    async with channel:
        for call in (
            health.Check(health_pb2.HealthCheckRequest(service="alive"), timeout=PATIENCE_S),
            orders.CancelAllOrders(cancel, timeout=PATIENCE_S),
            orders.StreamExecutions(follow, timeout=PATIENCE_S).read(),
        ):
            try:
                await call
                heard.append("heard")
            except grpc.RpcError as error:
                info = refusal_in(error)
                heard.append(info.reason if info else error.code().name)
    await service.drain()
    return heard


@pytest.mark.parametrize(
    ("role", "heard"),
    [
        ("edge", ["heard", "heard", "heard"]),
        ("operator", ["heard", "heard", "heard"]),
        ("riskd", ["heard", "ROLE_FORBIDDEN", "ROLE_FORBIDDEN"]),
        ("pair-btc-usdt", ["heard", "ROLE_FORBIDDEN", "ROLE_FORBIDDEN"]),
    ],
)
def test_a_role_is_heard_where_it_may_call(certificates: Path, role: str, heard: list[str]) -> None:
    answer = asyncio.run(outcomes(certificates / "pair-btc-usdt", certificates / role))
    assert answer == heard


def test_who_shows_no_certificate_is_not_heard_at_all(certificates: Path) -> None:
    answer = asyncio.run(outcomes(certificates / "pair-btc-usdt", None))
    assert answer == ["UNAVAILABLE", "UNAVAILABLE", "UNAVAILABLE"]


def test_who_comes_from_another_authority_is_not_heard(certificates: Path, tmp_path: Path) -> None:
    strangers = make_certificates(tmp_path / "strangers")
    # Even one that trusts our servers.
    ours = (certificates / "operator" / "ca.crt").read_bytes()
    (strangers / "operator" / "ca.crt").write_bytes(ours)
    answer = asyncio.run(outcomes(certificates / "pair-btc-usdt", strangers / "operator"))
    assert answer == ["UNAVAILABLE", "UNAVAILABLE", "UNAVAILABLE"]


def test_a_certificate_that_is_over_is_not_heard(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("authority.key", "authority.crt"):
        (tmp_path / name).write_bytes((certificates / name).read_bytes())
    monkeypatch.setenv("HOLDFAST_CERTIFICATE_DAYS", "0")
    expired = make_certificates(tmp_path) / "operator"
    checked = subprocess.run(
        ["openssl", "verify", "-CAfile", expired / "ca.crt", expired / "tls.crt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "certificate has expired" in checked.stdout + checked.stderr
    answer = asyncio.run(outcomes(certificates / "pair-btc-usdt", expired))
    assert answer == ["UNAVAILABLE", "UNAVAILABLE", "UNAVAILABLE"]


def test_a_server_that_is_called_by_another_name_is_not_trusted(certificates: Path) -> None:
    async def of_another_name() -> str:
        with being(certificates / "riskd"):
            service = GrpcService(ServerOptions(), [], [])
        port = await service.start()
        with being(certificates / "operator"):
            # Whoever answers at ledgerd's address has to be ledgerd.
            options = (("grpc.ssl_target_name_override", "ledgerd"),)
            channel = open_channel(f"127.0.0.1:{port}", options)
        async with channel:
            request = health_pb2.HealthCheckRequest(service="alive")
            try:
                await health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_S)
            except grpc.RpcError as error:
                return error.code().name
            finally:
                await service.drain()
        return "heard"

    assert asyncio.run(of_another_name()) == "UNAVAILABLE"


def test_what_is_public_asks_nobody_for_a_certificate(certificates: Path) -> None:
    async def public() -> None:
        with being(certificates / "riskd"):
            service = GrpcService(ServerOptions(everybody=True), [], [])
        port = await service.start()
        with being(None):
            channel = open_channel(f"127.0.0.1:{port}")
        async with channel:
            request = health_pb2.HealthCheckRequest(service="alive")
            await health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_S)
        await service.drain()

    asyncio.run(public())


# ---- the guard ----------------------------------------------------------------------------------


def test_with_an_identity_any_address_will_do(certificates: Path) -> None:
    with being(None), pytest.raises(NotLoopback, match="HOLDFAST_IDENTITY"):
        require_loopback("0.0.0.0")
    with being(certificates / "riskd"):
        require_loopback("0.0.0.0")


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
def test_an_identity_that_lacks_a_file_opens_nothing(tmp_path: Path, name: str) -> None:
    folder = make_certificates(tmp_path) / "riskd"
    (folder / name).write_text("nothing")
    with being(folder), pytest.raises(InvalidIdentity, match=name):
        require_loopback("0.0.0.0")
    (folder / name).unlink()
    with being(folder), pytest.raises(InvalidIdentity, match=name):
        open_blocking_channel("127.0.0.1:1")


def test_an_empty_setting_is_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_IDENTITY", "")
    with pytest.raises(NotLoopback):
        require_loopback("0.0.0.0")
