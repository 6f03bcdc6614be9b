"""Between the library's messages and AMQP's content: native properties, headers, body."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from reliable_mq.message import Message
from reliable_mq.names import has_control_characters
from reliable_mq.wire import MESSAGE_KEY, MESSAGE_TIME, RawMessage, format_time
from reliable_mq_rabbitmq.codec import decode_properties, encode_properties

_ADDED_BY_THE_BROKER = frozenset({"x-delivery-count", "x-acquired-count"})
_LAST_SECOND = 253402300799
"""The last second of the year 9999, the last one that ``datetime`` knows."""


def encode(message: Message) -> bytes:
    """Return the property list of *message*; raise ``ValueError`` for what AMQP cannot carry.

    The id, the content type and the time (in seconds) are native properties; the time with its
    microseconds and the key are headers, in front of the application's own.
    """
    headers: list[tuple[str, str | bytes]] = [(MESSAGE_TIME, format_time(message.time))]
    if message.key is not None:
        headers.append((MESSAGE_KEY, message.key))
    headers.extend(message.headers.items())
    return encode_properties(
        message_id=message.id,
        timestamp=max(0, int(message.time.timestamp())),
        content_type=message.content_type,
        headers=headers,
    )


def decode(topic: str, properties: bytes, body: bytes) -> RawMessage:
    """Return what a delivery on *topic* brought. Never raises.

    Headers that the broker itself adds on a redelivery are left out: the message is the same.
    """
    found = decode_properties(properties)
    return RawMessage(
        topic=topic,
        body=body,
        headers=[pair for pair in found.headers if pair[0] not in _ADDED_BY_THE_BROKER],
        native_id=found.message_id,
        native_content_type=_text(found.content_type),
        native_time=_time(found.timestamp),
    )


@lru_cache(maxsize=256)
def _text(value: bytes | None) -> str | None:
    try:
        text = value.decode() if value else None
    except UnicodeDecodeError:
        return None
    return text if text and not has_control_characters(text) else None


def _time(seconds: int | None) -> datetime | None:
    if seconds is None or seconds > _LAST_SECOND:
        return None
    return datetime.fromtimestamp(seconds, UTC)
