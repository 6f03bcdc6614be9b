"""A proxy in front of a broker that sees the requests and answers, one by one."""

from __future__ import annotations

import socket
import struct
import threading
from abc import ABC, abstractmethod
from contextlib import suppress

PRODUCE, INIT_PRODUCER_ID, ADD_OFFSETS, END, TXN_OFFSET_COMMIT = 0, 22, 25, 26, 28
"""Kinds of requests: the protocol's API keys."""

_FLEXIBLE = 9
"""The first version of the produce request whose answer has compact fields."""


class FrameProxy(ABC):
    """Listens on a port of its own, to which the broker's advertised listener points."""

    def __init__(self) -> None:
        self._target = 0
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    @abstractmethod
    def serve_requests(self, client: socket.socket, broker: socket.socket) -> None:
        """Pass on what a client sends, until it leaves."""

    @abstractmethod
    def serve_answers(self, client: socket.socket, broker: socket.socket) -> None:
        """Pass on what the broker answers on one connection."""

    def start(self, target: int) -> None:
        """Pass connections on to the port *target*."""
        self._target = target
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections."""
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        """End all connections, and take no more."""
        self._sockets.append(self._listener)
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += (client, broker)
                for work in (self.serve_requests, self.serve_answers):
                    threading.Thread(target=work, args=(client, broker), daemon=True).start()


def receive_frame(source: socket.socket) -> bytes:
    """Return the next request or answer, without its size; nothing at the end."""
    size = _exactly(source, 4)
    return _exactly(source, struct.unpack(">i", size)[0]) if size else b""


def send_frame(target: socket.socket, frame: bytes) -> None:
    """Send a request or an answer."""
    target.sendall(struct.pack(">i", len(frame)) + frame)


def kind_of(request: bytes) -> int:
    """Return what a request asks for."""
    (kind,) = struct.unpack_from(">h", request)
    return int(kind)


def number_of(request: bytes) -> bytes:
    """Return the number with which the answer to *request* begins."""
    return request[4:8]


def refusal(request: bytes, topic: str, error: int) -> bytes:
    """Return an answer to a produce *request*: an error for partition 0 of *topic*."""
    version, correlation = struct.unpack_from(">hi", request, 2)
    name = topic.encode()
    # Partition, error, base offset, time of the append, start of the log.
    outcome = struct.pack(">ihqqq", 0, error, -1, -1, -1)
    answer = struct.pack(">i", correlation)
    if version >= _FLEXIBLE:
        no_errors, no_text, no_tags = b"\1", b"\0", b"\0"
        partition = outcome + no_errors + no_text + no_tags
        answer += no_tags + b"\2" + bytes([len(name) + 1]) + name + b"\2" + partition + no_tags
        return answer + struct.pack(">i", 0) + no_tags
    details = struct.pack(">ih", 0, -1)  # since version 8: no errors of records, no text
    answer += struct.pack(">ih", 1, len(name)) + name + struct.pack(">i", 1) + outcome + details
    return answer + struct.pack(">i", 0)


def _exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = source.recv(count - len(data))
        if not more:
            return b""
        data += more
    return data
