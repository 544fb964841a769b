"""Compiles the kernels of all services before the first of them starts, and shows it.

The services do it themselves if they must, but then a newcomer looks at nothing for a minute. A
stamp beside the compiled code says for which sources it is complete; with it nothing is done.
"""

import asyncio
import platform
import sys
import time
from pathlib import Path
from typing import Final

import numba
from rich.console import Console
from rich.status import Status

from exchange.compiled import cache_directory, sources_stamp
from holdfast.running.supervisor import SupervisorError

# The services are told by their command lines: this package imports none of them.
_COMPILERS: Final = {
    "engine": ("-m", "engine.warm_up"),
    "mdgateway": ("-c", "from mdgateway.warm_up import warm_up; warm_up()"),
}


class CompilationFailed(SupervisorError):
    """A compiler ended with an error; the message holds what it said last."""


def _stamp() -> Path:
    versions = f"{platform.machine()}-{platform.python_version()}-{numba.__version__}"
    return Path(cache_directory) / f"complete-{sources_stamp()}-{versions}"


async def compile_kernels(console: Console) -> None:
    """Compile what is not compiled yet, a line for each kernel. Raises CompilationFailed."""
    stamp = _stamp()
    if stamp.exists():
        return
    started_ns = time.monotonic_ns()
    message = "compiling the kernels (about a minute, the first time only)"
    with console.status(message) as status:
        if not console.is_terminal:
            console.print(message, highlight=False)
        async with asyncio.TaskGroup() as tasks:
            for name, arguments in _COMPILERS.items():
                tasks.create_task(_compile(name, arguments, console, status))
    spent_s = (time.monotonic_ns() - started_ns) // 1_000_000_000
    console.print(f"all kernels are compiled, in {spent_s} s", highlight=False)
    stamp.touch()


async def _compile(name: str, arguments: tuple[str, ...], console: Console, status: Status) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    last = ""
    try:
        assert process.stdout is not None
        async for raw in process.stdout:
            last = raw.decode("utf-8", "replace").rstrip()
            if last.startswith("compiling "):
                status.update(f"{name}: {last} …")
            elif last.startswith("compiled "):
                console.print(f"  {name}: {last}", style="dim", highlight=False)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code:
        raise CompilationFailed(f"the kernels of {name} do not compile: {last}")
