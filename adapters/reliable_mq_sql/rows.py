"""Between messages and rows of the log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, Select, Table, select

from reliable_mq.message import Message
from reliable_mq.names import MAX_KEY_BYTES, MAX_MESSAGE_ID_BYTES, has_control_characters
from reliable_mq.store.codec import pack_pairs, unpack_pairs
from reliable_mq.store.times import from_micros, to_micros
from reliable_mq.wire import MAX_CONTENT_TYPE_BYTES, RawHeaders, RawMessage, header_bytes

UNDECODED = "sql-undecoded"
"""The header under which a column of headers is kept that cannot be read."""

_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


def why_refused(message: Message, max_body: int) -> str | None:
    """Return why no row can hold *message*, or None."""
    size = len(message.body)
    if size > max_body:
        return f"the body has {size} bytes, the limit is {max_body}"
    texts = (
        ("id", message.id, MAX_MESSAGE_ID_BYTES),
        ("key", message.key or "", MAX_KEY_BYTES),
        ("content type", message.content_type or "", MAX_CONTENT_TYPE_BYTES),
    )
    for what, text, limit in texts:
        if len(text.encode(errors="replace")) > limit:
            return f"the {what} has more than {limit} bytes"
        if has_control_characters(text) or not _is_utf8(text):
            return f"the {what} holds characters that are no text"
    for name, value in message.headers.items():
        if not _is_utf8(name) or not (isinstance(value, bytes) or _is_utf8(value)):
            return "a header holds characters that are no text"
    if message.time < _EARLIEST:
        return f"the time {message.time} is before 1970"
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_row(message: Message, partition: int) -> dict[str, Any]:
    """Return the row of *message* in this partition, but for its offset and its time there."""
    headers = [(name, header_bytes(value)) for name, value in message.headers.items()]
    return {
        "topic": message.topic,
        "partition": partition,
        "message_id": message.id,
        "message_key": None if message.key is None else message.key.encode(),
        "body": message.body,
        "headers": pack_pairs(headers),
        "content_type": message.content_type,
        "message_time": to_micros(message.time),
    }


def select_messages(log: Table) -> Select[Any]:
    """Return the SELECT whose rows :func:`to_raw` understands."""
    columns = log.c
    return select(
        columns.log_offset,
        columns.message_id,
        columns.message_key,
        columns.body,
        columns.headers,
        columns.content_type,
        columns.message_time,
    )


def to_raw(row: Row[Any], topic: str, partition: int) -> RawMessage:
    """Return the received message of a row, whoever wrote it. Never raises."""
    return RawMessage(
        topic=topic,
        body=bytes(row.body),
        headers=_headers(bytes(row.headers)),
        key=None if row.message_key is None else bytes(row.message_key),
        position=f"{topic}/{partition}/{row.log_offset}",
        native_id=row.message_id,
        native_content_type=row.content_type,
        native_time=_time(row.message_time),
    )


def _headers(packed: bytes) -> RawHeaders:
    try:
        pairs = unpack_pairs(packed)
        for name, _ in pairs:
            name.encode()
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        # An error would come again with the row, for ever, and hold up those behind it.
        return [(UNDECODED, packed)]
    return pairs


def _time(micros: int) -> datetime | None:
    try:
        return from_micros(micros)
    except OverflowError:
        return None
