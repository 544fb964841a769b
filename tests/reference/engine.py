"""The plain twin of the compiled kernel: `docs/trading-rules.md` written down in Python.

`ReferenceEngine.apply` takes one command and returns its executions, word for word what the kernel
has to produce. It is slow on purpose: integers without limits, sorted maps, one branch per
sentence of the page. `check` states the invariants, `depth` and `accounts` show the state.

It is not a stand-in for the engine: it has no memory segment, no journal and no doorbell.
"""

from collections.abc import Sequence

from exchange.enums import (
    Asset,
    CommandKind,
    ExecutionKind,
    OrderType,
    PairStatus,
    Reason,
    SelfTradePrevention,
    Side,
    TimeInForce,
)
from exchange.instrument import AMOUNT_LIMIT_UNITS, FEE_RATE_LIMIT_PPM, Instrument
from tests.reference.accounts import MILLION, Account, hold_per_lot
from tests.reference.book import Order
from tests.reference.client_ids import ClientIds, Remembered
from tests.reference.commands import DISCONNECTED, LEAVES, Command, read_command
from tests.reference.digest import digest_of
from tests.reference.executions import Executions, price_field
from tests.reference.invariants import check_market
from tests.reference.trading import Market

OK = Reason.UNSPECIFIED
LIMIT_TIMES = (
    TimeInForce.GOOD_TILL_CANCELLED,
    TimeInForce.IMMEDIATE_OR_CANCEL,
    TimeInForce.FILL_OR_KILL,
)


class ReferenceEngine:
    """One pair, from commands to executions."""

    def __init__(self, instrument: Instrument) -> None:
        self.instrument = instrument
        self.market = Market(instrument)
        self.client_ids = ClientIds(instrument.client_id_window)
        self.order_number = 0
        self.transfer_number = 0
        self.execution_count = 0
        self.handlers = {
            CommandKind.NEW_ORDER: self.new_order,
            CommandKind.CANCEL_ORDER: self.cancel_order,
            CommandKind.AMEND_ORDER: self.amend_order,
            CommandKind.CANCEL_ALL: self.cancel_all,
            CommandKind.ALLOT_FUNDS: self.move_funds,
            CommandKind.RELEASE_FUNDS: self.move_funds,
            CommandKind.SET_FEES: self.set_account,
            CommandKind.SET_LIMITS: self.set_account,
            CommandKind.SET_KILL_SWITCH: self.set_account,
            CommandKind.SET_PAIR_STATUS: self.set_pair,
            CommandKind.SET_PRICE_BAND: self.set_pair,
            CommandKind.DIGEST_ACCOUNTS: self.digest_accounts,
        }

    def apply(self, command_row: Sequence[int], sequence: int, time_ns: int) -> list[list[int]]:
        """Apply one command of eight words and return its executions of sixteen words each."""
        command = read_command(command_row)
        self.out = Executions(command, sequence, time_ns, self.execution_count)
        self.market.out = self.out
        if command.kind in self.handlers:
            self.handlers[CommandKind(command.kind)](command)
        else:
            self.out.reject(Reason.COMMAND_KIND_INVALID)
        self.market.move_band()
        rows = self.out.finished()
        self.execution_count += len(rows)
        return rows

    def check(self) -> None:
        """Raise AssertionError naming the first invariant that does not hold."""
        check_market(self.market, self.client_ids)

    def depth(self) -> dict[Side, list[tuple[int, int, int]]]:
        """Return (price, lots, orders) of every level, best first, by side."""
        return {side: self.market.book.depth(side) for side in (Side.BUY, Side.SELL)}

    def accounts(self) -> dict[int, Account]:
        """Return the open accounts by number."""
        return self.market.open_accounts

    # Accounts.

    def valid(self, number: int) -> bool:
        """Say whether an account number may be used."""
        return 1 <= number < self.instrument.account_capacity

    def opened(self, number: int) -> Account:
        """Return an account, opened if it was not."""
        if number not in self.market.open_accounts:
            self.market.open_accounts[number] = Account(
                number, self.instrument.taker_fee_ppm, self.instrument.maker_fee_ppm
            )
        return self.market.open_accounts[number]

    # New orders.

    def new_order(self, command: Command) -> None:
        """Judge a new order, and trade it."""
        account = self.market.open_accounts.get(command.account)
        if account is None:
            return self.out.reject(Reason.ACCOUNT_UNKNOWN)
        if command.client_order_id < 1:
            return self.out.reject(Reason.CLIENT_ORDER_ID_INVALID)
        known = self.client_ids.find(command.account, command.client_order_id)
        if known is not None:
            if known.content != command.content:
                return self.out.reject(Reason.CLIENT_ORDER_ID_REUSED)
            return self.replay(command, known)
        for judge in (self.judge_form, self.judge_size, self.judge_state):
            reason = judge(command, account)
            if reason != OK:
                return self.out.reject(reason)
        asset, units = self.needed(self.order_of(command, account))
        if units > account.free[asset]:
            return self.out.reject(Reason.INSUFFICIENT_FUNDS, (asset, units, account.hold_ppm))
        return self.enter(command, account)

    def replay(self, command: Command, known: Remembered) -> None:
        """Answer a retry."""
        resting = self.market.book.orders.get(known.order_id)
        self.out.emit(
            ExecutionKind.REPLAYED,
            command.account,
            side=command.side,
            order_id=known.order_id,
            client_order_id=command.client_order_id,
            price=price_field(
                command.price,
                command.order_type,
                command.time_in_force,
                command.prevention,
                command.post_only,
            ),
            quantity=command.quantity,
            leaves=resting.leaves if resting else 0,
            filled=resting.filled if resting else 0,
            fee=known.execution_number,
        )

    def judge_pair(self, account: Account) -> Reason:
        """Judge what the pair and the kill switch allow."""
        if self.market.status == PairStatus.HALTED:
            return Reason.PAIR_HALTED
        if self.market.status == PairStatus.CANCEL_ONLY:
            return Reason.PAIR_CANCEL_ONLY
        return Reason.ACCOUNT_KILLED if account.killed else OK

    def judge_form(self, command: Command, account: Account) -> Reason:
        """Judge rungs 4 to 10 of the ladder: is this an order at all."""
        reason = self.judge_pair(account)
        if reason != OK:
            return reason
        if command.side not in {Side.BUY, Side.SELL}:
            return Reason.SIDE_INVALID
        if command.order_type not in {
            OrderType.LIMIT,
            OrderType.MARKET,
            OrderType.MARKET_BY_AMOUNT,
        }:
            return Reason.ORDER_TYPE_INVALID
        limit = command.order_type == OrderType.LIMIT
        times = LIMIT_TIMES if limit else (TimeInForce.IMMEDIATE_OR_CANCEL,)
        if command.time_in_force not in times:
            return Reason.TIME_IN_FORCE_INVALID
        if not SelfTradePrevention.NONE <= command.prevention <= SelfTradePrevention.DECREMENT:
            return Reason.SELF_TRADE_PREVENTION_INVALID
        good_till_cancelled = command.time_in_force == TimeInForce.GOOD_TILL_CANCELLED
        if command.post_only and not (limit and good_till_cancelled):
            return Reason.POST_ONLY_INVALID
        return OK

    def judge_price(self, price: int) -> Reason:
        """Judge a limit price."""
        if not 1 <= price < self.instrument.price_capacity_ticks:
            return Reason.PRICE_OUT_OF_RANGE
        if not self.market.band_low <= price <= self.market.band_high:
            return Reason.PRICE_OUTSIDE_BAND
        return OK

    def judge_size(self, command: Command, account: Account) -> Reason:
        """Judge rungs 11 to 17: price, quantity, worth."""
        limit = command.order_type == OrderType.LIMIT
        by_amount = command.order_type == OrderType.MARKET_BY_AMOUNT
        if limit:
            reason = self.judge_price(command.price)
            if reason != OK:
                return reason
        if not by_amount and not 1 <= command.quantity <= self.instrument.quantity_limit_lots:
            return Reason.QUANTITY_OUT_OF_RANGE
        if by_amount and not 1 <= command.quantity <= AMOUNT_LIMIT_UNITS:
            return Reason.AMOUNT_OUT_OF_RANGE
        worth = None
        if limit:
            worth = self.market.worth(command.price, command.quantity)
        elif by_amount:
            worth = command.quantity
        lots = None if by_amount else command.quantity
        return self.judge_worth(account, lots, worth)

    def judge_worth(self, account: Account, lots: int | None, worth: int | None) -> Reason:
        """Judge minimum notional and the account's own limits; None is not limited."""
        if worth is not None and worth < self.instrument.minimum_notional_units:
            return Reason.NOTIONAL_BELOW_MINIMUM
        if lots is not None and 0 < account.largest_lots < lots:
            return Reason.ORDER_SIZE_LIMIT
        if worth is not None and 0 < account.largest_notional < worth:
            return Reason.ORDER_NOTIONAL_LIMIT
        return OK

    def judge_state(self, command: Command, account: Account) -> Reason:
        """Judge rungs 18 to 21: what depends on the book."""
        if command.time_in_force == TimeInForce.GOOD_TILL_CANCELLED:
            if 0 < account.most_orders <= len(account.orders):
                return Reason.OPEN_ORDERS_LIMIT
            if len(self.market.book.orders) >= self.instrument.order_capacity:
                return Reason.ORDER_CAPACITY
        if command.post_only and self.market.would_trade(command.side, command.price):
            return Reason.POST_ONLY_WOULD_TRADE
        order = self.order_of(command, account)
        whole = command.time_in_force == TimeInForce.FILL_OR_KILL
        if whole and self.market.available(order) < command.quantity:
            return Reason.FILL_OR_KILL_UNFILLED
        return OK

    def needed(self, order: Order) -> tuple[Asset, int]:
        """Return which asset, and how much of it, an incoming order must find free."""
        if order.order_type == OrderType.LIMIT:
            return self.market.hold_of(order)
        asset = Asset.QUOTE if order.side == Side.BUY else Asset.BASE
        per_lot = self.instrument.base_units_per_lot
        by_amount = order.order_type == OrderType.MARKET_BY_AMOUNT
        if by_amount and order.side == Side.BUY:
            return asset, order.leaves
        if not by_amount and order.side == Side.SELL:
            return asset, order.leaves * per_lot
        if not self.market.would_trade(order.side, self.market.limit_of(order)):
            return asset, 0
        if order.side == Side.SELL:
            return asset, per_lot
        worth = self.market.worth(self.market.book.best(Side.SELL), 1)
        return asset, hold_per_lot(worth, order.hold_ppm)

    def order_of(self, command: Command, account: Account) -> Order:
        """Return the order a command asks for, with the number it would get."""
        return Order(
            number=self.order_number + 1,
            slot=self.market.next_slot(),
            account=command.account,
            client_order_id=command.client_order_id,
            side=command.side,
            order_type=command.order_type,
            time_in_force=command.time_in_force,
            price=command.price,
            prevention=command.prevention,
            post_only=command.post_only,
            leaves=command.quantity,
            filled=0,
            maker_ppm=account.maker_ppm,
            hold_ppm=account.hold_ppm,
        )

    def enter(self, command: Command, account: Account) -> None:
        """Give an order that passed the ladder its number and let it trade and rest."""
        order = self.order_of(command, account)
        self.order_number += 1
        self.client_ids.remember(
            Remembered(
                command.account,
                command.client_order_id,
                command.content,
                order.order_id,
                self.out.next_number,
            ),
            rests=self.market.book.orders.__contains__,
        )
        self.out.about(ExecutionKind.ACCEPTED, order, order.leaves, order.leaves)
        self.market.take_slot(order)
        if not self.market.settle(order, self.market.match(order)):
            self.market.free_slot(order)

    # Orders that rest.

    def find(self, command: Command) -> Order | None:
        """Return the account's own resting order that a command names."""
        if command.order_id != 0:
            order = self.market.book.orders.get(command.order_id)
        else:
            known = self.client_ids.find(command.account, command.client_order_id)
            order = self.market.book.orders.get(known.order_id) if known else None
        return order if order and order.account == command.account else None

    def amend_order(self, command: Command) -> None:
        """Judge an amendment and make it."""
        account = self.market.open_accounts.get(command.account)
        if account is None:
            return self.out.reject(Reason.ACCOUNT_UNKNOWN)
        reason = self.judge_pair(account)
        if reason != OK:
            return self.out.reject(reason)
        order = self.find(command)
        if order is None:
            return self.out.reject(Reason.ORDER_UNKNOWN)
        price = command.price or order.price
        if price != order.price:
            reason = self.judge_price(price)
            if reason != OK:
                return self.out.reject(reason)
        if not 1 <= command.quantity <= self.instrument.quantity_limit_lots:
            return self.out.reject(Reason.QUANTITY_OUT_OF_RANGE)
        leaves = command.quantity - (0 if command.flags & LEAVES else order.filled)
        if leaves <= 0:
            return self.market.end(order, ExecutionKind.CANCELLED, Reason.AMENDED_BELOW_FILLED)
        if price == order.price and leaves <= order.leaves:
            self.market.shrink(order, order.leaves - leaves)
            return self.report_amended(order)
        reason = self.judge_amendment(account, order, price, leaves)
        if reason != OK:
            return self.out.reject(reason)
        asset, old_hold = self.market.hold_of(order)
        if order.side == Side.SELL:
            new_hold = leaves * self.instrument.base_units_per_lot
        else:
            new_hold = leaves * hold_per_lot(self.market.worth(price, 1), account.hold_ppm)
        units = new_hold - old_hold
        if units > account.free[asset]:
            return self.out.reject(Reason.INSUFFICIENT_FUNDS, (asset, units, account.hold_ppm))
        return self.enter_again(account, order, price, leaves)

    def judge_amendment(self, account: Account, order: Order, price: int, leaves: int) -> Reason:
        """Judge an amendment by which the order loses its place, funds apart."""
        reason = self.judge_worth(account, leaves, self.market.worth(price, leaves))
        if reason != OK:
            return reason
        if order.post_only and self.market.would_trade(order.side, price):
            return Reason.POST_ONLY_WOULD_TRADE
        return OK

    def enter_again(self, account: Account, order: Order, price: int, leaves: int) -> None:
        """Take an amended order out of its level and let it trade and rest anew."""
        self.market.leave_level(order)
        order.price, order.leaves = price, leaves
        order.maker_ppm, order.hold_ppm = account.maker_ppm, account.hold_ppm
        self.report_amended(order)
        if not self.market.settle(order, self.market.match(order)):
            self.market.free_slot(order)

    def report_amended(self, order: Order) -> None:
        """Emit AMENDED."""
        self.out.about(ExecutionKind.AMENDED, order, order.filled + order.leaves, order.leaves)

    def cancel_order(self, command: Command) -> None:
        """Cancel one order."""
        if command.account not in self.market.open_accounts:
            return self.out.reject(Reason.ACCOUNT_UNKNOWN)
        if self.market.status == PairStatus.HALTED:
            return self.out.reject(Reason.PAIR_HALTED)
        order = self.find(command)
        if order is None:
            return self.out.reject(Reason.ORDER_UNKNOWN)
        lost = command.flags & DISCONNECTED
        reason = Reason.DISCONNECTED if lost else Reason.CANCEL_REQUESTED
        return self.market.end(order, ExecutionKind.CANCELLED, reason)

    def cancel_all(self, command: Command) -> None:
        """Cancel an account's orders of one side or of both."""
        account = self.market.open_accounts.get(command.account)
        if account is None:
            return self.out.reject(Reason.ACCOUNT_UNKNOWN)
        if command.side > Side.SELL:
            return self.out.reject(Reason.SIDE_INVALID)
        if self.market.status == PairStatus.HALTED:
            return self.out.reject(Reason.PAIR_HALTED)
        lost = command.flags & DISCONNECTED
        reason = Reason.DISCONNECTED if lost else Reason.CANCEL_ALL_REQUESTED
        count = self.market.end_all(account, command.side, reason)
        return self.out.emit(
            ExecutionKind.ALL_CANCELLED, command.account, side=command.side, quantity=count
        )

    # Funds.

    def move_funds(self, command: Command) -> None:
        """Allot funds to an account or release them from it."""
        reason = self.judge_transfer(command)
        if reason == OK:
            self.transfer_number += 1
            reason = self.judge_funds(command)
        if reason != OK:
            return self.out.reject(reason)
        asset = Asset(command.price)
        account = self.opened(command.account)
        if command.kind == CommandKind.ALLOT_FUNDS:
            account.receive(asset, command.quantity)
            self.market.allotted[asset] += command.quantity
        else:
            account.pay(asset, command.quantity)
            self.market.allotted[asset] -= command.quantity
        allot = command.kind == CommandKind.ALLOT_FUNDS
        return self.out.emit(
            ExecutionKind.ALLOTTED if allot else ExecutionKind.RELEASED,
            command.account,
            client_order_id=command.client_order_id,
            price=asset,
            quantity=command.quantity,
            leaves=account.free[asset],
            filled=account.held[asset],
        )

    def judge_transfer(self, command: Command) -> Reason:
        """Judge what leaves the transfer number unused."""
        release = command.kind == CommandKind.RELEASE_FUNDS
        if not self.valid(command.account):
            return Reason.ACCOUNT_UNKNOWN
        if release and command.account not in self.market.open_accounts:
            return Reason.ACCOUNT_UNKNOWN
        if command.price not in {Asset.BASE, Asset.QUOTE}:
            return Reason.ASSET_INVALID
        if not 1 <= command.quantity <= AMOUNT_LIMIT_UNITS:
            return Reason.AMOUNT_OUT_OF_RANGE
        if command.client_order_id <= self.transfer_number:
            return Reason.TRANSFER_REPEATED
        if command.client_order_id > self.transfer_number + 1:
            return Reason.TRANSFER_GAP
        return OK

    def judge_funds(self, command: Command) -> Reason:
        """Judge what uses the transfer number up even when it is refused."""
        asset = Asset(command.price)
        if command.kind == CommandKind.ALLOT_FUNDS:
            fits = self.market.allotted[asset] + command.quantity <= AMOUNT_LIMIT_UNITS
            return OK if fits else Reason.BALANCE_OVERFLOW
        free = self.market.open_accounts[command.account].free[asset]
        return OK if command.quantity <= free else Reason.INSUFFICIENT_FUNDS

    def digest_accounts(self, command: Command) -> None:
        """Say what all accounts have."""
        del command
        fees = self.market.fees_taken
        digest, count, base, quote = digest_of(self.market.open_accounts.values(), fees)
        self.out.emit(ExecutionKind.DIGEST, 0, 0, 0, digest, count, 0, base, quote, 0, fees)

    # Settings.

    def set_account(self, command: Command) -> None:
        """Set fees, limits or the kill switch of an account."""
        reason = self.judge_setting(command)
        if reason != OK:
            return self.out.reject(reason)
        account = self.opened(command.account)
        self.out.emit(ExecutionKind.ACCOUNT_SET, command.account)
        if command.kind == CommandKind.SET_FEES:
            account.taker_ppm, account.maker_ppm = command.first, command.second
        elif command.kind == CommandKind.SET_LIMITS:
            account.largest_lots = command.quantity
            account.largest_notional = command.first
            account.most_orders = command.second
        else:
            account.killed = command.first == 1
            if account.killed:
                self.market.end_all(account, 0, Reason.KILL_SWITCH)
        return None

    def judge_setting(self, command: Command) -> Reason:
        """Judge the values of an account setting."""
        if not self.valid(command.account):
            return Reason.ACCOUNT_UNKNOWN
        if command.kind == CommandKind.SET_FEES:
            floor = self.instrument.taker_fee_floor_ppm
            taker_fits = floor <= command.first <= FEE_RATE_LIMIT_PPM
            maker_fits = -floor <= command.second <= FEE_RATE_LIMIT_PPM
            return OK if taker_fits and maker_fits else Reason.FEE_RATE_OUT_OF_RANGE
        if command.kind == CommandKind.SET_LIMITS:
            negative = min(command.quantity, command.first, command.second) < 0
            return Reason.LIMIT_OUT_OF_RANGE if negative else OK
        return OK if command.first in {0, 1} else Reason.LIMIT_OUT_OF_RANGE

    def set_pair(self, command: Command) -> None:
        """Set the status or the price band of the pair."""
        if command.kind == CommandKind.SET_PAIR_STATUS:
            if not PairStatus.OPEN <= command.first <= PairStatus.HALTED:
                return self.out.reject(Reason.PAIR_STATUS_INVALID)
            self.market.status = PairStatus(command.first)
        else:
            low, high, width = command.first, command.second, command.quantity
            ordered = 1 <= low <= high < self.instrument.price_capacity_ticks
            if not (ordered and 0 <= width <= MILLION):
                return self.out.reject(Reason.PRICE_BAND_INVALID)
            self.market.band_low, self.market.band_high, self.market.band_ppm = low, high, width
        return self.out.emit(ExecutionKind.PAIR_SET, 0)
