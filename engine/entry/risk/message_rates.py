"""How many commands an account may enter in a second, checked before anything becomes a command.

Each account has a bucket of one second's worth of commands that fills evenly; a command takes one,
a batch as many as it has, all or none. Integers only: the bucket counts billionths of a command, so
a rate times nanoseconds is exact. An account without a limit, or whose limit was not heard yet, is
not held back.

Limits come from the risk service: asked for when an account enters its first command, asked again
when the version of the limits has changed, and once a minute in any case, because an account's tier
may have. While the service is away the last known limit stays.

`processes` order-entry processes of a pair share each limit: this one has its part, so that all of
them together never let more pass. Numbers that no account of the pair can have share one bucket.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final

from engine.entry.risk.link import RiskLink
from exchange.refusal import Code, Refusal
from exchange.v1 import risk_pb2

SECOND_NS: Final = 1_000_000_000
AGAIN_NS: Final = 60 * SECOND_NS
"""A limit is asked for again after this time, whatever happened."""
FORGET_NS: Final = 60 * SECOND_NS
"""An account that entered nothing for so long is asked for no more; its limit stays known."""
ROUND_S: Final = 1
ROUND_ACCOUNTS: Final = 256
"""Most accounts whose limits are asked for in one round."""
AT_ONCE: Final = 16


def share_of(rate: int, process: int, processes: int) -> int:
    """Return one process's part of a rate; the parts of all processes add up to it."""
    return rate // processes + (process % processes < rate % processes)


@dataclass(slots=True)
class Bucket:
    """What one account may enter now."""

    rate: int | None = None
    """Commands a second at this process; None: no limit is known."""
    level: int = 0
    """Billionths of a command that it may enter at `at_ns`."""
    at_ns: int = 0
    asked_ns: int = 0
    """When its limit was last heard; 0: never."""
    version: int = -1
    """Version of the limits it was heard with."""

    def set_rate(self, rate: int | None, now_ns: int) -> None:
        """Change the limit; a bucket that had none before begins full."""
        if self.rate is None or rate is None:
            self.level, self.at_ns = (rate or 0) * SECOND_NS, now_ns
        else:
            self._fill(now_ns)
            self.level = min(self.level, rate * SECOND_NS)
        self.rate = rate

    def _fill(self, now_ns: int) -> None:
        assert self.rate is not None
        full = self.rate * SECOND_NS
        self.level = min(full, self.level + (now_ns - self.at_ns) * self.rate)
        self.at_ns = now_ns

    def take(self, count: int, now_ns: int) -> int:
        """Take so many commands out: 0, or, taking none, how long to wait (ns, -1: for ever)."""
        if self.rate is None:
            self.at_ns = now_ns
            return 0
        self._fill(now_ns)
        cost = count * SECOND_NS
        if cost <= self.level:
            self.level -= cost
            return 0
        if count > self.rate:
            return -1
        return -(-(cost - self.level) // self.rate)


class MessageRates:
    """The buckets of one process."""

    def __init__(self, link: RiskLink, account_capacity: int, process: int, processes: int) -> None:
        self._link = link
        self._nobody = account_capacity
        """Stands for every number that no account of the pair can have."""
        self._process = process
        self._processes = processes
        self._buckets: dict[int, Bucket] = {}
        self._strangers: list[int] = []
        """Accounts that have just entered their first command."""
        self._fresh = asyncio.Event()
        self._version = -1

    def refusal(self, account: int, count: int) -> Refusal | None:
        """Count commands of an account; say why they may not be entered, None if they may."""
        now_ns = time.monotonic_ns()
        bucket = self._buckets.get(account)
        if bucket is None:
            account = min(account, self._nobody)
            bucket = self._buckets.get(account)
        if bucket is None:
            bucket = self._buckets[account] = Bucket()
            self._strangers.append(account)
            self._fresh.set()
        wait_ns = bucket.take(count, now_ns)
        return None if wait_ns == 0 else _refusal(account, count, bucket.rate or 0, wait_ns)

    async def run(self) -> None:
        """Keep limits known until cancelled."""
        loop = asyncio.get_running_loop()
        following_s = loop.time()
        while True:
            strangers, self._strangers = self._strangers, []
            self._fresh.clear()
            await self._ask_all(strangers)
            if loop.time() >= following_s:
                following_s = loop.time() + ROUND_S
                await self._ask_all(await self._due())
            try:
                async with asyncio.timeout_at(following_s):
                    await self._fresh.wait()
            except TimeoutError:
                continue

    async def _due(self) -> list[int]:
        """Return whose limits have to be asked for, the longest not heard of first."""
        now_ns = time.monotonic_ns()
        idle = [
            account
            for account, bucket in self._buckets.items()
            if now_ns - bucket.at_ns >= FORGET_NS
        ]
        for account in idle:
            if self._buckets[account].rate is None:
                del self._buckets[account]
        resting = set(idle)
        active = [account for account in self._buckets if account not in resting]
        active.sort(key=lambda account: self._buckets[account].asked_ns)
        heard = [account for account in active if self._buckets[account].asked_ns]
        if heard:
            # One question tells whether anything has changed at all.
            await self._ask(heard[0])
        return [account for account in active if self._is_due(self._buckets[account], now_ns)]

    async def _ask_all(self, accounts: list[int]) -> None:
        for begin in range(0, min(len(accounts), ROUND_ACCOUNTS), AT_ONCE):
            part = accounts[begin : begin + AT_ONCE]
            await asyncio.gather(*(self._ask(account) for account in part))

    def _is_due(self, bucket: Bucket, now_ns: int) -> bool:
        old = now_ns - bucket.asked_ns >= AGAIN_NS
        return bucket.asked_ns == 0 or bucket.version != self._version or old

    async def _ask(self, account: int) -> None:
        answer = await self._link.limits(account)
        if answer is None:
            return
        bucket, now_ns = self._buckets[account], time.monotonic_ns()
        self._version = bucket.version = answer.version
        bucket.asked_ns = now_ns
        rate = rate_in(answer)
        part = None if rate is None else share_of(rate, self._process, self._processes)
        if part != bucket.rate:
            bucket.set_rate(part, now_ns)


def rate_in(answer: Any) -> int | None:
    """Return the MESSAGE_RATE of a GetEffectiveLimitsResponse; None if there is no such limit."""
    for limit in answer.limits:
        if limit.key.kind == risk_pb2.LIMIT_KIND_MESSAGE_RATE:
            return int(limit.value)
    return None


def _refusal(account: int, count: int, rate: int, wait_ns: int) -> Refusal:
    again = f"again in {-(-wait_ns // 1_000_000)} ms" if wait_ns > 0 else "never so many at once"
    limit = f"at most {rate} commands a second; {again}"
    sentence = f"account {account} enters {count} commands; this process takes {limit}"
    return Refusal(Code.RESOURCE_EXHAUSTED, "MESSAGE_RATE", sentence, "commands", str(count), limit)
