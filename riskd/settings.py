"""Limits, profiles and kill switches, and the engines that have to know of them.

What is decided is stored first and then told to each engine as a command, until the engine has
confirmed it; what was confirmed is stored, too. After a start only what is not confirmed is told
again. A pair is told one thing at a time and always how things are now, so that a late command
cannot undo a newer decision.

An engine is told an account's limits before it is handed the account's first money.
"""

import asyncio
import logging
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np

from exchange.enums import Reason
from exchange.v1 import execution_pb2
from riskd.alarms import Alarm
from riskd.desk import Desk
from riskd.limits import (
    STANDARD_TIER,
    Change,
    EngineLimits,
    Kills,
    LimitSubject,
    RuleBook,
    band_around,
)
from riskd.links import PairLink, Unanswered, refused
from riskd.storage.store import GONE, KillState, Store, Stored

NO_LIMITS: Final = EngineLimits(0, 0, 0)
BAND: Final = 0
"""Account number under which a pair's price band is kept among the settings."""
RETRY_S: Final = 0.5
WAIT_S: Final = 2
"""How long whoever changed something waits for engines and database to confirm it."""
TOLD_AT_ONCE: Final = 32
"""Accounts whose limits are on their way to one engine at a time."""
TRADER: Final = 1
MARKET_MAKER: Final = 2

log = logging.getLogger(__name__)


class Scope(IntEnum):
    """What a kill switch stops. Numbers are those of the wire and of the rows."""

    UNSPECIFIED = 0
    ACCOUNT = 1
    PAIR = 2
    EVERYTHING = 3


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What an engine said to a kill switch."""

    pair: str
    confirmed: bool
    sequence: int
    sentence: str


class Unnoted(NamedTuple):
    """A kill switch that the database does not have yet."""

    scope: Scope
    name: str
    killed: bool
    actor: str
    note: str
    change: int
    """The number it goes by until then; negative."""


class Settings:
    """Everything that was decided, and how far engines know of it."""

    def __init__(self, stored: Stored, store: Store, desk: Desk) -> None:
        self.rules: RuleBook = stored.rules
        self.profiles = dict(stored.profiles)
        self.kills: dict[tuple[int, str], KillState] = dict(stored.kills)
        self._confirmed = dict(stored.settings)
        self._store = store
        self._desk = desk
        self._links = desk.links
        self._locks: weakref.WeakValueDictionary[tuple[str, int], asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )
        self._kill_locks = {pair: asyncio.Lock() for pair in self._links}
        self._unnoted: deque[Unnoted] = deque()
        self._noting = asyncio.Lock()
        self._noted: dict[int, int] = {}
        """Numbers of kills by those they went by before, until whoever made them asks."""
        self._temporary = 0
        self._again = asyncio.Event()
        self._again.set()
        self._all_told = asyncio.Event()

    def _lock(self, pair: str, account: int) -> asyncio.Lock:
        """Return what lets one command about an account's limits be on its way at a time."""
        return self._locks.setdefault((pair, account), asyncio.Lock())

    # What is so.

    def tier(self, account: int) -> str:
        """Return an account's tier."""
        return self.profiles.get(account, (STANDARD_TIER, TRADER))[0]

    def role(self, account: int) -> int:
        """Return an account's role."""
        return self.profiles.get(account, (STANDARD_TIER, TRADER))[1]

    def _killed(self, scope: Scope, name: str = "") -> bool:
        state = self.kills.get((scope, name))
        return state is not None and state.killed

    def kills_of(self, account: int, pair: str = "") -> Kills:
        """Return the kill switches that concern an account in a pair."""
        return Kills(
            self._killed(Scope.EVERYTHING),
            bool(pair) and self._killed(Scope.PAIR, pair),
            self._killed(Scope.ACCOUNT, str(account)),
        )

    def halted(self, pair: str) -> bool:
        """Say whether a pair is to be halted."""
        return self._killed(Scope.EVERYTHING) or self._killed(Scope.PAIR, pair)

    def wanted(self, account: int, pair: str) -> EngineLimits:
        """Return what a pair's engine has to know of an account."""
        instrument = self._links[pair].instrument
        return self.rules.engine_limits(account, self.tier(account), instrument)

    def confirmed(self, account: int, pair: str) -> bool:
        """Say whether a pair's engine knows what it has to know of an account."""
        return self._confirmed.get((pair, account), NO_LIMITS) == self.wanted(account, pair)

    def unconfirmed(self) -> list[tuple[str, int]]:
        """Return (pair, account) of everything that an engine does not know yet."""
        found = []
        for pair in self._links:
            found += [(pair, n) for n in self._known(pair) if not self.confirmed(n, pair)]
            if self._width(pair) != self._told_width(pair):
                found.append((pair, BAND))
        return found

    def _known(self, pair: str) -> list[int]:
        """Return the accounts that a pair's engine has, or had, anything of."""
        item = self._desk.machine.holdings[pair]
        there = np.flatnonzero(item.total.any(axis=1) | (item.active_ns > 0)).tolist()
        told = (account for where, account in self._confirmed if where == pair and account)
        named = (
            int(key.subject_name)
            for key in self.rules.values
            if key.subject == LimitSubject.ACCOUNT
        )
        highest = item.instrument.account_capacity - 1
        return sorted(n for n in {*there, *told, *named} if 0 < n <= highest)

    # Decisions.

    async def change_limits(
        self, changes: Iterable[Change], expected_version: int, actor: str, note: str
    ) -> int:
        """Make a new version of the limits, tell the engines; return the version."""
        given = list(changes)
        self.rules = await asyncio.to_thread(
            self._store.change_limits, given, expected_version, actor, note
        )
        version = self.rules.version
        await self._tell_soon()
        return version

    async def set_profile(self, account: int, tier: str, role: int, actor: str, note: str) -> int:
        """Give an account a tier and a role, tell the engines; return the change's number."""
        change = await asyncio.to_thread(self._store.set_profile, account, tier, role, actor, note)
        self.profiles[account] = (tier, role)
        await self._tell_soon()
        return change

    async def _tell_soon(self) -> None:
        """Have the engines told, and wait for them a moment."""
        self._all_told.clear()
        self._again.set()
        try:
            async with asyncio.timeout(WAIT_S):
                await self._all_told.wait()
        except TimeoutError:
            log.warning("some engines have not confirmed their settings yet")

    async def kill(
        self, scope: Scope, name: str, killed: bool, actor: str, note: str
    ) -> tuple[int, list[Confirmation]]:
        """Set or lift a kill switch; return the change's number and what each engine said.

        A kill does not wait for a database: the engines are told at once, and they journal it. The
        number is negative when the database did not take it yet; it is offered it again.
        """
        self._temporary -= 1
        temporary = self._temporary
        self.kills[scope, name] = KillState(killed, temporary, frozenset())
        self._unnoted.append(Unnoted(scope, name, killed, actor, note, temporary))
        self._desk.wake()
        noting = asyncio.create_task(self._note_kills())
        pairs = [name] if scope == Scope.PAIR else list(self._links)
        said = await asyncio.gather(*(self._tell_kill(pair, scope, name) for pair in pairs))
        await asyncio.wait((noting,), timeout=WAIT_S)
        self._again.set()
        return self._noted.pop(temporary, temporary), list(said)

    # Telling the engines.

    async def run(self) -> None:
        """Tell the engines what they do not know, until cancelled."""
        while True:
            await self._again.wait()
            self._again.clear()
            if await self.tell_all():
                self._all_told.set()
            else:
                await asyncio.sleep(RETRY_S)
                self._again.set()

    async def tell_all(self) -> bool:
        """Tell everything that is not confirmed, once; return True when nothing is left."""
        await self._note_kills()
        for pair in self._links:
            await self._tell_pair(pair)
        left = self.unconfirmed()
        open_kills = self._unconfirmed_kills()
        for pair in self._links:
            count = sum(1 for where, _ in left if where == pair)
            count += sum(1 for where, _, _ in open_kills if where == pair)
            sentence = f"{count} settings are not confirmed by the engine" if count else ""
            self._desk.raise_alarm(pair, Alarm.SETTINGS_UNCONFIRMED, sentence)
        return not left and not open_kills and not self._unnoted

    async def _note_kills(self) -> None:
        """Give the database the kills it does not have, oldest first."""
        async with self._noting:
            while self._unnoted:
                kill = self._unnoted[0]
                try:
                    number = await asyncio.to_thread(self._store.set_kill, *kill[:5])
                except GONE as error:
                    log.error("a kill is not noted yet: %s", str(error).split("\n")[0])
                    return
                self._unnoted.popleft()
                self._noted[kill.change] = number
                state = self.kills[kill.scope, kill.name]
                if state.change == kill.change:
                    self.kills[kill.scope, kill.name] = replace(state, change=number)
                    for pair in state.confirmed:
                        await self._note_confirmed(kill.scope, kill.name, number, pair)

    async def _note_confirmed(self, scope: Scope, name: str, change: int, pair: str) -> None:
        try:
            await asyncio.to_thread(self._store.confirm_kill, scope, name, change, pair)
        except GONE as error:
            # It is told again after a start, which changes nothing.
            log.warning("%s: a kill was done and not noted: %s", pair, error)

    async def _tell_pair(self, pair: str) -> None:
        for where, scope, name in self._unconfirmed_kills():
            if where == pair and not (await self._tell_kill(pair, scope, name)).confirmed:
                return
        try:
            await self._tell_band(pair)
            missing = [n for n in self._known(pair) if not self.confirmed(n, pair)]
            for place in range(0, len(missing), TOLD_AT_ONCE):
                part = missing[place : place + TOLD_AT_ONCE]
                await asyncio.gather(*(self._tell_limits(pair, account) for account in part))
        except Unanswered as error:
            self._desk.unanswered(error)
        except GONE as error:
            log.warning("%s: settings: %s", pair, str(error).split("\n")[0])

    def _unconfirmed_kills(self) -> list[tuple[str, Scope, str]]:
        found = []
        for (scope, name), state in self.kills.items():
            pairs = [name] if scope == Scope.PAIR else list(self._links)
            missing = [pair for pair in pairs if pair in self._links]
            found += [(pair, Scope(scope), name) for pair in missing if pair not in state.confirmed]
        return found

    async def ensure(self, account: int, pair: str) -> bool:
        """Have a pair's engine know an account's limits; return False if it does not answer."""
        if self.confirmed(account, pair):
            return True
        try:
            await self._tell_limits(pair, account)
        except Unanswered as error:
            self._desk.unanswered(error)
            self._again.set()
        except GONE as error:
            first = str(error).split("\n")[0]
            log.warning("%s: limits of account %d: %s", pair, account, first)
            self._again.set()
        return self.confirmed(account, pair)

    async def _tell_limits(self, pair: str, account: int) -> None:
        async with self._lock(pair, account):
            wanted = self.wanted(account, pair)
            if self._confirmed.get((pair, account), NO_LIMITS) == wanted:
                return
            report = await self._links[pair].set_limits(account, wanted)
            if refused(report):
                reason = Reason(int(report.reason)).name
                raise Unanswered(pair, f"{pair} refuses limits: {reason}")
            self._desk.answered(pair)
            self._confirmed[pair, account] = wanted
            await asyncio.to_thread(self._store.confirm_setting, pair, account, wanted)

    def _width(self, pair: str) -> int:
        return self.rules.band_width_ppm(self._links[pair].instrument)

    def _told_width(self, pair: str) -> int:
        own = self._links[pair].instrument.price_band_ppm
        return self._confirmed.get((pair, BAND), EngineLimits(own, 0, 0)).largest_order_lots

    async def _tell_band(self, pair: str) -> None:
        async with self._lock(pair, BAND):
            width = self._width(pair)
            if width == self._told_width(pair):
                return
            link = self._links[pair]
            last = self._desk.machine.holdings[pair].last_price_ticks
            low, high = band_around(link.instrument, last, width)
            report = await link.set_band(low, high, width)
            if refused(report):
                reason = Reason(int(report.reason)).name
                raise Unanswered(pair, f"{pair} refuses a band: {reason}")
            self._desk.answered(pair)
            told = EngineLimits(width, 0, 0)
            self._confirmed[pair, BAND] = told
            await asyncio.to_thread(self._store.confirm_setting, pair, BAND, told)

    async def _tell_kill(self, pair: str, scope: Scope, name: str) -> Confirmation:
        async with self._kill_locks[pair]:
            wanted = self.kills[scope, name].killed
            try:
                report = await self._kill_command(self._links[pair], scope, name)
            except Unanswered as error:
                return Confirmation(pair, False, 0, str(error))
            reason = Reason(int(report.reason))
            # An account that an engine cannot have does not trade there, either.
            impossible = scope == Scope.ACCOUNT and reason == Reason.ACCOUNT_UNKNOWN
            if refused(report) and not impossible:
                return Confirmation(pair, False, 0, f"{pair} refuses: {reason.name}")
            state = self.kills[scope, name]
            if state.killed == wanted:
                state = replace(state, confirmed=state.confirmed | {pair})
                self.kills[scope, name] = state
        if state.change > 0 and pair in state.confirmed:
            await self._note_confirmed(scope, name, state.change, pair)
        return Confirmation(pair, True, report.sequence, "")

    async def _kill_command(
        self, link: PairLink, scope: Scope, name: str
    ) -> execution_pb2.CommandReport:
        if scope == Scope.ACCOUNT:
            return await link.set_kill(int(name), self._killed(Scope.ACCOUNT, name))
        return await link.set_halted(self.halted(link.pair))
