"""The page: files of one folder, read once at the start and served from memory.

Because a path is looked up among the files that were read, there is no path that leads elsewhere.
The content security policy lets the page run its own scripts and styles only; what stands inside a
page itself is allowed by its hash.
"""

import base64
import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILE_LIMIT_BYTES: Final = 4 << 20
TOTAL_LIMIT_BYTES: Final = 16 << 20
INDEX: Final = "index.html"
HASHES: Final = "allowed_styles.txt"
"""Lists, one a line, texts of style elements that a shipped library makes; it is not served."""

TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}
_PACKED: Final = frozenset({".html", ".js", ".mjs", ".css", ".svg", ".json", ".txt"})
_INLINE: Final = re.compile(rb"<(script|style)(?![^>]*\ssrc=)[^>]*>(.*?)</\1>", re.DOTALL)


class InvalidPage(ValueError):
    """The folder cannot be served; the message names file, size and limit."""


@dataclass(frozen=True, slots=True)
class File:
    """One file and its headers."""

    content: bytes
    packed: bytes | None
    """The content as gzip, if that is worth it."""
    headers: dict[str, str]
    tag: str


class Pages:
    """The files of a folder by their path; a folder that does not exist has none."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, File] = {}
        total = 0
        styles = _allowed_styles(folder / HASHES)
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            name = path.relative_to(folder).as_posix()
            hidden = any(part.startswith((".", "__")) for part in name.split("/"))
            if hidden or name == HASHES or not path.is_file() or path.suffix not in TYPES:
                continue
            if not path.resolve().is_relative_to(folder.resolve()):
                continue  # A link may lead anywhere, a page stays in its folder.
            content = path.read_bytes()
            total += len(content)
            if len(content) > FILE_LIMIT_BYTES or total > TOTAL_LIMIT_BYTES:
                raise InvalidPage(
                    f"{path} has {len(content)} bytes; a file may have {FILE_LIMIT_BYTES} and all"
                    f" of them {TOTAL_LIMIT_BYTES}"
                )
            self._files[f"/{name}"] = _file(content, path.suffix, styles)
        if f"/{INDEX}" in self._files:
            self._files["/"] = self._files[f"/{INDEX}"]

    def find(self, path: str) -> File | None:
        """Return the file at a path of the server, or None."""
        return self._files.get(path)


def _file(content: bytes, suffix: str, styles: list[str]) -> File:
    tag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {
        "Content-Type": TYPES[suffix],
        # Files have no version in their names, so a browser asks each time; the answer is short.
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "ETag": tag,
    }
    if suffix == ".html":
        headers["Content-Security-Policy"] = _policy(content, styles)
    packed = gzip.compress(content, mtime=0) if suffix in _PACKED else None
    if packed is not None:
        headers["Vary"] = "Accept-Encoding"
    return File(content, packed, headers, tag)


def _policy(page: bytes, styles: list[str]) -> str:
    found: dict[bytes, list[str]] = {b"script": [], b"style": []}
    for match in _INLINE.finditer(page):
        found[match[1]].append(_hash(match[2]))
    return "; ".join(
        (
            "default-src 'none'",
            " ".join(["script-src 'self'", *found[b"script"]]),
            " ".join(["style-src 'self'", *found[b"style"], *styles]),
            "img-src 'self' data:",
            "font-src 'self'",
            "connect-src 'self'",
            "manifest-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hash(content: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


def _allowed_styles(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [_hash(line.encode()) for line in path.read_text("utf-8").splitlines() if line]
