"""Keep the embedded PostgreSQL of a run folder alive: `python -m ledgerd.postgres --run DIR`.

`ledgerd` by itself starts that server and stops it again. Where more than one service works in it,
this process does: it starts the server (or finds it running), makes the ledger's database and one
for riskd, and says in `DIR/postgres.json` where they are, once they take connections. When the
server dies, however that happens, it is started again at once; the addresses stay the same.

It stops the server when it is told to end. Killed, it leaves the server running, and the next one
goes on with it.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Final

import psycopg

from ledgerd.database import (
    OWNER,
    RISK_DATABASE,
    RISK_OWNER,
    RISK_SERVICE,
    SERVICE,
    SUPERUSER,
    DatabaseTrouble,
    EmbeddedPostgres,
)

ADDRESSES: Final = "postgres.json"
"""File in the run folder: `ledger`, `ledger_owner`, `risk` and `risk_owner`, each an address."""
RETRY_S: Final = 0.5

log = logging.getLogger("ledgerd.postgres")


def _announce(run: Path, server: EmbeddedPostgres) -> None:
    """Write where the databases are, once they are there."""
    addresses = {
        "ledger": server.url(SERVICE),
        "ledger_owner": server.url(OWNER),
        "risk": server.url(RISK_SERVICE, RISK_DATABASE),
        "risk_owner": server.url(RISK_OWNER, RISK_DATABASE),
    }
    shown = {name: url.render_as_string(hide_password=False) for name, url in addresses.items()}
    unfinished = run / f"{ADDRESSES}.new"
    unfinished.write_text(json.dumps(shown), encoding="utf-8")
    unfinished.replace(run / ADDRESSES)


async def _lost(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Return when the server ends a connection that says nothing: it died or restarts."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(connection.fileno(), ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(connection.fileno())


def _started(server: EmbeddedPostgres) -> psycopg.Connection[tuple[object, ...]]:
    """Start the server as far as needed; return a connection that lives as long as it does."""
    found = not server.start()
    server.create()
    server.create(RISK_DATABASE, owner=RISK_OWNER, service=RISK_SERVICE)
    log.info("PostgreSQL in %s %s", server.folder, "was running" if found else "is started")
    address = f"host={server.socket} user={SUPERUSER} dbname=postgres"
    return psycopg.connect(address, autocommit=True)


async def _keep(run: Path, server: EmbeddedPostgres) -> None:
    """Keep the server alive until cancelled. Raises DatabaseTrouble if it cannot be started."""
    while True:
        starting = asyncio.create_task(asyncio.to_thread(_started, server))
        try:
            connection = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # Only a server that is wholly started can be stopped.
            await asyncio.wait((starting,))
            raise
        except psycopg.OperationalError as error:
            # It died while it was being looked at.
            log.warning("PostgreSQL does not answer: %s", str(error).split("\n")[0])
            await asyncio.sleep(RETRY_S)
            continue
        with contextlib.closing(connection):
            _announce(run, server)
            await _lost(connection)
        log.warning("PostgreSQL in %s ended its connections", server.folder)


async def _serve(run: Path, server: EmbeddedPostgres) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    keeping = asyncio.create_task(_keep(run, server))
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait((keeping, stop), return_when=asyncio.FIRST_COMPLETED)
    failed = keeping.done()
    for task in (keeping, stop):
        task.cancel()
    await asyncio.gather(keeping, stop, return_exceptions=True)
    if failed:
        keeping.result()
    await asyncio.to_thread(server.stop)


def main(argv: list[str] | None = None) -> int:
    """Start, keep until stopped, stop. Return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m ledgerd.postgres", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run folder")
    run = parser.parse_args(argv).run
    try:
        run.mkdir(parents=True, exist_ok=True)
        asyncio.run(_serve(run, EmbeddedPostgres(run / "postgres")))
    except (DatabaseTrouble, OSError) as error:
        # In one line: whoever started this shows the last one.
        print(f"postgres: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
