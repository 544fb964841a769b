"""An exchange under load and kill -9 for as long as asked, and a proof afterwards.

    python -m tests.soak --seconds 600 --seed 7

Starts `holdfast run` with its generated flow. Beside it, witnesses enter orders one by one and
write down every acknowledgement; an owner deposits, moves and withdraws money with approvals. One
process after the other is killed with signal 9, PostgreSQL's postmaster among them, sometimes
another one before the first has healed; after each kill it is measured how long it takes until
both pairs execute, the books follow, the risk service and the gateway answer.

At the end everything drains. Then this is proved, or named: the chain and all balances, every
asset sums to zero, the ledger is each engine, the custodian paid nothing that the books do not
explain and nothing twice, the coins on the chain are those in the books, every acknowledged order
is in the log once, and nothing is left running. Exit status 0 only if all of it holds.
"""

import argparse
import asyncio
import random
import shutil
import signal
import sys
import time
import traceback

from tests.integration.run_process import RunProcess, run_folder, running, segment_folder
from tests.soak.kills import Killer
from tests.soak.load import Load
from tests.soak.outcome import Outcome
from tests.soak.proof import prove_living, prove_stopped
from tests.soak.reading import Reader


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=int, default=300, help="how long to kill and trade")
    parser.add_argument("--seed", type=int, help="what is killed when; printed if not given")
    parser.add_argument("--flow-rate", type=int, default=200, help="commands a second in each pair")
    parser.add_argument("--durability", choices=("fsync", "os"), default="fsync")
    return parser.parse_args()


def _say(sentence: str) -> None:
    print(f"{time.strftime('%H:%M:%S', time.gmtime())} {sentence}", flush=True)


async def _storm(run: RunProcess, given: argparse.Namespace, seed: int, outcome: Outcome) -> None:
    """Trade and kill; note what was acknowledged and what is wrong with the living exchange."""
    reader = Reader(run)
    opened = await reader.opened()
    _say(opened)
    async with Load(run, seed, outcome) as load:
        await load.begin()
        _say("witnesses and the owner are funded; now processes are killed")
        killer = Killer(run, reader, random.Random(seed), _say)
        working = asyncio.create_task(load.work())
        killing = asyncio.create_task(killer.work(given.seconds))
        await asyncio.wait((working, killing), return_when=asyncio.FIRST_COMPLETED)
        load.stop()
        if not killing.done():
            killing.cancel()
        await asyncio.gather(working, killing, return_exceptions=True)
        for line in (*load.summary(), *killer.summary()):
            _say(line)
        for task in (working, killing):
            if not task.cancelled():
                task.result()
        await load.finish()
        await prove_living(run, outcome, _say)


def main() -> int:
    """Run; return 0 if everything was proved."""
    given = _arguments()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 32)
    _say(f"seed {seed}, {given.seconds} s")
    outcome = Outcome()
    more = ("--flow-rate", str(given.flow_rate), "--seed", str(seed))
    with run_folder() as folder, segment_folder() as segments:
        with running(folder, segments, *more, "--durability", given.durability) as run:
            try:
                asyncio.run(_storm(run, given, seed, outcome))
            except Exception as error:  # Whatever it was, it is the outcome, and is told as such.
                traceback.print_exc()
                outcome.complain(f"the storm ended early: {error}")
            _say("stopping")
            run.process.send_signal(signal.SIGTERM)
            status = run.process.wait()
            if status:
                outcome.complain(f"`holdfast run` ended with status {status}")
        prove_stopped(folder, segments, outcome, _say)
        if outcome.complaints:
            kept = folder.parent.with_name(f"{folder.parent.name}-failed")
            shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("bells"))
            _say(f"what is left is in {kept}")
    for complaint in outcome.complaints:
        _say(f"NOT SOUND: {complaint}")
    _say(f"seed {seed}: " + ("NOT SOUND" if outcome.complaints else "everything is proved"))
    return 1 if outcome.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
