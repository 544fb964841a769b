"""What every door asks of a request before it is done; a refusal names field, value and limit."""

from typing import Final

from exchange.refusal import Code, Refusal, Refused
from mdgateway.config import GatewayConfig
from mdgateway.feed.candles import CandleSource, Interval
from mdgateway.feed.publication import Publication
from mdgateway.feed.records import FULL
from mdgateway.feed.subscriptions import Lagging

DEFAULT_LEVEL_COUNT: Final = 20
STREAM_LEVEL_COUNTS: Final = (1, 5, 10, 20, 50, 100, 500, 1_000)
"""Depths of streams: a few, so that subscribers share them. FULL beside them."""
INTERVAL_LIMIT_MS: Final = 60_000
PAGE_LIMIT: Final = 1_000
"""Most trades or candles of one answer."""
DEFAULT_PAGE: Final = 100


def snapshot_levels(config: GatewayConfig, asked: int) -> int:
    """Return the depth of one answer: any, or FULL; zero is the default."""
    limit = config.depth_limit
    if asked != FULL and not 0 <= asked <= limit:
        text = f"from 0 to {limit}, or -1 for every level kept"
        raise Refused(Refusal.of_field("LEVEL_COUNT_OUT_OF_RANGE", "level_count", asked, text))
    return asked or min(DEFAULT_LEVEL_COUNT, limit)


def stream_levels(config: GatewayConfig, asked: int) -> int:
    """Return the depth of a stream: one of STREAM_LEVEL_COUNTS, or FULL; zero is the default."""
    offered = tuple(count for count in STREAM_LEVEL_COUNTS if count <= config.depth_limit)
    count = asked or min(DEFAULT_LEVEL_COUNT, config.depth_limit)
    if asked and asked != FULL and asked not in offered:
        text = f"one of {', '.join(map(str, offered))}, or -1 for every level kept"
        raise Refused(Refusal.of_field("LEVEL_COUNT_OUT_OF_RANGE", "level_count", asked, text))
    return count


def interval_ns(asked_ms: int) -> int:
    """Return the least time between two messages of a stream."""
    if not 0 <= asked_ms <= INTERVAL_LIMIT_MS:
        limit = f"from 0 to {INTERVAL_LIMIT_MS}"
        raise Refused(Refusal.of_field("INTERVAL_OUT_OF_RANGE", "interval_ms", asked_ms, limit))
    return asked_ms * 1_000_000


def trade_number(field: str, asked: int) -> int:
    """Return the number of a trade; zero has a meaning of its own."""
    if asked < 0:
        limit = "0 or the number of a trade"
        raise Refused(Refusal.of_field("TRADE_NUMBER_OUT_OF_RANGE", field, asked, limit))
    return asked


def held_time_ns(first: int, given: int) -> int:
    """Return the time of the trade before the first one wanted; zero: not said."""
    if given < 0 or (given and first < 2):
        limit = "0, or the time of the trade before from_trade_number"
        raise Refused(Refusal.of_field("TIME_OUT_OF_RANGE", "held_time_ns", given, limit))
    return given


def begun_anew(first: int, oldest: int) -> Refusal:
    """Return why a page cannot follow what a client holds, and where it can begin."""
    return Refusal(
        Code.OUT_OF_RANGE,
        "TRADES_RESTARTED",
        f"trade {first} is of another history; the oldest of this one is {oldest}",
        "from_trade_number",
        str(first),
        str(oldest),
    )


def page_size(asked: int) -> int:
    """Return how many items a page has; zero is the default."""
    if not 0 <= asked <= PAGE_LIMIT:
        limit = f"from 0 to {PAGE_LIMIT}"
        raise Refused(Refusal.of_field("PAGE_SIZE_OUT_OF_RANGE", "page_size", asked, limit))
    return asked or DEFAULT_PAGE


def candle_interval(asked: int) -> Interval:
    """Return the interval of candles; zero is a minute."""
    try:
        return Interval(asked or Interval.MINUTE)
    except ValueError:
        limit = f"one of {', '.join(one.text for one in Interval)}"
        raise Refused(Refusal.of_field("INTERVAL_OUT_OF_RANGE", "interval", asked, limit)) from None


def candles_of(publication: Publication) -> CandleSource:
    """Return who keeps the pair's candles."""
    if publication.candles is None:
        raise Refused(
            Refusal(
                Code.UNAVAILABLE,
                "CANDLES_UNAVAILABLE",
                "this server keeps no candles",
                "pair",
                publication.pair,
            )
        )
    return publication.candles


def with_orders(publication: Publication) -> Publication:
    """Return the publication if its source knows of orders."""
    if publication.orders is not None:
        return publication
    if not publication.ready:
        # Whether there are orders to tell is known when there is a book.
        raise Refused(_no_book(publication))
    raise Refused(
        Refusal(
            Code.UNAVAILABLE,
            "ORDERS_UNAVAILABLE",
            "this server follows another one that tells it no orders",
            "pair",
            publication.pair,
        )
    )


def with_book(publication: Publication) -> Publication:
    """Return the publication if there is a book to tell."""
    if not publication.ready or publication.touch is None:
        raise Refused(_no_book(publication))
    return publication


def _no_book(publication: Publication) -> Refusal:
    why = publication.trouble or "the book is not there yet: its engine has not started"
    return Refusal(Code.UNAVAILABLE, "BOOK_UNAVAILABLE", why, "pair", publication.pair)


def lagging(error: Lagging) -> Refusal:
    """Return why a stream ends: too slow, or trades far ahead of what has happened."""
    if error.what != "trade":
        return Refusal(
            Code.RESOURCE_EXHAUSTED,
            "LAGGING",
            f"too slow: {error.what} {error.resume_from} is gone; subscribe again",
            "held_position",
            str(error.resume_from),
            str(error.oldest),
        )
    if error.resume_from > error.oldest:
        return Refusal(
            Code.OUT_OF_RANGE,
            "TRADE_NUMBER_OUT_OF_RANGE",
            f"trade {error.resume_from} has not happened yet",
            "from_trade_number",
            str(error.resume_from),
        )
    return Refusal(
        Code.RESOURCE_EXHAUSTED,
        "LAGGING",
        f"too slow: trade {error.resume_from} is gone, the oldest kept is {error.oldest};"
        " subscribe again with from_trade_number",
        "resume_from",
        str(error.resume_from),
        str(error.oldest),
    )
