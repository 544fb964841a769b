"""Run the risk service.

    python -m riskd --follow BTC-USDT=127.0.0.1:8850 --ledger 127.0.0.1:50071 --database-url URL
    python -m riskd --follow BTC-USDT=127.0.0.1:8850 --owner-url URL --database-url URL --migrate

Brings its tables up to date, reads what it kept, follows each pair from there, tells engines what
they do not know, and serves RiskService. Health says SERVING while every pair's feed is heard.
"""

import asyncio
import contextlib
import logging
import sys
import time
from pathlib import Path
from uuid import uuid4

from exchange.config import load_instrument
from exchange.instrument import InvalidInstrument
from exchange.service import GrpcService, NotLoopback, ServerOptions, run
from exchange.v1 import risk_pb2_grpc
from riskd.allotments import Allotments
from riskd.config import InvalidSetting, RiskConfig, parse
from riskd.desk import Desk
from riskd.funds.holdings import Holdings
from riskd.funds.moves import Policy
from riskd.links import LedgerLink, PairLink
from riskd.server import SERVICE_NAME, RiskServicer
from riskd.settings import Settings
from riskd.storage.head import DatabaseIsOlder, HeadFile
from riskd.storage.store import GONE, Store, Stored, connect, migrate

HEALTH_S = 0.2
HEAD_S = 1.0

log = logging.getLogger("riskd")


def _desk(config: RiskConfig, store: Store, stored: Stored) -> Desk:
    links = {
        pair: PairLink(load_instrument(pair, config.instruments), target)
        for pair, target in config.pairs
    }
    holdings = [
        Holdings.load(link.instrument, stored.followed[pair])
        if pair in stored.followed
        else Holdings(link.instrument)
        for pair, link in links.items()
    ]
    policy = Policy(
        sticky_ns=config.sticky_ms * 1_000_000, headroom_percent=config.headroom_percent
    )
    machine = Allotments(holdings, policy, uuid4)
    for (account, pair, asset), units in stored.targets.items():
        if pair in links:
            machine.set_target(account, pair, asset, units)
    ledger = LedgerLink(config.ledger)
    return Desk(machine, links, ledger, store, config.stale_s, config.settlement_late_s)


async def _tell_health(service: GrpcService, desk: Desk) -> None:
    told = False
    while True:
        serving = all(link.feed.connected for link in desk.links.values())
        if serving != told and not service.stopping:
            told = serving
            await service.set_serving(serving)
        await asyncio.sleep(HEALTH_S)


async def _keep_head(store: Store, folder: Path) -> None:
    file = HeadFile(folder)
    while True:
        with contextlib.suppress(*GONE):
            file.keep(await asyncio.to_thread(store.head))
        await asyncio.sleep(HEAD_S)


async def _serve(config: RiskConfig, store: Store, stored: Stored) -> int:
    desk = _desk(config, store, stored)
    settings = Settings(stored, store, desk)
    options = ServerOptions(host=config.host, port=config.port)
    service = GrpcService(options, (SERVICE_NAME,), (SERVICE_NAME,))
    servicer = RiskServicer(desk, settings, store)
    risk_pb2_grpc.add_RiskServiceServicer_to_server(servicer, service.server)
    try:
        port = await service.start()
    except RuntimeError as error:
        print(f"riskd: cannot listen on {config.host}:{config.port}: {error}", file=sys.stderr)
        return 1
    print(f"riskd: limits and allotments on {config.host}:{port}", flush=True)
    if config.run is not None:
        _announce(config.run, port)
    work = [
        asyncio.create_task(desk.run()),
        asyncio.create_task(settings.run()),
        asyncio.create_task(_tell_health(service, desk)),
    ]
    if config.run is not None:
        work.append(asyncio.create_task(_keep_head(store, config.run)))
    stopped = asyncio.create_task(service.serve_until_stopped())
    done, _ = await asyncio.wait({stopped, *work}, return_when=asyncio.FIRST_COMPLETED)
    failed = [task for task in done if task is not stopped]
    if failed:
        service.request_stop()
        await stopped
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    await desk.close()
    for task in failed:
        log.critical("the service ended by itself", exc_info=task.exception())
    return 1 if failed else 0


def _announce(folder: Path, port: int) -> None:
    """Write the port where a supervisor or a test finds it."""
    unfinished = folder / "riskd.port.new"
    unfinished.write_text(f"{port}\n", encoding="ascii")
    unfinished.replace(folder / "riskd.port")


def main(arguments: list[str] | None = None) -> int:
    """Start, serve until stopped, drain. Return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        config = parse(arguments)
        migrate(config.owner_url or config.database_url)
        if config.migrate_only:
            return 0
        engine = connect(config.database_url)
        try:
            store = Store(engine, time.time_ns)
            stored = store.load()
            if config.run is not None:
                HeadFile(config.run).check(stored.head)
            return run(_serve(config, store, stored))
        finally:
            engine.dispose()
    except (DatabaseIsOlder, InvalidSetting, InvalidInstrument, NotLoopback, OSError) as error:
        print(f"riskd: {error}", file=sys.stderr)
        return 2
    except GONE as error:
        print(f"riskd: the database does not answer: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
