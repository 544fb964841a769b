"""The asyncio client of money: one account's view, or an operator's, over gRPC.

Every call is retried while nobody answers, within one patience; calls that move money carry an id,
so that a retry never moves it twice. Answers are the values of `holdfast.money.answers` and
`holdfast.money.movements`, errors those of `holdfast.errors`.

`holdfast.MoneyClient` is the same for programs without asyncio.
"""

from holdfast.money.verification import Verifying


class AsyncMoneyClient(Verifying):
    """Balances, transfers, deposits, withdrawals, limits, proofs. Use as async context manager.

    `account` is whose money it is; `owner_kind` says what it is, if the books do not know it yet
    as something else than a user. `actor` is who asks, as audit rows will name them: withdrawals
    cannot be approved by their own requester.
    `ledger`, `risk` and `pairs` (order entry by pair, for proofs) say where the services are;
    they are connected to when first used.
    """
