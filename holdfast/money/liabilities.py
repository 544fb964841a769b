"""Checks a proof of liabilities as an owner would: without believing the exchange. Pure.

The tree is the one that docs/money.md defines: numbers are 64-bit big-endian, a leaf is
SHA-256(00, owner, amount, nonce), a node SHA-256(01, left hash, left sum, right hash, right sum),
and every sum lies from 0 to 2**62 - 1. What is proved: the published root commits to this owner's
amount, and the sum it claims is what the steps add up to, none of them negative. Written from that
definition alone, so that a mistake of the exchange's own program does not repeat here.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SUM_LIMIT: Final = 1 << 62
"""No honest sum reaches it; a larger or negative one could hide a debt."""
_STEP_LIMIT: Final = 64
_NONCE_BYTES: Final = 16
_HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Step:
    """One step up the tree: the other child."""

    hash: bytes
    total_units: int
    left: bool
    """True if the other child is the left one."""


@dataclass(frozen=True, slots=True)
class LiabilityProof:
    """What an owner was told about its place in a snapshot."""

    snapshot: int
    owner_id: int
    amount_units: int
    nonce: bytes
    steps: Sequence[Step]
    root: bytes
    total_units: int

    def complaint(self, root: bytes, total_units: int) -> str:
        """Return what is wrong with the proof, held against the published root; empty: nothing."""
        if not 0 <= self.owner_id < 1 << 63 or len(self.nonce) != _NONCE_BYTES:
            return f"owner {self.owner_id} with a nonce of {len(self.nonce)} bytes is no leaf"
        if not 0 <= self.amount_units < SUM_LIMIT:
            return f"the amount is {self.amount_units}; it must be from 0 to {SUM_LIMIT - 1}"
        if len(self.steps) > _STEP_LIMIT:
            return f"there are {len(self.steps)} steps; there must be at most {_STEP_LIMIT}"
        leaf = struct.pack(">BQQ", 0, self.owner_id, self.amount_units) + self.nonce
        reached, total = hashlib.sha256(leaf).digest(), self.amount_units
        for number, step in enumerate(self.steps, start=1):
            if not 0 <= step.total_units < SUM_LIMIT or len(step.hash) != _HASH_BYTES:
                return f"step {number} claims {step.total_units}, or no hash: no node can say that"
            other, own = (step.hash, step.total_units), (reached, total)
            (first, first_sum), (second, second_sum) = (other, own) if step.left else (own, other)
            content = b"\1" + first + struct.pack(">Q", first_sum)
            content += second + struct.pack(">Q", second_sum)
            reached, total = hashlib.sha256(content).digest(), total + step.total_units
            if total >= SUM_LIMIT:
                return f"step {number} adds up to {total}; it must be below {SUM_LIMIT}"
        if reached != root or self.root != root:
            return f"the steps lead to the root {reached.hex()}, not to {root.hex()}"
        if total != total_units or self.total_units != total_units:
            return f"the steps add up to {total}, and the root claims {total_units}"
        return ""
