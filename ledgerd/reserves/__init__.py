"""Proof of what is owed: a Merkle sum tree over all owners, and a proof for each."""
