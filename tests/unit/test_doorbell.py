"""The bell: never blocks, never lies, survives the listener; the sleeper misses nothing."""

import asyncio
import os
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exchange import atomics
from exchange.doorbell import (
    AlreadyListening,
    Doorbell,
    Ringer,
    Sleeper,
    fall_asleep,
    is_asleep,
    spin_until_changed,
    wake_up,
)

ASLEEP = 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bell"


def watched() -> tuple[Any, Any, Any]:
    """Return two words to wait for, their addresses, and what was seen of them."""
    words = np.zeros(64, np.int64)
    addresses = np.array([words.ctypes.data, words.ctypes.data + 8], np.int64)
    return words, addresses, np.zeros(2, np.int64)


def test_nobody_listening_is_no_error(path: Path) -> None:
    ringer = Ringer(path)
    assert not ringer.ring()
    os.mkfifo(path)
    assert not ringer.ring()


def test_a_ring_wakes_and_is_forgotten_once_drained(path: Path) -> None:
    with Doorbell.listen(path) as bell:
        ringer = Ringer(path)
        assert ringer.ring()
        assert ringer.ring()
        assert bell.wait()
        assert not bell.wait(0)
        assert not bell.drain()
        ringer.close()
        # Without any ringer left the bell is silent, not ended.
        assert not bell.wait(0)


def test_the_pipe_is_for_owner_and_group_whatever_the_umask(path: Path) -> None:
    old = os.umask(0o077)
    try:
        with Doorbell.listen(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
    finally:
        os.umask(old)


def test_a_full_pipe_neither_blocks_nor_fails(path: Path) -> None:
    with Doorbell.listen(path) as bell:
        ringer = Ringer(path)
        assert all(ringer.ring() for _ in range(70_000))
        assert bell.drain()
        assert not bell.drain()
        assert ringer.ring()
        ringer.close()


def test_a_second_listener_is_refused(path: Path) -> None:
    with (
        Doorbell.listen(path),
        pytest.raises(AlreadyListening, match="another process listens"),
    ):
        Doorbell.listen(path)
    Doorbell.listen(path).close()


@pytest.mark.parametrize("unlink", [False, True])
def test_a_ringer_finds_the_listener_that_came_back(path: Path, unlink: bool) -> None:
    bell = Doorbell.listen(path)
    ringer = Ringer(path)
    assert ringer.ring()
    bell.close(unlink=unlink)
    assert path.exists() is not unlink
    assert not ringer.ring()
    with Doorbell.listen(path) as bell:
        assert not bell.drain()
        assert ringer.ring()
        assert bell.wait()
    ringer.close()


def test_something_else_at_the_path_is_refused_and_untouched(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(OSError, match="not a named pipe"):
        Doorbell.listen(path)
    with pytest.raises(OSError, match="not a named pipe"):
        Ringer(path).ring()
    assert path.read_bytes() == b"precious"


def test_closing_twice_is_closing_once(path: Path) -> None:
    bell = Doorbell.listen(path)
    bell.close()
    bell.close()


def test_it_rings_only_for_a_listener_that_sleeps(path: Path) -> None:
    words = np.zeros(64, np.int64)
    with Doorbell.listen(path) as bell:
        ringer = Ringer(path)
        assert not ringer.ring_if_asleep(words, ASLEEP)
        assert not bell.drain()
        fall_asleep(words, ASLEEP)
        assert words[ASLEEP] == 1
        assert ringer.ring_if_asleep(words, ASLEEP)
        assert bell.drain()
        wake_up(words, ASLEEP)
        assert not ringer.ring_if_asleep(words, ASLEEP)
        ringer.close()


def test_spinning_says_which_word_changed_or_that_none_did() -> None:
    words, addresses, seen = watched()
    assert spin_until_changed(addresses, seen, 10) == -1
    words[1] = 5
    assert spin_until_changed(addresses, seen, 10) == 1
    assert spin_until_changed(addresses, seen, 0) == -1


def test_a_change_before_the_wait_costs_no_sleep(path: Path) -> None:
    words, addresses, seen = watched()
    with Doorbell.listen(path) as bell:
        sleeper = Sleeper(bell, words, ASLEEP)
        words[0] = 1
        assert sleeper.wait(addresses, seen) == 0
        # Even if it is noticed only after falling asleep: this would wait for ever otherwise.
        assert Sleeper(bell, words, ASLEEP, spins=0).wait(addresses, seen) == 0
        assert words[ASLEEP] == 0


def test_a_wait_in_vain_ends(path: Path) -> None:
    words, addresses, seen = watched()
    with Doorbell.listen(path) as bell:
        assert Sleeper(bell, words, ASLEEP, spins=10).wait(addresses, seen, 0.001) == -1
        assert words[ASLEEP] == 0


def test_a_sleeper_misses_none_of_many_changes(path: Path) -> None:
    words, addresses, seen = watched()
    changes = 2_000
    with Doorbell.listen(path) as bell:
        sleeper = Sleeper(bell, words, ASLEEP, spins=0)

        def change_after_each_answer() -> None:
            ringer = Ringer(path)
            for number in range(1, changes + 1):
                while atomics.load(words, 8) != number - 1:
                    pass
                atomics.store(words, 1, number)
                ringer.ring_if_asleep(words, ASLEEP)
            ringer.close()

        thread = threading.Thread(target=change_after_each_answer)
        thread.start()
        for number in range(1, changes + 1):
            while sleeper.wait(addresses, seen) < 0:
                pass  # A ring that was meant for a change already seen.
            seen[1] = number
            assert words[1] == number
            atomics.store(words, 8, number)
        thread.join()


def test_an_event_loop_can_watch_the_bell(path: Path) -> None:
    async def ring_and_wait() -> bool:
        loop = asyncio.get_running_loop()
        rung: asyncio.Future[bool] = loop.create_future()
        with Doorbell.listen(path) as bell:
            loop.add_reader(bell.fileno(), lambda: rung.set_result(bell.drain()))
            ringer = Ringer(path)
            ringer.ring()
            result = await rung
            loop.remove_reader(bell.fileno())
            ringer.close()
        return result

    assert asyncio.run(ring_and_wait())
    assert not is_asleep(np.zeros(8, np.int64), 0)
