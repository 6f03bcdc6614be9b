"""What is sent and what is handed over: :class:`Message`, :class:`Delivery`, :class:`Topic`."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast, overload

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from reliable_mq.errors import DecodeError

T = TypeVar("T")

HeaderValue = str | bytes
NO_HEADERS: Mapping[str, HeaderValue] = MappingProxyType({})


def _no_headers() -> Mapping[str, HeaderValue]:
    return NO_HEADERS


JSON = "application/json"
OCTET_STREAM = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An immutable fact on its way.

    ``id`` is the idempotency key: given before the first send and unchanged by every re-send.
    ``key`` is the ordering key, or None for no order. ``time`` is when the message was made,
    aware, in UTC. ``headers`` are the application's own: those of the library are the fields.
    """

    id: str
    topic: str
    key: str | None = None
    body: bytes = b""
    headers: Mapping[str, HeaderValue] = field(default_factory=_no_headers)
    content_type: str | None = None
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    @overload
    def decode(self, type_: type[T], /) -> T: ...
    @overload
    def decode(self, type_: Any, /) -> Any: ...
    def decode(self, type_: Any, /) -> Any:
        """Return the body as *type_*: ``bytes`` and ``Message`` as they are, else from JSON.

        Raises :class:`DecodeError`, whose text names the fields at fault and not their values.
        """
        return body_decoder(type_)(self)


class _Unfrozen:
    """A :class:`Message` to be: of the same layout, so that it can become one."""

    __slots__ = Message.__slots__

    id: str
    topic: str
    key: str | None
    body: bytes
    headers: Mapping[str, HeaderValue]
    content_type: str | None
    time: datetime


def message_of(
    id_: str,
    topic: str,
    key: str | None,
    body: bytes,
    headers: Mapping[str, HeaderValue],
    content_type: str | None,
    time: datetime,
) -> Message:
    """Return what ``Message`` makes of these, for the paths that every message takes.

    A frozen dataclass sets each field by ``object.__setattr__``, which takes several times as long
    as setting it before the object is frozen.
    """
    made = _Unfrozen()
    made.id = id_
    made.topic = topic
    made.key = key
    made.body = body
    made.headers = headers
    made.content_type = content_type
    made.time = time
    made.__class__ = Message  # type: ignore[assignment]  # CPython allows it: the slots are the same
    return cast(Message, made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One hand-over of a message to one group.

    ``attempt`` counts from 1 and includes this one. ``redelivered`` is the broker's word that
    it handed the message over before; False proves nothing. ``received_at`` is aware UTC.
    """

    message: Message
    group: str
    attempt: int = 1
    redelivered: bool = False
    received_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message one group gave up on, kept until a person replays or discards it.

    ``complete`` is False where the database could not take all of it: ``cause`` says what is
    missing, and it cannot be replayed.
    """

    id: int
    message: Message
    group: str
    attempts: int
    cause: str
    died_at: datetime
    complete: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Topic(Generic[T]):
    """A topic and the type of its payload; made by ``ReliableMQ.topic``."""

    name: str
    payload: Any = None
    partitions: int | None = None
    replication_factor: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def new_message_id() -> str:
    """Return a UUIDv7 (RFC 9562): unique, and near its neighbours in an index."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80
    value |= 0x7 << 76 | (random >> 62 & 0xFFF) << 64 | 0b10 << 62 | (random & (1 << 62) - 1)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def fingerprint(body: bytes) -> bytes:
    """Return 16 bytes that tell two bodies apart: the same id with another one is a conflict."""
    return hashlib.blake2b(body, digest_size=16).digest()


@lru_cache(maxsize=1024)
def _cached_adapter(type_: Any, shown: str) -> TypeAdapter[Any]:
    return TypeAdapter(type_)


def type_adapter(type_: Any) -> TypeAdapter[Any]:
    """Return the (cached where hashable) pydantic adapter of *type_*."""
    # `str | date` equals `date | str`, but pydantic prefers the one that stands first.
    shown = "" if isinstance(type_, type) else repr(type_)
    try:
        return _cached_adapter(type_, shown)
    except TypeError:
        return TypeAdapter(type_)


def body_decoder(type_: Any) -> Callable[[Message], Any]:
    """Return what :meth:`Message.decode` does for *type_*, with everything looked up before."""
    if type_ is bytes:
        return lambda message: message.body
    if type_ is Message:
        return lambda message: message
    validate = type_adapter(type_).validator.validate_json

    def decode(message: Message) -> Any:
        try:
            return validate(message.body)
        except ValidationError as error:
            # Not chained: a traceback with pydantic's error in it would show the body.
            raise DecodeError(_explain(type_, error)) from None
        except RecursionError:
            raise DecodeError(f"the body is nested too deeply for {_name(type_)}") from None

    return decode


def _name(type_: Any) -> str:
    return getattr(type_, "__name__", None) or str(type_)


_NAMEABLE = 1000
"""Problems of a body up to which they are looked at: as a list they take 500 times its memory."""


def _explain(type_: Any, error: ValidationError) -> str:
    if error.error_count() > _NAMEABLE:
        return f"the body is not a valid {_name(type_)}: it has {error.error_count()} problems"
    # The offending input stays out: error texts are logged and stored, bodies are not.
    problems = error.errors(include_url=False, include_input=False)
    shown = "; ".join(f"{_place(problem['loc'])}: {_text(problem)}" for problem in problems[:5])
    more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
    return f"the body is not a valid {_name(type_)}: {shown}{more}"


def _place(location: tuple[int | str, ...]) -> str:
    # Names of fields come from the body where it has fields that nobody expects.
    parts = [str(part)[:64] for part in location[:16]]
    place = ".".join("".join(c if c.isprintable() else "?" for c in part) for part in parts)
    return place or "body"


def _text(problem: ErrorDetails) -> str:
    if problem["type"] != "union_tag_invalid":
        return problem["msg"]
    # The one text of pydantic's that quotes the body.
    context = problem["ctx"]
    return f"{context['discriminator']} is none of the expected {context['expected_tags']}"
