"""What a pair accepts and whether anybody is there, from the messages of a status stream; pure."""

from typing import NamedTuple

from exchange.enums import PairStatus
from exchange.v1 import enums_pb2
from exchange.v1 import market_data_pb2 as of


class MarketStatus(NamedTuple):
    """A pair as it is, told whenever it changed and once a second in silence.

    Silence of a market: `live`, and `sequence` stands still. Death of the engine: `connected`, and
    `engine_state` is unspecified. Death of the line or the gateway: not `connected`.
    """

    status: PairStatus = PairStatus.UNSPECIFIED
    """What the pair accepts; of a dead engine: what it accepted last."""
    engine_state: enums_pb2.EngineState.ValueType = enums_pb2.ENGINE_STATE_UNSPECIFIED
    """What the engine is doing; unspecified while nothing is known of it."""
    epoch: int = 0
    sequence: int = 0
    """The last command that the gateway has seen."""
    trade_count: int = 0
    """Number of the newest trade as of the last change."""
    gateway_time_ns: int = 0
    """The gateway's clock at its last heartbeat; zero: there was none yet."""
    connected: bool = False
    """Whether the gateway was heard of within the silence that the client allows."""
    message: str = ""
    """One sentence for people: why the engine or the gateway is not there."""

    @property
    def live(self) -> bool:
        """Whether the engine is there, as far as the gateway sees."""
        return self.connected and self.engine_state != enums_pb2.ENGINE_STATE_UNSPECIFIED


class StatusFeed:
    """The status as one subscriber was told it."""

    def __init__(self) -> None:
        self._now = MarketStatus()

    def take(self, message: of.StreamMarketStatusResponse) -> MarketStatus | None:
        """Take one message; return the status if it says something of it."""
        match message.WhichOneof("event"):
            case "state":
                self._now = self._taken(message.state)
                return self._now
            case "heartbeat":
                beat = message.heartbeat
                sequence = max(self._now.sequence, beat.position)
                self._now = self._now._replace(
                    sequence=sequence, gateway_time_ns=beat.time_ns, connected=True
                )
                return self._now
            case "notice":
                # The state that it concerns comes after it.
                self._now = self._now._replace(message=message.notice.message)
        return None

    def lose(self, message: str) -> MarketStatus:
        """Return the status after the connection is lost: nothing is known of the engine."""
        unknown = enums_pb2.ENGINE_STATE_UNSPECIFIED
        self._now = self._now._replace(engine_state=unknown, connected=False, message=message)
        return self._now

    def _taken(self, state: of.PairState) -> MarketStatus:
        told = self._now._replace(
            status=PairStatus(state.status),
            engine_state=state.engine_state,
            epoch=state.epoch,
            sequence=state.sequence,
            trade_count=state.trade_count,
            connected=True,
        )
        return told._replace(message="") if told.live else told
