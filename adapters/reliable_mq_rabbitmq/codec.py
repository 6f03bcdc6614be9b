"""AMQP 0-9-1 content properties, to and from bytes.

Pika's own decoder raises for some of what a producer may send (a timestamp beyond the year 9999,
a float that is not a number, a deeply nested table), which ends the connection; the broker then
delivers the same message again, for ever. This one always comes to an end with properties:
values are turned into bytes, and what cannot be read is kept as it is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

UNDECODED = "amqp-undecoded"
"""The header under which the unreadable rest of a property list is kept."""

MAX_SHORT_STRING = 255
_MAX_DEPTH = 16

_CONTENT_TYPE = 1 << 15
_CONTENT_ENCODING = 1 << 14
_HEADERS = 1 << 13
_DELIVERY_MODE = 1 << 12
_PRIORITY = 1 << 11
_CORRELATION_ID = 1 << 10
_REPLY_TO = 1 << 9
_EXPIRATION = 1 << 8
_MESSAGE_ID = 1 << 7
_TIMESTAMP = 1 << 6

_PERSISTENT = b"\x02"

_FIXED = {
    b"b": struct.Struct(">b"),
    b"B": struct.Struct(">B"),
    b"s": struct.Struct(">h"),
    b"U": struct.Struct(">h"),
    b"u": struct.Struct(">H"),
    b"I": struct.Struct(">i"),
    b"i": struct.Struct(">I"),
    b"l": struct.Struct(">q"),
    b"L": struct.Struct(">q"),
    b"T": struct.Struct(">Q"),
    b"f": struct.Struct(">f"),
    b"d": struct.Struct(">d"),
}
_LENGTH = struct.Struct(">I")
_FLAGS = struct.Struct(">H")
_STAMP = struct.Struct(">Q")
_SCALED = struct.Struct(">Bi")


@dataclass(slots=True)
class Properties:
    """The properties this library reads. Header values are bytes whatever their type was.

    Text and byte arrays are as they were; numbers, times (seconds) and decimals are in decimal
    digits, booleans ``true`` and ``false``, nothing is empty, lists and tables are JSON.
    """

    content_type: bytes | None = None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    message_id: bytes | None = None
    timestamp: int | None = None


class _Unreadable(Exception):
    """The bytes are no value of a known type, or nested too deeply to be one."""


# --- from bytes -----------------------------------------------------------------------------------


def decode_properties(raw: bytes) -> Properties:
    """Return the properties in *raw*, a header frame's property list. Never raises."""
    found = Properties()
    reader = _Reader(raw)
    try:
        _read_properties(reader, found)
    except (_Unreadable, struct.error):
        found.headers.append((UNDECODED, raw[reader.at :]))
    return found


def _read_properties(reader: _Reader, found: Properties) -> None:
    (flags,) = reader.unpack(_FLAGS)
    if flags & _CONTENT_TYPE:
        found.content_type = reader.short_string()
    if flags & _CONTENT_ENCODING:
        reader.short_string()
    if flags & _HEADERS:
        _read_headers(reader, found.headers)
    if flags & _DELIVERY_MODE:
        reader.take(1)
    if flags & _PRIORITY:
        reader.take(1)
    for flag in (_CORRELATION_ID, _REPLY_TO, _EXPIRATION):
        if flags & flag:
            reader.short_string()
    if flags & _MESSAGE_ID:
        found.message_id = reader.short_string()
    if flags & _TIMESTAMP:
        (found.timestamp,) = reader.unpack(_STAMP)


def _read_headers(reader: _Reader, headers: list[tuple[str, bytes]]) -> None:
    end = reader.end_of_block()
    _read_strings(reader, end, headers)
    while reader.at < end:
        name = reader.short_string().decode(errors="backslashreplace")
        headers.append((name, _header_value(reader)))


def _read_strings(reader: _Reader, end: int, headers: list[tuple[str, bytes]]) -> None:
    """Read headers as far as they are texts or byte arrays, which is all that most messages have.

    In one go, because it is half of what a message costs here; the others are read one by one.
    """
    data, at = reader.data, reader.at
    while at < end:
        kind = at + 1 + data[at]
        start = kind + 1 + _LENGTH.size
        if start > end or data[kind] not in b"Sx":
            break
        stop: int = start + _LENGTH.unpack_from(data, kind + 1)[0]
        if stop > end:
            break
        headers.append((data[at + 1 : kind].decode("utf-8", "backslashreplace"), data[start:stop]))
        at = stop
    reader.at = at


def _header_value(reader: _Reader) -> bytes:
    start = reader.at
    kind = reader.take(1)
    if kind in b"Sx":
        return reader.long_string()
    if kind not in b"FA":
        return _scalar_bytes(_read_scalar(reader, kind))
    end = reader.end_of_block()
    reader.at = start
    try:
        return json.dumps(_read_value(reader, 0), separators=(",", ":")).encode()
    except (_Unreadable, struct.error):
        # Its length is known, so what follows it can still be read.
        reader.at = end
        return reader.data[start:end]


def _scalar_bytes(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bool):
        return b"true" if value else b"false"
    return str(value).encode()


def _read_scalar(reader: _Reader, kind: bytes) -> bool | int | float | Decimal | None:
    if kind in _FIXED:
        (number,) = reader.unpack(_FIXED[kind])
        return number  # type: ignore[no-any-return]
    if kind == b"t":
        return reader.take(1) != b"\x00"
    if kind == b"V":
        return None
    if kind == b"D":
        scale, digits = reader.unpack(_SCALED)
        return Decimal(digits).scaleb(-scale)
    raise _Unreadable(kind)


def _read_value(reader: _Reader, depth: int) -> Any:
    """Return a value of any type as JSON knows it."""
    if depth > _MAX_DEPTH:
        raise _Unreadable("nested too deeply")
    kind = reader.take(1)
    if kind in b"Sx":
        return reader.long_string().decode(errors="backslashreplace")
    if kind == b"A":
        return _read_list(reader, depth)
    if kind == b"F":
        return _read_table(reader, depth)
    value = _read_scalar(reader, kind)
    return str(value) if isinstance(value, Decimal) else value


def _read_list(reader: _Reader, depth: int) -> list[Any]:
    end = reader.end_of_block()
    values = []
    while reader.at < end:
        values.append(_read_value(reader, depth + 1))
    return values


def _read_table(reader: _Reader, depth: int) -> dict[str, Any]:
    end = reader.end_of_block()
    values = {}
    while reader.at < end:
        name = reader.short_string().decode(errors="backslashreplace")
        values[name] = _read_value(reader, depth + 1)
    return values


class _Reader:
    """A place in a run of bytes. Reading past the end raises :class:`_Unreadable`."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise _Unreadable("cut short")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        values = form.unpack_from(self.data, self.at)
        self.at += form.size
        return values

    def short_string(self) -> bytes:
        start = self.at + 1
        if start > len(self.data):
            raise _Unreadable("cut short")
        self.at = start
        end = start + self.data[start - 1]
        if end > len(self.data):
            raise _Unreadable("cut short")
        self.at = end
        return self.data[start:end]

    def long_string(self) -> bytes:
        (length,) = self.unpack(_LENGTH)
        return self.take(length)

    def end_of_block(self) -> int:
        """Return where the list or table that begins here ends, and step inside it."""
        (length,) = self.unpack(_LENGTH)
        end = self.at + int(length)
        if end > len(self.data):
            raise _Unreadable("cut short")
        return end


# --- to bytes -------------------------------------------------------------------------------------


def encode_properties(
    *,
    message_id: str,
    timestamp: int,
    content_type: str | None,
    headers: Iterable[tuple[str, str | bytes]],
) -> bytes:
    """Return the property list of a persistent message: text as long strings, bytes as arrays.

    Raises :class:`ValueError`, which names the value, where one does not fit AMQP's limits.
    """
    flags = _HEADERS | _DELIVERY_MODE | _MESSAGE_ID | _TIMESTAMP
    pieces = [b""]
    if content_type is not None:
        flags |= _CONTENT_TYPE
        pieces.append(_short_string(content_type, "content type"))
    table = _table(headers)
    pieces += (_LENGTH.pack(len(table)), table, _PERSISTENT)
    pieces += (_short_string(message_id, "message id"), _STAMP.pack(timestamp))
    pieces[0] = _FLAGS.pack(flags)
    return b"".join(pieces)


def _table(headers: Iterable[tuple[str, str | bytes]]) -> bytes:
    pieces: list[bytes] = []
    for name, value in headers:
        kind, data = (b"S", value.encode()) if isinstance(value, str) else (b"x", value)
        pieces += (_short_string(name, "header name"), kind, _LENGTH.pack(len(data)), data)
    return b"".join(pieces)


def _short_string(text: str, what: str) -> bytes:
    data = text.encode()
    if len(data) > MAX_SHORT_STRING:
        raise ValueError(
            f"the {what} {text[:40]!r}... has {len(data)} bytes, AMQP allows {MAX_SHORT_STRING}"
        )
    return bytes((len(data),)) + data
