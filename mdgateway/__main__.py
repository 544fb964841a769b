"""Run a market data gateway: `python -m mdgateway --pair BTC-USDT --run DIR --port P`.

`python -m mdgateway keys` makes, shows and revokes market data keys. A gateway may start before the
engines do: it is alive at once, and serving when every pair has a book.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from exchange.config import load_instrument
from exchange.instrument import InvalidInstrument
from exchange.service import run
from mdgateway.config import DEFAULT_TICK_MS, GatewayConfig, InvalidSetting, surroundings
from mdgateway.feed.market import Market
from mdgateway.feed.publisher import Publisher
from mdgateway.grpc_server import service_of
from mdgateway.history.source import CandleKeeper
from mdgateway.history.store import CandleStore, StoreUnusable
from mdgateway.http.config import NO_PORT, HttpConfig, add_arguments, http_config
from mdgateway.http.server import admission_of, http_server
from mdgateway.keys import __main__ as keys
from mdgateway.keys.gate import GrpcGate
from mdgateway.keys.key_file import InvalidKeyFile
from mdgateway.relay.relay import Relay
from mdgateway.warm_up import warm_up


def _arguments(argv: list[str]) -> argparse.Namespace:
    given = surroundings()
    parser = argparse.ArgumentParser(prog="python -m mdgateway", description=__doc__)
    parser.add_argument("--pair", action="append", help="may be given several times")
    parser.add_argument("--run", type=Path, help="the run folder; the port is written there")
    parser.add_argument("--host", default=given.host)
    parser.add_argument("--port", type=int, default=given.port, help="0: any free one")
    parser.add_argument("--segments", default=given.segments, help="folder of the segments")
    parser.add_argument("--instruments", type=Path, help="instrument file")
    parser.add_argument("--upstream", default="", help="follow the gateway at this host:port")
    parser.add_argument("--upstream-key", type=Path, help="file of the key to show it")
    parser.add_argument("--tick-ms", type=int, default=DEFAULT_TICK_MS)
    parser.add_argument(
        "--eager", action="store_true", help="do not wait for the tick; a third of a processor"
    )
    parser.add_argument(
        "--candles", type=Path, help="folder of the candles; else mdgateway in the run folder"
    )
    add_arguments(parser)
    parser.add_argument("--subscriber-limit", type=int, default=4_000, help="open streams a pair")
    parser.set_defaults(pair_default=given.pairs)
    return parser.parse_args(argv)


def _config(arguments: argparse.Namespace) -> GatewayConfig:
    return GatewayConfig(
        pairs=tuple(arguments.pair or arguments.pair_default),
        host=arguments.host,
        port=arguments.port,
        segments=arguments.segments,
        upstream=arguments.upstream,
        upstream_key=arguments.upstream_key,
        instruments=arguments.instruments,
        tick_ms=arguments.tick_ms,
        eager=arguments.eager,
        subscriber_limit=arguments.subscriber_limit,
    ).validate()


def _keeper(folder: Path | None, pairs: Iterable[str]) -> CandleKeeper | None:
    """Open the candles of a folder and take in what was left for them; None without a folder.

    A store that cannot be used costs its history only: candles are made all the same.
    """
    if folder is None:
        return None
    try:
        store = CandleStore(folder)
        for sentence in store.take_imports():
            print(f"mdgateway: candles from {sentence}", flush=True)
        keeper = CandleKeeper(store)
        for pair in pairs:
            keeper.source_of(pair)
    except StoreUnusable as error:
        print(
            f"mdgateway: {error}\nCandles are in memory only until the next start.", file=sys.stderr
        )
        return CandleKeeper(None)
    return keeper


async def _serve(
    config: GatewayConfig, http: HttpConfig, run_folder: Path | None, keeper: CandleKeeper | None
) -> int:
    instruments = [load_instrument(pair, config.instruments) for pair in config.pairs]
    source = Relay if config.upstream else Publisher
    market = Market([source(one, config) for one in instruments], config)
    if keeper is not None:
        for publication in market.publications.values():
            publication.keep_candles(keeper.source_of(publication.pair))
    admission = admission_of(http)
    service = service_of(market, GrpcGate(admission))
    web = http_server(market, http, admission)
    try:
        port = await service.start()
        http_port = NO_PORT if http.port == NO_PORT else await web.start()
    except (RuntimeError, OSError) as error:
        where = f"{config.host}:{config.port} and {http.host}:{http.port}"
        print(f"mdgateway: cannot listen on {where}: {error}", file=sys.stderr)
        return 1
    print(f"mdgateway: {', '.join(config.pairs)} on {config.host}:{port}", flush=True)
    print(f"mdgateway: without a key one has the tier {http.anonymous_tier}", flush=True)
    if http_port != NO_PORT:
        print(f"mdgateway: http://{http.host}:{http_port}/", flush=True)
    if run_folder is not None:
        _announce(run_folder, "mdgateway.port", port)
        if http_port != NO_PORT:
            _announce(run_folder, "mdgateway-http.port", http_port)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(market.run(partial(service.set_serving, serving=True)))
        writing = tasks.create_task(keeper.run()) if keeper is not None else None
        await service.serve_until_stopped()
        if writing is not None:
            writing.cancel()
    await web.stop()
    return 0


def _announce(run_folder: Path, name: str, port: int) -> None:
    """Write the port beside the pairs' folders, where a supervisor or a test finds it."""
    run_folder.mkdir(parents=True, exist_ok=True)
    unfinished = run_folder / f"{name}.new"
    unfinished.write_text(f"{port}\n", encoding="ascii")
    unfinished.replace(run_folder / name)


def main(argv: list[str] | None = None) -> int:
    """Start, serve until stopped, drain; return the exit status."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["keys"]:
        return keys.main(given[1:])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        arguments = _arguments(given)
        config, http = _config(arguments), http_config(arguments)
        for pair in config.pairs:
            load_instrument(pair, config.instruments)
        run_folder = arguments.run
        folder = arguments.candles or (run_folder and run_folder / "mdgateway")
        keeper = _keeper(folder, config.pairs)
    except (InvalidSetting, InvalidInstrument, InvalidKeyFile, OSError) as error:
        print(f"mdgateway: {error}", file=sys.stderr)
        return 2
    print(f"mdgateway: {asdict(config)} {asdict(http)}", flush=True)
    warm_up()
    return run(_serve(config, http, run_folder, keeper))


if __name__ == "__main__":
    sys.exit(main())
