"""The ledger service: the double-entry books of record.

Owns accounts, transfers and postings in PostgreSQL: balanced, idempotent by id, never edited,
chained by hash. Follows the execution feed of every pair and commits its cursor together with what
it booked. Maps no shared memory and decides no order.
"""
