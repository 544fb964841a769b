"""The one proof of everything: what a running ledgerd answers, and what `verify` prints.

The chain and all balances (`ledgerd.audit`), that no commit was cut off at the end
(`ledgerd.heads`), and deposits, withdrawals and their journal (`ledgerd.custody.proof`).
"""

from collections.abc import Callable

from sqlalchemy import Engine

from ledgerd.audit import Report, verify
from ledgerd.custody.proof import verify_money
from ledgerd.heads import Heads


def prove(engine: Engine, heads: Heads, wanted: Callable[[], bool] = lambda: True) -> Report:
    """Compute everything again; return what was found. Writes nothing.

    Raises Abandoned soon after `wanted` says no.
    """
    report = verify(engine, wanted)
    older = heads.older(engine)
    for sentence in ([older] if older else []) + verify_money(engine):
        report.complain(sentence)
    return report
