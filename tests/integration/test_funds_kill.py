"""A customer's money in and out of a real ledgerd and a real riskd, both killed -9 on the way.

The customer repeats every call with the same id until it is answered. At the end everything was
paid once, riskd counts what was paid and nothing else, and the books verify.

The seed is printed and taken back through HOLDFAST_SEED; HOLDFAST_KILLS sets how often, of a
hundred stages, one of the two is killed.
"""

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import grpc
import pytest

from exchange.service import refusal_in
from exchange.v1 import funds_pb2, funds_pb2_grpc, ledger_pb2, risk_pb2, risk_pb2_grpc
from ledgerd.custody.simulated_chain import CALM, SimulatedCustody
from ledgerd.database import EmbeddedPostgres
from ledgerd.funds.desk import CHAIN_FILE, CHAIN_SEED
from tests.books import make_risk, risk_addresses
from tests.integration.exchange_processes import ROOT
from tests.integration.risk_processes import DEADLINE_S, Service

pytestmark = pytest.mark.integration

OWNER_ID = 7
ROUNDS = 5
QUESTIONS = 20_000
"""Bounds a hang: far more than there can be answers while something is under way."""
STAGE_CALLS = 60
"""A kill comes at most so many calls after a stage began."""
FUNDING, TRADING = ledger_pb2.ACCOUNT_PURPOSE_FUNDING, ledger_pb2.ACCOUNT_PURPOSE_TRADING
NOWHERE = "BTC-USDT=127.0.0.1:1"
LIMIT_UNITS = 10**12


class Money:
    """The two services, their database, and a customer."""

    def __init__(self, run: Path, chance: random.Random, kill_percent: int) -> None:
        self.run, self.chance, self.kill_percent = run, chance, kill_percent
        self.postgres = EmbeddedPostgres(run / "postgres")
        self.ledgerd = Service(
            run,
            "ledgerd",
            *("--run", str(run), "--follow", NOWHERE),
            *("--custodian", "simulated", "--block-every", "20ms", "--confirmations", "2"),
            *("--address-wait", "0s"),
        )
        ledger = f"127.0.0.1:{self.ledgerd.port}"
        given = (*risk_addresses(self.postgres), "--ledger", ledger, "--follow", NOWHERE)
        self.riskd = Service(run, "riskd", *given)
        self.ledgerd.arguments += ("--risk", f"127.0.0.1:{self.riskd.port}")
        self.funds: Any = funds_pb2_grpc.FundsServiceStub(self.ledgerd.channel)
        self.risk: Any = risk_pb2_grpc.RiskServiceStub(self.riskd.channel)
        self.kills = 0
        self._until_kill = -1

    def start(self) -> None:
        self.ledgerd.start()
        self.ledgerd.await_health("exchange.v1.FundsService")
        make_risk(self.postgres)
        self.riskd.start()
        change = risk_pb2.LimitChange(
            key=risk_pb2.LimitKey(
                kind=risk_pb2.LIMIT_KIND_DAILY_WITHDRAWAL,
                subject=risk_pb2.LIMIT_SUBJECT_EVERYONE,
                place=risk_pb2.LIMIT_PLACE_ASSET,
                place_name="BTC",
            ),
            value=LIMIT_UNITS,
        )
        request = risk_pb2.ChangeLimitsRequest(changes=[change], actor="test", note="test")
        self.risk.ChangeLimits(request, timeout=DEADLINE_S, wait_for_ready=True)

    def end(self) -> None:
        for service in (self.riskd, self.ledgerd):
            if service.process is not None and service.process.poll() is None:
                service.kill()
            service.channel.close()
        self.postgres.stop()

    # The customer.

    def stage(self) -> None:
        """Begin a stage; one of the services may die in it."""
        dies = self.chance.randrange(100) < self.kill_percent
        # Many stages are one call long, so the first one has to be as likely as all others.
        within = self.chance.choice((0, self.chance.randrange(STAGE_CALLS)))
        self._until_kill = within if dies else -1

    def call(self, name: str, **fields: Any) -> Any:
        """Ask until there is an answer that is not "try again"."""
        request = getattr(funds_pb2, f"{name}Request")(**fields)
        for _ in range(QUESTIONS):
            under_way = getattr(self.funds, name).future(
                request, timeout=DEADLINE_S, wait_for_ready=True
            )
            self._fate()
            try:
                return under_way.result()
            except grpc.RpcError as error:
                info = refusal_in(error)
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise AssertionError(f"{name}: {error.code()} {info or error}") from error
        raise AssertionError(f"{name} was not answered")

    def _fate(self) -> None:
        if self._until_kill == 0:
            self.kills += 1
            victim = self.chance.choice([self.ledgerd, self.ledgerd, self.riskd])
            victim.kill()
            victim.start()
        self._until_kill -= 1

    def until(self, name: str, done: Callable[[Any], bool], **fields: Any) -> Any:
        """Ask again as often as answered until it is so."""
        for _ in range(QUESTIONS):
            answer = self.call(name, **fields)
            if done(answer):
                return answer
        raise AssertionError(f"{name} never said so: {answer}")

    def deposited(self, number: int, made: bytes) -> None:
        self.stage()
        address = self.call("GetDepositAddress", owner_id=OWNER_ID, asset="BTC").address
        self.stage()
        what = {"address": address, "asset": "BTC", "amount": f"{number}.5"}
        paid = self.call("SimulateDeposit", id=made, **what)
        self.stage()

        def credited(answer: Any) -> bool:
            return any(
                one.transaction_id == paid.transaction_id
                and one.state == funds_pb2.DEPOSIT_STATE_CREDITED
                for one in answer.deposits
            )

        self.until("ListDeposits", credited, owner_id=OWNER_ID)

    def moved(self, ids: Iterator[bytes]) -> None:
        for source, target in ((FUNDING, TRADING), (TRADING, FUNDING)):
            self.stage()
            given = {"owner_id": OWNER_ID, "asset": "BTC", "amount": "0.125", "actor": "alice"}
            self.call("MoveFunds", id=next(ids), source=source, target=target, **given)

    def withdrawn(self, number: int, ids: Iterator[bytes], cancel: bool) -> bytes:
        owner = {"owner_id": OWNER_ID, "asset": "BTC", "address": f"outside{number}"}
        self.stage()
        self.call("AddWithdrawalAddress", id=next(ids), actor="alice", **owner)
        self.stage()
        wanted = {"id": next(ids), "amount": f"0.{number + 1}", "requester": "alice"}
        made = self.call("RequestWithdrawal", **wanted, **owner).withdrawal
        self.stage()
        if cancel:
            self.call("CancelWithdrawal", id=made.id, actor="alice")
        else:
            self.call("ApproveWithdrawal", id=made.id, approver="bob", digest=made.digest)
        self.stage()
        ends = {funds_pb2.WITHDRAWAL_STATE_CONFIRMED, funds_pb2.WITHDRAWAL_STATE_CANCELLED}
        self.until("GetWithdrawal", lambda one: one.withdrawal.state in ends, id=made.id)
        return bytes(made.id)


@contextlib.contextmanager
def money(chance: random.Random, kill_percent: int) -> Iterator[Money]:
    """Give both services over a run folder that is gone afterwards."""
    with TemporaryDirectory(prefix="holdfast-funds-") as folder:
        # PostgreSQL may run as another user, who has to reach its folder.
        Path(folder).chmod(0o755)
        made = Money(Path(folder), chance, kill_percent)
        try:
            made.start()
            yield made
        except BaseException:
            print(made.ledgerd.log(), made.riskd.log(), sep="\n---\n")
            raise
        finally:
            made.end()


def counted_units(made: Money) -> int:
    """Return what riskd counts of the owner's withdrawals."""
    request = risk_pb2.GetExposureRequest(account=OWNER_ID)
    for _ in range(QUESTIONS):
        try:
            answer = made.risk.GetExposure(request, timeout=DEADLINE_S, wait_for_ready=True)
        except grpc.RpcError as error:
            # riskd asks ledgerd for the trading balance; either may be starting.
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            continue
        return sum(use.used_units for use in answer.uses)
    raise AssertionError("riskd does not say what it counts")


@pytest.mark.slow
def test_killed_again_and_again_everything_is_paid_once() -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"HOLDFAST_SEED={seed}")
    chance = random.Random(seed)
    ids = (UUID(int=number).bytes for number in range(1, 1_000))
    with money(chance, int(os.environ.get("HOLDFAST_KILLS", "25"))) as made:
        for number in range(1, ROUNDS + 1):
            made.deposited(number, next(ids))
            made.moved(ids)
            made.withdrawn(number, ids, cancel=number % 3 == 0)
        print(f"{made.kills} kills")
        status = made.call("GetFundsStatus")
        assert (list(status.unexplained_payouts), status.alarm_count) == ([], 0)
        chain = SimulatedCustody(made.run / CHAIN_FILE, CHAIN_SEED, ["BTC", "USDT"], CALM)
        paid = 0
        for number in range(1, ROUNDS + 1):
            expected = 0 if number % 3 == 0 else (number + 1) * 10**7
            assert chain.paid_units("BTC", f"outside{number}") == expected
            paid += expected
        deposited = sum(number * 10**8 + 5 * 10**7 for number in range(1, ROUNDS + 1))
        (bitcoin,) = (one for one in status.assets if one.asset == "BTC")
        assert bitcoin.booked_units == deposited - paid == chain.holdings_units("BTC")
        for _ in range(QUESTIONS):
            if counted_units(made) == paid:
                break
        assert counted_units(made) == paid
        assert made.ledgerd.stop() == 0
        command = [sys.executable, "-m", "ledgerd", "verify", "--run", str(made.run)]
        outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        assert "sound" in outcome.stdout


def test_limits_are_riskds_and_its_absence_is_an_answer() -> None:
    ids = (UUID(int=number).bytes for number in range(1, 1_000))
    with money(random.Random(1), 0) as made:
        made.deposited(9, next(ids))
        owner: dict[str, Any] = {"owner_id": OWNER_ID, "asset": "BTC", "address": "outside"}
        made.call("AddWithdrawalAddress", id=next(ids), actor="alice", **owner)
        kill = risk_pb2.KillSwitchRequest(
            scope=risk_pb2.KILL_SCOPE_ACCOUNT,
            account=OWNER_ID,
            killed=True,
            actor="test",
            note="test",
        )
        made.risk.KillSwitch(kill, timeout=DEADLINE_S)
        wanted = owner | {"id": next(ids), "amount": "1", "requester": "alice"}
        request = funds_pb2.RequestWithdrawalRequest(**wanted)
        assert refusal(made, request) == (grpc.StatusCode.FAILED_PRECONDITION, "ACCOUNT_KILLED")
        made.riskd.kill()
        assert refusal(made, request) == (grpc.StatusCode.UNAVAILABLE, "RISK_UNAVAILABLE")
        missing = refusal_of(
            lambda: made.funds.GetWithdrawal(funds_pb2.GetWithdrawalRequest(id=wanted["id"]))
        )
        assert missing == (grpc.StatusCode.NOT_FOUND, "WITHDRAWAL_UNKNOWN")
        made.riskd.start()
        kill.killed = False
        made.risk.KillSwitch(kill, timeout=DEADLINE_S, wait_for_ready=True)
        assert made.call("RequestWithdrawal", **wanted).withdrawal.amount == "1.00000000"
        assert counted_units(made) == 10**8
        assert made.ledgerd.stop() == 0


def refusal(made: Money, request: Any) -> tuple[grpc.StatusCode, str]:
    return refusal_of(lambda: made.funds.RequestWithdrawal(request, timeout=DEADLINE_S))


def refusal_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """Return status and reason of a call that must be refused."""
    try:
        answer = call()
    except grpc.RpcError as error:
        info = refusal_in(error)
        return error.code(), info.reason if info else ""
    raise AssertionError(f"not refused: {answer}")
