"""The notation of the scenarios: a command on the left, the facts it causes on the right.

    scenario: Maker's price
      accounts a1 a2
      submit a1 buy 5 @ 101 as bid     → accepted
      submit a2 sell 3 @ 99            → accepted
                                       → trade 3 @ 101 with a1 bid
      book                             → 101: 2 (1) |

`accounts` opens accounts with a million of each asset and states no facts; `pair field=value`
before it changes the specification. Orders get a name with `as`; later lines name an order of the
same account by it (the command then carries the client order id), or anybody's order as `a1.bid`
(the command then carries the order id). `repeat N` before a command demands the same facts each
time. `with field=value` at the end of a line puts any number into a field of the command.
The full vocabulary is the table of `READERS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from exchange import records
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
from exchange.instrument import Instrument

ARROW = "→"
SIDES = {"buy": Side.BUY, "sell": Side.SELL}
ASSETS = {"base": Asset.BASE, "quote": Asset.QUOTE}
PREVENTION = {
    "newest": SelfTradePrevention.CANCEL_NEWEST,
    "oldest": SelfTradePrevention.CANCEL_OLDEST,
    "both": SelfTradePrevention.CANCEL_BOTH,
    "decrement": SelfTradePrevention.DECREMENT,
}
STATUS = {
    "open": PairStatus.OPEN,
    "cancel-only": PairStatus.CANCEL_ONLY,
    "halted": PairStatus.HALTED,
}


def small_instrument(**changes: int) -> Instrument:
    """Return the pair of the scenarios: one unit a lot and tick, no fees, small capacities."""
    values = {
        "base_decimals": 0,
        "quote_decimals": 0,
        "tick_quote_units": 1,
        "base_units_per_lot": 1,
        "price_capacity_ticks": 1 << 15,
        "quantity_limit_lots": 1_000_000,
        "taker_fee_ppm": 0,
        "order_capacity": 64,
        "account_capacity": 16,
        "client_id_window": 128,
        "event_capacity": 64,
        "depth_level_count": 4,
        "depth_copy_count": 2,
    }
    unknown = set(changes) - set(Instrument.__dataclass_fields__)
    assert not unknown, f"the instrument has no field {unknown}"
    return Instrument(**(values | changes)).validate()  # type: ignore[arg-type]


@dataclass
class Line:
    """One input of a scenario and the facts written beside it."""

    text: str
    facts: list[str] = field(default_factory=list)


@dataclass
class Scenario:
    """A title and its lines; comments are lines that begin with #."""

    title: str
    lines: list[Line] = field(default_factory=list)

    def render(self) -> list[str]:
        """Return the scenario as it is written in its file."""
        width = max((len(line.text) for line in self.lines if line.facts), default=0)
        written = [f"scenario: {self.title}"]
        for line in self.lines:
            left = [line.text] + [""] * len(line.facts[1:])
            for text, fact in zip(left, line.facts or [""], strict=True):
                row = f"  {text:{width}} {ARROW} {fact}" if fact else f"  {text}"
                written.append(row.rstrip())
        return written


def read_scenarios(text: str) -> tuple[list[str], list[Scenario]]:
    """Return the prose before the first scenario, and the scenarios."""
    prose: list[str] = []
    scenarios: list[Scenario] = []
    for row in text.splitlines():
        if row.startswith("scenario: "):
            scenarios.append(Scenario(row.removeprefix("scenario: ").strip()))
        elif not scenarios:
            prose.append(row)
        elif row.strip():
            left, _, fact = row.partition(ARROW)
            lines = scenarios[-1].lines
            if left.strip():
                lines.append(Line(left.strip()))
            if fact.strip():
                lines[-1].facts.append(fact.strip())
    return prose, scenarios


def write_scenarios(prose: list[str], scenarios: list[Scenario]) -> str:
    """Return the text of a file; the inverse of `read_scenarios`."""
    blocks = ["\n".join(prose).strip()]
    blocks += ["\n".join(scenario.render()) for scenario in scenarios]
    return "\n\n".join(blocks) + "\n"


class Words:
    """Consumes the words of a line one after the other."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.words = text.split()

    def next(self) -> str:
        """Take the next word."""
        assert self.words, f"{self.text!r} ends too early"
        return self.words.pop(0)

    def number(self) -> int:
        """Take the next word, a number; 1_000 and 2^61 are understood."""
        base, _, power = self.next().partition("^")
        number: int = int(base) ** int(power or 1)
        return number

    def take(self, *words: str) -> bool:
        """Take these words if they come next."""
        if tuple(self.words[: len(words)]) != words:
            return False
        del self.words[: len(words)]
        return True


class Speaker:
    """Turns lines into commands and executions into facts; knows the names given so far."""

    def __init__(self) -> None:
        self.client_order_ids: dict[tuple[int, str], int] = {}
        self.names: dict[tuple[int, int], str] = {}
        self.order_ids: dict[tuple[int, int], int] = {}
        self.next_client_order_id = 1
        self.transfer_number = 0

    # From lines to commands.

    def command(self, text: str) -> list[int]:
        """Return the eight words of a command line."""
        words = Words(text)
        verb = words.next()
        assert verb in READERS, f"{text!r} begins with none of {', '.join(READERS)}"
        fields = READERS[verb](self, words)
        if words.take("with"):
            while words.words:
                name, _, value = words.next().partition("=")
                assert name in FIELDS, f"{text!r}: a command has no field {name!r}"
                fields[name] = Words(value).number()
        assert not words.words, f"{text!r}: {' '.join(words.words)} is not understood"
        return encode(fields)

    def account(self, words: Words) -> int:
        """Take an account such as a1."""
        word = words.next()
        assert word[0] == "a", f"{words.text!r}: {word} is no account"
        return int(word[1:])

    def order_named(self, words: Words, account: int) -> dict[str, int]:
        """Take the name of an order: `bid`, or `a1.bid`, or `order 99`."""
        if words.take("order"):
            return {"order_id": words.number()}
        owner, dot, name = words.next().rpartition(".")
        if dot:
            number = int(owner[1:])
            return {"order_id": self.order_ids[number, self.client_order_ids[number, name]]}
        return {"client_order_id": self.client_order_ids.get((account, name), 0)}

    def submit(self, words: Words) -> dict[str, int]:
        """Read `submit a1 buy 5 @ 100 [ioc|fok] [post-only] [prevent MODE] [as NAME]`."""
        account = self.account(words)
        fields = {
            "kind": CommandKind.NEW_ORDER,
            "account": account,
            "side": SIDES[words.next()],
            "type": OrderType.LIMIT,
            "tif": TimeInForce.GOOD_TILL_CANCELLED,
            "prevention": SelfTradePrevention.NONE,
        }
        by_amount = words.take("worth")
        fields["quantity"] = words.number()
        if words.take("at", "market"):
            fields["type"] = OrderType.MARKET_BY_AMOUNT if by_amount else OrderType.MARKET
            fields["tif"] = TimeInForce.IMMEDIATE_OR_CANCEL
        elif words.take("@"):
            fields["price"] = words.number()
        if words.take("ioc"):
            fields["tif"] = TimeInForce.IMMEDIATE_OR_CANCEL
        if words.take("fok"):
            fields["tif"] = TimeInForce.FILL_OR_KILL
        if words.take("post-only"):
            fields["flags"] = records.COMMAND_FLAG_POST_ONLY
        if words.take("prevent"):
            fields["prevention"] = PREVENTION[words.next()]
        fields["client_order_id"] = self.name_order(words, account)
        return fields

    def name_order(self, words: Words, account: int) -> int:
        """Take `as NAME` and return the client order id of that name."""
        if not words.take("as"):
            self.next_client_order_id += 1
            return self.next_client_order_id - 1
        name = words.next()
        if (account, name) not in self.client_order_ids:
            self.client_order_ids[account, name] = self.next_client_order_id
            self.names[account, self.next_client_order_id] = name
            self.next_client_order_id += 1
        return self.client_order_ids[account, name]

    def cancel(self, words: Words) -> dict[str, int]:
        """Read `cancel a1 bid [disconnected]`."""
        account = self.account(words)
        fields = {"kind": CommandKind.CANCEL_ORDER, "account": account}
        fields |= self.order_named(words, account)
        if words.take("disconnected"):
            fields["flags"] = records.COMMAND_FLAG_DISCONNECTED
        return fields

    def cancel_all(self, words: Words) -> dict[str, int]:
        """Read `cancel-all a1 [buys|sells] [disconnected]`."""
        fields = {"kind": CommandKind.CANCEL_ALL, "account": self.account(words)}
        if words.take("buys"):
            fields["side"] = Side.BUY
        if words.take("sells"):
            fields["side"] = Side.SELL
        if words.take("disconnected"):
            fields["flags"] = records.COMMAND_FLAG_DISCONNECTED
        return fields

    def amend(self, words: Words) -> dict[str, int]:
        """Read `amend a1 bid to 3 [@ 101]` or, for what shall be left open, `... leave 3`."""
        account = self.account(words)
        fields = {"kind": CommandKind.AMEND_ORDER, "account": account}
        fields |= self.order_named(words, account)
        if words.take("leave"):
            fields["flags"] = records.COMMAND_FLAG_LEAVES
        else:
            assert words.take("to"), f"{words.text!r}: to what?"
        fields["quantity"] = words.number()
        if words.take("@"):
            fields["price"] = words.number()
        return fields

    def funds(self, words: Words, kind: CommandKind) -> dict[str, int]:
        """Read `allot a1 base 100 [number 7]`; without a number the next one is used."""
        account = self.account(words)
        fields = {"kind": kind, "account": account, "price": ASSETS[words.next()]}
        fields["quantity"] = words.number()
        self.transfer_number += 1
        if words.take("number"):
            self.transfer_number = words.number()
        fields["client_order_id"] = self.transfer_number
        return fields

    def allot(self, words: Words) -> dict[str, int]:
        """Read `allot a1 base 100`."""
        return self.funds(words, CommandKind.ALLOT_FUNDS)

    def release(self, words: Words) -> dict[str, int]:
        """Read `release a1 quote 100`."""
        return self.funds(words, CommandKind.RELEASE_FUNDS)

    def fees(self, words: Words) -> dict[str, int]:
        """Read `fees a1 taker 1000 maker -200`, in parts per million."""
        fields = {"kind": CommandKind.SET_FEES, "account": self.account(words)}
        assert words.take("taker")
        fields["first"] = words.number()
        assert words.take("maker")
        fields["second"] = words.number()
        return fields

    def limits(self, words: Words) -> dict[str, int]:
        """Read `limits a1 [size 5] [notional 100] [orders 2]`."""
        fields = {"kind": CommandKind.SET_LIMITS, "account": self.account(words)}
        for word, name in (("size", "quantity"), ("notional", "first"), ("orders", "second")):
            if words.take(word):
                fields[name] = words.number()
        return fields

    def kill(self, words: Words) -> dict[str, int]:
        """Read `kill a1` or `kill a1 off`."""
        fields = {"kind": CommandKind.SET_KILL_SWITCH, "account": self.account(words)}
        fields["first"] = 0 if words.take("off") else 1
        return fields

    def status(self, words: Words) -> dict[str, int]:
        """Read `status halted`."""
        return {"kind": CommandKind.SET_PAIR_STATUS, "first": STATUS[words.next()]}

    def band(self, words: Words) -> dict[str, int]:
        """Read `band 90 110 [width 100000]`."""
        fields = {"kind": CommandKind.SET_PRICE_BAND, "first": words.number()}
        fields["second"] = words.number()
        if words.take("width"):
            fields["quantity"] = words.number()
        return fields

    def digest(self, words: Words) -> dict[str, int]:
        """Read `digest`."""
        del words
        return {"kind": CommandKind.DIGEST_ACCOUNTS}

    # From executions to facts.

    def facts(self, rows: list[list[int]]) -> list[str]:
        """Return the facts of one command's executions; repeated ones are counted."""
        facts: list[str] = []
        counts: list[int] = []
        for values in rows:
            row = np.array(values, dtype=np.int64)
            if records.kind_of(row) == ExecutionKind.ACCEPTED:
                key = int(records.account_of(row)), values[records.E_CLIENT_ORDER_ID]
                self.order_ids[key] = values[records.E_ORDER_ID]
            fact = self.fact(row)
            if facts and facts[-1] == fact:
                counts[-1] += 1
            else:
                facts.append(fact)
                counts.append(1)
        return [
            f"{fact} × {count}" if count > 1 else fact
            for fact, count in zip(facts, counts, strict=True)
        ]

    def fact(self, row: records.Rows) -> str:
        """Return one execution in words."""
        kind = ExecutionKind(int(records.kind_of(row)))
        word = kind.name.lower().replace("_", " ")
        reason = Reason(int(records.reason_of(row))).name.lower().replace("_", " ")
        name = self.names.get(
            (int(records.account_of(row)), int(row[records.E_CLIENT_ORDER_ID])), ""
        )
        lots, price = int(row[records.E_QUANTITY]), int(records.price_of(row))
        leaves, filled = int(row[records.E_LEAVES]), int(row[records.E_FILLED])
        if kind == ExecutionKind.REJECTED:
            return f"{word}: {reason}"
        if kind in {ExecutionKind.CANCELLED, ExecutionKind.EXPIRED}:
            return f"{name} {word} {lots}: {reason}".strip()
        if kind in {ExecutionKind.TRADE, ExecutionKind.PREVENTED}:
            return f"{word} {lots} @ {price} with {self.maker(row)}"
        if kind == ExecutionKind.AMENDED:
            return f"{name} {word}: {leaves} left of {lots} @ {price}".strip()
        if kind == ExecutionKind.REPLAYED:
            return f"{word}: leaves {leaves}, filled {filled}"
        if kind in {ExecutionKind.ALLOTTED, ExecutionKind.RELEASED}:
            return f"{word} {lots}: free {leaves}, held {filled}"
        if kind == ExecutionKind.ALL_CANCELLED:
            return f"{word}: {lots}"
        if kind == ExecutionKind.DIGEST:
            digest, count = row[[records.E_DIGEST, records.E_ACCOUNT_COUNT]].tolist()
            base, quote, fees = row[
                [records.E_BASE_TOTAL, records.E_QUOTE_TOTAL, records.E_FEES_TAKEN]
            ].tolist()
            sums = f"{count} accounts, base {base}, quote {quote}, fees {fees}"
            return f"{word} {digest % (1 << 64):016x}: {sums}"
        return word

    def maker(self, row: records.Rows) -> str:
        """Return who stood on the other side, and the fees when there are any."""
        account = int(records.maker_account_of(row))
        name = self.names.get((account, int(row[records.E_MAKER_CLIENT_ORDER_ID])), "")
        fees = ""
        if row[records.E_FEE] or row[records.E_MAKER_FEE]:
            fees = f", fees {row[records.E_FEE]} and {row[records.E_MAKER_FEE]}"
        return f"a{account} {name}".strip() + fees


FIELDS = (
    *("kind", "account", "side", "type", "tif", "client_order_id", "order_id"),
    *("price", "prevention", "flags", "quantity", "first", "second"),
)
Reader = Callable[[Speaker, Words], dict[str, int]]
READERS: dict[str, Reader] = {
    "submit": Speaker.submit,
    "cancel": Speaker.cancel,
    "cancel-all": Speaker.cancel_all,
    "amend": Speaker.amend,
    "allot": Speaker.allot,
    "release": Speaker.release,
    "fees": Speaker.fees,
    "limits": Speaker.limits,
    "kill": Speaker.kill,
    "status": Speaker.status,
    "band": Speaker.band,
    "digest": Speaker.digest,
}


def encode(fields: dict[str, int]) -> list[int]:
    """Return the eight words of a command given by its fields."""
    value = dict.fromkeys(FIELDS, 0) | {name: int(number) for name, number in fields.items()}
    verb = records.command_verb(
        value["kind"], value["account"], value["side"], value["type"], value["tif"]
    )
    price = records.command_price(value["price"], value["prevention"], value["flags"])
    return [
        verb,
        value["client_order_id"],
        value["order_id"],
        price,
        value["quantity"],
        records.source(1, 1),
        value["first"],
        value["second"],
    ]
