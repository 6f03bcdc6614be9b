"""The pika connection with what its public interface lacks; everything private is used here.

Pika decodes the properties of a delivery while it reads from the socket: one that it cannot
decode would end the connection, again after each redelivery. Here they stay bytes. And whoever
consumes gets deliveries several at a time, past pika's frames and callbacks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Sequence
from typing import Any

from pika import exceptions, frame, spec
from pika.adapters.select_connection import IOLoop, SelectConnection

from reliable_mq_rabbitmq.deliveries import Delivery, read_deliveries
from reliable_mq_rabbitmq.reading import Services

_FRAME = struct.Struct(">BHI")
_CONTENT = struct.Struct(">HHQ")
_FRAME_END = b"\xce"
_OVERHEAD = _FRAME.size + len(_FRAME_END)
_PUBLISH = struct.pack(">HHH", 60, 40, 0)
_BASIC_CLASS = 60
_MANDATORY = b"\x01"
_DONE_WITH = frame.Frame(spec.FRAME_BODY, 0)
"""A frame of no channel, of which pika takes no notice, stands for those that it need not see."""


class Client(SelectConnection):  # type: ignore[misc]  # pika has no type information
    """A connection for one I/O thread. The properties of what arrives are undecoded bytes."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._direct: Container[int] = ()
        self._take: Callable[[list[Delivery]], None] | None = None
        super().__init__(*arguments, **named)

    @classmethod
    def create_connection(
        cls,
        connection_configs: Sequence[Any],
        on_done: Callable[[Any], None],
        custom_ioloop: Any = None,
        workflow: Any = None,
    ) -> Any:
        """See pika's ``SelectConnection``; ours differs in the services."""
        services = Services(custom_ioloop or IOLoop())
        return cls._start_connection_workflow(
            connection_configs=connection_configs,
            connection_factory=lambda parameters: cls(
                parameters=parameters, custom_ioloop=services, internal_connection_workflow=False
            ),
            nbio=services,
            workflow=workflow,
            on_done=on_done,
        )

    def deliver(self, channels: Container[int], take: Callable[[list[Delivery]], None]) -> None:
        """Have *take* called with the deliveries on *channels*, a live view, as they come.

        A delivery that is not there as a whole when it is looked at, or has other frames in
        between, goes to the consumer's callback as usual, in its turn.
        """
        self._direct, self._take = channels, take

    @property
    def frame_max(self) -> int:
        """The largest frame the broker takes, as agreed on when the connection opened."""
        return int(self.params.frame_max)

    @property
    def properties_max(self) -> int:
        """The longest property list that fits: the frame that carries it is never split."""
        return self.frame_max - _OVERHEAD - _CONTENT.size

    def send(self, data: bytes) -> None:
        """Write whole frames to the socket as soon as possible, in one piece."""
        self._output_marshaled_frames([data])

    def cut(self, cause: Exception) -> None:
        """Drop the TCP connection and all that waits to be written; harmless when it is gone."""
        if self._transport is not None:
            self._terminate_stream(cause)

    def _read_frame(self) -> tuple[int, Any]:
        data = self._frame_buffer
        if data[0] == spec.FRAME_HEADER:
            return self._read_header(data)
        if data[0] == spec.FRAME_METHOD and self._take is not None:
            found, end, cut_short = read_deliveries(data, self._direct)
            if found:
                self._take(found)
                return end, _DONE_WITH
            if cut_short and len(data) < self.frame_max:
                return 0, None  # What is larger is not copied again with each read.
        return super()._read_frame()  # type: ignore[no-any-return]

    @staticmethod
    def _read_header(data: bytes) -> tuple[int, Any]:
        if len(data) < _FRAME.size:
            return 0, None
        _, channel, size = _FRAME.unpack_from(data)
        end = size + _OVERHEAD
        if len(data) < end:
            return 0, None
        if data[end - 1 : end] != _FRAME_END or size < _CONTENT.size:
            raise exceptions.InvalidFrameError("malformed content header frame")
        _, _, body_size = _CONTENT.unpack_from(data, _FRAME.size)
        properties = bytes(data[_FRAME.size + _CONTENT.size : end - 1])
        return end, frame.Header(channel, body_size, properties)


def publish_method(exchange: str, routing_key: str) -> bytes:
    """Return the payload of the method frame of a mandatory ``basic.publish``."""
    names = (exchange.encode(), routing_key.encode())
    return _PUBLISH + b"".join(bytes((len(name),)) + name for name in names) + _MANDATORY


def content_frames(
    pieces: list[bytes], channel: int, method: bytes, properties: bytes, body: bytes, frame_max: int
) -> None:
    """Append one message's frames to *pieces*; joined they are what the broker reads."""
    pieces += (
        _FRAME.pack(spec.FRAME_METHOD, channel, len(method)),
        method,
        _FRAME_END,
        _FRAME.pack(spec.FRAME_HEADER, channel, _CONTENT.size + len(properties)),
        _CONTENT.pack(_BASIC_CLASS, 0, len(body)),
        properties,
        _FRAME_END,
    )
    largest = frame_max - _OVERHEAD
    for start in range(0, len(body), largest):
        part = body[start : start + largest]
        pieces += (_FRAME.pack(spec.FRAME_BODY, channel, len(part)), part, _FRAME_END)
