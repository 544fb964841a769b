"""Messages as WebSocket frames that are made once and written to everybody.

A server's frame is not masked, so the same bytes suit every client. Compressed ones too: each is
compressed by itself, without a reference to any message before it, which every client that agreed
to permessage-deflate can read, whether it keeps its window or not (RFC 7692, 7.2.3.2). What differs
is only how far back a client agreed to look: its window, from 9 to 15 bits; 0 stands for a client
that did not agree at all. Pure.
"""

import struct
import zlib
from typing import Final

PLAIN: Final = 0
"""The window of a client that takes no compressed frames."""
WORTH_COMPRESSING_BYTES: Final = 256
"""Below, compressing costs more than it saves."""
LEVEL: Final = 1
"""On messages of this kind, level 6 saves a tenth more and takes half as long again."""

_FINAL_TEXT: Final = 0x81
_FINAL_CLOSE: Final = 0x88
_COMPRESSED: Final = 0x40
_FLUSH_BYTES: Final = 4
"""A flushed deflate stream ends with 00 00 ff ff, which the protocol leaves out."""


def _frame(first: int, payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        return bytes((first, length)) + payload
    if length < 1 << 16:
        return struct.pack("!BBH", first, 126, length) + payload
    return struct.pack("!BBQ", first, 127, length) + payload


def close_frame(code: int, reason: str) -> bytes:
    """Return the frame that ends a connection."""
    return _frame(_FINAL_CLOSE, struct.pack("!H", code) + reason.encode("ascii"))


class Framed:
    """One text message, framed for each kind of client when the first of that kind needs it."""

    __slots__ = ("_frames", "payload")

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self._frames: dict[int, bytes] = {}

    def frame(self, window: int) -> bytes:
        """Return the frame for clients with this window."""
        if window and len(self.payload) < WORTH_COMPRESSING_BYTES:
            window = PLAIN
        frame = self._frames.get(window)
        if frame is None:
            if window:
                frame = _frame(_FINAL_TEXT | _COMPRESSED, _deflated(self.payload, window))
            else:
                frame = _frame(_FINAL_TEXT, self.payload)
            self._frames[window] = frame
        return frame


def _deflated(payload: bytes, window: int) -> bytes:
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -window)
    content = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return content[:-_FLUSH_BYTES]
