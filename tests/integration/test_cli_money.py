"""The money commands against real services: what they print, and what they end with."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from exchange.v1 import enums_pb2 as enums
from exchange.v1 import risk_pb2
from holdfast.cli import main
from ledgerd.database import SUPERUSER, connect
from tests.integration.exchange_processes import ROOT
from tests.integration.money_client_exchange import (
    ALICE,
    BOB,
    DAVE,
    OUTSIDE,
    MoneyExchange,
    money_exchange,
)
from tests.integration.risk_processes import BTC, ETH, UNIT

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LOOKS = 10_000
"""Bounds a hang; nothing is measured against it."""
SOMEBODY = "00000000-0000-0000-0000-000000000001"


@dataclass(frozen=True)
class Ended:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Holdfast = Callable[..., Ended]


@pytest.fixture(scope="module")
def whole() -> Iterator[MoneyExchange]:
    with money_exchange() as found:
        yield found


@pytest.fixture
def holdfast(whole: MoneyExchange, capsys: pytest.CaptureFixture[str]) -> Holdfast:
    """Run one command of an account; whatever it ends with is the answer."""

    def run(line: str, account: int = ALICE) -> Ended:
        status = main([*line.split(), *_where(whole), "--account", str(account)])
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    return run


def _where(whole: MoneyExchange) -> list[str]:
    return ["--ledger", whole.targets["ledger"], "--risk", whole.targets["risk"]]


def done(ended: Ended) -> str:
    """Return what a command printed that did what it was asked."""
    assert (ended.status, ended.err) == (0, ""), ended
    return ended.out


def refused(ended: Ended) -> str:
    """Return the one sentence of a command that was refused."""
    assert ended.status == 1, ended
    assert ended.err.startswith("holdfast: "), ended
    assert ended.err.count("\n") == 1, ended
    return ended.err


def rows(table: str) -> list[list[str]]:
    """Return a printed table's cells, the header first."""
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]


def test_a_deposit_is_followed_until_it_is_credited(holdfast: Holdfast) -> None:
    address = holdfast("deposit BTC")
    assert (address.status, address.err) == (0, "credited after 2 confirmations\n")
    lines = done(holdfast("deposit BTC 3.5")).splitlines()
    said = re.fullmatch(rf"paying 3.5 BTC to {address.out.strip()} \(id (\S+)\)", lines[0])
    assert said is not None, lines
    assert lines[-1] == "credited to funding: 3.50000000 BTC"
    again = done(holdfast(f"deposit BTC 3.50 --id {said[1]}"))
    assert again.splitlines()[-1] == "credited to funding: 3.50000000 BTC"
    assert "PAYMENT_ID_REUSED" in refused(holdfast(f"deposit BTC 3 --id {said[1]}"))
    paid = holdfast("deposit USDT 10000 --json").json
    assert (paid["state"], paid["amount"]) == ("credited", "10000.00000000")
    listed = rows(done(holdfast("deposits")))
    assert [row[1:4] for row in listed[1:]] == [
        ["10000.00000000", "USDT", "credited"],
        ["3.50000000", "BTC", "credited"],
    ]
    assert len(holdfast("deposits --json --lines 1").json["deposits"]) == 1


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("deposit DOGE", "ASSET_UNKNOWN"),
        ("deposit BTC 0", "AMOUNT_ZERO"),
        ("deposit BTC -1", "AMOUNT_NEGATIVE"),
        ("deposit BTC 1e5", "AMOUNT_INVALID: amount is '1e5'; it must be plain decimal text"),
        ("deposit BTC 0.123456789", "a number with at most 8 decimals"),
        ("deposit BTC 1 --wait 0", "patience_s is 0"),
        ("deposit BTC 99999999999999999999", "AMOUNT_BEYOND_INT64"),
        ("deposits --lines 1001", "PAGE_SIZE_OUT_OF_RANGE"),
        ("transfer BTC 0 --from funding --to trading", "AMOUNT_ZERO"),
        ("transfer BTC 1000 --from funding --to trading", "INSUFFICIENT_FUNDS"),
        ("transfer DOGE 1 --from funding --to trading", "ASSET_UNKNOWN"),
        ("transfer BTC x --from funding --to trading", "AMOUNT_INVALID"),
        ("transfer BTC 1 --from trading --to funding", "INSUFFICIENT"),
        ("address add BTC !", "ADDRESS_INVALID"),
        ("address add DOGE outside1", "ASSET_UNKNOWN"),
        (f"address remove {SOMEBODY}", "ADDRESS"),
        ("withdraw BTC 1 --to nowhere1", "ADDRESS_NOT_LISTED"),
        ("withdraw BTC 0 --to outside1", "AMOUNT_ZERO"),
        (f"withdrawals {SOMEBODY}", "WITHDRAWAL_UNKNOWN: there is no withdrawal"),
        (f"approve {SOMEBODY} --as bob", "WITHDRAWAL_UNKNOWN"),
        (f"reject {SOMEBODY} --as bob --why no", "WITHDRAWAL_UNKNOWN"),
        (f"cancel-withdrawal {SOMEBODY}", "WITHDRAWAL_UNKNOWN"),
        ("balances --at BTC-USDT@999999", "SEQUENCE_OUT_OF_RANGE"),
        ("balances --at A-B@1", "PAIR_UNKNOWN"),
        ("statement DOGE", "ACCOUNT_UNKNOWN"),
        ("statement BTC staking", "ACCOUNT_UNKNOWN: there is no account staking BTC of user 1"),
        ("statement BTC --lines 1001", "PAGE_SIZE_OUT_OF_RANGE"),
        ("statement BTC --from x", "PAGE_TOKEN_INVALID"),
        ("limits show --pair A-B", "PAIR_UNKNOWN: pair is 'A-B'; it must be BTC-USDT or ETH-USDT"),
        ("limits show --version 99", "VERSION"),
        ("limits history --lines 1001", "PAGE_SIZE_OUT_OF_RANGE"),
        ("limits set position 5 --note x", "because position is an amount"),
        ("limits set position 5 --in BTC-USDT --note x", "LIMIT_PLACE_INVALID"),
        ("limits set position -5 --in BTC --note x", "AMOUNT_INVALID: value is '-5'"),
        ("limits set open-orders 0 --note x", "LIMIT"),
        ("limits set open-orders 1.5 --note x", "a number of orders"),
        ("limits set exposure 1 --in BTC --note x --expected-version 99", "VERSION"),
        ("limits lift exposure --in DOGE --note x", "DOGE"),
        ("kill pair A-B", "PAIR_UNKNOWN"),
        ("kill account 0", "ACCOUNT_INVALID"),
        ("kill account 999999999", "account is '999999999'; it must be from 1 to 65535"),
        ("verify --proof DOGE", "ASSET_UNKNOWN"),
    ],
)
def test_a_refusal_is_one_sentence_and_status_1(holdfast: Holdfast, line: str, named: str) -> None:
    assert named in refused(holdfast(line))


def test_money_goes_to_trading_and_back_even_from_engines(
    whole: MoneyExchange, holdfast: Holdfast
) -> None:
    moved = done(holdfast("transfer USDT 6000 --from funding --to trading"))
    match = re.fullmatch(
        r"moved 6000 USDT of account 1 from funding to trading \(id (\S+), transfer \d+\)\n", moved
    )
    assert match is not None, moved
    again = done(holdfast(f"transfer USDT 6000 --from funding --to trading --id {match[1]}"))
    assert "as it was before" in again
    other = holdfast(f"transfer USDT 1 --from funding --to trading --id {match[1]}")
    assert "TRANSFER_ID_REUSED" in refused(other)
    whole.request(ALICE, BTC, enums.ASSET_QUOTE, 5_500 * UNIT)
    whole.await_settled()
    bare = "transfer USDT 4000 --from trading --to funding"
    assert "INSUFFICIENT_RELEASED_FUNDS" in refused(holdfast(f"{bare} --no-recall"))
    assert "after engines gave it back" in done(holdfast(bare))
    assert "INSUFFICIENT" in refused(holdfast("transfer USDT 9999 --from trading --to funding"))
    document = holdfast("transfer USDT 1 --from funding --to trading --json").json
    assert document["repeated"] is False


def test_balances_now_and_then(whole: MoneyExchange, holdfast: Holdfast) -> None:
    done(holdfast("deposit ETH 2", DAVE))
    done(holdfast("transfer ETH 1.5 --from funding --to trading", DAVE))
    whole.request(DAVE, ETH, enums.ASSET_BASE, UNIT)
    whole.await_settled()
    header, ether, tether = rows(done(holdfast("balances", DAVE)))
    assert header == ["asset", "funding", "trading", f"in {ETH}", "in flight", "total"]
    assert ether[1:] == ["0.50000000", "0.50000000", "1.00000000", "0.00000000", "2.00000000"]
    # The engine's account of the pair's other asset is open, too.
    assert (tether[0], tether[-1]) == ("USDT", "0.00000000")
    document = holdfast("balances --json", DAVE).json
    amounts = {(line["asset"], line["purpose"]): line["amount"] for line in document["lines"]}
    assert amounts["ETH", "allotted"] == "1.00000000"
    long_ago = rows(done(holdfast("balances --at 2020-01-01T00:00:00Z", DAVE)))
    assert long_ago[1][-1] == "0.00000000"
    as_of = rows(done(holdfast(f"balances --at {ETH}@0", DAVE)))
    assert as_of[1][-1] == "0.00000000"
    assert done(holdfast("balances", 77)) == "account 77 has no balances\n"


def test_a_statement_is_read_page_by_page(holdfast: Holdfast) -> None:
    for _ in range(3):
        done(holdfast("deposit BTC 1", BOB))
    first = done(holdfast("statement BTC --lines 2", BOB)).splitlines()
    assert rows(first[0])[0] == ["version", "time", "kind", "amount", "balance", "transfer"]
    token = first[-1].removeprefix("older lines: --from ")
    rest = rows(done(holdfast(f"statement BTC --lines 2 --from {token}", BOB)))
    shown = [rows(line)[0] for line in first[1:-1]] + rest[1:]
    assert [row[0] for row in shown] == ["3", "2", "1"]
    assert [row[2:5] for row in shown] == [
        ["deposit posted", "1.00000000", f"{n}.00000000"] for n in (3, 2, 1)
    ]
    assert rows(done(holdfast("statement BTC funding --all", BOB)))[1:] == shown
    assert len(holdfast("statement BTC --json", BOB).json["lines"]) == 3
    at = shown[0][1]
    assert rows(done(holdfast(f"balances --at {at}", BOB)))[1][0] == "BTC"


def withdrawal_in(output: str) -> str:
    match = re.match(r"withdrawal (\S+)\n", output)
    assert match is not None, output
    return match[1]


def test_a_withdrawal_is_asked_for_approved_and_paid(holdfast: Holdfast) -> None:
    assert "usable from" in done(holdfast(f"address add BTC {OUTSIDE}"))
    listed = rows(done(holdfast("address list")))[1]
    assert listed[:3] == ["BTC", OUTSIDE, "now"]
    asked = done(holdfast(f"withdraw BTC 1 --to {OUTSIDE}"))
    made = withdrawal_in(asked)
    state = f"awaiting-approval: 1.00000000 BTC to {OUTSIDE}, 0 of 1 approvals"
    assert asked.splitlines()[1] == state
    again = done(holdfast(f"withdraw BTC 1 --to {OUTSIDE} --id {made}"))
    assert again.splitlines()[1] == f"{state} (asked for before)"
    other = holdfast(f"withdraw BTC 2 --to {OUTSIDE} --id {made}")
    assert "WITHDRAWAL_ID_REUSED" in refused(other)

    waiting = rows(done(holdfast("withdrawals --awaiting", 77)))
    assert [row[0] for row in waiting[1:]] == [made]
    shown = dict(row for row in rows(done(holdfast(f"withdrawals {made}"))))
    assert (shown["amount"], shown["to"], shown["approved"]) == (
        "1.00000000 BTC",
        OUTSIDE,
        "0 of 1",
    )
    assert "carla approved it; now " in done(holdfast(f"approve {made} --as carla"))
    last = holdfast(f"withdraw BTC 1 --to {OUTSIDE} --id {made} --wait")
    assert last.status == 0, last
    assert last.out.splitlines()[-1].startswith(f"confirmed: 1.00000000 BTC to {OUTSIDE}")
    document = holdfast(f"withdrawals {made} --json").json
    assert (document["state"], document["approvers"]) == ("confirmed", ["carla"])
    assert rows(done(holdfast("withdrawals")))[1][5] == "confirmed"
    assert "removed" in done(holdfast(f"address remove {listed[3]}"))
    assert done(holdfast("address list")) == ""


def test_what_was_seen_is_what_is_approved(holdfast: Holdfast) -> None:
    done(holdfast(f"address add BTC {OUTSIDE}"))
    made = withdrawal_in(done(holdfast(f"withdraw BTC 0.6 --to {OUTSIDE} --as bob")))
    digest = holdfast(f"withdrawals {made} --json").json["digest"]
    assert "APPROVER_IS_REQUESTER" in refused(holdfast(f"approve {made} --as bob"))
    changed = f"approve {made} --as carla --digest {'0' * 64}"
    assert "CONTENT_CHANGED" in refused(holdfast(changed))
    approved = done(holdfast(f"approve {made} --as carla --digest {digest}"))
    assert f"digest       {digest}" in approved
    refused_late = holdfast(f"cancel-withdrawal {made}")
    if refused_late.status == 0:
        assert refused_late.out.startswith("cancelled")
    else:
        assert "WITHDRAWAL_STATE" in refused_late.err


def test_a_withdrawal_is_refused_or_taken_back_by_people(holdfast: Holdfast) -> None:
    made = withdrawal_in(done(holdfast(f"withdraw BTC 0.7 --to {OUTSIDE}")))
    assert done(holdfast(f"reject {made} --as carla --why no")).startswith("rejected: 0.70000000")
    made = holdfast(f"withdraw BTC 0.7 --to {OUTSIDE} --json").json["id"]
    assert holdfast(f"cancel-withdrawal {made} --json").json["state"] == "cancelled"
    assert "WITHDRAWAL_STATE" in refused(holdfast(f"reject {made} --as carla --why late"))
    followed = holdfast(f"withdraw BTC 0.7 --to {OUTSIDE} --id {made} --wait 5")
    assert followed.status == 1
    assert followed.out.splitlines()[-1].startswith("cancelled")


def test_what_is_missing_in_funding_is_moved_by_the_command_it_names(holdfast: Holdfast) -> None:
    done(holdfast(f"address add USDT {OUTSIDE}"))
    funding = rows(done(holdfast("balances")))[2][1]
    whole_coins = int(funding.partition(".")[0]) + 1
    sentence = refused_after_id(holdfast(f"withdraw USDT {whole_coins} --to {OUTSIDE}"))
    match = re.search(r"holdfast (transfer USDT \S+ --from trading --to funding)", sentence)
    assert match is not None, sentence
    done(holdfast(match[1]))
    paid = holdfast(f"withdraw USDT {whole_coins} --to {OUTSIDE} --wait")
    assert paid.status == 0, paid
    far = refused_after_id(holdfast(f"withdraw USDT 99999999 --to {OUTSIDE}"))
    assert "INSUFFICIENT_FUNDS" in far
    assert "holdfast transfer" not in far


def refused_after_id(ended: Ended) -> str:
    """Return the sentence of a withdrawal that was refused; its id was printed before."""
    assert (ended.status, ended.err.count("\n")) == (1, 1), ended
    assert withdrawal_in(ended.out)
    return ended.err


def test_a_fresh_address_waits(whole: MoneyExchange, holdfast: Holdfast) -> None:
    whole.allow_fresh_addresses("24h")
    whole.restart_ledgerd()
    assert "usable from" in done(holdfast("address add BTC outside2"))
    waits = rows(done(holdfast("address list")))[-1]
    assert waits[1] == "outside2"
    assert waits[2] != "now"
    assert "ADDRESS_TOO_FRESH" in refused_after_id(holdfast("withdraw BTC 0.1 --to outside2"))
    whole.allow_fresh_addresses("2s")
    whole.restart_ledgerd()
    done(holdfast("address add BTC outside3"))
    paid = done(holdfast("withdraw BTC 0.1 --to outside3 --wait"))
    assert paid.splitlines()[1].startswith("waiting: address outside3 is listed")
    assert paid.splitlines()[-1].startswith("confirmed: 0.1")
    whole.await_settled()


def test_limits_are_set_shown_and_lifted(holdfast: Holdfast) -> None:
    changed = done(
        holdfast("limits set daily-withdrawal 0.05 --in BTC --of account:1 --note small")
    )
    assert changed.startswith("limits are at version 1 now")
    done(holdfast("limits set order-lots 100 --in BTC-USDT --of tier:standard --note x"))
    done(holdfast("limits set price-band-width 50000 --note x --as olga"))
    table = rows(done(holdfast("limits show")))
    assert ["order-lots", "tier standard", BTC, "100 lots"] in table
    assert ["daily-withdrawal", "account 1", "BTC", "0.05000000 BTC"] in table
    assert ["price-band-width", "everyone", "everywhere", "50000 parts per million"] in table
    assert table[-1] == ["version 3, 3 limits"]
    binding = done(holdfast(f"limits show --pair {BTC}"))
    assert f"account 1 in {BTC}: tier standard, role trader, version 3" in binding
    over = refused_after_id(holdfast(f"withdraw BTC 0.1 --to {OUTSIDE}"))
    assert "DAILY_WITHDRAWAL_LIMIT" in over
    assert "daily-withdrawal" in done(holdfast("exposure"))
    for line in ("daily-withdrawal --in BTC --of account:1", "price-band-width"):
        done(holdfast(f"limits lift {line} --note enough"))
    assert len(holdfast("limits show --json").json["limits"]) == 1
    assert len(holdfast("limits show --version 3 --json").json["limits"]) == 3
    assert holdfast(f"limits show --pair {BTC} --json").json["role"] == "trader"


def test_exposure_shows_where_money_is(whole: MoneyExchange, holdfast: Holdfast) -> None:
    table = rows(done(holdfast("exposure", DAVE)))
    assert table[0] == ["pair", "asset", "total", "free", "in flight", "target", "at sequence"]
    assert table[1][:4] == [ETH, "ETH", "1.00000000", "1.00000000"]
    assert holdfast("exposure --json", DAVE).json["pairs"][0]["free_exact"] is True
    assert done(holdfast("exposure", 77)).startswith("account 77 has nothing in any pair")


def test_the_kill_switch_names_the_sequence_in_each_engine(holdfast: Holdfast) -> None:
    killed = done(holdfast("kill account 1 --note test")).splitlines()
    assert [line.partition(":")[0] for line in killed] == [BTC, ETH]
    assert all(re.search(r"nothing of account 1 trades after sequence \d", line) for line in killed)
    assert "stopped accounts: 1" in done(holdfast("risk status"))
    assert "account 1 trades" in done(holdfast("kill account 1 --lift"))
    assert holdfast(f"kill pair {BTC} --json").json["confirmations"][0]["pair"] == BTC
    table = rows(done(holdfast("risk status")))
    assert [row[:2] for row in table[1:3]] == [[BTC, "stopped"], [ETH, "open"]]
    done(holdfast(f"kill pair {BTC} --lift"))
    assert len(done(holdfast("kill everything")).splitlines()) == 2
    assert "EVERYTHING IS STOPPED" in done(holdfast("risk status"))
    done(holdfast("kill everything --lift"))
    assert holdfast("risk status --json").json["everything_killed"] is False


def test_the_history_says_who_changed_what(whole: MoneyExchange, holdfast: Holdfast) -> None:
    done(holdfast("limits set exposure 5 --in ETH --of account:4 --note tight --as olga"))
    done(holdfast("limits lift exposure --in ETH --of account:4 --note loose --as olga"))
    done(holdfast("kill account 4 --note seen --as eve"))
    done(holdfast("kill account 4 --lift --note sorry --as eve"))
    who: dict[str, Any] = {"account": DAVE, "actor": "ann", "note": "maker"}
    role = risk_pb2.ACCOUNT_ROLE_MARKET_MAKER
    whole.risk.SetAccountProfile(risk_pb2.SetAccountProfileRequest(tier="gold", role=role, **who))
    for units in (3 * UNIT, 0):
        target = risk_pb2.SetAllotmentTargetRequest(
            pair=BTC, asset=enums.ASSET_QUOTE, amount_units=units, **who
        )
        whole.risk.SetAllotmentTarget(target)
    expected = [
        ["ann", f"target of account 4 in {BTC}", "3.00000000 USDT", "-", "maker"],
        ["ann", f"target of account 4 in {BTC}", "-", "3.00000000 USDT", "maker"],
        ["ann", "profile of account 4", "-", "gold market-maker", "maker"],
        ["eve", "kill of account 4", "stopped", "open", "sorry"],
        ["eve", "kill of account 4", "open", "stopped", "seen"],
        ["olga", "exposure of account 4 in ETH", "5.00000000 ETH", "-", "loose"],
        ["olga", "exposure of account 4 in ETH", "-", "5.00000000 ETH", "tight"],
    ]
    first = done(holdfast("limits history --lines 4")).splitlines()
    assert rows(first[0])[0] == ["change", "time", "who", "what", "before", "after", "note"]
    older = first[-1].removeprefix("older changes: --from ")
    rest = done(holdfast(f"limits history --lines 3 --from {older}")).splitlines()
    assert [rows(line)[0][2:] for line in first[1:-1] + rest[1:-1]] == expected
    document = holdfast("limits history --json --lines 1").json
    (newest,) = document["changes"]
    what, before = expected[0][1:3]
    assert newest["edits"] == [{"what": what, "before": before, "after": ""}]
    assert json.loads(newest["content"])["before"] == 3 * UNIT
    assert document["older"] == newest["change"]
    everything = rows(done(holdfast("limits history --lines 1000")))
    assert everything[-1][0] == "1"
    assert done(holdfast("limits history --from 1")) == "there are no such changes\n"


def pairs_of(whole: MoneyExchange) -> str:
    return " ".join(f"--pair {pair}={target}" for pair, target in whole.targets["pairs"].items())


def test_everything_is_proved(whole: MoneyExchange, holdfast: Holdfast) -> None:
    lines = done(holdfast(f"verify {pairs_of(whole)}")).splitlines()
    assert re.match(r"books: the chain of [\d,]+ seals over [\d,]+ transfers", lines[0])
    assert lines[1] == "trial balance: all postings sum to zero in BTC, ETH, USDT"
    assert lines[2] == "custody: every payout of the custodian is in the books"
    for line, pair in zip(lines[3:5], (BTC, ETH), strict=True):
        assert re.fullmatch(rf"{pair}: ledger = engine at sequence [\d,]+ \(\d+ accounts\)", line)
    assert lines[5] == "everything is proved"
    assert holdfast(f"verify --json {pairs_of(whole)}").json["sound"] is True
    proof = done(holdfast("verify --proof USDT"))
    assert re.match(r"liabilities: snapshot \d+ counts \S+ USDT of account 1: \d steps lead", proof)
    assert holdfast("verify --proof USDT --json").json["proof"]["owner_id"] == ALICE
    assert "OWNER_UNKNOWN: owner 77 is not in snapshot" in refused(
        holdfast("verify --proof USDT", 77)
    )


def test_the_command_itself_ends_with_its_status(whole: MoneyExchange) -> None:
    def status(*arguments: str) -> int:
        command = [sys.executable, "-m", "holdfast.cli", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode

    assert status("balances", "--run", str(whole.run)) == 0
    assert status("statement", "DOGE", "--run", str(whole.run)) == 1
    assert status("statement") == 2


def test_without_a_custodian_nothing_comes_in(whole: MoneyExchange, holdfast: Holdfast) -> None:
    whole.close_the_way_in()
    whole.restart_ledgerd()
    whole.allow_fresh_addresses("24h")  # From the next start on.
    assert "started without a custodian" in refused(holdfast("deposit BTC"))
    lines = done(holdfast(f"verify {pairs_of(whole)}")).splitlines()
    assert "custody: there is no custodian to be compared with" in lines


def test_a_payout_behind_the_books_is_found(whole: MoneyExchange, holdfast: Holdfast) -> None:
    whole.restart_ledgerd(meanwhile=whole.pay_behind_the_books)
    with whole.client(ALICE) as money:
        looks = (money.funds_status() for _ in range(LOOKS))
        assert any(status.unexplained_payouts for status in looks)
    found = holdfast(f"verify {pairs_of(whole)}")
    assert found.status == 1
    wrong = [line for line in found.out.splitlines() if "NOT SOUND: " in line]
    payout = "the custodian has payout"
    assert any(line.startswith(f"books: NOT SOUND: {payout}") for line in wrong)
    assert wrong[-1].startswith(f"custody: NOT SOUND: unexplained payout: {payout}")


def test_changed_books_are_not_sound(whole: MoneyExchange, holdfast: Holdfast) -> None:
    """Last of all: somebody with the database's password gives away a coin."""
    url = whole.postgres.url(SUPERUSER)
    thief = connect(url.render_as_string(hide_password=False), 1)
    with thief.begin() as connection:
        connection.exec_driver_sql("SET session_replication_role = replica")
        changed = connection.exec_driver_sql(
            "UPDATE balances SET amount = amount + 1 WHERE account_id ="
            " (SELECT id FROM accounts WHERE owner_id = 2 AND purpose = 1)"
        )
        assert changed.rowcount == 1
        changed = connection.exec_driver_sql(
            "UPDATE postings SET amount = amount + 1 WHERE version = 1 AND account_id ="
            " (SELECT id FROM accounts WHERE owner_id = 2 AND purpose = 1)"
        )
        assert changed.rowcount == 1
    thief.dispose()
    found = holdfast(f"verify {pairs_of(whole)}")
    assert found.status == 1
    assert re.search(r"^books: NOT SOUND: the balance of account \d+", found.out, re.MULTILINE)
    assert "trial balance: NOT SOUND: the books do not sum to zero: 0.00000001 BTC" in found.out
    assert found.out.splitlines()[-1] == "NOT SOUND"
    assert holdfast(f"verify --json {pairs_of(whole)}").json["sound"] is False
