"""How the money client waits for a ledger that computes, and for one that is gone."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import pytest

from holdfast import MoneyClient, Retry, Unavailable

HANG_S = 300
"""Bounds a hang; nothing is measured against it."""
IMPATIENT = Retry(patience_s=0.001, attempt_s=0.001)
LEDGER = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
from exchange.v1 import ledger_pb2

def verify(request, context):
    print("asked", flush=True)
    sys.stdin.readline()
    return ledger_pb2.VerifyBooksResponse(sound=True, seal_count=7)

server = grpc.server(ThreadPoolExecutor(2))
handler = grpc.unary_unary_rpc_method_handler(
    verify,
    ledger_pb2.VerifyBooksRequest.FromString,
    ledger_pb2.VerifyBooksResponse.SerializeToString,
)
calls = grpc.method_handlers_generic_handler(
    "exchange.v1.LedgerService", {"VerifyBooks": handler}
)
server.add_generic_rpc_handlers((calls,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()
"""
"""A ledger that answers when it is told to on its input."""


class Ledger:
    """That ledger, in a process of its own."""

    def __init__(self, child: subprocess.Popen[str], said: IO[str], told: IO[str]) -> None:
        self.child, self.said, self.told = child, said, told
        self.target = f"127.0.0.1:{said.readline().strip()}"


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    command, pipe = [sys.executable, "-c", LEDGER], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            yield Ledger(child, child.stdout, child.stdin)
        finally:
            child.kill()


def test_a_ledger_that_computes_is_waited_for_beyond_all_patience(ledger: Ledger) -> None:
    patient = MoneyClient(1, ledger=ledger.target, retry=IMPATIENT)
    with patient as money, ThreadPoolExecutor(1) as threads:
        soon = threads.submit(money.verify_books)
        assert ledger.said.readline() == "asked\n"
        ledger.told.write("\n")
        ledger.told.flush()
        assert soon.result(timeout=HANG_S).seal_count == 7


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_ledger_that_goes_away_while_it_computes_is_missed(
    ledger: Ledger, sent: signal.Signals
) -> None:
    patient = MoneyClient(1, ledger=ledger.target, retry=IMPATIENT)
    with patient as money, ThreadPoolExecutor(1) as threads:
        soon = threads.submit(money.verify_books)
        assert ledger.said.readline() == "asked\n"
        ledger.child.send_signal(sent)
        with pytest.raises(Unavailable, match="LEDGER_LOST: the ledger went away before"):
            soon.result(timeout=HANG_S)
