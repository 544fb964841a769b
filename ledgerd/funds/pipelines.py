"""The rounds that take deposits and withdrawals further, each in a thread of its own.

    deposits      what the custodian announced, then what may have changed without being told
    withdrawals   send, and ask what became of it
    approvals     give up what waited too long for them
    limits        release what riskd counts in vain
    blocks        of the simulated custodian, while there is anything to confirm

A round is bounded, begins again where the one before ended, and ends early when the database, the
custodian or riskd is away: then `waiting_for` says so and the next round tries again. Nothing that
a row raises stops a pipeline (`ledgerd.custody.rounds`).

Nothing is sent while the custodian has a payout that the books cannot explain: they were then
restored from an older backup, and what they would send may have been paid already. That is asked
before the first round and before every one that would send.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ledgerd.custody.adapter import CustodyUnavailable, Unanswered
from ledgerd.custody.proof import unexplained_payouts
from ledgerd.custody.simulated_chain import NOTICE_DEPTH
from ledgerd.database import GONE
from ledgerd.funds.desk import Desk

ROUND_S: Final = 0.5
"""Between two rounds that found nothing to do."""
SHORTEST_PAUSE_S: Final = 0.01
SENTENCES: Final = 10
"""So many rows in trouble are named in the status."""
log = logging.getLogger("ledgerd.funds")


class Pipelines:
    """The rounds over one desk, and what they wait for."""

    def __init__(self, desk: Desk, older: Callable[[], str]) -> None:
        """`older` says why nothing may be done with these books; empty: nothing speaks against."""
        self.desk = desk
        self.custodian_reachable = False
        self.unexplained: list[str] | None = None
        """Payouts that the books cannot explain; None: not asked yet."""
        self.round_count = 0
        self._older = older
        self._waiting: dict[str, str] = {}
        policy = desk.policy
        deepest = max((policy.confirmations_else, *policy.confirmations.values()))
        self._depth = max(NOTICE_DEPTH, deepest)

    @property
    def waiting_for(self) -> str:
        """Say what the pipelines wait for, and which rows are in trouble; empty: nothing."""
        desk = self.desk
        rows = (
            *(desk.deposits.notices, desk.deposits.open, desk.deposits.watched),
            *(desk.withdrawals.waiting, desk.withdrawals.moving, desk.withdrawals.watched),
            desk.requests.releasing,
        )
        # Copies, because the pipelines' threads go on meanwhile.
        troubles = [sentence for one in rows for sentence in dict(one.troubles).values()]
        return "; ".join(dict.fromkeys([*dict(self._waiting).values(), *troubles[:SENTENCES]]))

    # One round of each; True: there is more to do at once.

    def deposit_round(self) -> bool:
        """Look at what was announced and at what may have changed."""
        noticed = self.desk.deposits.follow()
        return bool(self.desk.deposits.sweep()) or noticed > 0

    def withdrawal_round(self) -> bool:
        """Take withdrawals further; send only if every payout is explained."""
        withdrawals = self.desk.withdrawals
        if self.unexplained is None or withdrawals.about_to_send():
            self._explain()
        return withdrawals.advance(sending=not self.unexplained) > 0

    def expiry_round(self) -> bool:
        """Give up what waited too long for its approvals."""
        return self.desk.withdrawals.expire() > 0

    def release_round(self) -> bool:
        """Release what riskd counts in vain."""
        return self.desk.requests.settle() > 0

    def block_round(self) -> bool:
        """Let the simulated chain find a block if anything has to get deeper."""
        custody = self.desk.simulated
        if custody is not None:
            custody.mine_if_unsettled(self._depth)
        return False

    def _explain(self) -> None:
        found = unexplained_payouts(self.desk.engine, self.desk.custody)
        if found and found != self.unexplained:
            for sentence in found[:SENTENCES]:
                log.critical("nothing is sent: %s", sentence)
        self.unexplained = found

    # The rounds.

    async def run(self) -> None:
        """Go round until cancelled; a round under way is waited for."""
        rounds: list[tuple[str, Callable[[], bool], float]] = [
            ("approvals", self.expiry_round, ROUND_S),
            ("limits", self.release_round, ROUND_S),
        ]
        if self.desk.settings.custodian == "none":
            self._waiting["custodian"] = "there is no custodian: see --custodian"
        else:
            rounds.append(("deposits", self.deposit_round, ROUND_S))
            rounds.append(("withdrawals", self.withdrawal_round, ROUND_S))
        if self.desk.simulated is not None:
            pause_s = self.desk.settings.block_every_ns / 1e9
            rounds.append(("blocks", self.block_round, max(pause_s, SHORTEST_PAUSE_S)))
        with ThreadPoolExecutor(len(rounds), thread_name_prefix="funds") as threads:
            await asyncio.gather(*(self._again(threads, *one) for one in rounds))

    async def _again(
        self, threads: ThreadPoolExecutor, name: str, work: Callable[[], bool], pause_s: float
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            more = await loop.run_in_executor(threads, self.tried, name, work)
            if not more:
                await asyncio.sleep(pause_s)

    def tried(self, name: str, work: Callable[[], bool]) -> bool:
        """Do one round; note what it waits for. Return True if there is more to do at once."""
        sentence, more = self._older(), False
        if not sentence:
            sentence, more = self._done(name, work)
        if sentence != self._waiting.get(name, ""):
            log.warning("%s: %s", name, sentence or "goes on")
        if sentence:
            self._waiting[name] = sentence
        else:
            self._waiting.pop(name, None)
        return more

    def _done(self, name: str, work: Callable[[], bool]) -> tuple[str, bool]:
        try:
            more = work()
        except CustodyUnavailable as error:
            self.custodian_reachable = False
            return f"the custodian gives no answer: {error}", False
        except Unanswered as error:
            return str(error), False
        except GONE as error:
            return f"the database does not answer: {str(error).splitlines()[0]}", False
        except Exception as error:
            # The next round may get further; what it was is in the log.
            log.exception("a round of %s failed", name)
            return f"a round of {name} failed: {type(error).__name__}", False
        if name == "deposits":
            self.custodian_reachable = True
            self.round_count += 1
        return "", more
