"""The words of `riskd.allotments`: what is wanted, what is moved, and the next steps of a move.

A move of funds goes through three hands, and each step may be taken again without harm:

    Instruct   the ledger records the instruction under its request id, numbers it in the pair's
               stream, and, for an allotment, takes the money from trading into the pair's in-flight
               account, all in one transaction; the same id again gets the same number
    Send       the engine gets the command of that number; a repeated number changes nothing
    (the feed) says what became of it: the only thing that ends a move here, and the same record
               by which the ledger posts the money to where it belongs

Nothing else has to be remembered: whoever starts anew asks the ledger for the instructions beyond
the last number the feed told of (`Learn`), and goes on with them.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

from exchange.enums import Asset, CommandKind, ExecutionKind, Reason
from riskd.funds.holdings import Outcome
from riskd.limits import RiskReason

SECOND_NS: Final = 1_000_000_000
MOVED: Final = {
    CommandKind.ALLOT_FUNDS: ExecutionKind.ALLOTTED,
    CommandKind.RELEASE_FUNDS: ExecutionKind.RELEASED,
}
"""What an engine says when it carried out a move."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How money is spread over the engines."""

    sticky_ns: int = SECOND_NS
    """Money that arrived stays at least so long, so that two pairs do not snatch it back and forth
    between the orders it was fetched for."""
    headroom_percent: int = 100
    """So much beyond a shortage is handed over as well when trading has it: the next order asks
    nobody."""
    window: int = 16
    """Commands of one pair on their way at a time."""
    resend_ns: int = 5 * SECOND_NS
    """A command the feed does not tell of is sent again after this time."""
    ahead_ns: int = 5 * SECOND_NS
    """Between two looks whether a market maker's money has to be topped up."""
    relearn_ns: int = 10 * SECOND_NS
    """Between two questions to the ledger what is open: an instruction may have reached it late,
    after whoever gave it died and somebody else asked."""
    want_limit: int = 10_000
    """Most wants open at a time: beyond, askers are refused."""


@dataclass(eq=False, slots=True)
class Move:
    """One numbered move of funds. Equal only to itself."""

    pair: str
    kind: CommandKind
    """ALLOT_FUNDS or RELEASE_FUNDS."""
    account: int
    asset: Asset
    amount_units: int
    request: UUID | None
    """None: learnt from the ledger."""
    number: int = 0
    """0 until the ledger gave it one."""
    asked: bool = False
    sent_ns: int = 0
    """When the command was last given out; 0: it has to be."""
    outcome: ExecutionKind = ExecutionKind.UNSPECIFIED
    reason: RiskReason = RiskReason.UNSPECIFIED

    @property
    def allots(self) -> bool:
        """True for money on its way into the engine."""
        return self.kind == CommandKind.ALLOT_FUNDS

    @property
    def change_units(self) -> int:
        """Return what the engine will have more, or less, of."""
        return self.amount_units if self.allots else -self.amount_units

    def refused_by(self, outcome: Outcome) -> bool:
        """Say whether a refusal in the feed can be the end of this move."""
        reason = Reason.BALANCE_OVERFLOW if self.allots else Reason.INSUFFICIENT_FUNDS
        asked = (self.account, self.asset, self.amount_units, reason)
        return asked == (outcome.account, outcome.asset, outcome.amount_units, outcome.reason)

    @property
    def done(self) -> bool:
        """True once nothing more will become of it."""
        return self.outcome != ExecutionKind.UNSPECIFIED or self.reason != RiskReason.UNSPECIFIED


@dataclass(eq=False, slots=True)
class Want:
    """Money that somebody waits for."""

    account: int
    pair: str
    """Where it is to be free; empty: in the trading account itself."""
    asset: Asset
    """UNSPECIFIED when the pair is empty."""
    asset_name: str
    amount_units: int
    """What is missing there."""
    most_units: int
    """What may be handed over at most, headroom included."""
    asked_ns: int
    until_ns: int
    needed_units: int = 0
    """What is to be free there in all; 0 once it is known what was free there already."""
    ahead: bool = False
    """Wanted ahead of time: comes after every shortage and takes from no other pair."""
    probe: Move | None = None
    """The release of one unit that makes the engine say what is free there. While orders are open
    that is not known, and all that is needed may be more than there is elsewhere."""
    move: Move | None = None
    done: bool = False
    reason: RiskReason = RiskReason.UNSPECIFIED
    """Once done: UNSPECIFIED when the money is there."""

    def learn(self, there_units: int) -> bool:
        """Want so much less as is there already; say whether that is all."""
        self.amount_units = max(0, self.needed_units - there_units)
        self.needed_units = 0
        return self.amount_units == 0


class Key(NamedTuple):
    """One account's money of one asset."""

    account: int
    asset_name: str


@dataclass(eq=False, slots=True)
class Purse:
    """One account's money of one asset, wherever it is."""

    trading_units: int | None = None
    """What the ledger last said is in trading, less what was taken since; None: ask it."""
    reading: "ReadTrading | None" = None
    wants: list[Want] = field(default_factory=list)
    moves: dict[Move, None] = field(default_factory=dict)
    """Not finished yet: a set in order of age, so that the same events lead to the same steps."""
    returning: list[tuple[str, int, int]] = field(default_factory=list)
    """(pair, number of the execution, units): given back by an engine, not yet by the ledger."""
    turns: dict[str, int] = field(default_factory=dict)
    """When each pair was last served, in turns."""

    def probed(self) -> list[Want]:
        """Return the wants whose probe has an answer that nobody looked at."""
        answered = [want for want in self.wants if want.probe is not None and want.probe.done]
        return [want for want in answered if want.needed_units and want.move is None]

    def bringing(self, pair: str) -> int:
        """Return what is on its way into a pair."""
        return sum(move.amount_units for move in self.moves if move.pair == pair and move.allots)

    def releasing(self, pair: str) -> int:
        """Return what is being released from a pair."""
        moves = [move for move in self.moves if move.pair == pair and not move.allots]
        return sum(move.amount_units for move in moves)

    @property
    def coming_units(self) -> int:
        """Return what will be back in trading without asking for more."""
        released = sum(move.amount_units for move in self.moves if not move.allots)
        return released + sum(units for _, _, units in self.returning)


# Steps: what whoever drives the machine has to do next, each given out once until it is answered.


@dataclass(frozen=True, eq=False, slots=True)
class ReadTrading:
    """Ask the ledger for an account's trading balance."""

    key: Key


@dataclass(frozen=True, eq=False, slots=True)
class Instruct:
    """Ask the ledger to record and number a move."""

    move: Move


@dataclass(frozen=True, eq=False, slots=True)
class Send:
    """Give the engine the command of a move."""

    move: Move


@dataclass(frozen=True, eq=False, slots=True)
class Learn:
    """Ask the ledger for all instructions of a pair from a number on."""

    pair: str
    from_number: int


Step = ReadTrading | Instruct | Send | Learn


class Instruction(NamedTuple):
    """A move as the ledger lists it."""

    number: int
    kind: CommandKind
    account: int
    asset: Asset
    amount_units: int
    resolved: bool
    """True once the ledger settled what became of it."""


@dataclass(slots=True)
class Numbers:
    """The stream of transfers of one pair."""

    applied: int = 0
    """Last number that the engine has done with, as the feed tells."""
    certain: int = 0
    """The same, without counting refusals, which a cunning amendment can look like."""
    moves: dict[int, Move] = field(default_factory=dict)
    """Numbered and not done."""
    learning: Learn | None = None
    known: bool = False
    """False until the ledger was asked what is open, and again from time to time."""
    known_ns: int = 0
    """When it was last asked."""
