"""All publications of a process, the loop that steps them, and the wakings of the doors.

One task steps every pair each tick. After a step that left something to say, or at least every
WAKE_AT_LEAST_EVERY_MS (intervals and heartbeats fall due without news), the pair's waiters are
woken and the listeners are called. All of it happens in the one thread of the event loop.

    publication = market.publication(pair)             raises Refused for an unknown pair
    subscription = market.open(pair, make)             counted; raises Refused beyond the limit
    await market.waking(pair)                          until the next waking of the pair
    market.listeners.append(called_with_pairs)         for doors that serve many at once
    market.close(subscription)

With `config.eager` the next step comes as soon as something was published: a thread watches a word
of each segment, without the interpreter's lock, between two steps and never during one.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from exchange.doorbell import spin_until_changed
from exchange.refusal import Code, Refusal, Refused
from mdgateway.config import GatewayConfig
from mdgateway.feed.publication import Publication
from mdgateway.feed.subscriptions import Subscription

WAKE_AT_LEAST_EVERY_MS: Final = 50
GOODBYE_S: Final = 2
"""How long a drain waits for streams to take their last message."""
LOOKS: Final = 100
"""Looks at the words between two naps: a few microseconds."""
NAP_S: Final = 50e-6
"""Short enough to be a small part of what a message takes; a thread that spins without a nap takes
a whole processor, and is the first to lose it when others want one."""

log = logging.getLogger(__name__)

Listener = Callable[[Collection[str]], None]


class Market:
    """The pairs that a process shows."""

    def __init__(self, publications: Iterable[Publication], config: GatewayConfig) -> None:
        self.config = config
        self.publications = {one.pair: one for one in publications}
        self.listeners: list[Listener] = []
        """Called after each round of steps with the pairs that were woken; must not fail."""
        self.stopping = False
        """Whether streams are to say goodbye and end."""
        self._wakings = {pair: asyncio.Event() for pair in self.publications}
        self._news = asyncio.Event()
        for publication in self.publications.values():
            publication.nudge = self._news.set
        self._open_counts = dict.fromkeys(self.publications, 0)

    @property
    def ready(self) -> bool:
        """Whether every pair has a book to tell."""
        return all(one.ready for one in self.publications.values())

    @property
    def open_count(self) -> int:
        """How many subscriptions are open."""
        return sum(self._open_counts.values())

    def publication(self, pair: str) -> Publication:
        """Return the publication of a pair, or raise Refused."""
        if pair not in self.publications:
            known = ", ".join(sorted(self.publications))
            raise Refused(Refusal.of_field("PAIR_UNKNOWN", "pair", pair, f"one of {known}"))
        return self.publications[pair]

    def open(self, pair: str, make: Callable[[Publication], Subscription]) -> Subscription:
        """Return a new subscription of a pair, or raise Refused; `close` it when it ends."""
        publication, limit = self.publication(pair), self.config.subscriber_limit
        if self._open_counts[pair] >= limit:
            raise Refused(
                Refusal(
                    Code.RESOURCE_EXHAUSTED,
                    "SUBSCRIBER_LIMIT",
                    f"{pair} has {limit} open streams, as many as this server takes",
                    "pair",
                    pair,
                    str(limit),
                )
            )
        subscription = make(publication)
        self._open_counts[pair] += 1
        return subscription

    def close(self, subscription: Subscription) -> None:
        """End a subscription."""
        self._open_counts[subscription.topic.pair] -= 1
        subscription.close()

    async def waking(self, pair: str) -> None:
        """Wait until there may be something to say of a pair."""
        await self._wakings[pair].wait()

    async def run(self, when_ready: Callable[[], Awaitable[None]]) -> None:
        """Step every pair each tick until the drain; say once when all have a book."""
        followers = [
            asyncio.ensure_future(publication.follow())
            for publication in self.publications.values()
        ]
        told = False
        try:
            while not self.stopping:
                started_ns = time.monotonic_ns()
                self.step()
                if self.ready and not told and not self.stopping:
                    told = True
                    await when_ready()
                for follower in followers:
                    if follower.done():
                        follower.result()
                await self._pause(started_ns)
        finally:
            for follower in followers:
                follower.cancel()
            await asyncio.gather(*followers, return_exceptions=True)
            for publication in self.publications.values():
                publication.close()

    async def _pause(self, started_ns: int) -> None:
        tick_s = self.config.tick_ms / 1_000
        if not self.config.eager:
            spent_s = (time.monotonic_ns() - started_ns) / 1e9
            await asyncio.sleep(max(0.001, tick_s - spent_s))
            return
        words = [one.watched_word() for one in self.publications.values()]
        known = np.array([word for word in words if word is not None], np.int64)
        if len(known):
            # Shielded: the segments must not go away under the thread.
            watching = asyncio.get_running_loop().run_in_executor(
                None, _watch, known, self.config.tick_ms
            )
            try:
                await asyncio.shield(watching)
            finally:
                await watching
            return
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(tick_s):
                await self._news.wait()

    def step(self) -> None:
        """Step every pair and wake whom it concerns."""
        self._wake([pair for pair in self.publications if self._step(pair)])

    def _step(self, pair: str) -> bool:
        publication = self.publications[pair]
        before, trouble = publication.revision, publication.trouble
        now_ns = time.monotonic_ns()
        publication.step(now_ns, time.time_ns())
        if publication.trouble and publication.trouble != trouble:
            log.warning("%s cannot be read: %s", pair, publication.trouble)
        every_ns = WAKE_AT_LEAST_EVERY_MS * 1_000_000
        due = now_ns % every_ns < self.config.tick_ms * 1_000_000
        return due or publication.revision != before

    def _wake(self, pairs: Collection[str]) -> None:
        for pair in pairs:
            # Whoever waits now is woken by the set; whoever comes after waits for the next one.
            self._wakings[pair].set()
            self._wakings[pair].clear()
        if pairs:
            for listener in self.listeners:
                listener(pairs)

    async def goodbye(self) -> None:
        """Let every stream end with a goodbye; wait a moment for those that read."""
        self.stopping = True
        deadline_ns = time.monotonic_ns() + GOODBYE_S * 1_000_000_000
        while self.open_count and time.monotonic_ns() < deadline_ns:
            self._wake(list(self.publications))
            await asyncio.sleep(self.config.tick_ms / 1_000)


def _watch(words: npt.NDArray[np.int64], patience_ms: int) -> None:
    """Watch until one of the words (address, value) changed, or for about `patience_ms`."""
    addresses, seen = words[:, 0].copy(), words[:, 1].copy()
    deadline_ns = time.monotonic_ns() + patience_ms * 1_000_000
    while spin_until_changed(addresses, seen, LOOKS) < 0 and time.monotonic_ns() < deadline_ns:
        time.sleep(NAP_S)
