"""The one proof of everything: what a running ledgerd answers, and what `verify` prints.

The chain and all balances (`ledgerd.audit`), that no commit was cut off at the end
(`ledgerd.heads`), deposits, withdrawals and their journal (`ledgerd.custody.proof`), and with a
custodian its coins and payouts (`ledgerd.reserves.holdings`).
"""

import time
from functools import partial
from typing import Final

from sqlalchemy import Engine

from ledgerd.audit import Report, verify
from ledgerd.custody.adapter import Custody, CustodyUnavailable
from ledgerd.custody.proof import verify_money
from ledgerd.heads import Heads
from ledgerd.reserves.holdings import custody_complaints
from ledgerd.trail.progress import Progress

PAUSE_S: Final = 0.5
"""Between two looks at coins that differ from the books: a block may have been found between."""


def prove(
    engine: Engine,
    heads: Heads,
    custody: Custody | None,
    progress: Progress | None = None,
) -> Report:
    """Compute everything again; return what was found. Writes nothing. Raises Abandoned.

    `custody`: whoever keeps the coins; None: nobody.
    """
    progress = progress or Progress()
    report = verify(engine, progress)
    older = heads.older(engine)
    for sentence in ([older] if older else []) + verify_money(engine, progress):
        report.complain(sentence)
    if custody is None:
        return report
    try:
        pause = partial(time.sleep, PAUSE_S)
        for sentence in custody_complaints(engine, custody, pause, progress):
            report.complain(sentence)
    except CustodyUnavailable as error:
        report.complain(f"coins and books were not compared to the end: {error}")
    return report
