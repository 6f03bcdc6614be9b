"""What ``publish`` takes arrives as it was, on every broker; what it does not is told at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from confluent_kafka import Message as Record
from hiredis import Reader

import reliable_mq_kafka.records as kafka
import reliable_mq_rabbitmq.messages as rabbitmq
import reliable_mq_sql.rows as sql
from reliable_mq.clock import SystemClock
from reliable_mq.errors import ConfigurationError, InvalidMessageError
from reliable_mq.message import Message
from reliable_mq.names import MAX_GROUP, MAX_TOPIC, check_group, check_topic
from reliable_mq.publishing import build_message
from reliable_mq.settings import DeadLetterSettings
from reliable_mq.wire import Limits, RawMessage, decode, header_bytes
from reliable_mq_redis.chunks import fields_of
from reliable_mq_redis.entries import received
from tests.fuzz.corpus import VALUES
from tests.fuzz.mutation import Mutator
from tests.fuzz.running import fuzz

_TEXTS = tuple(value.decode() for value in VALUES)
_LIMITS = Limits(message_bytes=2000, header_count=16, header_bytes=4000)


def _arguments(mutator: Mutator) -> dict[str, Any]:
    def text() -> str | None:
        if mutator.chance(30):
            return mutator.value().decode(errors="surrogateescape")
        return mutator.text_of(_TEXTS) if mutator.chance(2) else None

    def value(raw: bytes) -> str | bytes:
        return raw if mutator.chance(2) else raw.decode(errors="surrogateescape")

    pairs = mutator.pairs(mutator.name)
    return {
        "payload": mutator.body(),
        "key": text(),
        "message_id": text(),
        "content_type": text(),
        "headers": {name: value(raw) for name, raw in pairs if mutator.chance(2)},
    }


def _build(payload: bytes, **arguments: Any) -> Message:
    return build_message(
        "orders",
        payload,
        payload_type=None,
        clock=SystemClock(),
        max_message_bytes=_LIMITS.message_bytes,
        max_header_count=_LIMITS.header_count,
        max_header_bytes=_LIMITS.header_bytes,
        **arguments,
    )


def test_what_publish_takes_arrives_as_it_was_on_every_broker() -> None:
    def check(arguments: dict[str, Any]) -> None:
        try:
            message = _build(**arguments)
        except InvalidMessageError as error:
            _check_refusal(error)
            return
        for raw in (_kafka(message), _rabbitmq(message), _redis(message), _sql(message)):
            decoded = decode(raw, _LIMITS)
            assert decoded.fault is None
            assert decoded.stable_id
            assert _content(decoded.message) == _content(message)

    fuzz("publish", _arguments, check)


def _check_refusal(error: Exception) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 500


def _content(message: Message) -> dict[str, Any]:
    headers = {name: header_bytes(value) for name, value in message.headers.items()}
    names = ("id", "topic", "key", "body", "content_type", "time")
    return {name: getattr(message, name) for name in names} | {"headers": headers}


def _kafka(message: Message) -> RawMessage:
    key = None if message.key is None else message.key.encode()
    headers = kafka.headers_of(message)
    record = Record("orders", 0, 1, key, message.body, headers, timestamp=(1, 5))
    return kafka.to_raw(record, "orders", 0)


def _rabbitmq(message: Message) -> RawMessage:
    return rabbitmq.decode("orders", rabbitmq.encode(message), message.body)


def _redis(message: Message) -> RawMessage:
    reader = Reader()
    reader.feed(b"*%d\r\n%b" % fields_of(message))
    words: Any = reader.gets()
    return received("orders", "{orders}:0", 1, [b"1-1", words], redelivered=False).raw


def _sql(message: Message) -> RawMessage:
    row: Any = SimpleNamespace(**sql.to_row(message, 0), log_offset=1)
    return sql.to_raw(row, "orders", 0)


# --- names ----------------------------------------------------------------------------------------

_NAMES = (
    "orders",
    "billing",
    "a.b-c_d",
    "..",
    "x" * 249,
    "g" * 64,
    "_",
    "1st",
    "{topic}",
    "\u0661",
)


def test_a_name_is_one_that_every_broker_takes_or_a_configuration_error() -> None:
    letters = DeadLetterSettings()

    def check(name: str) -> None:
        topic, group = _accepted(check_topic, name), _accepted(check_group, name)
        for found, limit in ((topic, MAX_TOPIC), (group, MAX_GROUP)):
            assert found is None or (found.isascii() and 0 < len(found) <= limit)
        if group is not None:
            check_topic(letters.topic_for("orders", group))

    fuzz("names", lambda mutator: mutator.text_of(_NAMES), check)


def _accepted(check: Any, name: str) -> str | None:
    try:
        return str(check(name))
    except ConfigurationError as error:
        _check_refusal(error)
        return None
