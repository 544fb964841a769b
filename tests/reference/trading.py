"""Trading of the twin: matching, prevention, money of a trade, resting, leaving the book.

`Market` holds the state of one pair and moves it; whether a command may do so is judged in
`tests.reference.engine`.
"""

from bisect import bisect_right

from exchange.enums import (
    Asset,
    ExecutionKind,
    OrderType,
    PairStatus,
    Reason,
    SelfTradePrevention,
    Side,
    TimeInForce,
)
from exchange.instrument import Instrument
from tests.reference.accounts import MILLION, Account, fee, hold_per_lot
from tests.reference.book import Book, Order, crosses, opposite
from tests.reference.executions import Executions

LARGEST = (1 << 63) - 1
DAY_NS = 24 * 3600 * 1_000_000_000
PREVENT_BOTH = (SelfTradePrevention.CANCEL_BOTH, SelfTradePrevention.DECREMENT)


class Market:
    """One pair: book, accounts, slots, price band, figures."""

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.book = Book()
        self.open_accounts: dict[int, Account] = {}
        self.status = PairStatus.OPEN
        self.band_low = 1
        self.band_high = instrument.price_capacity_ticks - 1
        self.band_ppm = instrument.price_band_ppm
        self.allotted = {Asset.BASE: 0, Asset.QUOTE: 0}
        self.fees_taken = 0
        self.freed_slots: list[int] = []
        self.highest_slot = 0
        self.last_price = 0
        self.last_lots = 0
        self.last_time_ns = 0
        self.trade_count = 0
        self.day = 0
        self.day_open = self.day_high = self.day_low = self.day_lots = self.day_quote_units = 0
        self.traded = False
        self.out: Executions

    def worth(self, price: int, lots: int) -> int:
        """Return the quote units of some lots at a price."""
        return price * lots * self.instrument.quote_units_per_tick_lot

    # Holds.

    def hold_of(self, order: Order) -> tuple[Asset, int]:
        """Return what the leaves of a limit order set aside."""
        if order.side == Side.SELL:
            return Asset.BASE, order.leaves * self.instrument.base_units_per_lot
        return Asset.QUOTE, order.leaves * hold_per_lot(self.worth(order.price, 1), order.hold_ppm)

    def shrink(self, order: Order, lots: int) -> None:
        """Lower a resting order's leaves and return what it held for them."""
        account = self.open_accounts[order.account]
        asset, before = self.hold_of(order)
        order.leaves -= lots
        account.unhold(asset, before - self.hold_of(order)[1])

    # Into the book and out of it.

    def next_slot(self) -> int:
        """Return the slot that the next order to rest will take, 0 when all are taken."""
        if self.freed_slots:
            return self.freed_slots[-1]
        free = self.highest_slot < self.instrument.order_capacity
        return self.highest_slot + 1 if free else 0

    def rest(self, order: Order) -> None:
        """Put what is left of an order at the back of its price, with its funds held."""
        account = self.open_accounts[order.account]
        account.hold(*self.hold_of(order))
        account.orders[order.order_id] = order
        self.book.append(order)

    def take_slot(self, order: Order) -> None:
        """Make the next slot this order's own."""
        assert order.slot == self.next_slot()
        if self.freed_slots:
            self.freed_slots.pop()
        else:
            self.highest_slot = max(self.highest_slot, order.slot)

    def free_slot(self, order: Order) -> None:
        """Let the next order have this order's slot."""
        if order.slot != 0:
            self.freed_slots.append(order.slot)

    def leave_level(self, order: Order) -> None:
        """Take an order out of the book, its funds free again; it keeps its slot."""
        account = self.open_accounts[order.account]
        asset, units = self.hold_of(order)
        account.unhold(asset, units)
        del account.orders[order.order_id]
        self.book.remove(order)

    def remove(self, order: Order) -> None:
        """Take an order out for good."""
        self.leave_level(order)
        self.free_slot(order)

    def end(self, order: Order, kind: ExecutionKind, reason: Reason) -> None:
        """Cancel or expire a resting order."""
        lots = order.leaves
        self.remove(order)
        self.out.about(kind, order, lots, 0, reason)

    def end_all(self, account: Account, side: int, reason: Reason) -> int:
        """Cancel an account's orders, newest number first, and return how many there were."""
        chosen = [order for order in account.orders.values() if side in {0, order.side}]
        for order in sorted(chosen, key=lambda order: order.number, reverse=True):
            self.end(order, ExecutionKind.CANCELLED, reason)
        return len(chosen)

    # Matching.

    def limit_of(self, order: Order) -> int:
        """Return the worst price an order trades at."""
        if order.order_type == OrderType.LIMIT:
            return order.price
        return self.band_high if order.side == Side.BUY else self.band_low

    def would_trade(self, side: int, limit: int) -> bool:
        """Say whether the best opposite price is within a limit."""
        best = self.book.best(opposite(side))
        return best != 0 and crosses(side, limit, best)

    def available(self, order: Order) -> int:
        """Return the lots a fill-or-kill order can count on."""
        lots = 0
        for maker in self.book.in_turn(opposite(order.side), order.price):
            if maker.account == order.account and order.prevention != SelfTradePrevention.NONE:
                if order.prevention == SelfTradePrevention.CANCEL_OLDEST:
                    continue
                break
            lots += maker.leaves
        return lots

    def match(self, taker: Order) -> Reason:
        """Trade an incoming order; return why something is left of it, UNSPECIFIED if nothing is.

        For a limit order LIQUIDITY_EXHAUSTED only says that nothing more crosses.
        """
        limit = self.limit_of(taker)
        while taker.leaves > 0:
            maker = self.book.first(opposite(taker.side))
            if maker is None or not crosses(taker.side, limit, maker.price):
                return Reason.LIQUIDITY_EXHAUSTED
            own = maker.account == taker.account
            if own and taker.prevention != SelfTradePrevention.NONE:
                if self.prevent(taker, maker):
                    return Reason.SELF_TRADE_PREVENTED
                continue
            payable, shortage = self.affordable(taker, maker)
            lots = min(payable, maker.leaves)
            if lots > 0:
                self.trade(taker, maker, lots)
            if maker.leaves > 0 and taker.leaves > 0:
                return shortage
        return Reason.UNSPECIFIED

    def prevent(self, taker: Order, maker: Order) -> bool:
        """Apply the taker's prevention mode; say whether it ends the taker."""
        mode = SelfTradePrevention(taker.prevention)
        if mode == SelfTradePrevention.CANCEL_NEWEST:
            return True
        by_amount = taker.order_type == OrderType.MARKET_BY_AMOUNT
        if mode == SelfTradePrevention.DECREMENT and not by_amount:
            self.decrement(taker, maker)
            return False
        self.end(maker, ExecutionKind.EXPIRED, Reason.SELF_TRADE_PREVENTED)
        return mode in PREVENT_BOTH

    def decrement(self, taker: Order, maker: Order) -> None:
        """Shrink both by the smaller leaves, without a trade."""
        lots = min(taker.leaves, maker.leaves)
        taker.leaves -= lots
        self.shrink(maker, lots)
        beside = (maker.order_id, maker.client_order_id, maker.account << 32, maker.leaves, 0)
        self.out.about(
            ExecutionKind.PREVENTED,
            taker,
            lots,
            taker.leaves,
            Reason.SELF_TRADE_PREVENTED,
            maker.price,
            maker=beside,
        )
        if maker.leaves == 0:
            self.remove(maker)

    def affordable(self, taker: Order, maker: Order) -> tuple[int, Reason]:
        """Return how many lots the taker wants and can pay at the maker's price; why not more."""
        if taker.order_type == OrderType.LIMIT:
            return taker.leaves, Reason.UNSPECIFIED
        account = self.open_accounts[taker.account]
        if taker.order_type == OrderType.MARKET:
            if taker.side == Side.SELL:
                return taker.leaves, Reason.FUNDS_EXHAUSTED
            payable = self.payable(account, account.free[Asset.QUOTE], maker.price)
            return min(taker.leaves, payable), Reason.FUNDS_EXHAUSTED
        if taker.side == Side.BUY:
            return self.payable(account, taker.leaves, maker.price), Reason.LIQUIDITY_EXHAUSTED
        owned = account.free[Asset.BASE] // self.instrument.base_units_per_lot
        wanted = taker.leaves // self.worth(maker.price, 1)
        if owned <= wanted:
            return owned, Reason.FUNDS_EXHAUSTED
        return wanted, Reason.LIQUIDITY_EXHAUSTED

    def payable(self, account: Account, units: int, price: int) -> int:
        """Return the most lots that cost no more than so many units, fee included."""

        def cost(lots: int) -> int:
            notional = self.worth(price, lots)
            return notional + fee(notional, account.taker_ppm)

        # The first number of lots that is too dear, less one.
        return bisect_right(range(units // self.worth(price, 1) + 1), units, key=cost) - 1

    def trade(self, taker: Order, maker: Order, lots: int) -> None:
        """Exchange lots at the maker's price, with fees, and report it."""
        notional = self.worth(maker.price, lots)
        taker_account = self.open_accounts[taker.account]
        maker_account = self.open_accounts[maker.account]
        taker_fee = fee(notional, taker_account.taker_ppm)
        maker_fee = fee(notional, maker.maker_ppm)
        self.shrink(maker, lots)
        buyer, seller = taker_account, maker_account
        buyer_fee, seller_fee = taker_fee, maker_fee
        if taker.side == Side.SELL:
            buyer, seller = seller, buyer
            buyer_fee, seller_fee = seller_fee, buyer_fee
        base = lots * self.instrument.base_units_per_lot
        buyer.pay(Asset.QUOTE, notional + buyer_fee)
        seller.pay(Asset.BASE, base)
        buyer.receive(Asset.BASE, base)
        seller.receive(Asset.QUOTE, notional - seller_fee)
        self.fees_taken += taker_fee + maker_fee
        taker.filled += lots
        maker.filled += lots
        if taker.order_type != OrderType.MARKET_BY_AMOUNT:
            taker.leaves -= lots
        else:
            taker.leaves -= notional + (taker_fee if taker.side == Side.BUY else 0)
        beside = (
            maker.order_id,
            maker.client_order_id,
            maker.account << 32,
            maker.leaves,
            maker_fee,
        )
        self.out.about(
            ExecutionKind.TRADE,
            taker,
            lots,
            taker.leaves,
            price=maker.price,
            fee=taker_fee,
            maker=beside,
        )
        if maker.leaves == 0:
            self.remove(maker)
        self.note_trade(maker.price, lots, notional)

    def note_trade(self, price: int, lots: int, notional: int) -> None:
        """Keep the figures of the last trade and of its day."""
        day = self.out.time_ns // DAY_NS
        if self.trade_count == 0 or day != self.day:
            self.day = day
            self.day_open = self.day_high = self.day_low = price
            self.day_lots = self.day_quote_units = 0
        self.day_high = max(self.day_high, price)
        self.day_low = min(self.day_low, price)
        self.day_lots = min(self.day_lots + lots, LARGEST)
        self.day_quote_units = min(self.day_quote_units + notional, LARGEST)
        self.last_price, self.last_lots, self.last_time_ns = price, lots, self.out.time_ns
        self.trade_count += 1
        self.traded = True

    def move_band(self) -> None:
        """Let the price band follow the last trade, if there was one and the band has a width."""
        if self.traded and self.band_ppm > 0:
            reach = self.last_price * self.band_ppm // MILLION
            self.band_low = max(1, self.last_price - reach)
            highest = self.instrument.price_capacity_ticks - 1
            self.band_high = min(highest, self.last_price + reach)
        self.traded = False

    def settle(self, order: Order, left: Reason) -> bool:
        """Let what matching left of an order rest or expire; say whether it rests."""
        if left == Reason.UNSPECIFIED:
            return False
        rests = order.time_in_force == TimeInForce.GOOD_TILL_CANCELLED
        if rests and left != Reason.SELF_TRADE_PREVENTED:
            self.rest(order)
            return True
        if order.order_type == OrderType.LIMIT and left == Reason.LIQUIDITY_EXHAUSTED:
            left = Reason.IMMEDIATE_REMAINDER
        self.out.about(ExecutionKind.EXPIRED, order, order.leaves, 0, left)
        return False
