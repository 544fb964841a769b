"""Market data keys: the file, the ring that reads it, the command line, and who may have what."""

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exchange.refusal import Code, Refused
from mdgateway.keys import __main__ as command_line
from mdgateway.keys.admission import (
    GRPC_METADATA_KEY,
    Admission,
    Bucket,
    Visitor,
    grpc_credentials,
    network_of,
)
from mdgateway.keys.key_file import (
    InvalidKeyFile,
    Keyring,
    UnknownKey,
    add_key,
    read_keys,
    revoke_key,
)
from mdgateway.keys.tiers import ANONYMOUS, TIERS

ROOT = Path(__file__).resolve().parents[2]
NOW_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def refusal(keyring: Keyring, secret: str, time_ns: int = NOW_NS) -> str:
    with pytest.raises(Refused) as refused:
        keyring.find(secret, time_ns)
    assert refused.value.refusal.code is Code.UNAUTHENTICATED
    assert secret not in str(refused.value.refusal)
    return refused.value.refusal.reason


def test_a_key_is_found_by_its_secret_and_by_nothing_else(path: Path) -> None:
    secret, key = add_key(path, "basic", NOW_NS, note="somebody")
    keyring = Keyring(path)
    assert keyring.find(secret, NOW_NS) == key
    for wrong in (secret[:-1], secret + "A", secret.swapcase(), "", key.digest, key.id, "\ud800"):
        assert refusal(keyring, wrong or "-") == "KEY_UNKNOWN"


def test_the_file_holds_no_secret_and_is_its_owners_alone(path: Path) -> None:
    secrets = [add_key(path, "basic", NOW_NS)[0] for _ in range(3)]
    assert len(set(secrets)) == 3
    text = path.read_text()
    for secret in secrets:
        assert secret not in text
        assert secret[4:24] not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_ends_when_it_expires_or_is_revoked_without_a_restart(path: Path) -> None:
    forever, key = add_key(path, "basic", NOW_NS)
    short, short_key = add_key(path, "professional", NOW_NS, NOW_NS + 10)
    keyring = Keyring(path)
    assert keyring.find(short, NOW_NS + 9).tier == "professional"
    assert refusal(keyring, short, NOW_NS + 10) == "KEY_EXPIRED"
    assert keyring.ended(short_key, NOW_NS + 10) == "expired"
    assert not keyring.refresh()
    assert revoke_key(path, key.id, NOW_NS).revoked_ns == NOW_NS
    assert keyring.find(forever, NOW_NS) == key, "not before it was looked at"
    assert keyring.refresh()
    assert refusal(keyring, forever) == "KEY_UNKNOWN"
    assert keyring.ended(key, NOW_NS) == "revoked"
    assert revoke_key(path, key.id, NOW_NS + 5).revoked_ns == NOW_NS, "the first moment stays"
    with pytest.raises(UnknownKey):
        revoke_key(path, "nobody", NOW_NS)


def test_a_file_that_is_damaged_or_gone_changes_nothing_that_holds(path: Path) -> None:
    secret, key = add_key(path, "basic", NOW_NS)
    keyring, content = Keyring(path), path.read_bytes()
    path.write_text("{")
    assert not keyring.refresh()
    assert "no key file" in keyring.trouble
    assert keyring.find(secret, NOW_NS) == key
    path.unlink()
    assert not keyring.refresh()
    assert keyring.trouble
    path.write_bytes(content)
    assert keyring.refresh()
    assert not keyring.trouble


@pytest.mark.parametrize(
    "change",
    [
        {"tier": "golden"},
        {"tier": None},
        {"digest": "abc"},
        {"expires_ns": "tomorrow"},
        {"surprise": 1},
    ],
)
def test_a_damaged_entry_is_named_at_the_start(path: Path, change: dict[str, object]) -> None:
    add_key(path, "basic", NOW_NS)
    content = json.loads(path.read_text())
    content["keys"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidKeyFile, match=r"keys\.json"):
        Keyring(path)


def test_writers_side_by_side_lose_no_key(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: add_key(path, "basic", number), range(40)))
    assert set(read_keys(path)) == {key.digest for _, key in made}


def test_without_a_file_every_key_is_unknown() -> None:
    assert refusal(Keyring(None), "hmd_" + "A" * 43) == "KEY_UNKNOWN"


# The command line.


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mdgateway", "keys", *arguments],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line_makes_shows_and_revokes(path: Path) -> None:
    file = ("--file", str(path))
    made = command("add", *file, "--tier", "basic", "--expires", "30d", "--note", "a relay")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    key = Keyring(path).find(secret, NOW_NS)
    assert key.expires_ns is not None
    assert key.expires_ns - key.created_ns == 30 * 86_400 * SECOND_NS
    shown = command("list", *file).stdout
    assert shown.startswith(f"{key.id}  basic         valid     expires ")
    assert shown.rstrip().endswith("a relay")
    assert secret not in shown
    assert command("revoke", *file, key.id).stdout == f"{key.id} is revoked\n"
    assert "revoked" in command("list", *file).stdout
    assert refusal(Keyring(path), secret) == "KEY_UNKNOWN"


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "--tier", "basic", "--expires", "soon"],
        ["add", "--tier", "basic", "--expires", "0d"],
        ["add", "--tier", "basic", "--note", "x" * 201],
        ["revoke", "nobody"],
        ["list"],
    ],
)
def test_the_command_line_refuses_with_a_sentence(
    path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main([*arguments, "--file", str(path)]) == 1
    assert capsys.readouterr().err.startswith("keys: ")
    assert not path.exists() or not read_keys(path)


# Who may have what.


def test_what_is_open_counts_per_key_and_without_one_per_address(path: Path) -> None:
    secret, key = add_key(path, "basic", NOW_NS)
    admission = Admission(Keyring(path))
    anonymous = admission.visitor("192.0.2.1", None, NOW_NS)
    assert anonymous == Visitor("address 192.0.2.1", ANONYMOUS, None)
    assert admission.visitor("192.0.2.9", secret, NOW_NS).holder == f"key {key.id}"
    for _ in range(ANONYMOUS.connection_limit):
        admission.enter(anonymous, "connections")
    with pytest.raises(Refused) as refused:
        admission.enter(anonymous, "connections")
    assert refused.value.refusal.reason == "CONNECTION_LIMIT"
    assert refused.value.refusal.limit == str(ANONYMOUS.connection_limit)
    admission.enter(anonymous, "streams")
    admission.enter(admission.visitor("192.0.2.2", None, NOW_NS), "connections")
    admission.leave(anonymous, "connections")
    admission.enter(anonymous, "connections")
    with pytest.raises(AssertionError):
        admission.leave(admission.visitor("192.0.2.3", None, NOW_NS), "connections")


def test_an_address_is_an_ipv4_address_or_half_an_ipv6_one() -> None:
    assert network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") == "2001:db8::/64"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("unix") == "unix"


def test_a_bucket_allows_a_burst_and_then_the_rate() -> None:
    bucket = Bucket(2)
    assert [bucket.take(0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert [bucket.take(SECOND_NS) for _ in range(3)] == [True, True, False]
    assert not bucket.is_full(SECOND_NS)
    assert bucket.is_full(100 * SECOND_NS)
    assert sum(bucket.take(100 * SECOND_NS) for _ in range(50)) == 10


def test_requests_are_counted_for_each_caller() -> None:
    admission = Admission(Keyring(None), dict(TIERS))
    allowed = ANONYMOUS.requests_per_second * 5
    for _ in range(allowed):
        admission.admit("192.0.2.1", None, NOW_NS, NOW_NS)
    with pytest.raises(Refused, match="too often"):
        admission.admit("192.0.2.1", None, NOW_NS, NOW_NS)
    admission.admit("192.0.2.2", None, NOW_NS, NOW_NS)
    admission.admit("192.0.2.1", None, NOW_NS + SECOND_NS, NOW_NS)


def test_a_key_that_does_not_hold_counts_for_its_address(path: Path) -> None:
    secret, _ = add_key(path, "basic", NOW_NS)
    admission = Admission(Keyring(path), dict(TIERS))
    for _ in range(ANONYMOUS.requests_per_second * 5):
        with pytest.raises(Refused, match="key"):
            admission.admit("192.0.2.1", "hmd_guessed", NOW_NS, NOW_NS)
    for wrong in "hmd_guessed", None:
        with pytest.raises(Refused, match="too often"):
            admission.admit("192.0.2.1", wrong, NOW_NS, NOW_NS)
    assert admission.admit("192.0.2.1", secret, NOW_NS, NOW_NS).tier.name == "basic"


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:5000", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::1"),
        ("unix:/run/x", "unix:/run/x"),
    ],
)
def test_a_grpc_call_shows_its_address_and_key(peer: str, address: str) -> None:
    assert grpc_credentials([("other", "x")], peer) == (address, None)
    assert grpc_credentials([(GRPC_METADATA_KEY, "hmd_x")], peer) == (address, "hmd_x")
