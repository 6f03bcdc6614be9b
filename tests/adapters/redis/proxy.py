"""A TCP proxy that breaks connections where a network would."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Proxy:
    """Forwards between clients and one server until told otherwise. Threads end with ``close``."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._replies = threading.Event()
        self._requests = threading.Event()
        self._replies.set()
        self._requests.set()
        self._held = False
        self._closed = False
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def drop_replies(self) -> None:
        """Forward requests; a reply ends its connection instead of arriving."""
        self._replies.clear()

    def hold_requests(self) -> None:
        """Keep requests back, until ``go_on``: even if their client is gone by then."""
        self._held = False
        self._requests.clear()

    @property
    def holds_some(self) -> bool:
        """Tell whether it has requests since they are kept back."""
        return self._held

    def go_on(self) -> None:
        """Forward everything again, what was held back first."""
        self._replies.set()
        self._requests.set()

    def close(self) -> None:
        """End all connections."""
        self._closed = True
        self.go_on()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._sockets):
            _end(one)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            self._sockets += [client, server]
            for work, pair in ((self._forward, (client, server)), (self._answer, (server, client))):
                thread = threading.Thread(target=work, args=pair)
                self._threads.append(thread)
                thread.start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        for data in _chunks(client):
            if not self._requests.is_set():
                self._held = True
            self._requests.wait()
            with contextlib.suppress(OSError):
                server.sendall(data)
        self._requests.wait()
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        for data in _chunks(server):
            if not self._replies.is_set():
                break
            with contextlib.suppress(OSError):
                client.sendall(data)
        _end(client)
        if not self._requests.is_set():
            self._requests.wait()
        _end(server)


def _chunks(source: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            yield data


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
