"""`holdfast submit`, `cancel`, `orders`, `depth`: trade on a running pair by hand."""

import argparse
from typing import Any, Final

from exchange.enums import ExecutionKind, Side, TimeInForce
from exchange.v1 import enums_pb2, execution_pb2
from holdfast.blocking import Client
from holdfast.errors import OrderRejected, accepted
from holdfast.market.client import MARKET_DATA_TARGET
from holdfast.running.plan import usual_target

_FORCES: Final = {
    "gtc": TimeInForce.GOOD_TILL_CANCELLED,
    "ioc": TimeInForce.IMMEDIATE_OR_CANCEL,
    "fok": TimeInForce.FILL_OR_KILL,
}
_SIDES: Final = {"buy": Side.BUY, "sell": Side.SELL}


def add_commands(commands: Any) -> None:
    """Add this module's commands to the parser."""
    submit = _command(commands, "submit", _submit, "enter one order and show what became of it")
    submit.add_argument("side", choices=sorted(_SIDES))
    submit.add_argument("quantity", nargs="?", default="", help="of the base asset")
    submit.add_argument("--price", default="", help="limit price; without: a market order")
    submit.add_argument("--amount", default="", help="of the quote asset, instead of a quantity")
    submit.add_argument("--time-in-force", choices=sorted(_FORCES))
    submit.add_argument("--post-only", action="store_true")
    submit.add_argument("--client-order-id", type=int, default=0)
    cancel = _command(commands, "cancel", _cancel, "cancel one order, or all")
    cancel.add_argument("order_id", nargs="?", type=int, default=0, help="the engine's id")
    cancel.add_argument("--client-order-id", type=int, default=0)
    cancel.add_argument("--all", action="store_true", help="all orders of the account")
    _command(commands, "orders", _orders, "list the open orders of an account")
    depth = _command(commands, "depth", _depth, "show the best levels of both sides")
    depth.add_argument("--levels", type=int, default=10)


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    parser.add_argument("--pair", default="BTC-USDT")
    parser.add_argument("--account", type=int, default=100, help="100: the demo's visitor")
    parser.add_argument("--target", help="order entry; default: where `holdfast run` has the pair")
    parser.add_argument("--market-data", default=MARKET_DATA_TARGET)
    parser.set_defaults(command=run)
    return parser


def _client(given: argparse.Namespace) -> Client:
    target = given.target or usual_target(given.pair)
    return Client(given.pair, given.account, target=target, market_data=given.market_data)


def _tell(report: execution_pb2.CommandReport) -> int:
    """Print a report; return the exit code."""
    try:
        accepted(report)
    except OrderRejected as error:
        print(f"rejected: {error}")
        return 1
    kind = ExecutionKind(report.kind).name.lower().replace("_", " ")
    parts = [kind, f"order {report.order_id}", f"client order id {report.client_order_id}"]
    parts += [f"filled {report.filled}", f"open {report.leaves}"] if report.order_id else []
    print(", ".join(parts))
    for execution in report.executions:
        if int(execution.kind) == ExecutionKind.TRADE:
            print(f"  traded {execution.quantity} at {execution.price}, fee {execution.fee}")
    return 0


def _submit(given: argparse.Namespace) -> int:
    with _client(given) as client:
        report = client.submit(
            _SIDES[given.side],
            client_order_id=given.client_order_id,
            price=given.price,
            quantity=given.quantity,
            amount=given.amount,
            time_in_force=_FORCES.get(given.time_in_force),
            post_only=given.post_only,
        )
    return _tell(report)


def _cancel(given: argparse.Namespace) -> int:
    if not given.all and not given.order_id and not given.client_order_id:
        raise ValueError("name an order by its id or by --client-order-id, or give --all")
    with _client(given) as client:
        if not given.all:
            return _tell(client.cancel(given.order_id, given.client_order_id))
        report = accepted(client.cancel_all())
    print(f"{report.executions[-1].quantity_lots if report.executions else 0} orders cancelled")
    return 0


def _orders(given: argparse.Namespace) -> int:
    with _client(given) as client:
        found = client.open_orders()
    for order in found:
        side = enums_pb2.Side.Name(order.side).removeprefix("SIDE_").lower()
        print(
            f"{order.order_id}  {side} {order.leaves} of {order.quantity} at {order.price}"
            f"  client order id {order.client_order_id}"
        )
    print(f"{len(found)} open orders of account {given.account}")
    return 0


def _depth(given: argparse.Namespace) -> int:
    with _client(given) as client:
        depth = client.depth(given.levels)
    for name, levels in (("ask", reversed(depth.asks)), ("bid", depth.bids)):
        for level in levels:
            print(f"{name} {level.price:>14} {level.quantity:>16} {level.order_count:>6}")
    print(f"{depth.pair} at sequence {depth.sequence:,}")
    return 0
