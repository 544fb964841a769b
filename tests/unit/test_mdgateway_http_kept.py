"""Answers that are kept, here and by clients: how much, and for how long they hold."""

import json
from dataclasses import replace
from pathlib import Path

from mdgateway.http.rest import KEPT_BYTES
from tests.unit.market_data_door import PAIR, Door, run


def test_kept_answers_are_bounded_by_what_they_take(tmp_path: Path) -> None:
    async def test(door: Door) -> None:
        for number in range(500):
            door.writer.trade(1, 100, number + 1)
        door.step()
        kept, most = door.server._rest, 0
        for before in range(502, 302, -1):
            path = f"/v1/trades/{PAIR}?limit=1000&before={before}"
            answer = await door.get_json(path)
            assert len(answer["trades"]) == before - 1 - (before == 502)
            most = max(most, kept.kept_bytes)
            assert kept.kept_bytes == sum(one.kept_bytes for one in kept._kept.values())
        assert KEPT_BYTES - 300_000 < most <= KEPT_BYTES
        newest = door.server._rest._kept[f"trades/{PAIR}", (("before", "303"), ("limit", "1000"))]
        assert json.loads(newest.body) == answer

    run(tmp_path, test)


def test_no_tag_outlives_what_it_stands_for(tmp_path: Path) -> None:
    paths = "instruments", f"depth/{PAIR}", f"trades/{PAIR}", f"ticker/{PAIR}"
    told: list[dict[str, str]] = []

    async def test(door: Door) -> None:
        publication = door.market.publications[PAIR]
        if told:
            # The gateway was started anew with another price step and other fees.
            other = replace(publication.instrument, tick_quote_units=2_000_000, taker_fee_ppm=7)
            publication.instrument = other.validate()
        tags = {}
        for path in paths:
            known = {"If-None-Match": told[0][path]} if told else {}
            status, headers, _ = await door.get(f"/v1/{path}", known)
            assert status == 200, path
            tags[path] = headers["ETag"]
            status, _, _ = await door.get(f"/v1/{path}", {"If-None-Match": headers["ETag"]})
            assert status == 304, path
        told.append(tags)

    run(tmp_path, test)
    run(tmp_path, test)
