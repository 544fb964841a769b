"""What becomes of a payment to us, from how deep it lies in the chain. Pure.

    (nothing) ──in a block──► SEEN ──N confirmations──► CREDITED
                               │ gone                      │ less deep than N again
                               ▼                           ▼
                             VOIDED ──in a block──► SEEN  REVERSED ──N again──► CREDITED
                                                           │ somebody decides
                                                           ▼
                                                          LOST ──in a block──► SEEN

The state is a function of where the deposit stands and what the chain says now. The order, number
and age of the notices that made us ask do not enter, so they cannot matter.
"""

from enum import IntEnum
from typing import Final


class DepositState(IntEnum):
    """Where a deposit stands."""

    UNSPECIFIED = 0
    SEEN = 1
    """In a block: set aside, from custody to suspense."""
    CREDITED = 2
    """Deep enough: in the owner's funding account."""
    VOIDED = 3
    """Out of the chain before it was credited: back in custody, which is nowhere."""
    REVERSED = 4
    """Out of the chain, or less deep, after it was credited: withheld in suspense, loudly."""
    UNCLAIMED = 5
    """Deep enough, but of another asset than the address was given for: stays in suspense."""
    LOST = 6
    """Reversed for good: taken out of the books by decision of a person."""


class DepositStep(IntEnum):
    """What to do next with a deposit."""

    NONE = 0
    HOLD = 1
    CREDIT = 2
    VOID = 3
    REVERSE = 4
    RESTORE = 5
    UNCLAIM = 6


ABSENT: Final = (DepositState.UNSPECIFIED, DepositState.VOIDED, DepositState.LOST)
"""The books have nothing of it."""


def next_step(
    state: DepositState, confirmations: int, confirmations_needed: int, *, asset_fits: bool
) -> DepositStep:
    """Return the one next step; NONE when state and chain agree."""
    assert confirmations_needed >= 1, confirmations_needed
    deep = confirmations >= confirmations_needed
    if state in ABSENT:
        return DepositStep.HOLD if confirmations > 0 else DepositStep.NONE
    if state in {DepositState.SEEN, DepositState.UNCLAIMED} and confirmations == 0:
        return DepositStep.VOID
    if state == DepositState.SEEN and deep:
        return DepositStep.CREDIT if asset_fits else DepositStep.UNCLAIM
    if state == DepositState.CREDITED and not deep:
        return DepositStep.REVERSE
    if state == DepositState.REVERSED and deep:
        return DepositStep.RESTORE
    return DepositStep.NONE
