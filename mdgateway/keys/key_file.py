"""Market data keys in a file of their own: what is in it opens nothing else.

A secret is shown once, when it is made; the file holds its SHA-256. That is enough because a secret
is 32 random bytes: nobody finds it by trying, so a slow hash would protect nothing and would let a
stranger with a wrong key make the gateway work. Lines of the file are never taken away, so that the
name in a log always finds its key; a revoked one stays with its moment.

Writers take the file's lock, write a new file beside it and put it in its place, so that a reader
sees all of one moment. `Keyring` is that reader: it looks at the file's identity and time, and
reads it again when they changed. No key here names an account.
"""

import base64
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from exchange.refusal import Code, Refusal, Refused
from mdgateway.keys.tiers import TIERS

SECRET_BYTES: Final = 32
PREFIX: Final = "hmd_"
"""Tells people and scanners of leaked secrets what it is: a market data key, nothing else."""
SECRET_CHARACTERS: Final = len(PREFIX) + 43
ID_CHARACTERS: Final = 12
"""So much of the hash, in hexadecimal, is the key's name in lists and logs."""


class InvalidKeyFile(ValueError):
    """The file is no list of keys; the message names file, entry and what is wrong with it."""


class UnknownKey(ValueError):
    """No key has this name."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key, without its secret."""

    digest: str
    """SHA-256 of the secret, in hexadecimal."""
    tier: str
    created_ns: int
    expires_ns: int | None = None
    """None: never."""
    revoked_ns: int | None = None
    note: str = ""
    """Whom it was given to, for people; no account."""

    @property
    def id(self) -> str:
        """The name the key goes by."""
        return self.digest[:ID_CHARACTERS]

    def ended(self, time_ns: int) -> str:
        """Return why the key no longer holds at `time_ns`; empty: it does."""
        if self.revoked_ns is not None:
            return "revoked"
        if self.expires_ns is not None and time_ns >= self.expires_ns:
            return "expired"
        return ""


def digest_of(secret: str) -> str:
    """Return what the file knows of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: Path) -> dict[str, Key]:
    """Return the keys by digest; raises InvalidKeyFile, or OSError when it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        entries = content["keys"]
        keys = [_key(entry) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidKeyFile(f"{path} is no key file: {error}") from None
    return {key.digest: key for key in keys}


def _key(entry: dict[str, Any]) -> Key:
    key = Key(**entry)
    moments = (key.created_ns, key.expires_ns or 0, key.revoked_ns or 0)
    if key.tier not in TIERS:
        raise ValueError(f"tier is {key.tier!r}; it must be one of {', '.join(TIERS)}")
    if len(key.digest) != 2 * hashlib.sha256().digest_size or not all(
        isinstance(moment, int) for moment in moments
    ):
        raise ValueError(f"the entry {key.digest!r} is damaged")
    return key


def add_key(
    path: Path, tier: str, time_ns: int, expires_ns: int | None = None, note: str = ""
) -> tuple[str, Key]:
    """Make a key and write it down; return the secret, which is nowhere else, and the key."""
    assert tier in TIERS, f"there is no tier {tier}"
    random = secrets.token_bytes(SECRET_BYTES)
    secret = PREFIX + base64.urlsafe_b64encode(random).decode().rstrip("=")
    key = Key(digest_of(secret), tier, time_ns, expires_ns, None, note)
    with _rewriting(path) as keys:
        keys[key.digest] = key
    return secret, key


def revoke_key(path: Path, key_id: str, time_ns: int) -> Key:
    """Revoke the key of that name; one that is revoked already keeps its moment.

    Raises UnknownKey.
    """
    with _rewriting(path) as keys:
        for key in keys.values():
            if key.id == key_id:
                keys[key.digest] = replace(key, revoked_ns=key.revoked_ns or time_ns)
                return keys[key.digest]
        raise UnknownKey(f"{path} has no key {key_id!r}")


@contextmanager
def _rewriting(path: Path) -> Iterator[dict[str, Key]]:
    """Lend the keys for changing; write them back unless the change raises."""
    lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = read_keys(path) if path.exists() else {}
        yield keys
        text = json.dumps({"keys": [asdict(key) for key in keys.values()]}, indent=1)
        unfinished = path.with_name(path.name + ".new")
        descriptor = os.open(unfinished, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        os.close(lock)


class Keyring:
    """The keys as a gateway knows them: what the file said when it was last looked at.

    A file that cannot be read any more changes nothing: the keys known before still hold, and
    `trouble` says so. Without a file no key is known.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.trouble = ""
        self._keys: dict[str, Key] = {}
        self._seen: tuple[int, int, int] | None = None
        if path is not None:
            self._seen = _identity(path)
            self._keys = read_keys(path)

    def refresh(self) -> bool:
        """Read the file again if it is another one; return whether it was."""
        if self.path is None:
            return False
        try:
            seen = _identity(self.path)
            if seen == self._seen and not self.trouble:
                return False
            keys = read_keys(self.path)
        except (OSError, InvalidKeyFile) as error:
            self.trouble = str(error)
            return False
        self._keys, self._seen, self.trouble = keys, seen, ""
        return True

    def find(self, secret: str, time_ns: int) -> Key:
        """Return the key of a secret; raises Refused: unknown, revoked or expired.

        A revoked key is as unknown as one that never was.
        """
        key = None
        if len(secret) == SECRET_CHARACTERS:
            key = self._keys.get(digest_of(secret))
        if key is None or key.revoked_ns is not None:
            raise Refused(
                Refusal(
                    Code.UNAUTHENTICATED,
                    "KEY_UNKNOWN",
                    "this server does not know the key, or it was revoked",
                    "key",
                )
            )
        if key.ended(time_ns):
            raise Refused(
                Refusal(
                    Code.UNAUTHENTICATED,
                    "KEY_EXPIRED",
                    "the key has expired",
                    "key",
                    key.id,
                    str(key.expires_ns),
                )
            )
        return key

    def ended(self, key: Key, time_ns: int) -> str:
        """Return why a key that was found once no longer holds; empty: it does."""
        present = self._keys.get(key.digest)
        return "revoked" if present is None else present.ended(time_ns)


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
