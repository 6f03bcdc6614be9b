"""Between messages and Kafka's records."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, TypeAlias, cast

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE
from confluent_kafka import Message as Record

from reliable_mq.message import Message
from reliable_mq.wire import MESSAGE_KEY, RawHeaders, RawMessage, encode_headers, has_id

if TYPE_CHECKING:
    from confluent_kafka._types import HeadersType

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
    headers = _headers(record)
    return RawMessage(
        topic=topic,
        body=record.value() or b"",
        headers=headers,
        key=record.key(),
        # A topic that is deleted and made again counts its offsets anew, hence the time.
        position=None
        if has_id(headers)
        else f"{topic}/{partition}/{record.offset()}@{milliseconds}",
        native_time=None if kind == TIMESTAMP_NOT_AVAILABLE else milliseconds,
    )


def _headers(record: KafkaRecord) -> RawHeaders:
    try:
        # A received record has a list of pairs or nothing; the types know of more.
        pairs = cast(_Pairs, record.headers() or ())
        if len(gc.get_referents(*pairs)) == 2 * len(pairs):
            return [(name, value or b"") for name, value in pairs]
    except (SystemError, UnicodeDecodeError):
        # It told of an unreadable name.
        return _readable(record)
    return _readable(record)


def _readable(record: KafkaRecord) -> RawHeaders:
    """Return the headers of a record of which some name is no UTF-8.

    The client (2.16) puts a null pointer in the place of such a name, and reports the error
    once, somewhere in the first calls that follow, or not at all. Whoever reads the pointer
    crashes the process. The collector's view of a pair is safe: it leaves null pointers out.
    """
    found: list[tuple[str, bytes]] = []
    for pair in cast(_Pairs, record.headers() or ()):
        if len(gc.get_referents(pair)) == 2:
            name, value = pair
        else:
            name, value = _UNREADABLE, pair[1]
        found.append((name, value or b""))
    return found
