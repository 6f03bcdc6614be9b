"""The messages: 1 KiB of JSON, numbered, with keys that take turns."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

BODY_BYTES = 1024
_DIGITS = 9
_HEAD = b'{"n":"'
_FROM, _TO = len(_HEAD), len(_HEAD) + _DIGITS

CONTENT_TYPE = "application/json"


def key_of(n: int, keys: int) -> str:
    """Return the key of message *n*."""
    return f"customer-{n % keys}"


def body_of(n: int, keys: int) -> bytes:
    """Return the body of message *n*; its number stands where :func:`number_of` finds it."""
    start = b'%b%0*d","customer":"%b","amount":%d.25,"note":"' % (
        _HEAD, _DIGITS, n, key_of(n, keys).encode(), n % 1000,
    )  # fmt: skip
    return start + b"x" * (BODY_BYTES - len(start) - 2) + b'"}'


def number_of(body: bytes) -> int:
    """Return the number of the message with this body, without decoding it."""
    return int(body[_FROM:_TO])


def number_in(data: bytes) -> int:
    """Return the number of the message whose body is somewhere in *data*."""
    return number_of(data[data.index(_HEAD) :])


def id_of(n: int, run: int = 0) -> str:
    """Return the message's id: in the shape of a UUIDv7, rising like one."""
    return f"01900000-0000-7000-8{run % 4096:03x}-{n:012x}"


def slot_of(key: str, slots: int = 64) -> int:
    """Return the outbox slot of a key."""
    return zlib.crc32(key.encode()) % slots


def messages(count: int, keys: int) -> Iterator[tuple[int, str, bytes]]:
    """Yield number, key and body of *count* messages."""
    for n in range(count):
        yield n, key_of(n, keys), body_of(n, keys)
