"""Whether an engine is there, by the notices of a stream; pure."""

from exchange.v1 import enums_pb2
from exchange.v1 import market_data_pb2 as of


class Presence:
    """What a stream said last of the engine behind it.

    A stream that begins while the engine is down says so first and shows the last book then, and
    what an engine did last may be told after the word that it is down, so that content alone is no
    sign of life; content of another epoch is. That the same engine is back is always said.
    """

    def __init__(self) -> None:
        self._down_epoch: int | None = None

    def begin_stream(self) -> None:
        """Note that a stream begins: if the engine is down it will say so."""
        self._down_epoch = None

    def heed(self, notice: of.Notice) -> None:
        """Take a notice."""
        if notice.kind == of.NOTICE_KIND_ENGINE_DOWN:
            self._down_epoch = notice.epoch
        elif (
            notice.kind == of.NOTICE_KIND_ENGINE_RESTARTED
            or notice.engine_state != enums_pb2.ENGINE_STATE_UNSPECIFIED
        ):
            self._down_epoch = None

    def is_up(self, epoch: int) -> bool:
        """Say whether the engine of an epoch is there, as far as was said."""
        return epoch != self._down_epoch
