"""A command as a reader of `docs/trading-rules.md` thinks of it: every field by its name.

Decodes the eight words of `exchange.records` on its own account, so that a wrong shift on either
side shows. Knows no rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass

POST_ONLY = 1
LEAVES = 2
DISCONNECTED = 4


def bits(word: int, shift: int, width: int) -> int:
    """Return `width` bits of a word from `shift` upwards, as a number from zero."""
    return (word >> shift) % (1 << width)


@dataclass(frozen=True, slots=True)
class Command:
    """One command. Enumerations are plain numbers here: garbage has to be held, too."""

    kind: int
    side: int
    order_type: int
    time_in_force: int
    account: int
    client_order_id: int
    order_id: int
    price: int
    prevention: int
    flags: int
    price_word: int
    quantity: int
    source: int
    first: int
    second: int

    @property
    def post_only(self) -> bool:
        """Say whether the order must not trade on entry."""
        return bool(self.flags & POST_ONLY)

    @property
    def content(self) -> tuple[int, ...]:
        """Return what must be equal for a repeated client order id to be a retry."""
        return (self.side, self.order_type, self.time_in_force, self.price_word, self.quantity)


def read_command(row: Sequence[int]) -> Command:
    """Decode eight words."""
    verb, client_order_id, order_id, price_word, quantity, source, first, second = map(int, row)
    return Command(
        kind=bits(verb, 0, 8),
        side=bits(verb, 8, 8),
        order_type=bits(verb, 16, 8),
        time_in_force=bits(verb, 24, 8),
        account=verb >> 32,
        client_order_id=client_order_id,
        order_id=order_id,
        price=bits(price_word, 0, 32),
        prevention=bits(price_word, 32, 8),
        flags=bits(price_word, 40, 24),
        price_word=price_word,
        quantity=quantity,
        source=source,
        first=first,
        second=second,
    )
