"""`holdfast replay`: recorded order flow through real order entry, compared with the recording.

Without `--target` an exchange of its own is started for it, in a temporary folder, with the grid
and the capacities that the recording needs, and is gone afterwards. Commands go through the batch
stream, in order; what they caused is read back from the execution feed.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from exchange.config import segment_folder
from exchange.enums import Asset, CommandKind
from exchange.instrument import AMOUNT_LIMIT_UNITS, Instrument
from exchange.records import C_CLIENT_ORDER_ID, C_VERB, EXECUTION_WORDS, Rows, account_of
from exchange.units import units_to_amount
from holdfast import packed
from holdfast.cli.compilation import compile_kernels
from holdfast.client import AsyncClient
from holdfast.errors import accepted
from holdfast.replay import FORMATS, Recording, RecordingError, read
from holdfast.replay.flash1 import Flash1Recording
from holdfast.replay.formats import fill_rows
from holdfast.retry import Retry
from holdfast.running.opening import until_open
from holdfast.running.plan import PairPlan, Plan
from holdfast.running.supervisor import Supervisor, free_ports

WINDOW: Final = 16
"""Batches under way at a time."""
PACE_S: Final = 0.005
"""A replay at recorded speed sends what has become due so often."""
_FOLDER_PREFIX: Final = "holdfast-replay-"
_ACCOUNT: Final = 1


def add_commands(commands: Any) -> None:
    """Add this module's commands to the parser."""
    parser = commands.add_parser(
        "replay", help="send recorded order flow through order entry and compare"
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--format", required=True, choices=sorted(FORMATS))
    parser.add_argument("--speed", type=float, default=0, help="1: as recorded; 0: at full speed")
    parser.add_argument("--limit", type=int, help="only so many recorded messages")
    parser.add_argument("--batch", type=int, default=1_024, help="most commands of one batch")
    parser.add_argument("--durability", choices=("fsync", "os"), default="os")
    parser.add_argument(
        "--target", help="order entry of a running pair with this grid, instead of its own"
    )
    parser.add_argument("--account", type=int, default=_ACCOUNT, help="funded, with --target")
    parser.set_defaults(command=command)


def command(given: argparse.Namespace) -> int:
    """Replay and print what matched."""
    if not 1 <= given.batch <= packed.BATCH_LIMIT:
        raise ValueError(f"--batch is {given.batch}; it must be from 1 to {packed.BATCH_LIMIT}")
    if not 0 <= given.speed <= 1e9:
        raise ValueError(f"--speed is {given.speed}; it must be 0 or more")
    console = Console()
    try:
        with console.status(f"reading {given.file.name}"):
            recording = read(given.file, given.format)
    except RecordingError as error:
        raise ValueError(str(error)) from error
    if given.limit is not None:
        recording = cut(recording, given.limit)
    if len(recording.commands) == 0:
        raise ValueError(f"{given.file} holds no commands")
    if given.speed and not recording.time_ns.any():
        raise ValueError(f"--speed is {given.speed}, but the format {given.format} has no times")
    asyncio.run(_replay(recording, given, console))
    return 0


def cut(recording: Recording, message_count: int) -> Recording:
    """Return the recording up to a number of messages, and the fills that belong to them."""
    if message_count < 1:
        raise ValueError(f"--limit is {message_count}; it must be at least 1")
    end = int(np.searchsorted(recording.message_index, message_count))
    commands = recording.commands[:end]
    new = commands[commands[:, C_VERB] & 0xFF == CommandKind.NEW_ORDER]
    mine = np.isin(recording.fills[:, 1], new[:, C_CLIENT_ORDER_ID])
    changes: dict[str, Any] = {
        "commands": commands,
        "message_index": recording.message_index[:end],
        "time_ns": recording.time_ns[:end],
        "message_count": min(message_count, recording.message_count),
        "fills": recording.fills[mine] if len(recording.fills) else fill_rows([]),
    }
    if isinstance(recording, Flash1Recording):
        changes["verbs"] = recording.verbs[:message_count]
    return replace(recording, **changes)


@dataclass(slots=True)
class Course:
    """What a replay measured."""

    began_ns: int
    spent_ns: int = 0
    batch_ns: list[int] | None = None
    last_number: int = -1

    def summary(self, command_count: int) -> str:
        """Return rate and latency in one sentence."""
        rate = command_count * 1_000_000_000 // max(1, self.spent_ns)
        taken = sorted(self.batch_ns or [0])
        median, tail = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
        return (
            f"{command_count:,} commands in {len(taken):,} batches and"
            f" {self.spent_ns / 1e9:.2f} s: {rate:,} commands/s; a batch took"
            f" {median / 1e6:.1f} ms (p50), {tail / 1e6:.1f} ms (p99)"
        )


async def _replay(recording: Recording, given: argparse.Namespace, console: Console) -> None:
    pair = recording.instrument.pair
    async with contextlib.AsyncExitStack() as stack:
        target = given.target
        if target is None:
            target = await stack.enter_async_context(_own_exchange(recording, given, console))
        client = await stack.enter_async_context(
            AsyncClient(pair, given.account, target=target, retry=Retry(patience_s=60.0))
        )
        if given.target is None:
            await _fund(client, recording.instrument)
        first_number = (await client.status()).committed_number
        course, rows = await _send_and_follow(client, recording, given, console, first_number)
    mine = rows[account_of(rows) == given.account]
    comparison = recording.compare(mine)
    console.print(course.summary(len(recording.commands)), highlight=False, soft_wrap=True)
    console.print(str(comparison), style="bold", highlight=False, soft_wrap=True)
    for note in comparison.notes:
        console.print(f"  {note}", highlight=False, soft_wrap=True, markup=False)


async def _send_and_follow(
    client: AsyncClient,
    recording: Recording,
    given: argparse.Namespace,
    console: Console,
    first_number: int,
) -> tuple[Course, Rows]:
    collected: list[Rows] = []
    finished: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_follow(client, first_number, collected, finished))
            course = await _send(client, recording, given, progress)
            finished.set_result(course.last_number)
    rows = np.concatenate(collected) if collected else np.zeros((0, EXECUTION_WORDS), np.int64)
    return course, rows[: course.last_number + 1 - first_number]


async def _follow(
    client: AsyncClient, number: int, collected: list[Rows], finished: "asyncio.Future[int]"
) -> None:
    """Collect the log until the last execution, which is only known at the end."""
    async with contextlib.aclosing(client.follow(number)) as answers:
        async for answer in answers:
            if answer.records:
                rows = np.frombuffer(answer.records, np.int64).reshape(-1, EXECUTION_WORDS)
                collected.append(rows)
                number += len(rows)
            if finished.done() and number > finished.result():
                return


async def _send(
    client: AsyncClient, recording: Recording, given: argparse.Namespace, progress: Progress
) -> Course:
    records = packed.records_of_commands(recording.commands)
    course = Course(time.monotonic_ns(), batch_ns=[])
    bar = progress.add_task(recording.name, total=len(records))
    under_way: deque[asyncio.Task[int]] = deque()

    async def send(part: packed.Records) -> int:
        began_ns = time.monotonic_ns()
        acks = await batches.submit(part)
        assert course.batch_ns is not None
        course.batch_ns.append(time.monotonic_ns() - began_ns)
        progress.advance(bar, len(part))
        return int(acks["last_number"].max())

    async with client.batches(window=WINDOW) as batches:
        async for part in _paced(recording, given):
            under_way.append(asyncio.create_task(send(records[part])))
            if len(under_way) >= WINDOW:
                course.last_number = max(course.last_number, await under_way.popleft())
        for task in under_way:
            course.last_number = max(course.last_number, await task)
    course.spent_ns = time.monotonic_ns() - course.began_ns
    return course


async def _paced(recording: Recording, given: argparse.Namespace) -> AsyncIterator[slice]:
    """Yield the commands in order: at once, or as they become due at the speed asked for."""
    if not given.speed:
        for part in recording.batches(given.batch):
            yield part
        return
    # What has no time, such as the book that a recording starts with, is due with the first.
    first_ns = recording.time_ns[recording.time_ns > 0].min()
    since_ns = np.maximum(recording.time_ns - first_ns, 0)
    due_ns = (since_ns / given.speed).astype(np.int64)
    began_ns = time.monotonic_ns()
    start = 0
    while start < len(due_ns):
        end = int(np.searchsorted(due_ns, time.monotonic_ns() - began_ns, side="right"))
        if end <= start:
            await asyncio.sleep(PACE_S)
            continue
        end = min(end, start + given.batch)
        yield slice(start, end)
        start = end


# An exchange of its own.


@contextlib.asynccontextmanager
async def _own_exchange(
    recording: Recording, given: argparse.Namespace, console: Console
) -> AsyncIterator[str]:
    """Start a pair for the recording; yield where its order entry listens."""
    await compile_kernels(console)
    with _temporary_folders() as (run, segments):
        (port,) = free_ports(1)
        instruments = run / "instruments.toml"
        instruments.write_text(_toml(recording.instrument), encoding="utf-8")
        pair = PairPlan(recording.instrument.pair, port, entry_count=1)
        plan = Plan(
            run,
            (pair,),
            durability=given.durability,
            instruments=instruments,
            segments=str(segments),
        )
        async with (
            Supervisor(plan) as supervisor,
            AsyncClient(pair.pair, target=pair.target) as client,
        ):
            with console.status(f"starting an exchange for {pair.pair}"):
                await supervisor.start()
                await until_open(supervisor, client)
            yield pair.target


@contextlib.contextmanager
def _temporary_folders() -> Iterator[tuple[Path, Path]]:
    """Make a run folder and a segment folder for this process; both are gone afterwards.

    What a killed replay left is removed first: the name says whose it was.
    """
    run, segments = (
        Path(parent, f"{_FOLDER_PREFIX}{os.getpid()}-{purpose}")
        for parent, purpose in ((tempfile.gettempdir(), "run"), (segment_folder(), "segments"))
    )
    for parent in {run.parent, segments.parent}:
        for left in parent.glob(f"{_FOLDER_PREFIX}*"):
            owner = left.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
            if owner.isdigit() and not Path("/proc", owner).exists():
                shutil.rmtree(left, ignore_errors=True)
    try:
        for folder in (run, segments):
            folder.mkdir(mode=0o700)
        yield run, segments
    finally:
        for folder in (run, segments):
            shutil.rmtree(folder, ignore_errors=True)


def _toml(instrument: Instrument) -> str:
    fields = asdict(instrument)
    pair = fields.pop("pair")
    lines = [f'["{pair}"]']
    for name, value in fields.items():
        lines.append(f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}")
    return "\n".join(lines) + "\n"


async def _fund(client: AsyncClient, instrument: Instrument) -> None:
    """Give the one account all that an engine can hold of either asset."""
    for number, (asset, decimals) in enumerate(
        ((Asset.BASE, instrument.base_decimals), (Asset.QUOTE, instrument.quote_decimals)), start=1
    ):
        amount = units_to_amount(decimals, AMOUNT_LIMIT_UNITS)
        accepted(await client.allot_funds(_ACCOUNT, asset, amount, number))
