"""Measurements of Holdfast on the machine at hand; ``python -m bench`` prints them."""

from collections.abc import Callable

from bench.harness import Rounds, Row
from bench.kernels import run_book, run_flows, run_kernel

BENCHMARKS: dict[str, tuple[str, Callable[[Rounds], list[Row]]]] = {
    "kernel": ("the kernel, every feature on, against a null kernel and the twin", run_kernel),
    "book": ("the least the kernel can be asked to do", run_book),
    "flows": ("five markets against the normal one", run_flows),
}
