"""Money for its owners and for operators: balances, transfers, limits, proofs over gRPC.

`AsyncMoneyClient` and its blocking twin `MoneyClient` speak to the ledger, the risk service and,
for the comparison of books and engines, to order entry. Amounts are exact decimals throughout:

    calls         connections and retries           amounts, words   how values are said
    books         balances, statements, sums        answers          what books and risk answer
    risk          limits, recall, kill switch       movements        what deposits and the like are
    funds         deposits, transfers, withdrawals  liabilities      a Merkle proof, checked here
    verification  all proofs, a finding at a time   client, blocking the two forms of the client
"""
