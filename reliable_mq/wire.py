"""Between :class:`Message` and what a broker carries: header names, native properties, bytes.

The names are public: a producer or consumer that does not use this library may rely on them.
What arrives is untrusted. It is parsed strictly and cut to the configured limits, and there is
always a message at the end of it: what cannot be trusted becomes its ``fault``, never an
exception that would leave the delivery in nobody's hands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType

from reliable_mq.message import NO_HEADERS, HeaderValue, Message, message_of, new_message_id
from reliable_mq.names import MAX_KEY_BYTES, MAX_MESSAGE_ID_BYTES, has_control_characters

MESSAGE_ID = "message-id"
MESSAGE_TIME = "message-time"
MESSAGE_KEY = "message-key"
CONTENT_TYPE = "content-type"
TRACEPARENT = "traceparent"
CLOUD_EVENT_ID = "ce_id"
BODY = "body"
"""The entry field that holds the body on Redis; no header may have its name on any broker."""

RESERVED_PREFIX = "reliable-mq-"
ORIGIN_ID = "reliable-mq-origin-id"
ORIGIN_TOPIC = "reliable-mq-origin-topic"
ORIGIN_GROUP = "reliable-mq-origin-group"
ORIGIN_ATTEMPTS = "reliable-mq-origin-attempts"
ORIGIN_CAUSE = "reliable-mq-origin-cause"
ORIGIN_DIED_AT = "reliable-mq-origin-died-at"
TRUNCATED = "reliable-mq-truncated"

_OWN_NAMES = frozenset({MESSAGE_ID, MESSAGE_TIME, MESSAGE_KEY, CONTENT_TYPE, BODY, TRACEPARENT})
_READ_NAMES = frozenset({MESSAGE_ID, MESSAGE_TIME, MESSAGE_KEY, CONTENT_TYPE})
_SOUGHT_NAMES = _READ_NAMES | {CLOUD_EVENT_ID}

MAX_CONTENT_TYPE_BYTES = 255
# What every database and broker can store; a time outside is not believed.
_YEARS = range(1970, 9999)

RawHeaders = Sequence[tuple[str, bytes]]


def is_reserved(name: str) -> bool:
    """Tell whether a header name belongs to the library, in any case of letters."""
    folded = name.lower()
    return folded in _OWN_NAMES or folded.startswith(RESERVED_PREFIX)


def format_time(time: datetime) -> str:
    """Return *time* as ISO 8601 in UTC with microseconds."""
    if time.tzinfo is not UTC:  # The conversion takes twice as long as all the rest.
        time = time.astimezone(UTC)
    return time.isoformat(timespec="microseconds")


def parse_time(value: bytes) -> datetime | None:
    """Return the time that :func:`format_time` wrote, or None for anything without a zone."""
    if len(value) > 40:
        return None
    try:
        time = datetime.fromisoformat(value.decode("ascii"))
        if time.tzinfo is UTC:
            return time
        return time.astimezone(UTC) if time.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def header_bytes(value: HeaderValue) -> bytes:
    """Return a header's value as it travels."""
    return value.encode() if isinstance(value, str) else value


def encode_headers(message: Message, *, native: Collection[str] = ()) -> list[tuple[str, bytes]]:
    """Return the header pairs of *message*, without those the broker carries as *native*.

    The names of *native* are of :data:`MESSAGE_ID`, :data:`MESSAGE_TIME`, :data:`MESSAGE_KEY`
    and :data:`CONTENT_TYPE`.
    """
    pairs = []
    if MESSAGE_ID not in native:
        pairs.append((MESSAGE_ID, message.id.encode()))
    if MESSAGE_TIME not in native:
        pairs.append((MESSAGE_TIME, format_time(message.time).encode()))
    if message.key is not None and MESSAGE_KEY not in native:
        pairs.append((MESSAGE_KEY, message.key.encode()))
    if message.content_type is not None and CONTENT_TYPE not in native:
        pairs.append((CONTENT_TYPE, message.content_type.encode()))
    if message.headers:
        pairs.extend((name, header_bytes(value)) for name, value in message.headers.items())
    return pairs


def has_id(headers: RawHeaders) -> bool:
    """Tell whether *headers* name the message, so that it needs no position.

    Of several ids the last one counts, as in :func:`decode`; an empty one is none.
    """
    given = b""
    for name, value in headers:
        if name == MESSAGE_ID:
            given = value
    return bool(given)


@dataclass(slots=True, kw_only=True)
class RawMessage:
    """A message as an adapter received it, nothing of it believed yet.

    ``headers`` are the raw pairs in wire order, duplicates included. ``native_*`` come from the
    broker's own properties (AMQP's ``message_id``, Kafka's record key and timestamp) and win
    over headers. ``position`` is the message's lasting place on the broker, from which a foreign
    message without an id gets one; None where the broker has no such place, or where the message
    has an id. A time that is a number counts milliseconds since 1970.
    """

    topic: str
    body: bytes
    headers: RawHeaders = ()
    key: bytes | None = None
    position: str | None = None
    native_id: str | bytes | None = None
    native_content_type: str | None = None
    native_time: datetime | int | None = None


@dataclass(slots=True)
class Decoded:
    """The message that came of a :class:`RawMessage`.

    ``fault`` says why no handler may see it (a dead letter at once), ``stable_id`` is False
    where the id was made up here and a redelivery will have another. ``size`` counts the bytes
    of body and headers.
    """

    message: Message
    fault: str | None = None
    stable_id: bool = True
    size: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What is taken in: bytes of a body, number and total bytes of headers."""

    message_bytes: int = 1_000_000
    header_count: int = 100
    header_bytes: int = 65536


def decode(raw: RawMessage, limits: Limits) -> Decoded:
    """Return the message of *raw*. Never raises, whatever the bytes are."""
    pairs = raw.headers
    found: dict[str, bytes] = {}
    size = 0
    foreign = False
    for name, value in pairs:
        size += len(name) + len(value)
        if name in _SOUGHT_NAMES:
            found[name] = value
        foreign = foreign or name not in _READ_NAMES
    fault = _fault(raw, size, limits)
    if foreign:
        taken = pairs[: limits.header_count] if fault else pairs
        headers: Mapping[str, HeaderValue] = MappingProxyType(application_headers(taken))
    else:
        headers = NO_HEADERS
    id_, stable = _message_id(raw, found)
    key = raw.key if raw.key is not None else found.get(MESSAGE_KEY)
    message = message_of(
        id_,
        raw.topic,
        _bounded(key, MAX_KEY_BYTES) if key else None,
        raw.body,
        headers,
        _content_type(raw, found),
        _message_time(raw, found),
    )
    return Decoded(message, fault, stable, len(raw.body) + size)


def application_headers(pairs: RawHeaders) -> dict[str, HeaderValue]:
    """Return the headers a handler sees: text where it is UTF-8, of duplicate names the last."""
    return {name: _text_or_bytes(value) for name, value in pairs if name not in _READ_NAMES}


def _fault(raw: RawMessage, header_bytes: int, limits: Limits) -> str | None:
    if len(raw.body) > limits.message_bytes:
        return f"oversize: the body has {len(raw.body)} bytes, the limit is {limits.message_bytes}"
    if len(raw.headers) > limits.header_count:
        return f"headers: there are {len(raw.headers)}, the limit is {limits.header_count}"
    if header_bytes > limits.header_bytes:
        return f"headers: they have {header_bytes} bytes, the limit is {limits.header_bytes}"
    return None


def _text_or_bytes(value: bytes) -> HeaderValue:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _bounded(value: bytes, limit: int) -> str:
    """Return *value* as text that fits a column; what cannot be is named by its hash."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = ""
    # What is printable has no control characters, and is found out faster.
    if text and len(value) <= limit and (text.isprintable() or not has_control_characters(text)):
        return text
    return "sha256:" + hashlib.sha256(value).hexdigest()


def _message_id(raw: RawMessage, found: Mapping[str, bytes]) -> tuple[str, bool]:
    given = _bytes(raw.native_id) or found.get(MESSAGE_ID) or found.get(CLOUD_EVENT_ID)
    given = given or _bytes(raw.position)
    if given:
        return _bounded(given, MAX_MESSAGE_ID_BYTES), True
    return new_message_id(), False


def _bytes(value: str | bytes | None) -> bytes | None:
    # A client may hand over text it could not decode, with lone surrogates in it.
    return value.encode(errors="surrogatepass") if isinstance(value, str) else value


def _content_type(raw: RawMessage, found: Mapping[str, bytes]) -> str | None:
    value = _bytes(raw.native_content_type) or found.get(CONTENT_TYPE)
    if not value or len(value) > MAX_CONTENT_TYPE_BYTES:
        return None
    return _content_type_of(value)


@lru_cache(maxsize=256)
def _content_type_of(value: bytes) -> str | None:
    text = _text_or_bytes(value)
    return text if isinstance(text, str) and not has_control_characters(text) else None


def _message_time(raw: RawMessage, found: Mapping[str, bytes]) -> datetime:
    given = found.get(MESSAGE_TIME)
    time = parse_time(given) if given else None
    if time is not None and time.year in _YEARS:
        return time
    time = _native_time(raw.native_time)
    return time if time is not None and time.year in _YEARS else datetime.now(UTC)


def _native_time(time: datetime | int | None) -> datetime | None:
    try:
        if isinstance(time, int):
            return datetime.fromtimestamp(time / 1000, UTC)
        if time is None or time.tzinfo is UTC:
            return time
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None
