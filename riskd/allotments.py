"""Which money goes to which engine: a state machine without a clock, input or output.

It hears what is wanted, what the ledger answers and what the feeds say, and gives out steps
(`riskd.funds.moves`) for somebody else to do. Losing it loses nothing: a new one learns the open
moves from the ledger. Two of them at once waste effort and break nothing, since the ledger numbers
and the engine counts.

- Money is wanted in one place; what is asked again while it is under way joins it.
- It comes from trading if there is enough; otherwise what is missing is released from other pairs,
  the longest idle first, never from one that wants it itself, that was promised it (a target) or
  that got it a moment ago.
- Several pairs that want one account's money are served in turn: the one that was served longest
  ago comes first; it gets all it needs, or what there is waits for it.
- Never more is asked of the ledger than it said there is; should it know better, it refuses.
- Commands go to an engine in the order of their numbers. Only the feed ends a move.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

from exchange.enums import Asset, CommandKind, ExecutionKind, Reason
from exchange.instrument import AMOUNT_LIMIT_UNITS
from exchange.records import Rows
from riskd.funds.ahead import wants_ahead
from riskd.funds.holdings import Certainty, Holdings, Outcome
from riskd.funds.moves import (
    MOVED,
    Instruct,
    Instruction,
    Key,
    Learn,
    Move,
    Numbers,
    Policy,
    Purse,
    ReadTrading,
    Send,
    Step,
    Want,
)
from riskd.limits import RiskReason, asset_name

_ASSETS: Final = (Asset.BASE, Asset.QUOTE)


class Allotments:
    """All pairs and all accounts of one risk service."""

    def __init__(
        self, holdings: Iterable[Holdings], policy: Policy, new_request: Callable[[], UUID]
    ) -> None:
        self.policy = policy
        self.holdings: Mapping[str, Holdings] = {item.instrument.pair: item for item in holdings}
        self.numbers = {
            pair: Numbers(item.transfer_number, item.transfer_number)
            for pair, item in self.holdings.items()
        }
        self.targets: dict[tuple[int, str, Asset], int] = {}
        """What a market maker is to have in a pair; not taken away for other pairs."""
        self.finished: list[Want | Move] = []
        """What came to an end; whoever drives the machine takes it out."""
        self._places: dict[str, list[tuple[str, Asset]]] = {}
        for pair, item in self.holdings.items():
            for asset in _ASSETS:
                name = asset_name(item.instrument, asset)
                self._places.setdefault(name, []).append((pair, asset))
        self.purses: dict[Key, Purse] = {}
        self._dirty: set[Key] = set()
        self._waiting: set[Key] = set()
        """Whose wants are open."""
        self.returning: set[Key] = set()
        """Whose money an engine gave back that the ledger has not settled yet."""
        self._asking: dict[Move, None] = {}
        self._open_wants = 0
        self._turn = 0
        self._ahead_ns = 0
        self._new_request = new_request

    # What somebody wants.

    def want(
        self,
        account: int,
        pair: str,
        asset: Asset | str,
        amount_units: int,
        now_ns: int,
        until_ns: int,
        most_units: int = AMOUNT_LIMIT_UNITS,
        after_number: int = -1,
    ) -> Want:
        """Ask for money to be free in a pair, or, with an empty pair, in trading by asset name.

        `after_number` is the execution that told of the shortage: what the feed said before it does
        not count as free. The want ends by `until_ns`.
        """
        name = asset if isinstance(asset, str) else self._name(pair, asset)
        kind = Asset.UNSPECIFIED if isinstance(asset, str) else asset
        missing = amount_units
        if pair:
            missing -= self.holdings[pair].known_free(account, kind, after_number)
        want = Want(account, pair, kind, name, missing, most_units, now_ns, until_ns, amount_units)
        if missing <= 0:
            want.done = True
            return want
        purse = self._purse(Key(account, name))
        for other in purse.wants:
            if other.pair != pair or other.ahead or not pair:
                continue
            if other.move is None:
                other.amount_units = max(other.amount_units, missing)
                other.needed_units = max(other.needed_units, amount_units)
                other.until_ns = max(other.until_ns, until_ns)
                return other
            if other.move.amount_units >= missing:
                return other
            want.amount_units = max(1, want.amount_units - other.move.amount_units)
        self._add(purse, want)
        return want

    def recall(self, account: int, pair: str, asset: Asset, amount_units: int) -> Move | None:
        """Take what is free in a pair back to trading, up to an amount, whoever was promised it.

        Return None when nothing is free there as far as is known.
        """
        key = Key(account, self._name(pair, asset))
        units = min(amount_units, self._releasable(key, pair, asset))
        if units <= 0:
            return None
        return self._start(key, pair, CommandKind.RELEASE_FUNDS, asset, units)

    def set_target(self, account: int, pair: str, asset: Asset, units: int) -> None:
        """Say how much a market maker is to have in a pair ahead of time; 0 takes it back."""
        if units:
            self.targets[account, pair, asset] = units
        else:
            self.targets.pop((account, pair, asset), None)
        self._ahead_ns = 0

    def _add(self, purse: Purse, want: Want) -> None:
        if self._open_wants >= self.policy.want_limit:
            want.done, want.reason = True, RiskReason.TIMED_OUT
            return
        self._open_wants += 1
        purse.wants.append(want)
        # What was read before this want may have been before the deposit it relies on.
        purse.reading = purse.trading_units = None
        key = Key(want.account, want.asset_name)
        self._waiting.add(key)
        self._dirty.add(key)

    # What the ledger answers.

    def trading_is(self, step: ReadTrading, units: int) -> None:
        """Hear the trading balance asked for. A late answer to an older question is ignored."""
        purse = self._purse(step.key)
        if purse.reading is step:
            purse.reading, purse.trading_units = None, units
            self._dirty.add(step.key)

    def numbered(self, step: Instruct, number: int) -> None:
        """Hear the number that the ledger gave a move."""
        move, numbers = step.move, self.numbers[step.move.pair]
        if move.number or move.done:
            return
        self._asking.pop(move, None)
        move.number = number
        known = numbers.moves.get(number)
        if known is not None:
            # Learnt meanwhile: the want takes the move that is already under way.
            self._replace(move, known)
        elif number > numbers.applied:
            numbers.moves[number] = move
        else:
            # The feed told of it before the ledger's answer came: its money has arrived.
            self._finish(move, MOVED[move.kind])

    def refused(self, step: Instruct, reason: RiskReason = RiskReason.INSUFFICIENT_FUNDS) -> None:
        """Hear that the ledger did not record a move: nothing was moved, no number used."""
        move = step.move
        if move.number or move.done:
            return
        self._asking.pop(move, None)
        key = self._key(move)
        purse = self._purse(key)
        purse.moves.pop(move, None)
        purse.trading_units = None
        move.reason = reason
        self.finished.append(move)
        for want in purse.wants:
            if want.move is move:
                want.move = None
        self._dirty.add(key)

    def learned(self, step: Learn, instructions: Sequence[Instruction]) -> None:
        """Hear all instructions of a pair from the number asked for on (0: from the first open)."""
        numbers = self.numbers[step.pair]
        if numbers.learning is not step:
            return
        numbers.learning, numbers.known = None, True
        if instructions and step.from_number == 0:
            self._advance(step.pair, instructions[0].number - 1)
        for told in instructions:
            move = numbers.moves.get(told.number)
            if told.number <= numbers.applied:
                continue
            if told.resolved and told.number == numbers.applied + 1:
                # As good as the feed's word, and the only one left if it was read before.
                self._advance(step.pair, told.number)
            elif move is None:
                terms = (told.kind, told.account, told.asset, told.amount_units)
                move = Move(step.pair, *terms, None, told.number)
                numbers.moves[told.number] = move
                self._purse(self._key(move)).moves[move] = None

    def settled(self, pair: str, cursor: int) -> None:
        """Hear how far the ledger has settled a pair: the number of the next execution."""
        for key in sorted(self.returning):
            purse = self.purses[key]
            left = [item for item in purse.returning if item[0] != pair or item[1] >= cursor]
            if len(left) < len(purse.returning):
                purse.returning, purse.trading_units = left, None
                self._dirty.add(key)
            if not left:
                self.returning.discard(key)

    def failed(self, step: Step) -> None:
        """Hear that it is unknown what became of a step: it will be given out again."""
        if isinstance(step, ReadTrading):
            purse = self._purse(step.key)
            if purse.reading is step:
                purse.reading = None
                self._dirty.add(step.key)
        elif isinstance(step, Learn):
            if self.numbers[step.pair].learning is step:
                self.numbers[step.pair].learning = None
        elif isinstance(step, Instruct):
            step.move.asked = False
        else:
            step.move.sent_ns = 0

    # What engines say.

    def gap(self, step: Send) -> None:
        """Hear that the engine misses a number before this one."""
        numbers = self.numbers[step.move.pair]
        step.move.sent_ns = 0
        if numbers.applied == step.move.number - 1 and numbers.certain < numbers.applied:
            # What looked like the refusal of a release was none.
            numbers.applied, numbers.known = numbers.certain, False

    def facts(self, pair: str, first_number: int, rows: Rows) -> None:
        """Follow a pair's executions. Raises FeedTrouble."""
        item, numbers = self.holdings[pair], self.numbers[pair]
        for outcome in item.follow(first_number, rows):
            number, move = outcome.transfer_number, numbers.moves.get(outcome.transfer_number)
            if outcome.kind == ExecutionKind.REJECTED:
                # An amendment can look the same, but hardly like the move that is due. One that is
                # not known here yet the ledger will call resolved.
                if move is None or number != numbers.applied + 1 or not move.refused_by(outcome):
                    continue
                if outcome.reason == Reason.INSUFFICIENT_FUNDS:
                    item.refused(outcome)
            else:
                numbers.certain = max(numbers.certain, number)
            self._told(pair, outcome, numbers.moves.pop(number, None))
            self._advance(pair, number)

    def _told(self, pair: str, outcome: Outcome, move: Move | None) -> None:
        name = asset_name(self.holdings[pair].instrument, outcome.asset)
        key = Key(outcome.account, name)
        released = outcome.kind == ExecutionKind.RELEASED
        returned = outcome.kind == ExecutionKind.REJECTED and move is not None and move.allots
        if released or returned:
            entry = (pair, outcome.execution_number, outcome.amount_units)
            self._purse(key).returning.append(entry)
            self.returning.add(key)
        if move is not None:
            if returned:
                move.reason = RiskReason.BALANCE_OVERFLOW
            self._finish(move, outcome.kind)
        self._dirty.add(key)

    def _advance(self, pair: str, number: int) -> None:
        """Note that the engine has done with all numbers up to this one, told of or not."""
        numbers = self.numbers[pair]
        numbers.applied = max(numbers.applied, number)
        self.holdings[pair].transfer_number = numbers.applied
        for passed in [known for known in numbers.moves if known <= numbers.applied]:
            move = numbers.moves.pop(passed)
            self._finish(move, MOVED[move.kind])

    def _finish(self, move: Move, outcome: ExecutionKind) -> None:
        key = self._key(move)
        purse = self._purse(key)
        move.outcome = outcome
        purse.moves.pop(move, None)
        self.finished.append(move)
        for want in [want for want in purse.wants if want.move is move]:
            self._end(purse, want, move.reason)
        self._dirty.add(key)

    def _replace(self, move: Move, known: Move) -> None:
        purse = self._purse(self._key(move))
        purse.moves.pop(move, None)
        for want in purse.wants:
            if want.move is move:
                want.move = known

    # What to do next.

    def steps(self, now_ns: int) -> list[Step]:
        """Return what is to be done now. Each step waits for its answer or for `failed`."""
        self._expire(now_ns)
        self._look_ahead(now_ns)
        steps: list[Step] = []
        while self._dirty:
            keys, self._dirty = sorted(self._dirty), set()
            for key in keys:
                self._plan(key, now_ns, steps)
        for move in self._asking:
            if not move.asked:
                move.asked = True
                steps.append(Instruct(move))
        for pair, numbers in self.numbers.items():
            self._send(pair, numbers, now_ns, steps)
        return steps

    def _send(self, pair: str, numbers: Numbers, now_ns: int, steps: list[Step]) -> None:
        following = numbers.applied + 1
        hole = numbers.moves and following not in numbers.moves
        if now_ns - numbers.known_ns >= self.policy.relearn_ns:
            numbers.known_ns, numbers.known = now_ns, False
        if (hole or not numbers.known) and numbers.learning is None:
            numbers.learning = Learn(pair, following if numbers.applied else 0)
            steps.append(numbers.learning)
        for number in range(following, following + self.policy.window):
            move = numbers.moves.get(number)
            if move is None:
                return
            late = move.sent_ns and now_ns - move.sent_ns >= self.policy.resend_ns
            if move.sent_ns == 0 or late:
                # Late: the feed may have told of it before the move was known here.
                numbers.known = numbers.known and not late
                move.sent_ns = max(1, now_ns)
                steps.append(Send(move))

    def _expire(self, now_ns: int) -> None:
        for key in sorted(self._waiting):
            purse = self.purses[key]
            for want in [want for want in purse.wants if now_ns >= want.until_ns]:
                self._end(purse, want, RiskReason.TIMED_OUT)
            if not purse.wants:
                self._waiting.discard(key)
            elif any(want.move is None for want in purse.wants):
                # Time alone makes more releasable: what arrived a moment ago no longer did.
                self._dirty.add(key)

    def _look_ahead(self, now_ns: int) -> None:
        if now_ns < self._ahead_ns:
            return
        self._ahead_ns = now_ns + self.policy.ahead_ns
        for want in wants_ahead(self.targets, self.holdings, self.purses, now_ns, self._ahead_ns):
            self._add(self._purse(Key(want.account, want.asset_name)), want)

    # Planning.

    def _plan(self, key: Key, now_ns: int, steps: list[Step]) -> None:
        purse = self._purse(key)
        self._look_at_probes(purse)
        waiting = [want for want in purse.wants if want.move is None]
        if not waiting or purse.reading is not None:
            return
        if purse.trading_units is None:
            # Not while the ledger takes money out: the answer would be of before or after.
            if not any(move.allots and move.number == 0 for move in purse.moves):
                purse.reading = ReadTrading(key)
                steps.append(purse.reading)
            return
        waiting.sort(key=lambda want: (want.ahead, purse.turns.get(want.pair, 0), want.asked_ns))
        short = self._serve(key, purse, waiting)
        if short:
            self._fetch(key, purse, short, now_ns)

    def _serve(self, key: Key, purse: Purse, waiting: list[Want]) -> list[Want]:
        """Give what trading has; return who has to wait for more."""
        assert purse.trading_units is not None
        left = purse.trading_units
        kept = 0
        short: list[Want] = []
        served: list[tuple[Want, int]] = []
        for want in waiting:
            units = min(want.amount_units, left) if want.ahead else want.amount_units
            if want.ahead and (short or units == 0):
                self._end(purse, want, RiskReason.INSUFFICIENT_FUNDS)
            elif units > left or short:
                # What comes after one that waits, waits: else small wants would starve large ones.
                short.append(want)
            elif not want.pair:
                self._end(purse, want, RiskReason.UNSPECIFIED)
                left, kept = left - units, kept + units
            else:
                served.append((want, units))
                left -= units
        for want, units in served:
            extra = 0
            if not want.ahead and not short:
                extra = units * self.policy.headroom_percent // 100
                extra = max(0, min(extra, left, want.most_units - units))
            left -= extra
            self._turn += 1
            purse.turns[want.pair] = self._turn
            kind = CommandKind.ALLOT_FUNDS
            want.move = self._start(key, want.pair, kind, want.asset, units + extra)
        purse.trading_units = left + kept
        return short

    def _fetch(self, key: Key, purse: Purse, short: list[Want], now_ns: int) -> None:
        """Release from other pairs what is missing; end the wants that nothing can satisfy."""
        assert purse.trading_units is not None
        reach = purse.trading_units + purse.coming_units
        claimants = {want.pair for want in purse.wants if want.pair}
        donors: list[tuple[int, str, Asset, int]] = []
        later = 0
        for pair, asset in self._places[key.asset_name]:
            if pair in claimants:
                continue
            units = self._releasable(key, pair, asset)
            units -= self.targets.get((key.account, pair, asset), 0)
            if units <= 0:
                continue
            item, place = self.holdings[pair], (key.account, asset - 1)
            arrived_ns, unsure = int(item.allotted_ns[place]), item.certainty[place]
            learning = unsure == Certainty.REFUSED and purse.releasing(pair)
            if learning or (arrived_ns and now_ns - arrived_ns < self.policy.sticky_ns):
                later += units
            else:
                donors.append((int(item.active_ns[key.account]), pair, asset, units))
        possible = reach + later + sum(units for *_, units in donors)
        missing = 0
        for want in short:
            if want.amount_units <= possible:
                possible -= want.amount_units
                missing += want.amount_units
            elif not self._probes(key, want):
                self._end(purse, want, RiskReason.INSUFFICIENT_FUNDS)
                self._dirty.add(key)
        missing -= reach
        for _, pair, asset, units in sorted(donors):
            if missing <= 0:
                return
            certainty = self.holdings[pair].certainty[key.account, asset - 1]
            taken = 1 if certainty == Certainty.REFUSED else min(units, missing)
            self._start(key, pair, CommandKind.RELEASE_FUNDS, asset, taken)
            missing -= units

    def _probes(self, key: Key, want: Want) -> bool:
        """Have the engine say what is free where it is wanted; say whether to wait for that."""
        if want.probe is not None or not want.pair or want.ahead:
            return want.probe is not None and not want.probe.done
        item, place = self.holdings[want.pair], (want.account, want.asset - 1)
        if item.certainty[place] == Certainty.EXACT or item.free[place] <= 0:
            return False
        want.probe = self._start(key, want.pair, CommandKind.RELEASE_FUNDS, want.asset, 1)
        return True

    def _look_at_probes(self, purse: Purse) -> None:
        for want in purse.probed():
            free_units = self.holdings[want.pair].known_free(want.account, want.asset, -1)
            if want.learn(free_units + purse.bringing(want.pair)):
                self._end(purse, want, RiskReason.UNSPECIFIED)

    def _releasable(self, key: Key, pair: str, asset: Asset) -> int:
        """Return what may be free in a pair, less what is being released from it already."""
        free = int(self.holdings[pair].free[key.account, asset - 1])
        return free - self._purse(key).releasing(pair)

    def _start(self, key: Key, pair: str, kind: CommandKind, asset: Asset, units: int) -> Move:
        move = Move(pair, kind, key.account, asset, units, self._new_request())
        self._purse(key).moves[move] = None
        self._asking[move] = None
        return move

    def _end(self, purse: Purse, want: Want, reason: RiskReason) -> None:
        want.done, want.reason = True, reason
        purse.wants.remove(want)
        self._open_wants -= 1
        self.finished.append(want)

    # Looking things up.

    def _name(self, pair: str, asset: Asset) -> str:
        return asset_name(self.holdings[pair].instrument, asset)

    def _key(self, move: Move) -> Key:
        return Key(move.account, self._name(move.pair, move.asset))

    def _purse(self, key: Key) -> Purse:
        return self.purses.setdefault(key, Purse())
