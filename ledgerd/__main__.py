"""Run the books: `python -m ledgerd --run DIR --follow BTC-USDT=127.0.0.1:8850 --port P`.

Starts the embedded PostgreSQL of the run folder (or uses the server it is given), brings its
tables up to date, lists the pairs, settles each from where it stands, and serves LedgerService
and FundsService.

    python -m ledgerd migrate --run DIR     bring the tables up to date and end: with --owner-url,
                                            before a `serve` that has none
    python -m ledgerd verify --run DIR      prove the books; exit status 1 names what is wrong
"""

import argparse
import asyncio
import logging
import signal
import sys
import time
from pathlib import Path

from sqlalchemy import Engine

from exchange.config import followed_pairs, load_instrument
from exchange.instrument import Instrument, InvalidInstrument
from exchange.service import NotLoopback, ServerOptions, require_loopback, run
from exchange.v1 import funds_pb2_grpc
from ledgerd.config import InvalidSetting, LedgerConfig, settings_from
from ledgerd.custody.adapter import Custody
from ledgerd.database import (
    GONE,
    OWNER,
    SERVICE,
    DatabaseTrouble,
    EmbeddedPostgres,
    connect,
    migrate,
)
from ledgerd.days.schedule import DailyClose
from ledgerd.doors.funds_server import SERVICE_NAME as FUNDS_SERVICE
from ledgerd.doors.funds_server import FundsServicer
from ledgerd.follower import PairFollower, Status
from ledgerd.funds.desk import open_custody, open_desk
from ledgerd.funds.pipelines import Pipelines
from ledgerd.funds.settings import FundsSettings, InvalidFunds, add_arguments
from ledgerd.heads import BooksAreOlder, Heads
from ledgerd.ledger import Ledger
from ledgerd.reserves.proof import prove
from ledgerd.server import LedgerServer, LedgerServicer
from ledgerd.trail.progress import Progress

WATCH_S = 1.0
"""Between two looks at the database: its life, its heads, expired transfers."""

log = logging.getLogger("ledgerd")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    given = settings_from()
    parser = argparse.ArgumentParser(
        prog="python -m ledgerd",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "action", nargs="?", choices=("serve", "migrate", "verify"), default="serve"
    )
    parser.add_argument("--run", type=Path, required=True, help="the run folder")
    parser.add_argument(
        "--follow",
        action="append",
        default=[],
        metavar="PAIR=HOST:PORT",
        help="a pair to settle and its order entry; may be given several times",
    )
    parser.add_argument("--host", default=given["host"])
    parser.add_argument("--port", type=int, default=int(given["port"]), help="0: any free one")
    parser.add_argument("--database-url", default=given["database_url"])
    parser.add_argument("--owner-url", default=given["owner_url"])
    parser.add_argument("--instruments", type=Path, help="instrument file")
    add_arguments(parser)
    return parser.parse_args(argv)


def _config(arguments: argparse.Namespace) -> LedgerConfig:
    require_loopback(arguments.host)
    ownerless = arguments.action == "migrate" and arguments.database_url and not arguments.owner_url
    if ownerless:
        raise InvalidSetting("owner_url is ''; to migrate, it must be the address as the owner")
    return LedgerConfig(
        run=arguments.run,
        pairs=followed_pairs(arguments.follow),
        host=arguments.host,
        port=arguments.port,
        database_url=arguments.database_url,
        owner_url=arguments.owner_url,
        instruments=arguments.instruments,
        funds=FundsSettings.given(arguments),
    ).validate()


class Database:
    """The database of a run: started and stopped by us if it is the embedded one."""

    def __init__(self, config: LedgerConfig) -> None:
        self._embedded: EmbeddedPostgres | None = None
        self._started = False
        if config.database_url:
            self.url, self._owner = config.database_url, config.owner_url
        else:
            self._embedded = EmbeddedPostgres(config.postgres)
            service, owner = self._embedded.url(SERVICE), self._embedded.url(OWNER)
            self.url = service.render_as_string(hide_password=False)
            self._owner = owner.render_as_string(hide_password=False)

    def start(self, *, prepare: bool) -> None:
        """Start the server; make and migrate the tables if asked, as far as we may.

        Raises DatabaseTrouble, GONE.
        """
        if self._embedded is not None:
            self._started = self._embedded.start()
            if prepare:
                # A server that survived a kill of ours is ours to stop again.
                self._started = True
                self._embedded.create()
        if prepare and self._owner:
            migrate(self._owner)

    def stop(self) -> None:
        """Stop the server if we started it."""
        if self._embedded is not None and self._started:
            self._embedded.stop()


class Process:
    """Everything one ledgerd runs."""

    def __init__(self, config: LedgerConfig, engine: Engine) -> None:
        self.engine = engine
        custodian = config.funds.custodian != "none"
        self.ledger = Ledger(engine, time.time_ns, custodian=custodian)
        self.heads = Heads(config.heads, self._older)
        self.instruments = [load_instrument(pair, config.instruments) for pair, _ in config.pairs]
        self.followers = [
            PairFollower(self.ledger, instrument, target, time.time_ns)
            for instrument, (_, target) in zip(self.instruments, config.pairs, strict=True)
        ]
        self.daily_close = DailyClose(self.ledger, self._passed_ns, time.time_ns)
        self.config = config
        self.servicer = LedgerServicer(self.ledger, engine, self.statuses, self.heads)
        options = ServerOptions(host=config.host, port=config.port)
        self.server = LedgerServer(self.servicer, options, config.threads, (FUNDS_SERVICE,))

    def open_funds(self) -> Pipelines:
        """Serve the way in and out; return its rounds. The assets have to be listed before."""
        desk = open_desk(self.ledger, self.engine, time.time_ns, self.config.funds, self.config.run)
        if self.config.funds.custodian != "none":
            self.servicer.custody = desk.custody
        pipelines = Pipelines(desk, lambda: self.heads.sentence)
        servicer = FundsServicer(desk, pipelines, lambda: self.heads.sentence)
        funds_pb2_grpc.add_FundsServiceServicer_to_server(servicer, self.server.server)
        return pipelines

    def statuses(self) -> list[Status]:
        """Return how settlement of each pair goes."""
        return [follower.status for follower in self.followers]

    def _passed_ns(self) -> int:
        passed = (follower.status.passed_ns for follower in self.followers)
        return min(passed, default=time.time_ns())

    def _older(self, sentence: str) -> None:
        log.critical("%s", sentence)
        for follower in self.followers:
            follower.stop(sentence)

    async def watch(self) -> None:
        """Look after the database: alive, not older than it was, expired transfers voided."""
        while True:
            try:
                await asyncio.to_thread(self.heads.check, self.engine)
                await asyncio.to_thread(self.ledger.expire)
                self.server.set_serving(True)
            except GONE as error:
                self.server.set_serving(False)
                log.warning("the database does not answer: %s", str(error).split("\n")[0])
            except BooksAreOlder:
                self.server.set_serving(False)
            except Exception:
                # Whatever it was, somebody has to go on looking, and health must not lie.
                self.server.set_serving(False)
                log.exception("looking after the database failed")
            await asyncio.sleep(WATCH_S)


async def _serve(config: LedgerConfig, process: Process, instruments: list[Instrument]) -> int:
    process.heads.check(process.engine)
    for instrument in instruments:
        process.ledger.list_pair(instrument)
    pipelines = process.open_funds()
    try:
        port = process.server.start()
    except RuntimeError as error:
        print(f"ledgerd: cannot listen on {config.host}:{config.port}: {error}", file=sys.stderr)
        return 1
    print(f"ledgerd: the books on {config.host}:{port}", flush=True)
    _announce(config.run, port)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    tasks = [asyncio.create_task(follower.run()) for follower in process.followers]
    tasks.append(asyncio.create_task(process.watch()))
    tasks.append(asyncio.create_task(process.daily_close.run()))
    tasks.append(asyncio.create_task(pipelines.run()))
    await stopping.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(process.server.stop)
    # What was committed last is what a restored database will be compared with.
    process.heads.check(process.engine)
    return 0


def _announce(run_folder: Path, port: int) -> None:
    """Write the port beside the pairs' folders, where a supervisor or a test finds it."""
    unfinished = run_folder / "ledgerd.port.new"
    unfinished.write_text(f"{port}\n", encoding="ascii")
    unfinished.replace(run_folder / "ledgerd.port")


def _say_how_far(sentence: str) -> None:
    """Say how far a proof is where no program reads what it found."""
    print(f"ledgerd: {sentence}", file=sys.stderr, flush=True)


def _verify(engine: Engine, heads: Heads, custody: Custody | None) -> int:
    if not heads.path.exists():
        print(f"ledgerd: there is no {heads.path}: commits that were cut off are not missed")
    report = prove(engine, heads, custody, Progress(_say_how_far))
    for complaint in report.complaints:
        print(f"ledgerd: {complaint}")
    for pair, (cursor, digest) in report.engines.items():
        print(
            f"ledgerd: before execution {cursor} the engine of {pair} must hold"
            f" {digest.digest % (1 << 64):016x}: {digest.account_count} accounts,"
            f" {digest.base_units} base and {digest.quote_units} quote units,"
            f" {digest.fee_units} taken as fees"
        )
    print(
        f"ledgerd: {report.seal_count} seals, {report.transfer_count} transfers,"
        f" {report.posting_count} postings, {report.account_count} accounts:"
        f" {'sound' if report.sound else 'NOT SOUND'}"
    )
    return 0 if report.sound else 1


def main(argv: list[str] | None = None) -> int:
    """Start, serve until stopped, drain; or verify. Return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # What the migrations say of themselves is of no interest to an operator.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        arguments = _arguments(argv)
        config = _config(arguments)
        config.run.mkdir(parents=True, exist_ok=True)
        database = Database(config)
        try:
            database.start(prepare=arguments.action != "verify")
            if arguments.action == "migrate":
                return 0
            engine = connect(database.url, config.pool_size)
            try:
                if arguments.action == "verify":
                    custody = open_custody(engine, time.time_ns, config.funds, config.run)
                    return _verify(engine, Heads(config.heads), custody)
                process = Process(config, engine)
                return run(_serve(config, process, process.instruments))
            finally:
                engine.dispose()
        finally:
            database.stop()
    except (InvalidSetting, InvalidFunds, InvalidInstrument, NotLoopback, OSError) as error:
        print(f"ledgerd: {error}", file=sys.stderr)
        return 2
    except (DatabaseTrouble, BooksAreOlder, *GONE) as error:
        print(f"ledgerd: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
