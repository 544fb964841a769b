"""What the money commands make of a command line, without any service on the other side."""

import argparse
import io
import json
import sys
import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from holdfast.cli import main
from holdfast.cli.money import options, verification
from holdfast.cli.money.books import _moment
from holdfast.cli.money.risk import _place, _subject
from holdfast.money.answers import Balance, PairSequence
from holdfast.money.calls import LEDGER_TARGET, RISK_TARGET
from holdfast.running import plan

NOBODY = ("--ledger", "127.0.0.1:1", "--risk", "127.0.0.1:1")


def test_the_usual_ports_are_those_of_a_usual_run() -> None:
    money = plan.MoneyPlan()
    assert (money.ledger, money.risk) == (LEDGER_TARGET, RISK_TARGET)


def test_a_service_is_where_it_was_said_to_be(tmp_path: Path) -> None:
    file = tmp_path / "ledgerd.port"
    assert options.target(None, file, LEDGER_TARGET) == LEDGER_TARGET
    file.write_text("50071\n")
    assert options.target(None, file, LEDGER_TARGET) == "127.0.0.1:50071"
    assert options.target("elsewhere:1", file, LEDGER_TARGET) == "elsewhere:1"
    file.write_text("?\n")
    with pytest.raises(ValueError, match=r"ledgerd\.port holds no port"):
        options.target(None, file, LEDGER_TARGET)


def test_order_entry_is_found_from_the_ledgers_port() -> None:
    usual = verification._pairs([], LEDGER_TARGET)
    assert usual == {"BTC-USDT": "127.0.0.1:8850", "ETH-USDT": "127.0.0.1:8860"}
    given = verification._pairs(["ETH-USDT=h:1", "A-B=h:2"], "127.0.0.1:9020")
    assert given == {"BTC-USDT": "127.0.0.1:9000", "ETH-USDT": "h:1", "A-B": "h:2"}
    assert verification._pairs([], "a name without a port") == {}
    for wrong in ("BTC-USDT", "BTC-USDT=", "=h:1"):
        with pytest.raises(ValueError, match="must be PAIR=HOST:PORT"):
            verification._pairs([wrong], LEDGER_TARGET)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("BTC-USDT@17", PairSequence("BTC-USDT", 17)),
        ("2026-11-23T12:00:00Z", datetime(2026, 11, 23, 12, tzinfo=UTC)),
        ("2026-11-23T14:00:00+02:00", datetime(2026, 11, 23, 12, tzinfo=UTC)),
        ("2026-11-23", datetime(2026, 11, 23, tzinfo=UTC)),
        (
            options.time_text(1_795_435_200_123_000_000),
            datetime(2026, 11, 23, 12, 0, 0, 123_000, UTC),
        ),
    ],
)
def test_a_moment_is_a_time_or_a_command_of_a_pair(text: str, moment: Any) -> None:
    assert _moment(text) == moment


@pytest.mark.parametrize("text", ["yesterday", "BTC-USDT@", "@5", "BTC-USDT@-1", ""])
def test_what_is_no_moment_is_bad_usage(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="neither a time"):
        _moment(text)


def test_whom_and_where_a_limit_binds() -> None:
    assert _subject("everyone") == ("everyone", "")
    assert _subject("tier:gold") == ("tier", "gold")
    assert _subject("account:7") == ("account", "7")
    assert _place("everywhere") == ("everywhere", "")
    assert _place("BTC-USDT") == ("pair", "BTC-USDT")
    assert _place("BTC") == ("asset", "BTC")
    for wrong in ("everyone:x", "tier", "tier:", "somebody:1"):
        with pytest.raises(ValueError, match="must be everyone, tier:NAME or account:N"):
            _subject(wrong)


def test_a_document_has_exact_amounts_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    balance = Balance("BTC", "funding", "", Decimal("0E-8"), 1)
    options.print_json({"a": [balance], "id": UUID(int=1), "hash": b"\x01", "none": None})
    assert json.loads(capsys.readouterr().out) == {
        "a": [
            {"asset": "BTC", "purpose": "funding", "pair": "", "amount": "0.00000000", "version": 1}
        ],
        "id": "00000000-0000-0000-0000-000000000001",
        "hash": "01",
        "none": None,
    }


def test_a_table_is_never_cut_however_narrow_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    long = "9" * 60
    options.print_table(["asset", "amount", "total"], [["BTC", "1", long]], right=("amount",))
    header, row = capsys.readouterr().out.splitlines()
    assert row.split() == ["BTC", "1", long]
    assert header.index("amount") + len("amount") == row.index("1") + 1
    options.print_table(["asset"], [])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "line",
    [
        "deposit",
        "deposit BTC 1 --id 5",
        "transfer BTC 1",
        "transfer BTC 1 --from funding --to pocket",
        "withdraw BTC 1",
        "withdraw BTC 1 --to a --id 5",
        "approve 5 --as bob",
        "approve 00000000-0000-0000-0000-000000000001",
        "approve 00000000-0000-0000-0000-000000000001 --as bob --digest 00",
        "reject 00000000-0000-0000-0000-000000000001 --as bob",
        "withdrawals 5",
        "cancel-withdrawal",
        "balances --at yesterday",
        "statement BTC pocket",
        "limits",
        "limits set pockets 5 --note x",
        "limits set position 5",
        "limits history --from yesterday",
        "kill",
        "kill somebody",
        "address",
        "address remove 5",
        "risk",
    ],
)
def test_bad_usage_ends_with_2_before_anything_is_sent(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*line.split(), *NOBODY])
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("transfer BTC 1 --from funding --to funding", "--to is funding, as is --from"),
        ("kill account bob", "the account is 'bob'; it must be a number"),
        ("kill pair", "the pair is ''; it must be one such as BTC-USDT"),
        ("kill everything BTC-USDT", "everything takes no name"),
        ("limits set position 5 --note x --of gold", "--of is 'gold'"),
        ("verify --pair BTC-USDT", "--pair is 'BTC-USDT'; it must be PAIR=HOST:PORT"),
        ("verify --wait 0", "patience_s is 0; it must be above 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_one_sentence(
    line: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line.split(), *NOBODY]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("holdfast: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err


class _Screen(io.StringIO):
    """Standard error that says whether it is a terminal, and when something was written."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal, self.written = terminal, threading.Event()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        return count


def test_whoever_waits_for_a_proof_at_a_terminal_hears_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = _Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(verification, "EVERY_S", 0.01)
    with verification.told_to_wait():
        assert screen.written.wait(60)
    assert screen.getvalue().startswith("holdfast: at work for 0.01 s; ")
    assert capsys.readouterr().out == ""
    assert "told-to-wait" not in [thread.name for thread in threading.enumerate()]


def test_a_program_hears_nothing_while_a_proof_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Screen(terminal=False)
    monkeypatch.setattr(sys, "stderr", screen)
    with verification.told_to_wait():
        assert "told-to-wait" not in [thread.name for thread in threading.enumerate()]
    assert screen.getvalue() == ""
