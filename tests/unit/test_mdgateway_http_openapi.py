"""The document of the REST paths: what it says is so, and it says all."""

import json
from pathlib import Path
from typing import Any

from mdgateway.http.openapi import PATHS, SCHEMAS, document
from tests.unit.market_data_door import PAIR, Door, Json, run


def conforms(value: Any, schema: Json) -> bool:
    """Say whether a value is what a schema of the document promises, no field more or less."""
    if "$ref" in schema:
        return conforms(value, SCHEMAS[schema["$ref"].rpartition("/")[2]])
    if "oneOf" in schema:
        return any(conforms(value, one) for one in schema["oneOf"])
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, dict):
        properties = schema.get("properties")
        if properties is None:
            return True
        same = set(value) == set(properties)
        return same and all(conforms(value[name], properties[name]) for name in properties)
    if isinstance(value, list):
        if "prefixItems" in schema:
            parts = schema["prefixItems"]
            return len(value) == len(parts) and all(map(conforms, value, parts))
        return all(conforms(one, schema["items"]) for one in value)
    names = {str: "string", int: "integer", type(None): "null"}
    return names[type(value)] in kinds


def test_every_path_answers_as_its_document_says(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        for number in range(5):
            door.writer.trade(1 + number % 2, 100, 3)
        door.step()
        assert await door.get_json("/v1/openapi.json") == document()
        for path, operations in PATHS.items():
            answer = await door.get_json(path.replace("{pair}", PAIR))
            success = operations["get"]["responses"]["200"]
            schema = success["content"]["application/json"]["schema"]
            assert conforms(answer, schema), (path, answer)
        for name in "Ticker", "Depth", "Refusal":
            assert not conforms({"pair": PAIR}, SCHEMAS[name]), "the comparison can fail"

    run(tmp_path, test, candles=True)


def test_the_document_is_whole(tmp_path: Path) -> None:
    operations = [(path, method, one) for path, of in PATHS.items() for method, one in of.items()]
    assert {method for _, method, _ in operations} == {"get", "head"}
    names = [one["operationId"] for _, _, one in operations]
    assert len(set(names)) == len(names) == 2 * len(PATHS)
    for _, _, one in operations:
        for parameter in one.get("parameters", ()):
            assert parameter["schema"]["type"] in {"string", "integer"}, parameter

    async def test(door: Door) -> None:
        for path, method, one in operations:
            url = path.replace("{pair}", PAIR)
            status, _, body = await door.get(url, method=method.upper())
            assert str(status) in one["responses"]
            assert bool(body) == ("content" in one["responses"][str(status)])
            status, headers, body = await door.get(url, method="PUT")
            said = one["responses"][str(status)]
            assert set(said["headers"] if method == "get" else ()) <= set(headers)
            assert conforms(json.loads(body), SCHEMAS["Refusal"])

    run(tmp_path, test, candles=True)
