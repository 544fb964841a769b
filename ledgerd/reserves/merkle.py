"""A Merkle sum tree: its root commits to every owner's amount and to their sum. Pure.

A leaf's hash is over owner, amount and a nonce that only its owner is told, so that a proof shows
nothing about neighbours. A node's hash is over both children's hashes *and* both their sums:
committing to the total alone would allow a tree whose node claims less than its children. Every
sum is checked to lie within 0 and 2**62; a negative leaf could hide a debt.

A level with an odd number of nodes passes its last one up as it is.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

TOTAL_LIMIT: Final = 1 << 62
NONCE_BYTES: Final = 16
HASH_BYTES: Final = 32
PROOF_LIMIT: Final = 64
"""Most steps of a proof: more leaves than 2**64 do not exist."""


@dataclass(frozen=True, slots=True)
class Node:
    """A hash and the sum below it."""

    hash: bytes
    total: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """What one owner is owed."""

    owner_id: int
    amount: int
    nonce: bytes

    @property
    def sound(self) -> bool:
        """Say whether the leaf can be part of an honest tree."""
        inside = 0 <= self.amount < TOTAL_LIMIT and 0 <= self.owner_id < 1 << 63
        return inside and len(self.nonce) == NONCE_BYTES

    @property
    def node(self) -> Node:
        """Return the leaf as the tree has it."""
        content = b"\0" + _word(self.owner_id) + _word(self.amount) + self.nonce
        return Node(hashlib.sha256(content).digest(), self.amount)


@dataclass(frozen=True, slots=True)
class Step:
    """One step up: the other child, and on which side it stands."""

    sibling: Node
    left: bool
    """True if the sibling is the left child."""


def _word(number: int) -> bytes:
    return number.to_bytes(8, "big")


def parent(left: Node, right: Node) -> Node:
    """Return the node above two others. Raises ValueError when a sum leaves its range."""
    for node in (left, right):
        if not 0 <= node.total < TOTAL_LIMIT or len(node.hash) != HASH_BYTES:
            raise ValueError(f"a node claims {node.total}; it must be from 0 to {TOTAL_LIMIT - 1}")
    total = left.total + right.total
    if total >= TOTAL_LIMIT:
        raise ValueError(f"two nodes claim {total}; it must be below {TOTAL_LIMIT}")
    content = b"\1" + left.hash + _word(left.total) + right.hash + _word(right.total)
    return Node(hashlib.sha256(content).digest(), total)


def tree(leaves: Sequence[Leaf]) -> list[list[Node]]:
    """Return all levels, from the leaves to the root. Raises ValueError."""
    assert leaves, "a tree has at least one leaf"
    for leaf in leaves:
        if not leaf.sound:
            raise ValueError(f"owner {leaf.owner_id} is owed {leaf.amount}: no leaf can say that")
    levels = [[leaf.node for leaf in leaves]]
    while len(levels[-1]) > 1:
        below = levels[-1]
        pairs = zip(below[::2], below[1::2], strict=False)
        above = [parent(left, right) for left, right in pairs]
        levels.append(above + below[len(above) * 2 :])
    return levels


def proof(levels: Sequence[Sequence[Node]], position: int) -> list[Step]:
    """Return the steps from a leaf to the root."""
    steps = []
    for level in levels[:-1]:
        other = position ^ 1
        if other < len(level):
            steps.append(Step(level[other], left=other < position))
        position //= 2
    return steps


def proven(leaf: Leaf, steps: Sequence[Step], root: Node) -> bool:
    """Say whether a leaf is part of the tree with this root. Trusts nothing it is given."""
    if not leaf.sound or len(steps) > PROOF_LIMIT:
        return False
    node = leaf.node
    try:
        for step in steps:
            node = parent(step.sibling, node) if step.left else parent(node, step.sibling)
    except (ValueError, OverflowError):
        return False
    return node == root
