"""Measurements of Holdfast on the machine at hand; ``python -m bench`` prints them."""

from collections.abc import Callable

from bench.allotment import run_allotment
from bench.durability import run_batches, run_journal, run_replay
from bench.entry import run_entry, run_processes
from bench.harness import Rounds, Row
from bench.kernels import run_book, run_flows, run_kernel
from bench.market_data import run_fanout, run_latency, run_subscribers, run_tree, run_websocket
from bench.memory import run_memory
from bench.reads import run_readers, run_reads
from bench.rings import run_rings
from bench.settlement import run_settlement

BENCHMARKS: dict[str, tuple[str, Callable[[Rounds], list[Row]]]] = {
    "kernel": ("the kernel, every feature on, against a null kernel and the twin", run_kernel),
    "book": ("the least the kernel can be asked to do", run_book),
    "flows": ("five markets against the normal one", run_flows),
    "ring": ("one command at a time, process to process and back", run_rings),
    "batches": ("the sequencer's loop by the size of its batches", run_batches),
    "journal": ("the journal against a bare sync", run_journal),
    "replay": ("recovery against the live kernel", run_replay),
    "reads": ("stable reads against plain copies", run_reads),
    "readers": ("the engine while somebody reads its book", run_readers),
    "subscribers": ("the engine with a hundred subscribers beside it", run_subscribers),
    "latency": ("from a changed book to a subscriber's stream", run_latency),
    "fanout": ("one book to many gRPC streams against a bare server", run_fanout),
    "tree": ("gateways that follow gateways, against the first one", run_tree),
    "websocket": ("one book to a thousand WebSocket clients against bare servers", run_websocket),
    "memory": ("what a book costs by its size", run_memory),
    "entry": ("orders over gRPC against a bare echo", run_entry),
    "allotment": ("an order that lacks money against one that does not", run_allotment),
    "settlement": ("trades into PostgreSQL against one transaction each", run_settlement),
    "processes": ("order entry by the number of its processes", run_processes),
}
