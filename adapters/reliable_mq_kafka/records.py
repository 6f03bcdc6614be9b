"""Between messages and Kafka's records."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeAlias, cast

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE
from confluent_kafka import Message as Record
from confluent_kafka._types import HeadersType

from reliable_mq.message import Message
from reliable_mq.wire import MESSAGE_KEY, RawHeaders, RawMessage, encode_headers

_NATIVE = (MESSAGE_KEY,)
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"

KafkaRecord: TypeAlias = "Record[bytes, bytes]"
_Pairs: TypeAlias = list[tuple[str, bytes | None]]


def headers_of(message: Message) -> HeadersType:
    """Return the headers of the record of *message*; its key is the record's key."""
    return encode_headers(message, native=_NATIVE)  # type: ignore[return-value]  # a list


def to_raw(record: KafkaRecord, topic: str, partition: int) -> RawMessage:
    """Return what *record* holds, nothing of it believed yet. Never raises."""
    kind, milliseconds = record.timestamp()
    return RawMessage(
        topic=topic,
        body=record.value() or b"",
        headers=_headers(record),
        key=record.key(),
        # A topic that is deleted and made again counts its offsets anew, hence the time.
        position=f"{topic}/{partition}/{record.offset()}@{milliseconds}",
        native_time=None if kind == TIMESTAMP_NOT_AVAILABLE else _time(milliseconds),
    )


def _headers(record: KafkaRecord) -> RawHeaders:
    try:
        # A received record has a list of pairs or nothing; the types know of more.
        pairs = cast(_Pairs | None, record.headers())
    except (SystemError, UnicodeDecodeError):
        pairs = _readable(record)
    return [(name, value or b"") for name, value in pairs or ()]


def _readable(record: KafkaRecord) -> _Pairs:
    """Return the headers of a record of which some name is no UTF-8.

    The client (2.16) reports such a name once, as an error, and then hands out pairs in which it
    is a null pointer: whoever reads that crashes the process. Only ``repr`` can look at it.
    """
    try:
        pairs = cast(_Pairs, record.headers() or ())
    except (SystemError, UnicodeDecodeError):
        return []
    return [(_UNREADABLE, pair[1]) if repr(pair).startswith("(<NULL>") else pair for pair in pairs]


def _time(milliseconds: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
