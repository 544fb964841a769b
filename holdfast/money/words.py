"""The enumerations of the contract as the words people say: `funding` for a number of the wire.

One word for each number, the constant's name without its prefix, in lower case with hyphens where
the name has underscores. A number that this program does not know becomes its digits.
"""

from typing import Any, Final

from exchange.v1 import funds_pb2, ledger_pb2, risk_pb2
from holdfast.money.amounts import invalid


class Vocabulary:
    """The words of one enumeration."""

    def __init__(self, enumeration: Any, prefix: str) -> None:
        self._words: dict[int, str] = {
            number: name.removeprefix(prefix).lower().replace("_", "-")
            for name, number in enumeration.items()
            if number
        }
        self._numbers = {word: number for number, word in self._words.items()}

    @property
    def words(self) -> tuple[str, ...]:
        """Return all words, in the order of their numbers."""
        return tuple(self._numbers)

    def word(self, number: int) -> str:
        """Return the word of a number."""
        return self._words.get(number, str(number))

    def number(self, field: str, word: str) -> Any:
        """Return the number of a word. Raises InvalidRequest naming the field and all words."""
        if word not in self._numbers:
            raise invalid("WORD_UNKNOWN", field, word, " or ".join(self._numbers))
        return self._numbers[word]


OWNER_KINDS: Final = Vocabulary(ledger_pb2.OwnerKind, "OWNER_KIND_")
PURPOSES: Final = Vocabulary(ledger_pb2.AccountPurpose, "ACCOUNT_PURPOSE_")
TRANSFER_KINDS: Final = Vocabulary(ledger_pb2.TransferKind, "TRANSFER_KIND_")
TRANSFER_PHASES: Final = Vocabulary(ledger_pb2.TransferPhase, "TRANSFER_PHASE_")
SETTLEMENT_STATES: Final = Vocabulary(ledger_pb2.SettlementState, "SETTLEMENT_STATE_")
LIMIT_KINDS: Final = Vocabulary(risk_pb2.LimitKind, "LIMIT_KIND_")
LIMIT_SUBJECTS: Final = Vocabulary(risk_pb2.LimitSubject, "LIMIT_SUBJECT_")
LIMIT_PLACES: Final = Vocabulary(risk_pb2.LimitPlace, "LIMIT_PLACE_")
ACCOUNT_ROLES: Final = Vocabulary(risk_pb2.AccountRole, "ACCOUNT_ROLE_")
KILL_SCOPES: Final = Vocabulary(risk_pb2.KillScope, "KILL_SCOPE_")
RISK_ALARMS: Final = Vocabulary(risk_pb2.RiskAlarm, "RISK_ALARM_")
DEPOSIT_STATES: Final = Vocabulary(funds_pb2.DepositState, "DEPOSIT_STATE_")
WITHDRAWAL_STATES: Final = Vocabulary(funds_pb2.WithdrawalState, "WITHDRAWAL_STATE_")
FUNDS_SUBJECTS: Final = Vocabulary(funds_pb2.FundsSubject, "FUNDS_SUBJECT_")
