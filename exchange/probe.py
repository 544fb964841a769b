"""Ask a process on this machine for its health: `python -m exchange.probe HOST:PORT SERVICE`.

Exit code 0 when the named service is serving, 1 with a sentence when it is not. For probes of
processes that listen on loopback only, which a kubelet cannot reach by itself.
"""

import argparse
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exchange.identity import open_blocking_channel

TIMEOUT_S = 2


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code for what the command line asks."""
    parser = argparse.ArgumentParser(prog="python -m exchange.probe", description=__doc__)
    parser.add_argument("address", help="host:port")
    parser.add_argument("service", help="such as alive or orders")
    given = parser.parse_args(arguments)
    with open_blocking_channel(given.address) as channel:
        request = health_pb2.HealthCheckRequest(service=given.service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            sys.stderr.write(f"{given.address}: {error.code().name}\n")
            return 1
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        sys.stderr.write(f"{given.address}: {given.service} is not serving\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
