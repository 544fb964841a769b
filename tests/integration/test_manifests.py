"""The manifests make an exchange: what they start moves money, listens to nobody else, and ends.

Everything is started as the manifests say, on this machine: two pairs, the books on a PostgreSQL
that was made with the operator's script, the risk service, certificates of the other script.
"""

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exchange.service import refusal_in
from exchange.v1 import enums_pb2 as enums
from exchange.v1 import (
    ledger_pb2,
    ledger_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
    risk_pb2,
    risk_pb2_grpc,
)
from tests.integration.manifest_processes import PAIRS, START_S, Cluster, cluster
from tests.integration.risk_processes import BTC, DEADLINE_S, UNIT
from tests.manifests import SERVICES, container, quantity_bytes

pytestmark = pytest.mark.integration

OWNER = 7


@pytest.fixture(scope="module")
def whole() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


def reason(error: grpc.RpcError) -> str:
    """Return why a call failed."""
    info = refusal_in(error)
    return info.reason if info else error.code().name


def test_all_probes_find_their_processes_at_work(whole: Cluster) -> None:
    served = [(name, name) for name in SERVICES] + [(pair, "entry") for pair in PAIRS]
    for name, inside in served:
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert whole.pods[name].probe(inside, kind) == 0, (name, inside, kind)
    for pair in PAIRS:
        stub = health_pb2_grpc.HealthStub(whole.channel("", f"pair-{pair}", "marketdata"))
        request = health_pb2.HealthCheckRequest(service="marketdata")
        for answer in stub.Watch(request, wait_for_ready=True, timeout=START_S):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                break


def test_an_order_without_money_in_its_pair_is_served_and_settled(whole: Cluster) -> None:
    whole.deposit(OWNER, "USDT", 1_000 * UNIT, 1)
    report = whole.order(OWNER, BTC, enums.SIDE_BUY, "50000", "0.01")
    assert report.kind == enums.EXECUTION_KIND_ACCEPTED, report
    whole.await_settled()
    balances = whole.balances(OWNER)
    assert balances["ALLOTTED", "USDT", BTC] >= 500 * UNIT
    assert sum(balances.values()) == 1_000 * UNIT


def test_roles_are_kept_to_what_they_need_on_every_server(whole: Cluster) -> None:
    books = ledger_pb2_grpc.LedgerServiceStub(whole.channel("edge", "ledgerd"))
    with pytest.raises(grpc.RpcError) as told:
        books.GetTrialBalance(ledger_pb2.GetTrialBalanceRequest(), timeout=DEADLINE_S)
    assert reason(told.value) == "ROLE_FORBIDDEN"
    risk = risk_pb2_grpc.RiskServiceStub(whole.channel(f"pair-{PAIRS[0]}", "riskd"))
    with pytest.raises(grpc.RpcError) as told:
        risk.KillSwitch(risk_pb2.KillSwitchRequest(), timeout=DEADLINE_S)
    assert reason(told.value) == "ROLE_FORBIDDEN"
    admin = pair_admin_pb2_grpc.PairAdminServiceStub(
        whole.channel("edge", f"pair-{PAIRS[0]}", "orders")
    )
    with pytest.raises(grpc.RpcError) as told:
        admin.AllotFunds(pair_admin_pb2.AllotFundsRequest(), timeout=DEADLINE_S)
    assert reason(told.value) == "ROLE_FORBIDDEN"


def test_nobody_listens_to_who_shows_no_certificate_not_even_from_the_same_pod(
    whole: Cluster,
) -> None:
    doors = [("ledgerd", ""), ("riskd", ""), *((f"pair-{pair}", "orders") for pair in PAIRS)]
    for service, port in doors:
        stub = health_pb2_grpc.HealthStub(whole.channel("", service, port))
        with pytest.raises(grpc.RpcError) as told:
            stub.Check(health_pb2.HealthCheckRequest(service="alive"), timeout=DEADLINE_S)
        assert reason(told.value) == "UNAVAILABLE"


def test_services_fit_their_limits_and_end_within_their_grace(whole: Cluster) -> None:
    for name in SERVICES:
        pod = whole.pods[name]
        limit = container(pod.objects, name)["resources"]["limits"]["memory"]
        assert pod.peak_bytes(name) < quantity_bytes(limit)
    for name in SERVICES:
        assert whole.pods[name].stop(name) == 0, whole.pods[name].log(name).read_text()
    for pair in PAIRS:
        for inside in ("entry", "mdgateway", "engine"):
            assert whole.pods[pair].stop(inside) == 0, whole.pods[pair].log(inside).read_text()
