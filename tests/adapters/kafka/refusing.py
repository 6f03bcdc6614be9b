"""A proxy in front of a broker that refuses one produce request, as a leader that is not ready."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

_PRODUCE = 0
_NOT_LEADER = 6
_FLEXIBLE = 9
"""The first version of the request whose answer has compact fields."""


class RefusingProxy:
    """Passes frames on. Once it is told to, it refuses one produce request by itself.

    That is the first of a connection, as soon as its second is there: both were under way then,
    and the broker gets only the second. *topic* has one partition.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._target = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._told = threading.Event()
        self.refused = threading.Event()

    def refuse(self) -> None:
        """Refuse one request for the topic."""
        self._told.set()

    def start(self, target: int) -> None:
        """Pass connections on to the port *target*."""
        self._target = target
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(("127.0.0.1", self._target))
                for work in (self._requests, self._answers):
                    threading.Thread(target=work, args=(client, broker), daemon=True).start()

    def _requests(self, client: socket.socket, broker: socket.socket) -> None:
        held: bytes | None = None
        with suppress(OSError), client, broker:
            while frame := _frame(client):
                if _is_produce(frame) and self._told.is_set() and not self.refused.is_set():
                    if held is None:
                        held = frame
                        continue
                    self.refused.set()
                    client.sendall(_sized(_refusal(held, self._topic)))
                broker.sendall(_sized(frame))

    def _answers(self, client: socket.socket, broker: socket.socket) -> None:
        with suppress(OSError), client, broker:
            while data := broker.recv(65536):
                client.sendall(data)


def _frame(source: socket.socket) -> bytes:
    size = _exactly(source, 4)
    return _exactly(source, struct.unpack(">i", size)[0]) if size else b""


def _exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = source.recv(count - len(data))
        if not more:
            return b""
        data += more
    return data


def _sized(frame: bytes) -> bytes:
    return struct.pack(">i", len(frame)) + frame


def _is_produce(frame: bytes) -> bool:
    (kind,) = struct.unpack_from(">h", frame)
    return bool(kind == _PRODUCE)


def _refusal(request: bytes, topic: str) -> bytes:
    """Return an answer to *request*: partition 0 of *topic* has no leader here."""
    version, correlation = struct.unpack_from(">hi", request, 2)
    name = topic.encode()
    # Partition, error, base offset, time of the append, start of the log.
    outcome = struct.pack(">ihqqq", 0, _NOT_LEADER, -1, -1, -1)
    answer = struct.pack(">i", correlation)
    if version >= _FLEXIBLE:
        no_errors, no_text, no_tags = b"\1", b"\0", b"\0"
        partition = outcome + no_errors + no_text + no_tags
        answer += no_tags + b"\2" + bytes([len(name) + 1]) + name + b"\2" + partition + no_tags
        return answer + struct.pack(">i", 0) + no_tags
    details = struct.pack(">ih", 0, -1)  # since version 8: no errors of records, no text
    answer += struct.pack(">ih", 1, len(name)) + name + struct.pack(">i", 1) + outcome + details
    return answer + struct.pack(">i", 0)
