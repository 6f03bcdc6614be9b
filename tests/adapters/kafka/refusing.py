"""A proxy in front of a broker that refuses one produce request, as a leader that is not ready."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from tests.adapters.kafka.frames import (
    PRODUCE,
    FrameProxy,
    kind_of,
    receive_frame,
    refusal,
    send_frame,
)

_NOT_LEADER = 6


class RefusingProxy(FrameProxy):
    """Passes frames on. Once it is told to, it refuses one produce request by itself.

    That is the first of a connection, as soon as its second is there: both were under way then,
    and the broker gets only the second. *topic* has one partition.
    """

    def __init__(self, topic: str) -> None:
        super().__init__()
        self._topic = topic
        self._told = threading.Event()
        self.refused = threading.Event()

    def refuse(self) -> None:
        """Refuse one request for the topic."""
        self._told.set()

    def serve_requests(self, client: socket.socket, broker: socket.socket) -> None:
        """Pass requests on, but for the one that is refused."""
        held: bytes | None = None
        with suppress(OSError), client, broker:
            while frame := receive_frame(client):
                is_told = self._told.is_set() and not self.refused.is_set()
                if kind_of(frame) == PRODUCE and is_told:
                    if held is None:
                        held = frame
                        continue
                    self.refused.set()
                    send_frame(client, refusal(held, self._topic, _NOT_LEADER))
                send_frame(broker, frame)

    def serve_answers(self, client: socket.socket, broker: socket.socket) -> None:
        """Pass answers on."""
        with suppress(OSError), client, broker:
            while data := broker.recv(65536):
                client.sendall(data)
