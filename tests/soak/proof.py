"""What has to be true after a soak."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from engine.durability.execution_reader import ExecutionLogReader
from exchange.config import RunFolder
from exchange.enums import ExecutionKind
from exchange.records import E_CLIENT_ORDER_ID, account_of, kind_of
from holdfast.money.client import AsyncMoneyClient
from holdfast.retry import Retry
from tests.integration.run_process import ROOT, RunProcess
from tests.soak.load import WITNESSES
from tests.soak.outcome import Outcome

CHUNK = 100_000


async def prove_living(run: RunProcess, outcome: Outcome, say: Callable[[str], None]) -> None:
    """Have the running services prove their money, coins against books as well."""
    async with AsyncMoneyClient(
        ledger=run.ledger_target,
        risk=run.risk_target,
        pairs=run.targets,
        retry=Retry(patience_s=60.0, attempt_s=30.0),
    ) as money:
        async for finding in money.verify():
            say(f"{finding.subject}: {finding.sentence}")
            if not finding.sound:
                outcome.complain(f"{finding.subject}: {finding.sentence}")
        status = await money.funds_status()
        for asset in status.assets:
            say(f"custody: {asset.holdings} {asset.asset} on the chain, {asset.booked} booked")
        if status.undecided_count:
            outcome.complain(f"{status.undecided_count} deposits or withdrawals are undecided")


def prove_stopped(
    folder: Path, segments: Path, outcome: Outcome, say: Callable[[str], None]
) -> None:
    """Compute the books again from the stopped database, and look for every acknowledged order."""
    verify = [sys.executable, "-m", "ledgerd", "verify", "--run", str(folder)]
    verify += ["--custodian", "simulated"]
    verified = subprocess.run(verify, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = verified.stdout.splitlines()
    say(lines[-1] if lines else "`ledgerd verify` said nothing")
    if verified.returncode:
        outcome.complain(f"`ledgerd verify`: {verified.stdout} {verified.stderr}")
    for pair, given in outcome.acknowledged.items():
        found = _accepted(RunFolder(folder, pair).executions)
        missing = [made for made in given if found[made] == 0]
        twice = [made for made, count in found.items() if count > 1]
        say(f"{pair}: {len(given):,} orders were acknowledged, {len(missing)} of them are missing")
        if missing:
            outcome.complain(f"{pair}: acknowledged and not in the log: {missing[:5]}")
        if twice:
            outcome.complain(f"{pair}: in the log twice: {twice[:5]}")
    left = sorted(path.name for path in segments.iterdir())
    if left:
        outcome.complain(f"segments are left: {', '.join(left)}")


def _accepted(folder: Path) -> Counter[int]:
    """Return how often each client order id of the witnesses was accepted."""
    log = ExecutionLogReader.open(folder)
    found: Counter[int] = Counter()
    number, end = log.first(), log.committed()
    assert number == 0, "the beginning of the log was pruned although the soak had not read it"
    while number < end:
        rows = log.read(number, CHUNK)
        mine = (kind_of(rows) == ExecutionKind.ACCEPTED) & (account_of(rows) >= min(WITNESSES))
        found.update(rows[mine][:, E_CLIENT_ORDER_ID].tolist())
        number += len(rows)
    return found
