"""Between a :class:`Message` and the columns that every table with messages has."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from sqlalchemy import Row

from reliable_mq.message import Message
from reliable_mq.store.codec import pack_pairs, unpack_pairs
from reliable_mq.store.times import from_micros, to_micros
from reliable_mq.wire import RawHeaders, application_headers


def received_columns(message: Message, headers: RawHeaders) -> dict[str, Any]:
    """Return the columns of a message that was received, its raw header pairs kept."""
    return {
        "message_id": message.id,
        "topic": message.topic,
        "message_key": None if message.key is None else message.key.encode(),
        "body": message.body,
        "headers": pack_pairs(headers),
        "content_type": message.content_type,
        "message_time": to_micros(message.time),
    }


def received_message(row: Row[Any]) -> tuple[Message, RawHeaders]:
    """Return the message of such a row, and its raw header pairs."""
    pairs = unpack_pairs(bytes(row.headers))
    message = Message(
        id=row.message_id,
        topic=row.topic,
        key=None if row.message_key is None else bytes(row.message_key).decode(),
        body=bytes(row.body),
        headers=MappingProxyType(application_headers(pairs)),
        content_type=row.content_type,
        time=from_micros(row.message_time),
    )
    return message, pairs
