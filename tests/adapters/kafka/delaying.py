"""A proxy in front of a broker with late requests and refusals of what was stored."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass

from tests.adapters.kafka.frames import (
    PRODUCE,
    FrameProxy,
    kind_of,
    number_of,
    receive_frame,
    refusal,
    send_frame,
)

_PATIENCE = 30.0
_NOT_ENOUGH_REPLICAS_AFTER_APPEND = 20


@dataclass
class Delay:
    """One request that waits, on a connection that is dead for its client."""

    kind: int
    until: int
    """It goes on when the broker has answered a request of this kind that came behind it."""
    count: int
    """The how many-th of them."""
    cut: bool
    """Whether the client sees its connection end, or hears nothing any more."""
    broker: socket.socket | None = None
    request: bytes = b""


class DelayingProxy(FrameProxy):
    """Passes frames on, until it is told to do something to one kind."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._delay: Delay | None = None
        self._doubted: str | None = None
        self._requests: dict[tuple[socket.socket, bytes], bytes] = {}
        self.doubted = threading.Event()
        """What was stored was refused."""
        self.arrived = threading.Event()
        """The late request was answered."""

    def delay(self, kind: int, until: int, *, count: int = 1, cut: bool) -> None:
        """Hold the next request of a kind back; see :class:`Delay`."""
        self.arrived.clear()
        with self._lock:
            self._delay = Delay(kind, until, count, cut)

    def doubt(self, topic: str | None) -> None:
        """Refuse what the broker has stored in partition 0 of a topic; no more of it, with None.

        As one does that has stored it and not enough others have, and takes it when it is sent
        again.
        """
        with self._lock:
            self._doubted = topic

    def serve_requests(self, client: socket.socket, broker: socket.socket) -> None:
        """Pass requests on until one is held back; the broker's end stays open then."""
        with suppress(OSError), client:
            while frame := receive_frame(client):
                if self._holds(frame, broker):
                    return self._go_silent(client)
                with self._lock:
                    self._requests[broker, number_of(frame)] = frame
                send_frame(broker, frame)
        broker.close()
        return None

    def _holds(self, frame: bytes, broker: socket.socket) -> bool:
        with self._lock:
            delay = self._delay
            if delay is None or delay.broker is not None or kind_of(frame) != delay.kind:
                return False
            delay.broker, delay.request = broker, frame
            return True

    def _go_silent(self, client: socket.socket) -> None:
        assert self._delay is not None
        if not self._delay.cut:
            while client.recv(65536):
                pass

    def serve_answers(self, client: socket.socket, broker: socket.socket) -> None:
        """Pass answers on, but those to late requests, which go on when it is time."""
        with suppress(OSError):
            while frame := receive_frame(broker):
                with self._lock:
                    request = self._requests.pop((broker, frame[:4]), b"")
                    delay = self._delay
                if delay is not None and delay.broker is broker:
                    self._note_late_answer(frame)
                elif request:
                    self._let_go(kind_of(request))
                    send_frame(client, self._doubtful(request, frame))
        client.close()

    def _doubtful(self, request: bytes, answer: bytes) -> bytes:
        if self._doubted is None or kind_of(request) != PRODUCE:
            return answer
        self.doubted.set()
        return refusal(request, self._doubted, _NOT_ENOUGH_REPLICAS_AFTER_APPEND)

    def _note_late_answer(self, answer: bytes) -> None:
        assert self._delay is not None
        if answer[:4] == number_of(self._delay.request):
            self.arrived.set()

    def _let_go(self, kind: int) -> None:
        """Send the late request if it is time, and wait until the broker has done with it."""
        with self._lock:
            delay = self._delay
            if delay is None or delay.broker is None or kind != delay.until:
                return
            delay.count -= 1
            if delay.count:
                return
            late, request = delay.broker, delay.request
        send_frame(late, request)
        assert self.arrived.wait(_PATIENCE)
