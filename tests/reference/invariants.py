"""What must be true of the twin after every command."""

from exchange.enums import Asset, Side
from tests.reference.client_ids import ClientIds
from tests.reference.trading import Market


def check_market(market: Market, client_ids: ClientIds) -> None:
    """Raise AssertionError naming the first invariant that does not hold."""
    check_book(market)
    check_slots(market)
    check_money(market)
    for order in market.book.orders.values():
        known = client_ids.find(order.account, order.client_order_id)
        assert known, f"the client order id of resting order {order.order_id} is forgotten"
        assert known.order_id == order.order_id, "a client order id leads to another order"


def check_book(market: Market) -> None:
    """Check that best bid < best ask and every order stands on one level, with something left."""
    bid, ask = market.book.best(Side.BUY), market.book.best(Side.SELL)
    assert not (bid and ask) or bid < ask, f"best bid {bid} is not below best ask {ask}"
    standing = []
    for side, prices in market.book.levels.items():
        for price, queue in prices.items():
            assert queue, f"level {price} is empty"
            for order_id, order in queue.items():
                assert order.order_id == order_id
                assert (order.side, order.price) == (side, price)
                assert order.leaves > 0, f"order {order_id} has nothing left"
                assert order.filled >= 0
                standing.append(order_id)
    assert sorted(standing) == sorted(market.book.orders), "an order is on no level or on two"
    for account in market.open_accounts.values():
        own = {key for key, order in market.book.orders.items() if order.account == account.number}
        assert own == set(account.orders), f"account {account.number} lists other orders"


def check_slots(market: Market) -> None:
    """Check that every slot ever used is taken by one order or free."""
    taken = [order.slot for order in market.book.orders.values()]
    used = list(range(1, market.highest_slot + 1))
    assert sorted(taken + market.freed_slots) == used, "a slot is lost or used twice"
    assert market.highest_slot <= market.instrument.order_capacity


def check_money(market: Market) -> None:
    """Check that no unit appears or vanishes, none is owed, and holds are what orders hold."""
    held: dict[tuple[int, Asset], int] = {}
    for order in market.book.orders.values():
        asset, units = market.hold_of(order)
        held[order.account, asset] = held.get((order.account, asset), 0) + units
    for asset in (Asset.BASE, Asset.QUOTE):
        total = market.fees_taken if asset == Asset.QUOTE else 0
        for account in market.open_accounts.values():
            free, hold = account.free[asset], account.held[asset]
            assert free >= 0, f"account {account.number} owes {-free} {asset.name}"
            assert hold == held.get((account.number, asset), 0), (
                f"account {account.number} holds {hold} {asset.name}, its orders another sum"
            )
            total += free + hold
        assert total == market.allotted[asset], (
            f"{asset.name}: {total} units exist, {market.allotted[asset]} were allotted"
        )
    assert market.fees_taken >= 0, "more was rebated than taken"
