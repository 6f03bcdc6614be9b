"""A broker that is up before its controller knows it names no brokers, itself included.

A real one does so for milliseconds: too short to meet it in a test.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

_METADATA, _API_VERSIONS = 3, 18
_UNKNOWN_TOPIC, _UNSUPPORTED_VERSION = 3, 35
_DECLARES = """
import sys
from reliable_mq.adapter import AdapterContext, TopicSpec
from reliable_mq.errors import ReliableMQError
from reliable_mq.registry import open_adapter

adapter = open_adapter(sys.argv[1], AdapterContext(instance="test"))
try:
    adapter.declare([TopicSpec(name="orders")], [])
except ReliableMQError as error:
    print(type(error).__name__, error)
"""


class NamelessBroker:
    """Answers what a client asks first; names itself until somebody has asked for a topic."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.nameless = 0
        """How many answers named no broker."""
        self._asked = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts; a close would not
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, struct.error), connection:
            while True:
                (size,) = struct.unpack(">i", self._read(connection, 4))
                request = self._read(connection, size)
                kind, version, number, client = struct.unpack(">hhih", request[:10])
                answer = struct.pack(">i", number)
                if kind == _API_VERSIONS:
                    answer += _versions(_UNSUPPORTED_VERSION if version else 0)
                else:
                    assert kind == _METADATA
                    answer += self._metadata(_names(request[10 + max(0, client) :]))
                connection.sendall(struct.pack(">i", len(answer)) + answer)

    @staticmethod
    def _read(connection: socket.socket, size: int) -> bytes:
        found = connection.recv(size, socket.MSG_WAITALL)
        if len(found) < size:
            raise ConnectionError
        return found

    def _metadata(self, topics: list[bytes]) -> bytes:
        brokers = [] if self._asked else [struct.pack(">i", 1) + _text(b"127.0.0.1") + self._rest()]
        self.nameless += self._asked
        self._asked = self._asked or bool(topics)
        found = [
            struct.pack(">h", _UNKNOWN_TOPIC) + _text(name) + b"\0" + _array([]) for name in topics
        ]
        return (
            struct.pack(">i", 0)
            + _array(brokers)
            + _text(b"here")
            + struct.pack(">i", 1)
            + _array(found)
        )

    def _rest(self) -> bytes:
        return struct.pack(">ih", self.port, -1)  # and no rack


def _versions(error: int) -> bytes:
    known = [(_METADATA, 0, 4), (_API_VERSIONS, 0, 0)]
    return struct.pack(">h", error) + _array([struct.pack(">hhh", *one) for one in known])


def _array(items: list[bytes]) -> bytes:
    return struct.pack(">i", len(items)) + b"".join(items)


def _text(value: bytes) -> bytes:
    return struct.pack(">h", len(value)) + value


def _names(asked: bytes) -> list[bytes]:
    (count,) = struct.unpack(">i", asked[:4])
    names, at = [], 4
    for _ in range(max(0, count)):
        (size,) = struct.unpack(">h", asked[at : at + 2])
        names.append(asked[at + 2 : at + 2 + size])
        at += 2 + size
    return names


@pytest.fixture
def broker() -> Iterator[NamelessBroker]:
    started = NamelessBroker()
    yield started
    started.close()


def test_a_broker_that_names_no_brokers_is_not_ready_and_ends_no_process(
    broker: NamelessBroker,
) -> None:
    url = f"kafka://127.0.0.1:{broker.port}?connect_timeout=2"
    declared = subprocess.run(
        [sys.executable, "-P", "-c", _DECLARES, url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert declared.returncode == 0, declared.stderr
    assert declared.stdout.startswith("TransportError cannot look the brokers up: "), declared
    assert broker.nameless > 0
