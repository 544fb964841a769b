"""Market data measured: publish latency, fan-out, memory, the engine beside it."""

from bench.market_data.engine_beside import run_subscribers
from bench.market_data.fanout import run_fanout
from bench.market_data.latency import run_latency
from bench.market_data.tree import run_tree
from bench.market_data.websocket import run_websocket

__all__ = ["run_fanout", "run_latency", "run_subscribers", "run_tree", "run_websocket"]
