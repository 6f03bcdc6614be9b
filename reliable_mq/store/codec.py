"""Header pairs as bytes of one column: a JSON list, readable where the values are text."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping

from reliable_mq.message import HeaderValue
from reliable_mq.wire import RawHeaders

EMPTY = b"[]"


def pack_pairs(pairs: Iterable[tuple[str, bytes]]) -> bytes:
    """Return *pairs* packed; order, duplicates and every byte are kept."""
    rows = [_pack(name, value) for name, value in pairs]
    return json.dumps(rows, ensure_ascii=True).encode() if rows else EMPTY


def pack_headers(headers: Mapping[str, HeaderValue]) -> bytes:
    """Return the application's headers packed."""
    if not headers:
        return EMPTY
    rows = [[k, v] if isinstance(v, str) else _pack(k, v) for k, v in headers.items()]
    return json.dumps(rows, ensure_ascii=True).encode()


def unpack_pairs(packed: bytes) -> list[tuple[str, bytes]]:
    """Return what :func:`pack_pairs` was given."""
    return [(row[0], _value(row)) for row in json.loads(packed)] if packed != EMPTY else []


def unpack_headers(packed: bytes) -> dict[str, HeaderValue]:
    """Return what :func:`pack_headers` was given; str where it was str or is UTF-8."""
    if packed == EMPTY:
        return {}
    return {row[0]: row[1] if len(row) == 2 else _value(row) for row in json.loads(packed)}


def raw_pairs(headers: Mapping[str, HeaderValue]) -> RawHeaders:
    """Return *headers* as pairs of name and bytes."""
    return [(k, v.encode() if isinstance(v, str) else v) for k, v in headers.items()]


def _pack(name: str, value: bytes) -> list[str]:
    try:
        return [name, value.decode()]
    except UnicodeDecodeError:
        return [name, "base64", base64.b64encode(value).decode()]


def _value(row: list[str]) -> bytes:
    return row[1].encode() if len(row) == 2 else base64.b64decode(row[2])
