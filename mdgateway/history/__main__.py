"""Fill a gateway's candles in from an execution log.

    python -m mdgateway.history --feed 127.0.0.1:8850 --pair BTC-USDT --store DIR

Needs somebody who may read the log; the gateway may not. The gateway takes the file in at its next
start. Exit status: 0 done, 1 the log cannot be had.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from exchange.feed import FeedBroken, FeedOutOfRange, FeedRefused
from mdgateway.history.backfill import backfill


def main(argv: list[str] | None = None) -> int:
    """Read the log, write the file; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mdgateway.history",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--feed", required=True, metavar="HOST:PORT", help="the pair's order entry")
    parser.add_argument("--pair", required=True, help="such as BTC-USDT")
    parser.add_argument("--store", required=True, type=Path, help="the gateway's candle folder")
    parser.add_argument("--from-number", type=int, default=0, help="first execution to read")
    given = parser.parse_args(argv)
    try:
        print(asyncio.run(backfill(given.feed, given.pair, given.store, given.from_number)))
    except (FeedOutOfRange, FeedRefused, FeedBroken) as error:
        print(f"mdgateway.history: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
