"""Says in words where two lists of executions part, so that a difference can be read at once."""

from collections.abc import Sequence

from exchange.enums import ExecutionKind, Reason

WORDS = (
    *("sequence", "time_ns", "verb", "order_id", "client_order_id", "price", "quantity"),
    *("leaves", "filled", "fee", "source", "maker_order_id", "maker_client_order_id"),
    *("maker_account", "maker_leaves", "maker_fee"),
)


def spelt(row: Sequence[int]) -> str:
    """Return an execution in words."""
    verb = row[2]
    kind, reason = verb & 0xFF, verb >> 8 & 0xFF
    known = kind < len(ExecutionKind) and reason < len(Reason)
    names = f"{ExecutionKind(kind).name} {Reason(reason).name}" if known else "?"
    rest = " ".join(f"{name}={value}" for name, value in zip(WORDS, row, strict=True) if value)
    account, side, flags = verb >> 32, verb >> 16 & 0xFF, verb >> 24 & 0xFF
    return f"{names} account={account} side={side} flags={flags} {rest}"


def difference(expected: list[list[int]], actual: list[list[int]]) -> str:
    """Return where the executions part, empty when they are equal word for word."""
    for index, (left, right) in enumerate(zip(expected, actual, strict=False)):
        if left != right:
            fields = [name for name, a, b in zip(WORDS, left, right, strict=True) if a != b]
            return (
                f"execution {index} differs in {', '.join(fields)}\n"
                f"  twin:   {spelt(left)}\n  kernel: {spelt(right)}"
            )
    if len(expected) != len(actual):
        longer = expected if len(expected) > len(actual) else actual
        who = "the twin" if longer is expected else "the kernel"
        extra = spelt(longer[min(len(expected), len(actual))])
        return f"{who} emits {len(longer)} executions, the other fewer; first extra: {extra}"
    return ""
