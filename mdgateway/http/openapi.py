"""The REST interface as OpenAPI 3.1, for programs that make clients of it.

Written by hand next to the paths it describes; a test asks every path it names and looks for every
field it promises, so that it cannot say what is not so.
"""

from typing import Any, Final

from mdgateway.feed.candles import Interval

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_DECIMAL: Final[Schema] = {"type": "string", "description": "Exact decimal text."}
_NONE_OR_DECIMAL: Final[Schema] = {"type": ["string", "null"], "description": "Null: none."}
_MOMENT: Final[Schema] = {"type": "string", "description": "Nanoseconds since 1970 UTC, as text."}
_NUMBER: Final[Schema] = {"type": "integer", "format": "int64"}
_NONE_OR_NUMBER: Final[Schema] = {"type": ["integer", "null"], "format": "int64"}


def _object(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(name: str) -> Schema:
    return {"oneOf": [_ref(name), {"type": "null"}]}


_POSITION: Final = {"epoch": _NUMBER, "sequence": _NUMBER}
_LEVELS: Final = {
    "type": "array",
    "description": "Best first: price, quantity, order count.",
    "items": {
        "type": "array",
        "prefixItems": [_DECIMAL, _DECIMAL, _NUMBER],
        "minItems": 3,
        "maxItems": 3,
    },
}

SCHEMAS: Final[dict[str, Schema]] = {
    "Instrument": _object(
        {
            "pair": _TEXT,
            "base_asset": _TEXT,
            "quote_asset": _TEXT,
            "tick_size": _DECIMAL,
            "lot_size": _DECIMAL,
            "tick_step": _NUMBER,
            "lot_step": _NUMBER,
            "price_decimals": _NUMBER,
            "quantity_decimals": _NUMBER,
            "minimum_notional": _DECIMAL,
            "taker_fee_ppm": _NUMBER,
            "maker_fee_ppm": _NUMBER,
            "status": _TEXT,
        }
    ),
    "Best": _object({"price": _DECIMAL, "quantity": _DECIMAL}),
    "Trade": _object(
        {
            "trade_number": _NUMBER,
            "price": _DECIMAL,
            "quantity": _DECIMAL,
            "side": {"type": ["string", "null"], "enum": ["buy", "sell", None]},
            "time_ns": _MOMENT,
            "sequence": _NUMBER,
        }
    ),
    "Ticker": _object(
        {
            "pair": _TEXT,
            **_POSITION,
            "best_bid": _or_null("Best"),
            "best_ask": _or_null("Best"),
            "last_trade": _or_null("Trade"),
            "day_open": _NONE_OR_DECIMAL,
            "day_high": _NONE_OR_DECIMAL,
            "day_low": _NONE_OR_DECIMAL,
            "day_volume": _DECIMAL,
            "day_turnover": _DECIMAL,
            "open_24h": _NONE_OR_DECIMAL,
            "high_24h": _NONE_OR_DECIMAL,
            "low_24h": _NONE_OR_DECIMAL,
            "vwap_24h": _NONE_OR_DECIMAL,
            "change_24h": _NONE_OR_DECIMAL,
            "volume_24h": _DECIMAL,
            "turnover_24h": _DECIMAL,
            "trade_count_24h": _NUMBER,
            "volume_since_ns": _MOMENT,
            "trade_count": _NUMBER,
            "status": _TEXT,
            "engine_state": _TEXT,
        }
    ),
    "Depth": _object(
        {
            "pair": _TEXT,
            **_POSITION,
            "time_ns": _MOMENT,
            "levels": _NUMBER,
            "bids": _LEVELS,
            "asks": _LEVELS,
            "checksum": _NUMBER,
        }
    ),
    "Candle": _object(
        {
            "start_s": _NUMBER,
            "open": _DECIMAL,
            "high": _DECIMAL,
            "low": _DECIMAL,
            "close": _DECIMAL,
            "volume": _DECIMAL,
            "turnover": _DECIMAL,
            "trade_count": _NUMBER,
            "last_trade_number": _NUMBER,
            "closed": {"type": "boolean"},
        }
    ),
    "PairState": _object(
        {
            "pair": _TEXT,
            **_POSITION,
            "status": _TEXT,
            "engine_state": _TEXT,
            "time_ns": _MOMENT,
            "ready": {"type": "boolean"},
            "trade_number": _NUMBER,
        }
    ),
    "Instruments": _object({"instruments": _list(_ref("Instrument"))}),
    "Tickers": _object({"tickers": _list(_ref("Ticker"))}),
    "Trades": _object(
        {
            "pair": _TEXT,
            **_POSITION,
            "trades": _list(_ref("Trade")),
            "next_before": _NONE_OR_NUMBER,
        }
    ),
    "Candles": _object(
        {
            "pair": _TEXT,
            "interval": _TEXT,
            **_POSITION,
            "candles": _list(_ref("Candle")),
            "next_to": _NONE_OR_NUMBER,
        }
    ),
    "Status": _object({"pairs": _list(_ref("PairState"))}),
    "Refusal": _object(
        {"reason": _TEXT, "message": _TEXT, "field": _TEXT, "value": _TEXT, "limit": _TEXT}
    ),
}


def _parameter(name: str, summary: str, **schema: Any) -> Schema:
    return {
        "name": name,
        "in": "query",
        "description": summary,
        "schema": {"type": "integer", **schema},
    }


_PAIR: Final[Schema] = {
    "name": "pair",
    "in": "path",
    "required": True,
    "description": "Such as BTC-USDT.",
    "schema": _TEXT,
}
_REFUSED: Final = {
    "description": "Refused: reason for programs, message for people, field, value and limit.",
    "content": {"application/json": {"schema": _ref("Refusal")}},
}


_NO_METHOD: Final = {
    **_REFUSED,
    "description": "Refused: any other method than GET and HEAD.",
    "headers": {"Allow": {"description": "GET, HEAD", "schema": _TEXT}},
}


def _get(name: str, summary: str, schema: Schema, *parameters: Schema) -> Schema:
    answers: Schema = {
        "200": {
            "description": "The answer, with an ETag.",
            "content": {"application/json": {"schema": schema}},
        },
        "304": {"description": "Nothing happened since the answer with the ETag given."},
    }
    codes = ("400", "401", "404", "429", "503")
    refused = dict.fromkeys(codes, _REFUSED) | {"405": _NO_METHOD}
    operation: Schema = {"summary": summary, "responses": answers | refused}
    if parameters:
        operation["parameters"] = list(parameters)
    return {
        "get": {"operationId": f"get{name}", **operation},
        "head": {"operationId": f"head{name}", **operation, "responses": _bodiless(operation)},
    }


def _bodiless(operation: Schema) -> Schema:
    answers = {"200": {"description": "The headers of the answer, with an ETag."}}
    named = {
        code: {"description": one["description"]} for code, one in operation["responses"].items()
    }
    return named | answers


PATHS: Final[dict[str, Schema]] = {
    "/v1/instruments": _get(
        "Instruments", "All pairs with their specification.", _ref("Instruments")
    ),
    "/v1/ticker": _get("Tickers", "The tickers of all pairs that have a book.", _ref("Tickers")),
    "/v1/ticker/{pair}": _get("Ticker", "The ticker of a pair.", _ref("Ticker"), _PAIR),
    "/v1/depth/{pair}": _get(
        "Depth",
        "The best levels of a pair.",
        _ref("Depth"),
        _PAIR,
        _parameter("levels", "Levels a side.", minimum=1, maximum=1_000, default=20),
    ),
    "/v1/trades/{pair}": _get(
        "Trades",
        "Trades, newest first.",
        _ref("Trades"),
        _PAIR,
        _parameter("limit", "Most trades wanted.", minimum=1, maximum=1_000, default=100),
        _parameter("before", "Only trades with smaller numbers.", minimum=1),
    ),
    "/v1/candles/{pair}": _get(
        "Candles",
        "Candles, oldest first: the newest ones before `to`.",
        _ref("Candles"),
        _PAIR,
        {
            "name": "interval",
            "in": "query",
            "description": "Length of a candle.",
            "schema": {
                "type": "string",
                "enum": [interval.text for interval in Interval],
                "default": "1m",
            },
        },
        _parameter("from", "First second, UTC, included.", minimum=0),
        _parameter("to", "Last second, UTC, not included.", minimum=0),
        _parameter("limit", "Most candles wanted.", minimum=1, maximum=1_000, default=500),
    ),
    "/v1/status": _get("Status", "What each pair accepts and how its engine is.", _ref("Status")),
    "/v1/openapi.json": _get("Document", "This document.", {"type": "object"}),
}


def document() -> Schema:
    """Return the whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast market data",
            "version": "1",
            "description": "Public market data. WebSocket: /v1/stream, in market-data-http.md.",
        },
        "paths": PATHS,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-Market-Data-Key"}
            },
        },
        "security": [{}, {"key": []}],
    }
