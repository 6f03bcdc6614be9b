"""Records that no client library would send, written byte by byte."""

from __future__ import annotations

import socket
import struct
import time

_PRODUCE, _VERSION = 0, 3
_POLYNOMIAL = 0x82F63B78


def produce(place: str, topic: str, body: bytes, headers: list[tuple[bytes, bytes | None]]) -> None:
    """Append one record to partition 0 of *topic* on the broker at *place* (``host:port``)."""
    batch = _batch(_record(body, headers))
    request = (
        _text(None)  # transactional id
        + struct.pack(">hi", -1, 10_000)
        + _array([_text(topic) + _array([struct.pack(">ii", 0, len(batch)) + batch])])
    )
    header = struct.pack(">hhi", _PRODUCE, _VERSION, 1) + _text("test")
    host, _, port = place.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        message = header + request
        connection.sendall(struct.pack(">i", len(message)) + message)
        answer = _receive(connection)
    error = struct.unpack_from(">h", answer, 4 + 4 + 2 + len(topic) + 4 + 4)[0]
    assert error == 0, f"the broker answers with error {error}"


def _record(body: bytes, headers: list[tuple[bytes, bytes | None]]) -> bytes:
    content = b"\0" + _varint(0) + _varint(0) + _varint(-1) + _sized(body) + _varint(len(headers))
    for name, value in headers:
        content += _sized(name) + (_varint(-1) if value is None else _sized(value))
    return _sized(content)


def _batch(record: bytes) -> bytes:
    now = int(time.time() * 1000)
    checked = struct.pack(">hiqqqhii", 0, 0, now, now, -1, -1, -1, 1) + record
    rest = struct.pack(">iBI", 0, 2, _crc32c(checked)) + checked
    return struct.pack(">qi", 0, len(rest)) + rest


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def _varint(number: int) -> bytes:
    number = number << 1 ^ number >> 63
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _text(text: str | None) -> bytes:
    return b"\xff\xff" if text is None else struct.pack(">h", len(text)) + text.encode()


def _array(items: list[bytes]) -> bytes:
    return struct.pack(">i", len(items)) + b"".join(items)


def _receive(connection: socket.socket) -> bytes:
    size = struct.unpack(">i", _exactly(connection, 4))[0]
    return _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = connection.recv(size - len(found))
        assert piece, "the broker hung up"
        found += piece
    return found
