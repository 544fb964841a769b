"""What somebody who just started an exchange can type in another terminal."""

from holdfast.running.demonstration import VISITOR
from holdfast.running.plan import Plan


def lines_to_try(plan: Plan, price: str) -> str:
    """Return the addresses and lines that work as they are; `price` is one for the first pair."""
    assert plan.money is not None
    first = plan.pairs[0]
    order = (
        f'{{"pair": "{first.pair}", "client_order_id": 1, "side": "SIDE_BUY",'
        ' "order_type": "ORDER_TYPE_LIMIT",'
        ' "time_in_force": "TIME_IN_FORCE_GOOD_TILL_CANCELLED",'
        f' "price": "{price}", "quantity": "0.01"}}'
    )
    balances = f'{{"owner_kind": "OWNER_KIND_USER", "owner_id": {VISITOR}}}'
    orders = ", ".join(f"{one.pair} {one.target}" for one in plan.pairs)
    return (
        f"Orders: {orders}; market data {plan.market_data}; ledger {plan.money.ledger};"
        f" risk {plan.money.risk}\n"
        f"Try it, in another terminal (account {VISITOR} is funded and yours):\n"
        f"  grpcurl -plaintext {first.target} list\n"
        f"  grpcurl -plaintext -H 'holdfast-account: {VISITOR}' -d '{order}'"
        f" {first.target} exchange.v1.OrderEntryService/SubmitOrder\n"
        f'  grpcurl -plaintext -d \'{{"pair": "{first.pair}"}}\''
        f" {plan.market_data} exchange.v1.MarketDataService/StreamDepth\n"
        f"  grpcurl -plaintext -d '{balances}'"
        f" {plan.money.ledger} exchange.v1.LedgerService/ListBalances\n"
        f"  grpcurl -plaintext {plan.money.risk} exchange.v1.RiskService/GetRiskStatus\n"
        f"Logs and state: {plan.run}. Ctrl-C stops everything in good order."
    )
