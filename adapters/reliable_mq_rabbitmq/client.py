"""The pika connection with what its public interface lacks; everything private is used here.

Pika decodes the properties of a delivery while it reads from the socket: one that it cannot
decode would end the connection, again after each redelivery. Here they stay bytes.
"""

from __future__ import annotations

import struct
from typing import Any

from pika import exceptions, frame, spec
from pika.adapters.select_connection import SelectConnection

_FRAME = struct.Struct(">BHI")
_CONTENT = struct.Struct(">HHQ")
_FRAME_END = b"\xce"
_OVERHEAD = _FRAME.size + len(_FRAME_END)
_PUBLISH = struct.pack(">HHH", 60, 40, 0)
_BASIC_CLASS = 60
_MANDATORY = b"\x01"


class Client(SelectConnection):  # type: ignore[misc]  # pika has no type information
    """A connection for one I/O thread. The properties of what arrives are undecoded bytes."""

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
        if data[:1] != bytes((spec.FRAME_HEADER,)):
            return super()._read_frame()  # type: ignore[no-any-return]
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
