"""docs/money.md does what it says: its commands and its Python, on an exchange as `run` starts it.

What differs from run to run (ids, addresses, times, hashes, counts, how many steps of progress were
seen) is left out of the comparison; amounts, states, words and columns are not.
"""

import re
import shlex
from collections.abc import Iterator

import pytest

from holdfast import MoneyClient
from holdfast.cli import main
from tests.integration.run_process import ROOT, RunProcess, run_folder, running, segment_folder

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PAGE = (ROOT / "docs" / "money.md").read_text(encoding="utf-8")
ON_ORDERS = ("submit", "cancel", "orders", "depth")
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
PROGRESS = ("seen:", "approved:", "sending:", "sent:")
VARIES = (
    (UUID, "ID"),
    (r"sim[0-9a-f]{40}", "ADDRESS"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
    (r"\b[0-9a-f]{16,64}\b", "HASH"),
    # Everybody's money, not that of whoever reads the page.
    (r"commits to \S+", "commits to AMOUNT"),
    # A count, but no part of an amount.
    (r"(?<![\d.])\d[\d,]*(?![\d.]*\.\d|\d)", "N"),
    (r"\s+", " "),
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def told(text: str) -> list[str]:
    """Return lines without what varies."""
    kept = [line for line in text.splitlines() if not line.startswith(PROGRESS)]
    for pattern, word in VARIES:
        kept = [re.sub(pattern, word, line).strip() for line in kept]
    return kept


def commands() -> Iterator[tuple[str, str]]:
    """Yield each command of the page with what the page says it prints."""
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            yield line, output


@pytest.fixture(scope="module")
def exchange() -> Iterator[RunProcess]:
    with (
        segment_folder() as segments,
        run_folder() as folder,
        running(folder, segments, "--no-flow") as process,
    ):
        process.until("Try it")
        yield process
        process.stop()


def arguments(exchange: RunProcess, line: str) -> list[str]:
    """Return a command of the page with where this exchange is."""
    program, *words = shlex.split(line)
    assert program == "holdfast", line
    if words[0] in ON_ORDERS:
        where = ["--target", exchange.orders_target, "--market-data", exchange.market_data_target]
        return [*words, *where]
    words += ["--run", str(exchange.run)]
    if words[0] == "verify":
        for pair, target in exchange.targets.items():
            words += ["--pair", f"{pair}={target}"]
    return words


def await_usable_address(exchange: RunProcess) -> None:
    with MoneyClient(100, ledger=exchange.ledger_target) as money:
        while True:
            found = money.addresses()
            if all(one.usable_ns <= found.now_ns for one in found.addresses):
                return


def await_settled(exchange: RunProcess) -> None:
    """Return once the books have what the engines did so far."""
    with MoneyClient(ledger=exchange.ledger_target, pairs=exchange.targets) as money:
        for pair in exchange.targets:
            settled = money.until_settled(pair, money.digest(pair).number)
            assert settled is not None
            assert settled.state == "running"


def test_the_page_is_what_happens(exchange: RunProcess, capsys: pytest.CaptureFixture[str]) -> None:
    ids: dict[str, str] = {}
    seen = 0
    for line, output in commands():
        given = re.sub(UUID, lambda found: ids[found[0]], line)
        if given.startswith("holdfast withdraw "):
            await_usable_address(exchange)
        status = main(arguments(exchange, given))
        captured = capsys.readouterr()
        assert status == ("holdfast: " in captured.err), captured
        printed = captured.out + captured.err
        assert told(printed) == told(output), line
        if shlex.split(line)[1] in ON_ORDERS:
            await_settled(exchange)
        ids.update(zip(re.findall(UUID, output), re.findall(UUID, printed), strict=True))
        seen += 1
    assert seen > 20


def test_the_python_of_the_page_runs(exchange: RunProcess) -> None:
    program = "\n".join(blocks("python"))
    usual = {
        "127.0.0.1:8870": exchange.ledger_target,
        "127.0.0.1:8871": exchange.risk_target,
        "127.0.0.1:8850": exchange.targets["BTC-USDT"],
        "127.0.0.1:8860": exchange.targets["ETH-USDT"],
    }
    for address, here in usual.items():
        assert address in program
        program = program.replace(address, here)
    names: dict[str, object] = {}
    exec(compile(program, "docs/money.md", "exec"), names)
    money = names["money"]
    assert isinstance(money, MoneyClient)
    assert all(finding.sound for finding in money.verify())
    money.close()
