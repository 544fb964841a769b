"""What ledgerd is told about money that enters and leaves, and what it says to nonsense."""

import argparse

import pytest

from ledgerd.custody.withdrawal_rules import DAY_NS
from ledgerd.funds.settings import (
    SECOND_NS,
    FundsSettings,
    InvalidFunds,
    add_arguments,
    approvals_from,
    confirmations_from,
    duration_ns,
)

DECIMALS = {"BTC": 8, "USDT": 6}


def given(*words: str) -> FundsSettings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return FundsSettings.given(parser.parse_args(words))


def test_nothing_said_is_careful() -> None:
    settings = given()
    assert settings == FundsSettings()
    assert settings.custodian == "none"
    policy = settings.policy(DECIMALS)
    assert (policy.address_waiting_ns, policy.approval_expiry_ns) == (DAY_NS, DAY_NS)
    assert (policy.confirmations_needed("BTC"), policy.approvals_needed("BTC", 1)) == (6, 1)


def test_everything_said_is_heard() -> None:
    settings = given(
        *("--custodian", "simulated", "--block-every", "100ms", "--address-wait", "0s"),
        *("--approval-expiry", "15m", "--watch", "2d", "--risk", "127.0.0.1:50081"),
        *("--confirmations", "3", "--confirmations", "BTC=2"),
        *("--approval-above", "BTC=0.5,10", "--approval-above", "USDT=none"),
    )
    assert (settings.custodian, settings.risk) == ("simulated", "127.0.0.1:50081")
    assert (settings.block_every_ns, settings.address_wait_ns) == (SECOND_NS // 10, 0)
    policy = settings.policy(DECIMALS)
    assert (policy.approval_expiry_ns, policy.watch_ns) == (900 * SECOND_NS, 2 * DAY_NS)
    assert [policy.confirmations_needed(asset) for asset in ("BTC", "USDT")] == [2, 3]
    bands = [policy.approvals_needed("BTC", units) for units in (50_000_000, 50_000_001, 10**10)]
    assert bands == [0, 1, 2]
    assert policy.approvals_needed("USDT", 10**18) == 0


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1w", "1.5h", "1 h", "9999999999s", "٣s"])
def test_a_time_that_is_none(text: str) -> None:
    with pytest.raises(InvalidFunds, match=r"address-wait is .* must be a time"):
        duration_ns("address-wait", text)
    with pytest.raises(InvalidFunds, match="must be a time"):
        duration_ns("address-wait", "999999999d")


@pytest.mark.parametrize(
    "texts", [["0"], ["-1"], ["x"], ["BTC="], ["=3"], ["BTC=0"], ["10001"], ["BTC=1", "BTC=2"]]
)
def test_confirmations_that_are_none(texts: list[str]) -> None:
    with pytest.raises(InvalidFunds, match="confirmations is"):
        confirmations_from(texts)


@pytest.mark.parametrize(
    "texts",
    [["BTC"], ["BTC="], ["=1"], ["BTC=1,"], ["BTC=1", "BTC=2"], ["BTC=" + ",".join("1" * 11)]],
)
def test_approvals_that_are_none(texts: list[str]) -> None:
    with pytest.raises(InvalidFunds, match="approval-above is"):
        approvals_from(texts)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("DOGE=1", "approval-above names 'DOGE'; the books have BTC, USDT"),
        ("USDT=0.0000001", "approval-above of USDT: .* more than 6 decimals"),
        ("BTC=-1", "approval-above of BTC: .* plain decimal"),
    ],
)
def test_amounts_are_of_assets_that_are_listed(word: str, sentence: str) -> None:
    with pytest.raises(InvalidFunds, match=sentence):
        given("--approval-above", word).policy(DECIMALS)


@pytest.mark.parametrize("word", ["riskd", ":5", "host:", "host:port", "host:123456"])
def test_a_place_that_riskd_cannot_be_at(word: str) -> None:
    with pytest.raises(InvalidFunds, match="must be HOST:PORT"):
        given("--risk", word)
