"""Whom a call counts for when proxies pass it on, at both doors."""

import argparse
from pathlib import Path

import pytest

from mdgateway.config import InvalidSetting
from mdgateway.http.config import add_arguments, http_config
from mdgateway.keys.admission import grpc_credentials
from mdgateway.keys.forwarding import caller_of, networks_of
from tests.unit.market_data_door import Door, run, tier

TRUSTED = networks_of(["10.0.0.0/8", "2001:db8:ffff::/48"])


@pytest.mark.parametrize(
    ("peer", "lines", "caller"),
    [
        ("192.0.2.1", ["203.0.113.7"], "192.0.2.1"),
        ("10.1.1.1", [], "10.1.1.1"),
        ("10.1.1.1", ["203.0.113.7"], "203.0.113.7"),
        ("::ffff:10.1.1.1", ["203.0.113.7"], "203.0.113.7"),
        ("10.1.1.1", ["198.51.100.1, 203.0.113.7, 10.2.2.2"], "203.0.113.7"),
        ("10.1.1.1", ["198.51.100.1", "203.0.113.7", "10.2.2.2"], "203.0.113.7"),
        ("10.1.1.1", ["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        ("10.1.1.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("10.1.1.1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("2001:db8:ffff::1", ["2001:db8::7"], "2001:db8::7"),
        ("10.1.1.1", ["203.0.113.7, unknown"], "10.1.1.1"),
        ("10.1.1.1", ["203.0.113.7, , 10.2.2.2"], "10.2.2.2"),
        ("10.1.1.1", ["unknown, 203.0.113.7"], "203.0.113.7"),
        ("unix", ["203.0.113.7"], "unix"),
    ],
)
def test_the_rightmost_address_that_is_not_trusted_calls(
    peer: str, lines: list[str], caller: str
) -> None:
    assert caller_of(peer, lines, TRUSTED) == caller


def test_a_grpc_call_is_judged_alike() -> None:
    metadata = [("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "203.0.113.7")]
    assert grpc_credentials(metadata, "ipv4:10.1.1.1:4711", TRUSTED) == ("203.0.113.7", None)
    assert grpc_credentials(metadata, "ipv4:192.0.2.1:4711", TRUSTED) == ("192.0.2.1", None)
    assert grpc_credentials(metadata, "ipv4:10.1.1.1:4711") == ("10.1.1.1", None)


def _config(*arguments: str, **environment: str) -> tuple[object, ...]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    add_arguments(parser, environment)
    return http_config(parser.parse_args(list(arguments))).trusted_proxies


def test_proxies_are_named_by_arguments_or_by_the_environment() -> None:
    both = "--trusted-proxy", "10.0.0.0/8", "--trusted-proxy", "2001:db8:ffff::/48"
    name = "HOLDFAST_MARKET_DATA_TRUSTED_PROXIES"
    assert _config(*both) == TRUSTED
    assert _config(**{name: "10.0.0.0/8,2001:db8:ffff::/48"}) == TRUSTED
    assert _config() == ()
    with pytest.raises(InvalidSetting, match=r"trusted_proxy is '10\.0\.0\.1/8'"):
        _config("--trusted-proxy", "10.0.0.1/8")


def test_callers_behind_a_trusted_proxy_have_limits_of_their_own(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        header = {"X-Forwarded-For": "198.51.100.1, 203.0.113.7"}
        statuses = [(await door.get("/v1/status", header))[0] for _ in range(20)]
        assert statuses[:5] == [200] * 5
        assert statuses[-1] == 429
        other = {"X-Forwarded-For": "203.0.113.7, 203.0.113.8"}
        assert (await door.get("/v1/status", other))[0] == 200
        assert (await door.get("/v1/status"))[0] == 200
        # More connections than one address may have, and each caller as many as its tier says.
        held = [await door.connect(headers=_from(one)) for one in range(1, 5)]
        assert len(held) == 4

    run(
        tmp_path,
        test,
        tiers=tier("professional", requests_per_second=1, connection_limit=1),
        trusted_proxies=networks_of(["127.0.0.0/8"]),
        address_connection_limit=2,
    )


def test_nobody_else_is_believed(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        statuses = [(await door.get("/v1/status", _from(one)))[0] for one in range(20)]
        assert statuses[-1] == 429

    rare = tier("professional", requests_per_second=1)
    run(tmp_path, test, tiers=rare, trusted_proxies=networks_of(["10.0.0.0/8"]))


def _from(number: int) -> dict[str, str]:
    return {"X-Forwarded-For": f"203.0.113.{number}"}
