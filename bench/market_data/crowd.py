"""Many WebSocket clients in one process that count what they get and do as little else as can be.

``python -m bench.market_data.crowd PORT COUNT DEFLATE MESSAGE...`` connects, sends the messages on
each connection and says "ready". Then it obeys lines: "count" begins to count, "stop" prints what
was counted, "hush" stops reading for good.

Frames are counted on the first connection only; on the others bytes are, which costs nothing.
"""

import json
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterable
from typing import Final

BUFFER_BYTES: Final = 1 << 18
HEAD: Final = (
    "GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n{}\r\n"
)
PONG: Final = struct.pack("!BB", 0x8A, 0x80) + bytes(4)
SPEAK_EVERY_S: Final = 5
"""Who says something now and then is not asked whether it lives."""
DEFLATE: Final = "Sec-WebSocket-Extensions: permessage-deflate\r\n"


def _masked(text: str) -> bytes:
    content = text.encode()
    if len(content) < 126:
        return struct.pack("!BB", 0x81, 0x80 | len(content)) + bytes(4) + content
    return struct.pack("!BBH", 0x81, 0x80 | 126, len(content)) + bytes(4) + content


class Frames:
    """Counts the frames in a stream of bytes."""

    def __init__(self) -> None:
        self.count = 0
        self._rest = b""

    def feed(self, content: bytes) -> None:
        """Take bytes."""
        data, at = self._rest + content, 0
        while at + 2 <= len(data):
            length, head = data[at + 1] & 0x7F, 2
            if length == 126:
                length, head = int.from_bytes(data[at + 2 : at + 4]), 4
            elif length == 127:
                length, head = int.from_bytes(data[at + 2 : at + 10]), 10
            if at + head + length > len(data):
                break
            at += head + length
            self.count += 1
        self._rest = data[at:]


def _connected(port: int, deflate: bool, messages: Iterable[str], *, exact: bool) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", port))
    one.sendall(HEAD.format(DEFLATE if deflate else "").encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        # Byte by byte on the first connection only, whose frames are counted from the start.
        piece = one.recv(1 if exact else 4_096)
        assert piece, answer
        answer += piece
    assert answer.startswith(b"HTTP/1.1 101"), answer
    one.sendall(b"".join(map(_masked, messages)))
    one.setblocking(False)
    return one


def main(given: list[str]) -> None:
    """Connect, then obey."""
    port, count, deflate, *messages = given
    crowd = selectors.DefaultSelector()
    crowd.register(sys.stdin, selectors.EVENT_READ)
    connected = [
        _connected(int(port), deflate == "1", messages, exact=number == 0)
        for number in range(int(count))
    ]
    for one in connected:
        crowd.register(one, selectors.EVENT_READ)
    first, buffer, total, of_first, frames = connected[0], bytearray(BUFFER_BYTES), 0, 0, Frames()
    print("ready", flush=True)
    spoke_s, hushed = time.monotonic(), False
    while True:
        if not hushed and time.monotonic() - spoke_s > SPEAK_EVERY_S:
            spoke_s = time.monotonic()
            for one in connected:
                one.send(PONG)
        for key, _ in crowd.select(1):
            if not isinstance(key.fileobj, socket.socket):
                order = sys.stdin.readline().strip()
                if order == "count":
                    total = of_first = frames.count = 0
                elif order == "stop":
                    found = {"bytes": total, "first_bytes": of_first, "first_frames": frames.count}
                    print(json.dumps(found), flush=True)
                elif order == "hush":
                    hushed = True
                    for one in connected:
                        crowd.unregister(one)
                    print("hushed", flush=True)
                else:
                    return
                continue
            length = key.fileobj.recv_into(buffer)
            assert length, "the server ended a connection"
            total += length
            if key.fileobj is first:
                of_first += length
                frames.feed(bytes(buffer[:length]))


if __name__ == "__main__":
    main(sys.argv[1:])
