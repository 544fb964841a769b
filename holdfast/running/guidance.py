"""What somebody who just started an exchange can type in another terminal."""

from pathlib import Path

from holdfast.running.demonstration import VISITOR
from holdfast.running.plan import LEDGER_OFFSET, PAIRS, Plan, orders_offset


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
    where = "" if plan.run == Path("run") else f" --run {plan.run}"
    orders = ", ".join(f"{one.pair} {one.target}" for one in plan.pairs)
    return (
        f"Orders: {orders}; market data {plan.market_data}; ledger {plan.money.ledger};"
        f" risk {plan.money.risk}\n"
        f"The market in a browser: {plan.page}\n"
        f"Try it, in another terminal (account {VISITOR} is funded and yours):\n"
        f"  grpcurl -plaintext {first.target} list\n"
        f"  grpcurl -plaintext -H 'holdfast-account: {VISITOR}' -d '{order}'"
        f" {first.target} exchange.v1.OrderEntryService/SubmitOrder\n"
        f'  grpcurl -plaintext -d \'{{"pair": "{first.pair}"}}\''
        f" {plan.market_data} exchange.v1.MarketDataService/StreamDepth\n"
        f"  grpcurl -plaintext -d '{balances}'"
        f" {plan.money.ledger} exchange.v1.LedgerService/ListBalances\n"
        f"  grpcurl -plaintext {plan.money.risk} exchange.v1.RiskService/GetRiskStatus\n"
        f"  holdfast balances{where}\n"
        f"  holdfast deposit BTC 0.5{where}\n"
        f"  holdfast verify{where}{_pairs(plan)}\n"
        f"Logs and state: {plan.run}. Ctrl-C stops everything in good order."
    )


def _pairs(plan: Plan) -> str:
    """Return what `holdfast verify` has to be told of pairs that are not where they usually are."""
    assert plan.money is not None
    first = plan.money.ledger_port - LEDGER_OFFSET
    usual = {pair: first + orders_offset(place) for place, pair in enumerate(PAIRS)}
    found = ""
    for one in plan.pairs:
        if usual.get(one.pair) != one.orders_port:
            found += f" --pair {one.pair}={one.target}"
    return found
