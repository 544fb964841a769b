"""The whole mesh in one thread: a manual clock, seeded faults, invariants after every step."""
