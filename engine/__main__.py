"""Start the engine of one pair: ``python -m engine --pair BTC-USDT --run run``."""

import logging
import signal
import sys

from engine.config import read_config
from engine.durability.frames import DurabilityError
from engine.process import EngineProcess, describe
from exchange.doorbell import AlreadyListening
from exchange.ownership import OwnershipError

log = logging.getLogger(__name__)


def main() -> int:
    """Run until SIGTERM or SIGINT; SIGUSR1 closes the pair for orders. Return the exit code."""
    logging.basicConfig(level=logging.INFO, format="engine %(levelname)s %(message)s")
    config = read_config()
    log.info(describe(config))
    try:
        process = EngineProcess(config)
    except (DurabilityError, OwnershipError, AlreadyListening, OSError) as error:
        log.error("not started: %s", error)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.stop())
    signal.signal(signal.SIGUSR1, lambda *_: process.close_doors())
    process.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
