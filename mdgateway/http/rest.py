"""The REST paths: one answer at a time, from memory, encoded at most once for each state of a pair.

A path is looked up, its parameters are judged, and it gives a `Page`: what the answer depends on
(the ETag) and how to make it. If the client holds that already it is told so and nothing is made;
if somebody else asked for it since the last change, those bytes are sent again.
"""

import functools
import gzip
import hashlib
import secrets
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from exchange.instrument import Instrument
from exchange.refusal import Code, Refusal, Refused
from mdgateway.feed.candles import Interval
from mdgateway.feed.market import Market
from mdgateway.feed.publication import Publication
from mdgateway.feed.requests import DEFAULT_LEVEL_COUNT, candles_of, with_book
from mdgateway.feed.trade_log import TRADE_NUMBER
from mdgateway.http.json_format import SECOND_NS, JsonEncoder, dumps
from mdgateway.http.openapi import document
from mdgateway.http.stream.requests import candle_interval
from mdgateway.keys.tiers import Tier

KEPT_BYTES: Final = 16 << 20
"""What answers that are kept may take; the largest page of trades has an eighth of a megabyte."""
ANSWER_BYTES: Final = 1_024
"""What an answer takes beside its content."""
PAGE_LIMIT: Final = 1_000
DEFAULT_TRADES: Final = 100
DEFAULT_CANDLES: Final = 500
LARGEST_NUMBER: Final = (1 << 53) - 1
LAST_SECOND: Final = 9_000_000_000
"""In the year 2255; beyond, nanoseconds no longer fit into 64 bits."""
GZIP_LEVEL: Final = 1
WORTH_COMPRESSING_BYTES: Final = 1_024
MINUTE_NS: Final = 60 * SECOND_NS

Query = Mapping[str, str]
_Key = tuple[str, tuple[tuple[str, str], ...]]


class Page(NamedTuple):
    """An answer that need not be made yet."""

    tag: str
    """Equal tags of one path: equal answers."""
    make: Callable[[], Awaitable[bytes]]


@dataclass(slots=True)
class Answer:
    """An answer that was made."""

    tag: str
    body: bytes
    _packed: bytes | None = field(default=None)

    @property
    def kept_bytes(self) -> int:
        """Return the most it takes: packed, too, which is not larger than the body."""
        return 2 * len(self.body) + ANSWER_BYTES

    def packed(self) -> bytes | None:
        """Return the body as gzip, or None if that is not worth it."""
        if len(self.body) < WORTH_COMPRESSING_BYTES:
            return None
        if self._packed is None:
            self._packed = gzip.compress(self.body, GZIP_LEVEL, mtime=0)
        return self._packed


class Rest:
    """Answers by path."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._kept: dict[_Key, Answer] = {}
        self.kept_bytes = 0
        """What the kept answers take, at most KEPT_BYTES."""
        self._openapi = dumps(document())
        self._start = secrets.token_hex(4)
        """What depends on what this process has seen or read is not what another one said."""
        self._of_all = {
            "instruments": self._instruments,
            "ticker": self._tickers,
            "status": self._status,
            "openapi.json": self._document,
        }
        self._of_pair = {
            "ticker": self._ticker,
            "trades": self._trades,
            "candles": self._candles,
        }

    def page(self, path: str, query: Query, tier: Tier) -> Page:
        """Return the page at a path below /v1/; raises Refused."""
        name, _, pair = path.partition("/")
        if pair and name == "depth":
            return self._depth(self._market.publication(pair), query, tier)
        if pair and name in self._of_pair:
            return self._of_pair[name](self._market.publication(pair), query)
        if not pair and name in self._of_all:
            _only(query, ())
            return self._of_all[name]()
        raise Refused(
            Refusal(
                Code.NOT_FOUND,
                "PATH_UNKNOWN",
                "there is nothing at this path; /v1/openapi.json lists what there is",
                "path",
                path[:100],
            )
        )

    async def answer(self, path: str, query: Query, page: Page) -> Answer:
        """Return the page's answer, made or kept."""
        key = path, tuple(sorted(query.items()))
        kept = self._kept.get(key)
        if kept is None or kept.tag != page.tag:
            kept = Answer(page.tag, await page.make())
            self._keep(key, kept)
        return kept

    def _keep(self, key: _Key, answer: Answer) -> None:
        """Keep an answer in place of the one before; the oldest go to make room for it."""
        before = self._kept.pop(key, None)
        self.kept_bytes += answer.kept_bytes - (before.kept_bytes if before else 0)
        self._kept[key] = answer
        while self.kept_bytes > KEPT_BYTES:
            self.kept_bytes -= self._kept.pop(next(iter(self._kept))).kept_bytes

    # What concerns all pairs.

    def _publications(self) -> list[Publication]:
        return [one for _, one in sorted(self._market.publications.items())]

    def _document(self) -> Page:
        return Page(f"{zlib.crc32(self._openapi):08x}", _made(lambda: self._openapi))

    def _instruments(self) -> Page:
        shown = self._publications()
        fields = [_encoder(one).instrument_fields(one.pair_status) for one in shown]
        # Made each time, because only the content says whether it is the same after a restart.
        body = dumps({"instruments": fields})
        return Page(f"instruments-{_digest(body)}", _made(lambda: body))

    def _tickers(self) -> Page:
        shown = [one for one in self._publications() if one.ready and one.touch is not None]
        return Page(
            f"tickers-{self._start}-{_sum(_ticker_tag(one) for one in shown)}",
            _made(
                lambda: dumps({"tickers": [_encoder(one).ticker(one.ticker()) for one in shown]})
            ),
        )

    def _status(self) -> Page:
        shown = [(_encoder(one), one.pair_state()) for one in self._publications()]
        return Page(
            f"status-{_sum(str(tuple(state)) for _, state in shown)}",
            _made(
                lambda: dumps({"pairs": [encoder.pair_state(state) for encoder, state in shown]})
            ),
        )

    # What concerns one pair.

    def _ticker(self, publication: Publication, query: Query) -> Page:
        _only(query, ())
        with_book(publication)
        return Page(
            f"{_ticker_tag(publication)}-{self._start}",
            _made(lambda: dumps(_encoder(publication).ticker(publication.ticker()))),
        )

    def _depth(self, publication: Publication, query: Query, tier: Tier) -> Page:
        _only(query, ("levels",))
        limit = min(tier.level_limit, publication.config.depth_limit)
        default = min(DEFAULT_LEVEL_COUNT, limit)
        levels = _whole(query, "levels", default, 1, limit, "LEVEL_COUNT_OUT_OF_RANGE")
        with_book(publication)

        def make() -> bytes:
            fields = _encoder(publication).depth(publication.snapshot(levels), levels)
            return f"{{{fields}}}".encode("ascii")

        return Page(_place(publication), _made(make))

    def _trades(self, publication: Publication, query: Query) -> Page:
        _only(query, ("limit", "before"))
        limit = _whole(query, "limit", DEFAULT_TRADES, 1, PAGE_LIMIT, "LIMIT_OUT_OF_RANGE")
        reason = "TRADE_NUMBER_OUT_OF_RANGE"
        before = _whole(query, "before", LARGEST_NUMBER, 1, LARGEST_NUMBER, reason)
        with_book(publication)

        def make() -> bytes:
            log = publication.trade_log
            end = min(before, log.newest + 1)
            start = max(log.oldest, end - limit)
            rows = log.since(start, end - start) if start < end else log.since(log.newest + 1, 0)
            more = int(rows[0, TRADE_NUMBER]) if len(rows) and start > log.oldest else None
            return (
                f'{{"pair":"{publication.pair}","epoch":{publication.epoch}'
                f',"sequence":{publication.sequence}'
                f',"trades":{_encoder(publication).trades(rows[::-1])}'
                f',"next_before":{"null" if more is None else more}}}'
            ).encode("ascii")

        return Page(f"{_place(publication)}-{publication.trade_log.newest}", _made(make))

    def _candles(self, publication: Publication, query: Query) -> Page:
        _only(query, ("interval", "from", "to", "limit"))
        interval = candle_interval(query.get("interval", Interval.MINUTE.text))
        first = _whole(query, "from", 0, 0, LAST_SECOND, "TIME_OUT_OF_RANGE")
        last = _whole(query, "to", LAST_SECOND, 0, LAST_SECOND, "TIME_OUT_OF_RANGE")
        limit = _whole(query, "limit", DEFAULT_CANDLES, 1, PAGE_LIMIT, "LIMIT_OUT_OF_RANGE")
        source = candles_of(with_book(publication))

        async def make() -> bytes:
            epoch, sequence = publication.epoch, publication.sequence
            page = await source.page(interval, first * SECOND_NS, last * SECOND_NS, limit)
            return dumps(
                {
                    "pair": publication.pair,
                    "interval": interval.text,
                    "epoch": epoch,
                    "sequence": sequence,
                    "candles": _encoder(publication).candles(page.candles),
                    "next_to": -(-page.next_to_ns // SECOND_NS) or None,
                }
            )

        return Page(f"{_place(publication)}-{source.revision}-{self._start}", make)


def _encoder(publication: Publication) -> JsonEncoder:
    encoder = publication.encoder(JsonEncoder)
    assert isinstance(encoder, JsonEncoder)
    return encoder


def _made(make: Callable[[], bytes]) -> Callable[[], Awaitable[bytes]]:
    async def made() -> bytes:
        return make()

    return made


def _place(publication: Publication) -> str:
    # With the units that all texts depend on, which may be others after a restart.
    mark = _mark(publication.instrument)
    return f"{publication.epoch}-{publication.sequence}-{mark}"


@functools.cache
def _mark(instrument: Instrument) -> str:
    return _digest(repr(instrument).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _ticker_tag(publication: Publication) -> str:
    # The figures of the last 24 hours move with the minute, and the engine's state with nothing.
    state = publication.pair_state()
    minute = publication.wall_ns // MINUTE_NS
    return f"{_place(publication)}-{minute}-{state.status}-{state.engine_state}"


def _sum(texts: Iterable[str]) -> str:
    joined = "\n".join(texts)
    return f"{zlib.crc32(joined.encode()):08x}"


def _only(query: Query, known: tuple[str, ...]) -> None:
    for name in query:
        if name not in known:
            limit = f"one of {', '.join(known)}" if known else "left out: there are no parameters"
            raise Refused(Refusal.of_field("PARAMETER_UNKNOWN", "parameter", name, limit))


def _whole(query: Query, name: str, default: int, low: int, high: int, reason: str) -> int:
    text = query.get(name)
    if text is None:
        return default
    # Not int(): it takes signs, spaces, underscores and the digits of all scripts.
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and low <= int(text) <= high):
        raise Refused(Refusal.of_field(reason, name, text, f"from {low} to {high}"))
    return int(text)
