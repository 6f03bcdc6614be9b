"""Large and hostile input: what a decoder takes of memory is in proportion to what came."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Message as Record

import reliable_mq_kafka.completed as completed
import reliable_mq_kafka.records as kafka
import reliable_mq_rabbitmq.messages as rabbitmq
import reliable_mq_sql.rows as sql
from reliable_mq.adapter import Received
from reliable_mq.consumer.items import make_items
from reliable_mq.errors import DecodeError
from reliable_mq.message import Message, body_decoder
from reliable_mq.store.codec import pack_pairs
from reliable_mq.store.texts import cause_of
from reliable_mq.wire import Limits, RawMessage
from reliable_mq_redis.entries import received
from tests.adapters.rabbitmq.foreign import header_table, long_string

MB = 1_000_000
_COUNT = 50_000
_LIMITS = Limits()

_MANY = [(f"h{n}", b"v") for n in range(_COUNT)]
_LARGE = [("h", b"\xff" * MB)]


def _peak(run: Callable[[], object]) -> int:
    """Return the most bytes that *run* has had at once."""
    run()  # What is cached for good is not what this is about.
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _items(raw: RawMessage) -> object:
    return make_items([Received(raw=raw, partition="p", epoch=0, receipt=0)], _LIMITS)


def _kafka(headers: list[tuple[str, bytes]], body: bytes) -> Callable[[], object]:
    record = Record("t", 0, 1, b"k" * MB, body, list(headers), timestamp=(1, 5))
    return lambda: _items(kafka.to_raw(record, "t", 0))


def _rabbitmq(headers: list[tuple[str, bytes]], body: bytes) -> Callable[[], object]:
    table = header_table([(name, long_string(value)) for name, value in headers]).encode()[0]
    return lambda: _items(rabbitmq.decode("t", table, body))


def _redis(headers: list[tuple[str, bytes]], body: bytes) -> Callable[[], object]:
    words = [word for name, value in headers for word in (name.encode(), value)]
    entry = [b"1-1", [*words, b"body", body]]
    return lambda: _items(received("t", "{t}:0", 1, entry, redelivered=False).raw)


def _sql(headers: list[tuple[str, bytes]], body: bytes) -> Callable[[], object]:
    row: Any = SimpleNamespace(
        log_offset=1,
        message_id="i" * MB,
        message_key=b"k" * MB,
        body=body,
        headers=pack_pairs(headers),
        content_type="t" * MB,
        message_time=0,
    )
    return lambda: _items(sql.to_raw(row, "t", 0))


@pytest.mark.parametrize("headers", [_MANY, _LARGE], ids=["many headers", "a large header"])
@pytest.mark.parametrize("reader", [_kafka, _rabbitmq, _redis, _sql])
def test_a_large_record_takes_memory_in_proportion(
    reader: Callable[..., Callable[[], object]], headers: list[tuple[str, bytes]]
) -> None:
    size = sum(len(name) + len(value) for name, value in headers) + 4 * MB
    # Each name and value is an object of its own, of fifty bytes at least.
    assert _peak(reader(headers, b"b" * MB)) < 6 * size + 400 * len(headers)


_BODIES = {
    "problems": b"[" + b'"",' * 300_000 + b'""]',
    "nested": b"[" * MB,
    "digits": b"9" * MB,
    "one text": b'["' + b"x" * MB + b'"]',
}


@pytest.mark.parametrize("body", _BODIES.values(), ids=_BODIES)
def test_a_body_that_is_wrong_everywhere_takes_memory_in_proportion(body: bytes) -> None:
    decode = body_decoder(list[int])

    def run() -> None:
        with pytest.raises(DecodeError) as caught:
            decode(Message(id="1", topic="t", body=body))
        assert len(cause_of(caught.value, 8192)) < 2000

    # Pydantic's own list of problems is not Python's memory and is not in this figure.
    assert _peak(run) < 6 * len(body)


def test_a_huge_table_of_amqp_that_promises_more_than_it_has_takes_memory_in_proportion() -> None:
    nested = b"".join(b"A" + struct.pack(">I", (1 << 32) - 1 - n) for n in range(100_000))
    data = struct.pack(">HI", 1 << 13, len(nested)) + nested
    assert _peak(lambda: _items(rabbitmq.decode("t", data, b""))) < 6 * len(data)


def test_the_metadata_of_a_commit_takes_memory_in_proportion() -> None:
    text = completed.encode([range(n, n + 1) for n in range(2, 200_000, 2)], 0, room=MB)
    assert _peak(lambda: completed.decode(text, 0)) < 300 * len(text)
    endless = "rmq1:" + "_" * 40_000
    assert _peak(lambda: completed.decode(endless, 0)) < 10 * len(endless)


def test_the_cause_of_an_error_with_a_huge_text_takes_memory_in_proportion() -> None:
    error = ValueError("\N{SNOWMAN}" * MB)
    assert _peak(lambda: cause_of(error, 8192)) < 30 * MB
    assert len(cause_of(error, 8192).encode()) <= 8192
