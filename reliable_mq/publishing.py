"""From what ``publish`` is given to a :class:`Message` that any broker and the store can carry.

Everything a consumer would refuse is refused here, where its author can still be told:
:class:`InvalidMessageError`, with the value at fault (never the payload's content) and the limit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError

from reliable_mq.clock import Clock
from reliable_mq.errors import ConfigurationError, InvalidMessageError
from reliable_mq.message import (
    JSON,
    OCTET_STREAM,
    HeaderValue,
    Message,
    new_message_id,
    type_adapter,
)
from reliable_mq.names import (
    MAX_HEADER_NAME_BYTES,
    MAX_KEY_BYTES,
    MAX_MESSAGE_ID_BYTES,
    check_topic,
    has_control_characters,
    plain,
)
from reliable_mq.wire import (
    MAX_CONTENT_TYPE_BYTES,
    TRACEPARENT,
    encode_headers,
    is_reserved,
)

_TRACEPARENT_BYTES = len(TRACEPARENT) + 55

_NO_HEADERS: Mapping[str, HeaderValue] = MappingProxyType({})

_BYTES = (bytes, bytearray, memoryview)

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?Infinity|NaN|null')
_INPUT_VALUE = re.compile(r"input_value=.*?, input_type=", re.DOTALL)


def build_message(
    topic: str,
    payload: Any,
    *,
    payload_type: Any,
    key: str | None,
    headers: Mapping[str, HeaderValue] | None,
    message_id: str | None,
    content_type: str | None,
    clock: Clock,
    max_message_bytes: int,
    max_header_count: int,
    max_header_bytes: int,
) -> Message:
    """Return the message, encoded: what happens to *payload* later does not reach it.

    Bytes stay as they are. Anything else becomes JSON by pydantic, by its aliases: as
    *payload_type* says, where there is one, else as what it is. NaN and infinities have no form
    in JSON and are refused, unless the type gives them one (``ser_json_inf_nan="strings"``).

    Raises :class:`InvalidMessageError`; :class:`ConfigurationError` for a topic that cannot be.
    """
    topic = check_topic(topic)
    body, natural_type = _encode(topic, payload, payload_type)
    if len(body) > max_message_bytes:
        raise InvalidMessageError(
            f"the message for {topic!r} has {len(body)} bytes, max_message_bytes is "
            f"{max_message_bytes}: store large data elsewhere and send where it is"
        )
    message = Message(
        id=new_message_id() if message_id is None else _message_id(message_id),
        topic=topic,
        key=None if key is None else _key(key),
        body=body,
        headers=_headers(headers) if headers else _NO_HEADERS,
        content_type=natural_type if content_type is None else _content_type(content_type),
        time=clock.now(),
    )
    if headers:
        _check_header_limits(message, max_header_count, max_header_bytes)
    return message


# --- the payload --------------------------------------------------------------------------------


def _encode(topic: str, payload: Any, payload_type: Any) -> tuple[bytes, str]:
    if isinstance(payload, Message):
        raise InvalidMessageError(
            f"the payload for {topic!r} is a Message: pass its body, with content_type, key and "
            "headers as wanted"
        )
    if payload_type in (None, Any, Message):
        if isinstance(payload, _BYTES):
            return bytes(payload), OCTET_STREAM
        return _json_as(topic, payload, type_adapter(Any)), JSON
    if payload_type is bytes:
        if not isinstance(payload, _BYTES):
            raise InvalidMessageError(
                f"the payload of topic {topic!r} is bytes, got {type(payload).__name__}"
            )
        return bytes(payload), OCTET_STREAM
    return _json_as(topic, payload, _adapter(topic, payload_type)), JSON


def _adapter(topic: str, payload_type: Any) -> TypeAdapter[Any]:
    try:
        return type_adapter(payload_type)
    except PydanticUserError as error:
        raise ConfigurationError(
            f"pydantic cannot handle the payload type of topic {topic!r}: {error.message}"
        ) from error


def _json_as(topic: str, payload: Any, adapter: TypeAdapter[Any]) -> bytes:
    try:
        value = adapter.validate_python(payload)
        # A warning means that a field holds what its type does not allow: no consumer of this
        # type could read it.
        body = adapter.dump_json(value, by_alias=True, warnings="error")
        lossy = b"null" in body and _hides_not_finite(body, adapter.dump_python(value))
    except ValidationError as error:
        raise InvalidMessageError(_explain(topic, error)) from None
    except (PydanticSerializationError, RecursionError) as error:
        raise _not_serialisable(topic, error) from None
    if lossy or _has_bare_constant(body):
        raise _not_finite(topic)
    return body


def _explain(topic: str, error: ValidationError) -> str:
    # Without texts and input, which may quote the payload.
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    shown = ", ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'payload'} ({problem['type']})"
        for problem in problems[:5]
    )
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return f"the payload does not fit the type of topic {topic!r}: {shown}{more}"


def _not_serialisable(topic: str, error: Exception) -> InvalidMessageError:
    if isinstance(error, RecursionError):
        return InvalidMessageError(f"the payload for {topic!r} is nested too deeply for JSON")
    reason = _INPUT_VALUE.sub("input_type=", str(error))
    return InvalidMessageError(f"the payload for {topic!r} cannot be made JSON: {reason}")


def _not_finite(topic: str) -> InvalidMessageError:
    return InvalidMessageError(
        f"the payload for {topic!r} holds NaN or an infinity, which JSON has no form for: send "
        "None or a string, or set ser_json_inf_nan='strings' in the model's config"
    )


def _has_bare_constant(body: bytes) -> bool:
    if b"NaN" not in body and b"Infinity" not in body:
        return False
    return any(token.startswith((b"N", b"I", b"-")) for token in _TOKEN.findall(body))


def _hides_not_finite(body: bytes, value: Any) -> bool:
    """Tell whether a ``null`` in *body* stands for a NaN or an infinity: pydantic's default."""
    nones = not_finite = 0
    pending = [value]
    while pending:
        part = pending.pop()
        if part is None:
            nones += 1
        elif isinstance(part, float):
            not_finite += not math.isfinite(part)
        elif isinstance(part, Mapping):
            pending.extend(part.values())
        elif isinstance(part, list | tuple | set | frozenset):
            pending.extend(part)
    return not_finite > 0 and _TOKEN.findall(body).count(b"null") > nones


# --- what surrounds it --------------------------------------------------------------------------


def _message_id(value: str) -> str:
    return _identifier("message_id", value, MAX_MESSAGE_ID_BYTES)


def _key(value: str) -> str:
    return _identifier("key", value, MAX_KEY_BYTES)


def _content_type(value: str) -> str:
    return _identifier("content_type", value, MAX_CONTENT_TYPE_BYTES)


def _identifier(what: str, value: str, limit: int) -> str:
    """Return *value* plain: 1 to *limit* bytes that every broker and database keeps as they are."""
    if not isinstance(value, str):
        raise InvalidMessageError(f"{what} must be text, got {type(value).__name__}")
    if not value:
        raise InvalidMessageError(f"{what} is empty: leave it out for none")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidMessageError(f"{what} {_shown(value)} holds a lone surrogate") from None
    if size > limit:
        raise InvalidMessageError(f"{what} {_shown(value)} has {size} bytes, the limit is {limit}")
    if has_control_characters(value):
        raise InvalidMessageError(
            f"{what} {_shown(value)} holds a control character, such as a line break or NUL"
        )
    return plain(value)


def _shown(value: str) -> str:
    return repr(value) if len(value) <= 60 else f"{value[:57]!r}..."


def _headers(headers: Mapping[str, HeaderValue]) -> Mapping[str, HeaderValue]:
    checked: dict[str, HeaderValue] = {}
    for given, value in headers.items():
        name = _identifier("the header name", given, MAX_HEADER_NAME_BYTES)
        if is_reserved(name):
            raise InvalidMessageError(
                f"the header {name!r} is the library's own: use another name, or the argument "
                "of publish that stands for it"
            )
        checked[name] = _value(name, value)
    return MappingProxyType(checked)


def _value(name: str, value: HeaderValue) -> HeaderValue:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise InvalidMessageError(
            f"the header {name!r} must be str or bytes, got {type(value).__name__}"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidMessageError(f"the header {name!r} holds a lone surrogate") from None
    return plain(value)


def _check_header_limits(message: Message, max_count: int, max_bytes: int) -> None:
    # As a consumer counts them: with ours, and the one that tracing may add.
    pairs = encode_headers(message)
    own = len(pairs) - len(message.headers) + 1
    if len(pairs) + 1 > max_count:
        raise InvalidMessageError(
            f"{len(message.headers)} headers and {own} of the library's own are more than "
            f"max_header_count, {max_count}"
        )
    size = sum(len(name.encode()) + len(value) for name, value in pairs) + _TRACEPARENT_BYTES
    if size > max_bytes:
        raise InvalidMessageError(
            f"the headers have {size} bytes, the library's own included, max_header_bytes is "
            f"{max_bytes}"
        )
