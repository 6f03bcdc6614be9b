"""How the input of a consumer may end: as a message that is itself wherever it goes, or as a
dead letter with id and cause. There is nothing in between."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from reliable_mq.consumer.failures import Failure, dead_letter_message
from reliable_mq.message import Message
from reliable_mq.names import MAX_KEY_BYTES, MAX_MESSAGE_ID_BYTES, has_control_characters
from reliable_mq.settings import Settings
from reliable_mq.store.codec import pack_pairs, unpack_pairs
from reliable_mq.wire import (
    MAX_CONTENT_TYPE_BYTES,
    ORIGIN_CAUSE,
    ORIGIN_ID,
    Limits,
    RawMessage,
    decode,
    encode_headers,
)

SETTINGS = Settings(max_message_bytes=1500, max_header_count=24, max_header_bytes=8192)
LIMITS = Limits(
    message_bytes=SETTINGS.max_message_bytes,
    header_count=SETTINGS.max_header_count,
    header_bytes=SETTINGS.max_header_bytes,
)
"""Small, so that the inputs reach them."""

_GROUP = "g" * 64
_CAUSE = "\N{SNOWMAN}" * 3000
_DIED_AT = datetime(2026, 1, 1, tzinfo=UTC)


def check_end(raw: RawMessage) -> Message:
    """Check how *raw* ends; return the copy for the dead-letter topic, which anything may need."""
    decoded = decode(raw, LIMITS)
    message = decoded.message
    _check_fields(raw, message)
    _check_identity(raw, message, stable=decoded.stable_id)
    # As it came, in the dead letter and while it waits for its next attempt.
    assert unpack_pairs(pack_pairs(raw.headers)) == list(raw.headers)
    if decoded.fault is None:
        _check_travels(message)
    else:
        assert 0 < len(decoded.fault) < 200
        assert len(message.headers) <= LIMITS.header_count
    return _check_dead_letter(message, raw, decoded.fault or _CAUSE)


def _check_fields(raw: RawMessage, message: Message) -> None:
    assert message.topic == raw.topic
    assert message.body == raw.body
    _check_text(message.id, MAX_MESSAGE_ID_BYTES)
    if message.key is not None:
        _check_text(message.key, MAX_KEY_BYTES)
    if message.content_type is not None:
        _check_text(message.content_type, MAX_CONTENT_TYPE_BYTES)
    assert message.time.tzinfo is UTC
    assert 1970 <= message.time.year < 9999


def _check_text(text: str, limit: int) -> None:
    assert 0 < len(text.encode()) <= limit
    assert not has_control_characters(text)


def _check_identity(raw: RawMessage, message: Message, *, stable: bool) -> None:
    again = decode(raw, LIMITS)
    assert again.stable_id == stable
    assert (again.message.id == message.id) == stable
    assert stable or not (raw.position or raw.native_id)


def _check_travels(message: Message) -> None:
    sent = RawMessage(topic=message.topic, body=message.body, headers=encode_headers(message))
    assert decode(sent, Limits()).message == message


def _check_dead_letter(message: Message, raw: RawMessage, cause: str) -> Message:
    failure = Failure(group=_GROUP, message=message, headers=raw.headers, attempts=1, cause=cause)
    copy = dead_letter_message(failure, SETTINGS, _DIED_AT)
    assert copy.headers[ORIGIN_ID] == message.id
    assert copy.headers[ORIGIN_CAUSE]
    # Whoever reads the dead-letter topic has the same limits.
    assert decode(arriving(copy), LIMITS).fault is None, "the copy is over the limits"
    return copy


def arriving(message: Message) -> RawMessage:
    """Return *message* as it arrives where nothing is native to the broker."""
    return RawMessage(topic=message.topic, body=message.body, headers=encode_headers(message))


def check_texts(pairs: Sequence[tuple[str, bytes]]) -> None:
    """Check that headers can be stored and sent on: names are Unicode, values bytes."""
    for name, value in pairs:
        name.encode()
        assert type(value) is bytes
