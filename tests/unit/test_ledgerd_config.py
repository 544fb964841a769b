"""What a ledgerd is told by its command line and its surroundings."""

from pathlib import Path

import pytest

from exchange.config import followed_pairs
from ledgerd.__main__ import main
from ledgerd.config import InvalidSetting, settings_from
from ledgerd.database import driven

LIST = "  BTC-USDT=pair-btc-usdt:7101\nETH-USDT=pair-eth-usdt:7101\n"


def test_pairs_come_from_the_arguments_or_else_from_the_list() -> None:
    surroundings = {"HOLDFAST_FOLLOW": LIST}
    listed = (("BTC-USDT", "pair-btc-usdt:7101"), ("ETH-USDT", "pair-eth-usdt:7101"))
    assert followed_pairs([], surroundings) == listed
    assert followed_pairs(["A-B=127.0.0.1:1"], surroundings) == (("A-B", "127.0.0.1:1"),)
    assert followed_pairs([], {}) == ()


@pytest.mark.parametrize("name", ["HOLDFAST_LEDGER_DATABASE_URL", "HOLDFAST_LEDGER_OWNER_URL"])
def test_an_empty_address_does_not_mean_the_embedded_database(name: str) -> None:
    assert settings_from({})["database_url"] == ""
    with pytest.raises(InvalidSetting, match=f"{name} is ''"):
        settings_from({name: ""})


def test_an_address_without_a_driver_gets_the_one_that_is_installed() -> None:
    for scheme in ("postgresql", "postgres"):
        url = driven(f"{scheme}://holdfast_service:secret@db:5432/holdfast?sslmode=require")
        assert url.render_as_string(hide_password=False) == (
            "postgresql+psycopg://holdfast_service:secret@db:5432/holdfast?sslmode=require"
        )
    assert driven("postgresql+psycopg://db/holdfast").drivername == "postgresql+psycopg"


def test_migrating_a_server_needs_its_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "postgresql://holdfast_service@127.0.0.1:1/holdfast"
    assert main(["migrate", "--run", str(tmp_path), "--database-url", address]) == 2
    assert "owner_url" in capsys.readouterr().err
