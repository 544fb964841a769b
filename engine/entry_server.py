"""One order-entry process: `python -m engine.entry_server --pair P --run DIR --ring K --port N`.

Serves order entry, the execution feed and the admin calls of one pair on loopback. Several such
processes share a port, each with a ring of its own; any of them answers for all accounts.
"""

import asyncio
import logging
import sys

from engine.entry.admin_server import PairAdminService
from engine.entry.config import EntryConfig, parse
from engine.entry.feed_server import ExecutionFeedService
from engine.entry.order_server import OrderEntryService
from engine.entry.process import EntryProcess
from exchange.service import GrpcService, ServerOptions, run
from exchange.v1 import (
    execution_feed_pb2,
    execution_feed_pb2_grpc,
    order_entry_pb2,
    order_entry_pb2_grpc,
    pair_admin_pb2,
    pair_admin_pb2_grpc,
)

log = logging.getLogger(__name__)


def _names() -> list[str]:
    """Return the full names of the services, for reflection."""
    files = (order_entry_pb2, execution_feed_pb2, pair_admin_pb2)
    return [
        service.full_name for file in files for service in file.DESCRIPTOR.services_by_name.values()
    ]


def assemble(config: EntryConfig) -> tuple[GrpcService, EntryProcess]:
    """Return the server and the process behind it, not yet started."""
    options = ServerOptions(
        host=config.host,
        port=config.port,
        share_port=config.port != 0,
        grace_s=config.grace_s,
    )
    service = GrpcService(options, _names(), ["orders"])
    process = EntryProcess(config)
    orders = OrderEntryService(process)
    order_entry_pb2_grpc.add_OrderEntryServiceServicer_to_server(orders, service.registry)
    execution_feed_pb2_grpc.add_ExecutionFeedServiceServicer_to_server(
        ExecutionFeedService(process), service.registry
    )
    pair_admin_pb2_grpc.add_PairAdminServiceServicer_to_server(
        PairAdminService(process), service.registry
    )
    service.goodbyes.append(orders.say_goodbye)
    return service, process


async def serve(config: EntryConfig) -> int:
    """Serve until told to stop; return the exit status."""
    service, process = assemble(config)
    port = await service.start()
    sys.stdout.write(f"order entry of {config.instrument.pair} listens on {config.host}:{port}\n")
    sys.stdout.flush()

    rhythm = asyncio.create_task(process.run(service.set_serving))

    def rhythm_ended(task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            log.error("order entry cannot go on", exc_info=task.exception())
            service.request_stop()

    rhythm.add_done_callback(rhythm_ended)
    await service.serve_until_stopped()
    failed = rhythm.done()
    rhythm.cancel()
    await process.close()
    return int(failed)


def main() -> int:
    """Run the process that the command line describes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    return run(serve(parse()))


if __name__ == "__main__":
    sys.exit(main())
