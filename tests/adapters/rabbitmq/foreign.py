"""A producer that does not use this library, down to bytes no client would send."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pika

_HEADERS = 1 << 13


class RawProperties:
    """A property list as it is to be on the wire, for pika's ``basic_publish``."""

    INDEX = pika.BasicProperties.INDEX

    def __init__(self, data: bytes) -> None:
        self._data = data

    def encode(self) -> list[bytes]:
        return [self._data]


def header_table(fields: Sequence[tuple[str, bytes]]) -> RawProperties:
    """Properties with nothing but a header table; each value begins with the byte of its type."""
    table = b"".join(bytes((len(name),)) + name.encode() + value for name, value in fields)
    return RawProperties(struct.pack(">HI", _HEADERS, len(table)) + table)


def long_string(value: bytes) -> bytes:
    return b"S" + struct.pack(">I", len(value)) + value


@contextmanager
def channel(url: str) -> Iterator[Any]:
    """A blocking channel of a plain pika client."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


def publish(
    url: str,
    topic: str,
    body: bytes,
    *,
    headers: Sequence[tuple[str, bytes]] = (),
    properties: Any = None,
    routing_key: str = "",
) -> None:
    """Publish with the confirmation of the broker, which also says that it was routed."""
    if properties is None:
        properties = header_table([(name, long_string(value)) for name, value in headers])
    with channel(url) as opened:
        opened.confirm_delivery()
        opened.basic_publish(topic, routing_key, body, properties, mandatory=True)
