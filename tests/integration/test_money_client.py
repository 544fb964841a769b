"""The money client, blocking and asyncio, against real services: every call, refusals, kill -9."""

import asyncio
import contextlib
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from exchange.v1 import enums_pb2 as enums
from exchange.v1 import pair_admin_pb2, pair_admin_pb2_grpc, risk_pb2
from holdfast import (
    AsyncMoneyClient,
    Finding,
    InvalidRequest,
    LimitChange,
    NotFound,
    OutOfRange,
    PairSequence,
    Retry,
    Unavailable,
)
from holdfast.money.movements import CREDITED
from tests.integration.money_client_exchange import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    HANG_S,
    OUTSIDE,
    UNSURE,
    MoneyExchange,
    await_serving,
    money_exchange,
)
from tests.integration.risk_processes import BTC, ETH, UNIT

pytestmark = [pytest.mark.integration, pytest.mark.slow]

QUOTE = enums.ASSET_QUOTE


@pytest.fixture(scope="module")
def whole() -> Iterator[MoneyExchange]:
    with money_exchange() as found:
        found.bring(ALICE, "USDT", "10000", trading="6000")
        found.bring(ALICE, "BTC", "10")
        yield found


def test_from_deposit_to_withdrawal(whole: MoneyExchange) -> None:
    with whole.client(BOB) as money, whole.client(BOB, "carla") as approver:
        address = money.deposit_address("BTC")
        assert money.deposit_address("BTC") == address
        paid = money.simulate_deposit(address.address, "BTC", Decimal("3.5"))
        seen = list(money.follow_deposit(paid, watch=UNSURE))
        assert (seen[-1].state, seen[-1].amount) == (CREDITED, Decimal("3.50000000"))
        assert money.deposits().deposits == (seen[-1],)
        moved = money.transfer("BTC", "1.25")
        assert (moved.repeated, moved.recalled) == (False, False)
        again = money.transfer("BTC", "1.25", transfer_id=moved.id)
        assert (again.transfer_id, again.repeated) == (moved.transfer_id, True)
        there = money.balances().of("BTC")
        assert (there.funding, there.trading) == (Decimal("2.25"), Decimal("1.25"))

        listed = money.add_address("BTC", OUTSIDE)
        assert [one.id for one in money.addresses().addresses] == [listed.id]
        made = uuid4()
        asked = money.withdraw("BTC", "1", OUTSIDE, withdrawal_id=made)
        assert (asked.id, asked.state, asked.approvals_needed) == (made, "awaiting-approval", 1)
        assert money.withdraw("BTC", "1", OUTSIDE, withdrawal_id=made).repeated
        assert money.balances().of("BTC").in_flight == Decimal(1)
        assert [one.id for one in money.withdrawals(awaiting_approval=True).withdrawals] == [made]
        with pytest.raises(InvalidRequest, match="CONTENT_CHANGED"):
            approver.approve(made, "carla", bytes(32))
        assert approver.approve(made, "carla", asked.digest).approvers == ("carla",)
        *_, last = money.follow_withdrawal(made, watch=UNSURE)
        assert (last.state, last.approvers) == ("confirmed", ("carla",))
        assert money.withdrawals().withdrawals == (last,)
        after = money.balances().of("BTC")
        assert (after.funding, after.in_flight) == (Decimal("1.25"), Decimal(0))
        assert money.remove_address(listed.id).removed_ns > 0
        assert money.addresses().addresses == ()
        states = [event.state for event in money.funds_events(made)]
        assert states[0] == "confirmed"
        assert states[-1] == "awaiting-approval"


def test_a_withdrawal_can_be_rejected_and_cancelled(whole: MoneyExchange) -> None:
    whole.bring(CAROL, "BTC", "2")
    with whole.client(CAROL, "carol") as money, whole.client(CAROL, "olga") as operator:
        money.add_address("BTC", OUTSIDE)
        refused = money.withdraw("BTC", "1", OUTSIDE)
        assert operator.reject(refused.id, "not today").state == "rejected"
        taken_back = money.withdraw("BTC", "1", OUTSIDE)
        assert money.cancel_withdrawal(taken_back.id).state == "cancelled"
        assert money.balances().of("BTC").funding == Decimal(2)
        with pytest.raises(InvalidRequest, match="WITHDRAWAL_STATE"):
            operator.approve(taken_back.id, "olga", taken_back.digest)
        with pytest.raises(NotFound, match="WITHDRAWAL_UNKNOWN"):
            money.withdrawal(uuid4())


def test_what_is_refused_names_field_value_and_limit(whole: MoneyExchange) -> None:
    with whole.client(ALICE, "alice") as money:
        for asset, amount, reason in (
            ("BTC", "-1", "AMOUNT_NEGATIVE"),
            ("BTC", "0", "AMOUNT_ZERO"),
            ("BTC", "1.000000001", "AMOUNT_INVALID"),
            ("BTC", "1e5", "AMOUNT_INVALID"),
            ("DOGE", "1", "ASSET_UNKNOWN"),
            ("BTC", "1000", "INSUFFICIENT_FUNDS"),
        ):
            with pytest.raises(InvalidRequest) as caught:
                money.transfer(asset, amount)
            assert caught.value.reason == reason, (asset, amount)
        with pytest.raises(InvalidRequest, match="ADDRESS_NOT_LISTED"):
            money.withdraw("BTC", "1", "nowhere1")
        listed = money.add_address("BTC", OUTSIDE)
        asked = money.withdraw("BTC", "1", OUTSIDE)
        with pytest.raises(Exception, match="APPROVER_IS_REQUESTER"):
            money.approve(asked.id, "alice", asked.digest)
        with pytest.raises(InvalidRequest, match="WITHDRAWAL_ID_REUSED"):
            money.withdraw("BTC", "2", OUTSIDE, withdrawal_id=asked.id)
        money.cancel_withdrawal(asked.id)
        money.remove_address(listed.id)
        with pytest.raises(NotFound, match="ACCOUNT_UNKNOWN"):
            money.statement("BTC", "staking")
        with pytest.raises(InvalidRequest, match="purpose is 'pocket'"):
            money.statement("BTC", "pocket")
        with pytest.raises(NotFound, match="DEPOSIT_UNKNOWN"):
            list(money.follow_deposit("no such payment", watch=Retry(patience_s=0.2)))
        wrong: Any = 0.1
        with pytest.raises(TypeError, match="it must be decimal text"):
            money.transfer("BTC", wrong)
    with whole.client(ALICE, owner_kind="robot") as money, pytest.raises(InvalidRequest):
        money.balances()


def test_trading_gets_back_what_engines_hold_idle(whole: MoneyExchange) -> None:
    whole.request(ALICE, BTC, QUOTE, 5_000 * UNIT)
    whole.await_settled()
    with whole.client(ALICE) as money:
        before = money.balances().of("USDT")
        assert before.engines[BTC] == Decimal(5_000)
        back = functools.partial(money.transfer, "USDT", source="trading", target="funding")
        with pytest.raises(InvalidRequest, match="INSUFFICIENT_RELEASED_FUNDS"):
            back(amount="4000", recall=False)
        moved = back(amount="4000")
        assert moved.recalled
        after = money.balances().of("USDT")
        assert after.funding == before.funding + 4_000
        assert after.total == before.total
        # What nobody has cannot be recalled.
        with pytest.raises(InvalidRequest, match="INSUFFICIENT_FUNDS"):
            back(amount="1000000")
        assert money.recall("USDT", "1", BTC) <= Decimal(1)


def test_statements_and_balances_of_any_moment(whole: MoneyExchange) -> None:
    with whole.client(ALICE) as money:
        lines = list(money.statement_lines("USDT", "trading"))
        assert [line.version for line in lines] == list(range(len(lines), 0, -1))
        assert list(money.statement_lines("USDT", "trading", page_size=2)) == lines
        newest = money.statement("USDT", "trading", page_size=2)
        assert newest.lines == tuple(lines[:2])
        token = newest.next_page_token
        older = money.statement("USDT", "trading", page_size=2, page_token=token)
        assert older.lines == tuple(lines[2:4])
        for line, before in zip(lines, [*lines[1:], None], strict=True):
            assert line.balance == line.amount + (before.balance if before else 0)
        start = datetime.fromtimestamp(lines[-1].time_ns // 10**9, UTC) - timedelta(minutes=1)
        assert {line.amount for line in money.balances(start).lines} == {Decimal(0)}
        assert money.balances(datetime.now(UTC)) == money.balances()
        shown = money.balances(PairSequence(BTC, 0)).lines
        assert [(one.purpose, one.pair, one.amount) for one in shown] == [
            ("allotted", BTC, Decimal(0)),
            ("allotted", BTC, Decimal(0)),
        ]
        with pytest.raises(OutOfRange, match="SEQUENCE_OUT_OF_RANGE"):
            money.balances(PairSequence(BTC, 1 << 40))


def test_limits_exposure_and_the_kill_switch(whole: MoneyExchange) -> None:
    with whole.client(ALICE, "olga") as money:
        version = money.limits().version
        mine = {"subject": "account", "subject_name": str(ALICE)}
        changes = [
            LimitChange("exposure", Decimal(20_000), place="asset", place_name="USDT", **mine),
            LimitChange("order-notional", "500.5", place="pair", place_name=BTC, **mine),
            LimitChange("open-orders", 7, **mine),
        ]
        changed = money.change_limits(changes, "a test")
        assert changed.version == version + 1
        found = {one.kind: one.value for one in money.effective_limits(BTC).limits}
        assert found["exposure"] == Decimal(20_000)
        assert (found["order-notional"], found["open-orders"]) == (Decimal("500.5"), 7)
        with pytest.raises(InvalidRequest, match="VERSION"):
            money.change_limits(changes, "early", expected_version=changed.version + 1)
        for change, named in (
            (LimitChange("open-orders", "7.5"), "a number of orders"),
            (LimitChange("exposure", "-1", place="asset", place_name="USDT"), "plain decimal"),
            (LimitChange("exposure", "1"), "a pair or an asset, because exposure is an amount"),
            (LimitChange("pockets", 1), "kind is 'pockets'"),
        ):
            with pytest.raises(InvalidRequest, match=named):
                money.change_limits([change], "wrong")
        wrong: Any = 1.5
        unsure = LimitChange("exposure", wrong, place="asset", place_name="USDT")
        with pytest.raises(TypeError, match=r"value is 1\.5 of type float"):
            money.change_limits([unsure], "wrong")
        (use,) = [use for use in money.exposure().uses if use.limit.kind == "exposure"]
        assert use.used_ppm == int(use.used) * 1_000_000 // 20_000
        lifted = [LimitChange(one.kind, None, *_where(one)) for one in changes]
        money.change_limits(lifted, "enough")
        assert money.limits().limits == ()
        assert len(money.limits(changed.version).limits) == 3

        killed = money.kill("account", account=ALICE, note="a test")
        assert [(one.pair, one.confirmed) for one in killed.confirmations] == [
            (BTC, True),
            (ETH, True),
        ]
        assert all(one.sequence > 0 for one in killed.confirmations)
        assert money.risk_status().killed_accounts == (ALICE,)
        money.kill("account", account=ALICE, lift=True)
        assert money.risk_status().killed_accounts == ()


def _where(change: LimitChange) -> tuple[str, str, str, str]:
    return change.subject, change.subject_name, change.place, change.place_name


def test_the_same_for_asyncio(whole: MoneyExchange) -> None:
    async def scenario() -> None:
        async with AsyncMoneyClient(BOB, **whole.targets) as money:
            balances, trial, status = await asyncio.gather(
                money.balances(), money.trial_balance(), money.risk_status()
            )
            assert balances.of("BTC").total == Decimal("2.5")
            assert trial.balanced
            assert [pair.pair for pair in status.pairs] == [BTC, ETH]
            lines = [line async for line in money.statement_lines("BTC")]
            assert lines[-1].kind == "deposit"
            async with contextlib.aclosing(money.verify()) as findings:
                assert [finding.sound async for finding in findings] == [True] * 5

    asyncio.run(scenario())


def test_a_repeated_transfer_moves_once_through_a_kill_of_the_ledger(whole: MoneyExchange) -> None:
    whole.bring(DAVE, "USDT", "100")
    made = uuid4()
    with whole.client(DAVE) as money, ThreadPoolExecutor(1) as threads:
        whole.ledgerd.kill()
        soon = threads.submit(money.transfer, "USDT", "40", transfer_id=made)
        whole.ledgerd.start()
        moved = soon.result(timeout=HANG_S)
        assert moved.id == made
        await_serving(whole.ledgerd, "ledger")
        assert money.transfer("USDT", "40", transfer_id=made).transfer_id == moved.transfer_id
        assert money.balances().of("USDT").trading == Decimal(40)
        with pytest.raises(InvalidRequest, match="TRANSFER_ID_REUSED"):
            money.transfer("USDT", "41", transfer_id=made)
    impatient = Retry(patience_s=0.2)
    lost = whole.client(DAVE, ledger="127.0.0.1:1", retry=impatient)
    with lost, pytest.raises(Unavailable):
        lost.balances()


def test_everything_is_proved_and_what_is_not_is_said(whole: MoneyExchange) -> None:
    with whole.client(ALICE) as money:
        findings = list(money.verify())
        assert all(finding.sound for finding in findings), findings
        assert [finding.subject for finding in findings] == [
            *("books", "trial balance", "custody"),
            *(BTC, ETH),
        ]
        assert "ledger = engine at sequence" in findings[-1].sentence
        digest = money.digest(BTC)
        settled = money.until_settled(BTC, digest.number)
        assert settled is not None
        assert settled.checked_number >= digest.number
        assert money.until_settled("A-B", 0) is None
        finding, proof = money.verify_liability("USDT")
        assert finding.sound, finding
        there = money.balances().of("USDT").total
        assert proof.amount_units == int(there.scaleb(money.decimals("USDT")))
    with whole.client(77) as nobody, pytest.raises(NotFound):
        nobody.verify_liability("USDT")
    with whole.client(ALICE, pairs={}) as money:
        unnamed = [finding for finding in money.verify() if not finding.sound]
        assert [finding.subject for finding in unnamed] == [BTC, ETH]
        with pytest.raises(NotFound, match="PAIR_UNKNOWN"):
            money.digest(BTC)


def test_money_that_the_books_never_gave_is_found(whole: MoneyExchange) -> None:
    """Last of all, because settlement of the pair stops for good."""
    stub = pair_admin_pb2_grpc.PairAdminServiceStub(whole.channels[ETH])
    number = (
        whole.risk.GetRiskStatus(risk_pb2.GetRiskStatusRequest(), timeout=HANG_S)
        .pairs[1]
        .transfer_number
    )
    request = pair_admin_pb2.AllotFundsRequest(
        pair=ETH, account=DAVE, asset=QUOTE, amount="1", transfer_number=number + 1
    )
    report = stub.AllotFunds(request, timeout=HANG_S).report
    assert report.kind == enums.EXECUTION_KIND_ALLOTTED
    with whole.client(ALICE) as money:
        stopped = money.until_settled(ETH, report.last_number, UNSURE)
        assert stopped is not None
        assert stopped.state == "stopped"
        wrong = [finding for finding in money.verify() if not finding.sound]
        assert wrong == [Finding(ETH, False, f"settlement stopped: {stopped.sentence}")]
