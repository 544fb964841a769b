"""Which waiting orders their account has taken back meanwhile.

An order that waits for money is nowhere: the engine refused it, so a cancel that names it finds
nothing, and a cancel-all passes it by. Whoever sent that cancel was told that nothing is left. Such
an order must not appear afterwards, so the one who waits for it reads the execution log from the
refusal on, whichever process the cancel went through.

Pure: fed with consecutive rows of the log, and with records of commands that are not answered yet.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np

from exchange.enums import CommandKind, ExecutionKind, Side
from exchange.packed import RECORD_CLIENT_ORDER_ID, RECORD_ORDER_ID, RECORD_SHAPE
from exchange.records import (
    E_CLIENT_ORDER_ID,
    E_COMMAND_KIND,
    Rows,
    account_of,
    kind_of,
    side_of,
)

NEVER: Final = -1
_BOTH: Final = int(Side.UNSPECIFIED)
_CANCEL: Final = int(CommandKind.CANCEL_ORDER)
_CANCEL_ALL: Final = int(CommandKind.CANCEL_ALL)


class Withdrawals:
    """What one account cancelled, from a log number on."""

    def __init__(self, account: int, number: int) -> None:
        self.account = account
        self.number = number
        """The first log number that was not looked at."""
        self._sides = {_BOTH: NEVER, int(Side.BUY): NEVER, int(Side.SELL): NEVER}
        self._ids: dict[int, int] = {}

    def follow(self, rows: Rows) -> None:
        """Look at consecutive executions (n, 16) from `number` on."""
        kinds = kind_of(rows)
        of_interest = (kinds == ExecutionKind.ALL_CANCELLED) | (kinds == ExecutionKind.REJECTED)
        for index in np.flatnonzero(of_interest & (account_of(rows) == self.account)).tolist():
            row, number = rows[index], self.number + index
            command, side = int(row[E_COMMAND_KIND]), int(side_of(row))
            if int(kinds[index]) == ExecutionKind.ALL_CANCELLED:
                command = _CANCEL_ALL
            if command == _CANCEL_ALL and side in self._sides:
                self._sides[side] = number
            elif command == _CANCEL:
                self._ids[int(row[E_CLIENT_ORDER_ID])] = number
        self.number += len(rows)

    def since(self, number: int, client_order_id: int, side: int) -> bool:
        """Say whether an order that was refused at `number` was taken back after that."""
        last = max(self._sides[_BOTH], self._sides.get(side, NEVER))
        return max(last, self._ids.get(client_order_id, NEVER)) > number


class Pending:
    """What an account's commands that are not answered yet are going to cancel."""

    def __init__(self, batches: Iterable[Rows]) -> None:
        self._sides: set[int] = set()
        self._ids: set[int] = set()
        for records in batches:
            shape = records[:, RECORD_SHAPE]
            kinds = (shape >> 32) & 0xF
            everything = shape[kinds == _CANCEL_ALL]
            self._sides.update(((everything >> 36) & 0xF).tolist())
            named = records[(kinds == _CANCEL) & (records[:, RECORD_ORDER_ID] == 0)]
            self._ids.update(named[:, RECORD_CLIENT_ORDER_ID].tolist())

    def takes(self, client_order_id: int, side: int) -> bool:
        """Say whether a waiting order is among what they cancel."""
        return client_order_id in self._ids or bool(self._sides & {_BOTH, side})
