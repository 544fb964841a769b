"""The facts of the twin: sixteen words each, encoded here on its own account.

Every execution of a command shares sequence, time and source; `Executions` holds them and puts the
flag LAST on the last.
"""

from exchange.enums import ExecutionKind, Reason
from tests.reference.book import Order
from tests.reference.commands import Command

LAST = 1 << 24


def price_field(
    price: int, order_type: int = 0, time_in_force: int = 0, prevention: int = 0, post_only: int = 0
) -> int:
    """Return word 5 as a signed word."""
    return price | order_type << 32 | time_in_force << 40 | prevention << 48 | int(post_only) << 56


class Executions:
    """What one command caused."""

    def __init__(self, command: Command, sequence: int, time_ns: int, number: int) -> None:
        self.command = command
        self.sequence = sequence
        self.time_ns = time_ns
        self.first_number = number
        self.rows: list[list[int]] = []

    @property
    def next_number(self) -> int:
        """Return the position in the execution log that the next execution will have."""
        return self.first_number + len(self.rows)

    def emit(
        self,
        kind: ExecutionKind,
        account: int,
        reason: int = Reason.UNSPECIFIED,
        side: int = 0,
        order_id: int = 0,
        client_order_id: int = 0,
        price: int = 0,
        quantity: int = 0,
        leaves: int = 0,
        filled: int = 0,
        fee: int = 0,
        maker: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0),
    ) -> None:
        """Add a fact; `price` is the whole word, `maker` words 11 to 15."""
        self.rows.append(
            [
                self.sequence,
                self.time_ns,
                int(kind) | int(reason) << 8 | int(side) << 16 | account << 32,
                order_id,
                client_order_id,
                price,
                quantity,
                leaves,
                filled,
                fee,
                self.command.source,
                *maker,
            ]
        )

    def about(
        self,
        kind: ExecutionKind,
        order: Order,
        quantity: int,
        leaves: int,
        reason: int = Reason.UNSPECIFIED,
        price: int | None = None,
        fee: int = 0,
        maker: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0),
    ) -> None:
        """Add a fact about an order; `price` in ticks if it is not the order's own."""
        word = price_field(
            order.price if price is None else price,
            order.order_type,
            order.time_in_force,
            order.prevention,
            order.post_only,
        )
        self.emit(
            kind,
            order.account,
            reason,
            order.side,
            order.order_id,
            order.client_order_id,
            word,
            quantity,
            leaves,
            order.filled,
            fee,
            maker,
        )

    def reject(self, reason: Reason, needed: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Refuse the command: its kind and fields come back as they were given.

        `needed` says, of what lacks funds: the asset, the units, the account's hold rate.
        """
        given = self.command
        word = price_field(
            given.price, given.order_type, given.time_in_force, given.prevention, given.post_only
        )
        self.emit(
            ExecutionKind.REJECTED,
            given.account,
            reason,
            given.side,
            given.order_id,
            given.client_order_id,
            word,
            given.quantity,
            fee=given.kind,
            maker=(0, 0, *needed),
        )

    def finished(self) -> list[list[int]]:
        """Return the rows, the last one marked."""
        assert self.rows, "every command causes at least one execution"
        self.rows[-1][2] |= LAST
        return self.rows
