"""`holdfast verify`: proves the money against the running services, and says what is not sound."""

import argparse
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from holdfast.cli.money.options import client, command, ledger_of, print_json
from holdfast.money.verification import PATIENT, Finding
from holdfast.retry import Retry
from holdfast.running.plan import LEDGER_OFFSET, PAIRS, orders_offset

EVERY_S: Final = 10
"""Between two words to whoever waits at a terminal."""


def add_commands(commands: Any) -> None:
    """Add this module's commands to the parser."""
    verify = command(
        commands,
        "verify",
        _verify,
        "prove the chain, the balances, the sums, and that ledger and engines agree",
    )
    verify.add_argument(
        "--pair",
        action="append",
        default=[],
        metavar="PAIR=HOST:PORT",
        help="order entry of a pair, for another run than a usual one; may be given several times",
    )
    verify.add_argument(
        "--wait", type=int, default=60, help="seconds until a pair's digest must be settled"
    )
    verify.add_argument(
        "--proof",
        metavar="ASSET",
        help="instead: take a Merkle proof of what the account is owed, and check it here",
    )


def _pairs(given: list[str], ledger: str) -> dict[str, str]:
    """Return where each pair's order entry is: as given, or where `holdfast run` has it.

    There all ports have fixed distances, so that the ledger's tells the others.
    """
    host, _, port = ledger.rpartition(":")
    found = {}
    if port.isascii() and port.isdigit():
        first = int(port) - LEDGER_OFFSET
        for place, pair in enumerate(PAIRS):
            found[pair] = f"{host}:{first + orders_offset(place)}"
    for item in given:
        pair, _, target = item.partition("=")
        if not pair or not target:
            raise ValueError(f"--pair is {item!r}; it must be PAIR=HOST:PORT")
        found[pair] = target
    return found


def _verify(given: argparse.Namespace) -> int:
    if given.proof is not None:
        return _prove(given)
    patience = Retry(given.wait, PATIENT.attempt_s).validate()
    findings: list[Finding] = []
    pairs = _pairs(given.pair, ledger_of(given))
    with client(given, pairs=pairs) as money, told_to_wait():
        for finding in money.verify(patience=patience):
            findings.append(finding)
            if not given.json:
                print(_line(finding), flush=True)
    sound = all(finding.sound for finding in findings)
    if given.json:
        print_json({"sound": sound, "findings": findings})
    else:
        print("everything is proved" if sound else "NOT SOUND")
    return 0 if sound else 1


@contextmanager
def told_to_wait() -> Iterator[None]:
    """Say on a terminal every few seconds that the work goes on; say nothing to anything else."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()

    def say() -> None:
        times = 0
        while not done.wait(EVERY_S):
            times += 1
            print(
                f"holdfast: at work for {times * EVERY_S} s; the ledger's log says how far it"
                " is in the books",
                file=sys.stderr,
                flush=True,
            )

    teller = threading.Thread(target=say, name="told-to-wait", daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _line(finding: Finding) -> str:
    return f"{finding.subject}: {'' if finding.sound else 'NOT SOUND: '}{finding.sentence}"


def _prove(given: argparse.Namespace) -> int:
    with client(given) as money:
        finding, proof = money.verify_liability(given.proof)
    if given.json:
        print_json({"sound": finding.sound, "finding": finding, "proof": proof})
    else:
        print(_line(finding))
    return 0 if finding.sound else 1
