"""A TCP proxy before a database that can tell a COMMIT, and cut the connection around it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from sqlalchemy import make_url

_COMMIT = re.compile(rb"COMMIT(?!TED)", re.IGNORECASE)
"""Not the level of isolation in a BEGIN."""


class Cut(Enum):
    """When a connection is cut: its client sees the same either way.

    A statement that is a transaction by itself is its own COMMIT.
    """

    BEFORE_COMMIT = "the COMMIT never arrives"
    AFTER_COMMIT = "the COMMIT takes effect, its reply is lost"


@dataclass
class _Order:
    """Cut the COMMIT of a transaction in which *statement* was seen, *times* times."""

    statement: bytes
    cut: Cut
    times: int = 1


class CommitProxy:
    """Forwards between clients and one server. Threads end with ``close``."""

    def __init__(self, url: str) -> None:
        target = make_url(url)
        self._target = (target.host or "127.0.0.1", target.port or 0)
        # Whoever has a transaction there says BEGIN first; MariaDB's clients need not.
        self._says_begin = target.get_backend_name() == "postgresql"
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        self._lock = threading.Lock()
        self._orders: list[_Order] = []
        self.cuts = 0
        """How many connections were cut at a COMMIT."""
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def cut(self, statement: str, cut: Cut, times: int = 1) -> None:
        """Cut the next COMMIT of a transaction in which *statement* (any part of it) was seen."""
        with self._lock:
            self._orders.append(_Order(statement.encode(), cut, times))

    def close(self) -> None:
        """End all connections and threads."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._sockets):
            _end(one)
        for thread in list(self._threads):
            thread.join(10)

    # --- inside ---------------------------------------------------------------------------------

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            self._sockets += [client, server]
            link = _Link(client, server)
            self._start(self._requests, link)
            self._start(self._replies, link)

    def _requests(self, link: _Link) -> None:
        seen = b""
        for data in _chunks(link.client):
            seen += data
            is_alone = self._says_begin and b"BEGIN" not in seen
            if _COMMIT.search(data) or (is_alone and self._is_ordered(data)):
                due = self._due(seen)
                if due is Cut.BEFORE_COMMIT:
                    break
                link.drop_replies = due is not None
                seen = b""
            elif b"ROLLBACK" in data.upper():
                seen = b""
            if not _send(link.server, data):
                break
        if link.drop_replies:
            return  # the thread of the replies ends both sides once the COMMIT was answered
        _end(link.server)
        _end(link.client)

    def _replies(self, link: _Link) -> None:
        for data in _chunks(link.server):
            if link.drop_replies or not _send(link.client, data):
                break
        _end(link.client)
        _end(link.server)

    def _is_ordered(self, data: bytes) -> bool:
        with self._lock:
            return any(order.times and order.statement in data for order in self._orders)

    def _due(self, seen: bytes) -> Cut | None:
        with self._lock:
            for order in self._orders:
                if order.times and order.statement in seen:
                    order.times -= 1
                    self.cuts += 1
                    return order.cut
        return None


@dataclass
class _Link:
    client: socket.socket
    server: socket.socket
    drop_replies: bool = False


def _chunks(source: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            yield data


def _send(target: socket.socket, data: bytes) -> bool:
    try:
        target.sendall(data)
    except OSError:
        return False
    return True


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
