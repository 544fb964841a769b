"""The digest of all money: one definition, three writings, and a command that changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import vault_layout as vault
from engine.durability.journal import Durability
from engine.durability.snapshot import write
from engine.entry.batches import expand_records, records_of_columns
from engine.recovery import Recovered, recover, take_snapshot
from engine.sequencer import chain
from engine.state_machine import Engine
from exchange.account_digest import GAMMA, AccountDigest, digest_of, mix, row_digest, row_digests
from exchange.compiled import kernel
from exchange.config import RunFolder
from exchange.enums import Asset, CommandKind, ExecutionKind
from exchange.records import (
    C_VERB,
    COMMAND_WORDS,
    E_ACCOUNT_COUNT,
    E_BASE_TOTAL,
    E_DIGEST,
    E_FEES_TAKEN,
    E_QUOTE_TOTAL,
    Rows,
    command_verb,
    kind_of,
)
from exchange.refusal import Refusal
from exchange.tables import int64, uint64
from exchange.v1 import order_entry_pb2
from tests.golden.notation import small_instrument
from tests.property.streams import UNIVERSES, Author, SeededDice
from tests.reference.digest import row_digest as plain_row_digest
from tests.reference.digest import signed
from tests.reference.drivers import TIME_NS, Kernel, Twin

WORDS = st.integers(-(1 << 63), (1 << 63) - 1)
ROWS = st.tuples(st.integers(1, (1 << 24) - 1), st.integers(0, 1 << 61), st.integers(0, 1 << 61))


@kernel
def mixed(word: int) -> Any:
    """Return `mix` as compiled code computes it."""
    return int64(mix(uint64(word)))


@kernel
def digested(account: int, base_units: int, quote_units: int) -> Any:
    """Return `row_digest` as compiled code computes it."""
    return int64(row_digest(uint64(account), uint64(base_units), uint64(quote_units)))


def digest_command() -> Rows:
    """Return the command."""
    row = np.zeros((1, COMMAND_WORDS), np.int64)
    row[0, C_VERB] = command_verb(CommandKind.DIGEST_ACCOUNTS, 0)
    return row


def of_rows(table: Rows, fee_units: int = 0) -> AccountDigest:
    """Return the digest of rows (account, base units, quote units)."""
    return digest_of(table[:, 0], table[:, 1], table[:, 2], fee_units)


def told(executions: Rows) -> AccountDigest:
    """Return what the one DIGEST among executions says."""
    (row,) = executions[kind_of(executions) == ExecutionKind.DIGEST]
    return AccountDigest(
        *row[[E_DIGEST, E_ACCOUNT_COUNT, E_BASE_TOTAL, E_QUOTE_TOTAL, E_FEES_TAKEN]].tolist()
    )


def held_by(engine: Engine) -> AccountDigest:
    """Return the digest of an engine's accounts, capacity and all, the way the books do it."""
    accounts = engine.vault["accounts"]
    return digest_of(
        np.arange(len(accounts)),
        accounts[:, vault.A_FREE_BASE] + accounts[:, vault.A_HELD_BASE],
        accounts[:, vault.A_FREE_QUOTE] + accounts[:, vault.A_HELD_QUOTE],
        int(engine.vault["scalars"][vault.FEES_TAKEN]),
    )


def test_the_mixer_is_the_published_one() -> None:
    # The first outputs of SplitMix64 with seed 0, as its authors' program prints them.
    published = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    found = [mixed(signed(int(GAMMA) * (i + 1))) % (1 << 64) for i in range(3)]
    assert found == list(published)


@given(st.lists(st.tuples(WORDS, WORDS, WORDS), max_size=20))
def test_three_writings_of_the_row_digest_agree(rows: list[tuple[int, int, int]]) -> None:
    table = np.array(rows, np.int64).reshape(-1, 3)
    found = row_digests(table[:, 0], table[:, 1], table[:, 2])
    assert found.dtype == np.uint64
    assert found.tolist() == [plain_row_digest(*row) for row in rows]
    assert [digested(*row) for row in rows] == found.view(np.int64).tolist()


@given(st.lists(ROWS, unique_by=lambda row: row[0], max_size=20), st.integers(0, 1 << 40))
def test_the_sum_knows_no_order_and_skips_who_has_nothing(
    rows: list[tuple[int, int, int]], fee_units: int
) -> None:
    table = np.array(rows, np.int64).reshape(-1, 3)
    some = table[(table[:, 1] != 0) | (table[:, 2] != 0)]
    found = of_rows(table, fee_units)
    assert found == of_rows(some[::-1], fee_units)
    expected = sum(plain_row_digest(*row) for row in some.tolist())
    expected += plain_row_digest(0, 0, fee_units) if fee_units else 0
    assert found.digest == signed(expected)
    assert found.account_count == len(some)


@given(st.lists(ROWS, unique_by=lambda row: row[0], min_size=2, max_size=9), st.data())
def test_a_unit_in_another_place_is_another_digest(
    rows: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    table = np.array(rows, np.int64)
    moved = table.copy()
    giver, taker = data.draw(st.permutations(range(len(rows))))[:2]
    column = data.draw(st.sampled_from((1, 2)))
    moved[giver, column] -= 1
    moved[taker, column] += 1
    assert of_rows(moved).digest != of_rows(table).digest
    swapped = table.copy()
    swapped[:, 1:] = table[:, :0:-1]
    if (table[:, 1] != table[:, 2]).any():
        assert of_rows(swapped).digest != of_rows(table).digest


@pytest.mark.parametrize("name", ["wide", "fees"])
def test_the_command_says_what_all_accounts_have_and_changes_nothing(name: str) -> None:
    dice, universe = SeededDice(7), UNIVERSES[name]
    twin, engine = Twin(universe.instrument), Kernel(universe.instrument)
    author = Author(dice, universe, twin)
    pending = author.opening()
    digests = set()
    for _ in range(600):
        command = pending.pop(0) if pending else author.command()
        author.watch(twin.apply(command))
        engine.apply(command)
        before = engine.state(), held_by(engine.engine)
        digest = told(engine.engine.apply(digest_command(), TIME_NS))
        twin.apply(digest_command()[0].tolist())
        assert (engine.state(), digest) == before
        digests.add(digest.digest)
    assert engine.summary() == twin.summary()
    assert len(digests) > 50


def append(found: Recovered, commands: Rows) -> Rows:
    """Carry a batch through journal, kernel and log, as the sequencer does."""
    found.journal.append(commands, found.engine.sequence + 1, TIME_NS, found.chain_hash)
    found.journal.sync()
    executions = found.engine.apply(commands, TIME_NS)
    found.chain_hash = chain(executions, found.chain_hash)
    found.log.append(executions)
    found.log.commit()
    return executions


def close(found: Recovered) -> None:
    """Let the files go."""
    found.journal.close()
    found.log.close()


def allotment(number: int, account: int) -> Rows:
    """Return the command that gives an account some base units."""
    row = [command_verb(CommandKind.ALLOT_FUNDS, account), number, 0, Asset.BASE, 10 * account]
    return np.array([[*row, 0, 0, 0]], np.int64)


@pytest.mark.parametrize("with_snapshot", [False, True])
def test_a_replay_says_the_same_and_knows_the_same_accounts(
    tmp_path: Path, with_snapshot: bool
) -> None:
    instrument, folder = small_instrument(), RunFolder(tmp_path, "BTC-USDT")

    def recovered() -> Recovered:
        memory = Engine.in_memory(instrument)
        return recover(folder, instrument, Durability.OS, memory.vault, memory.book)

    found = recovered()
    append(found, allotment(1, 9))
    append(found, allotment(2, 4))
    if with_snapshot:
        write(folder.journal, take_snapshot(found.engine, found.chain_hash))
    digest = told(append(found, digest_command()))
    state_hash = found.engine.state_hash()
    close(found)
    found = recovered()
    assert found.replayed_count == (1 if with_snapshot else 3)
    assert found.engine.state_hash() == state_hash
    assert told(append(found, digest_command())) == digest == held_by(found.engine)
    append(found, allotment(3, 15))
    assert told(append(found, digest_command())) == held_by(found.engine)
    found.engine.check()
    close(found)


def test_a_lost_open_account_is_noticed() -> None:
    engine = Engine.in_memory(small_instrument())
    engine.apply(np.concatenate([allotment(1, 9), allotment(2, 4)]), TIME_NS)
    engine.check()
    engine.vault["open_accounts"][1] = 9
    with pytest.raises(AssertionError, match="the list of open accounts differs"):
        engine.check()


def test_traders_cannot_ask_for_it() -> None:
    packed = records_of_columns(
        order_entry_pb2.CommandColumns(kinds=[CommandKind.DIGEST_ACCOUNTS, CommandKind.CANCEL_ALL])
    )
    assert not isinstance(packed, Refusal)
    ring = np.zeros((2, COMMAND_WORDS), np.int64)
    expand_records(packed, 3, 0, 0, ring)
    assert (ring[:, C_VERB] & 0xFF).tolist() == [0, CommandKind.CANCEL_ALL]
