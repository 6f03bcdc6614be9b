"""AMQP's property lists: cut, overlong, nested, of types nobody has."""

from __future__ import annotations

import struct
from typing import TypeAlias

from reliable_mq.message import Message
from reliable_mq_rabbitmq.messages import decode, encode
from tests.adapters.rabbitmq.foreign import header_table, long_string
from tests.fuzz.corpus import BODIES, NAMES, VALUES
from tests.fuzz.mutation import Mutator
from tests.fuzz.outcome import check_end, check_texts
from tests.fuzz.running import fuzz

Given: TypeAlias = tuple[bytes, bytes]


def _array(items: bytes) -> bytes:
    return b"A" + struct.pack(">I", len(items)) + items


_FIELDS = (
    long_string(b"text"),
    b"x" + long_string(b"\0\xff")[1:],
    b"t\x01",
    b"I\xff\xff\xff\xff",
    b"l" + b"\x80" + b"\0" * 7,
    b"d" + struct.pack(">d", float("nan")),
    b"D\xff\x7f\xff\xff\xff",
    b"T" + b"\xff" * 8,
    b"V",
    _array(b"V" + long_string(b"x") + _array(b"")),
    b"F" + struct.pack(">I", 4) + b"\x01kt\x01",
    b"?unknown",
)
_PROPERTIES = (
    b"",
    b"\0\0",
    b"\xff\xff",
    encode(Message(id="1", topic="orders", key="ann", headers={"a": "b", "c": b"\xff"})),
    encode(Message(id="i" * 255, topic="orders", content_type="application/json")),
    header_table([(f"h{n}", value) for n, value in enumerate(_FIELDS)]).encode()[0],
)


def _table(mutator: Mutator) -> bytes:
    """Return a list of headers whose names may be no text and whose values any type."""
    pieces = []
    for name, value in mutator.pairs(lambda: mutator.bytes_of(tuple(n.encode() for n in NAMES))):
        piece = mutator.damaged(mutator.pick(_FIELDS), mutator.below(2))
        kept = long_string(value) if mutator.chance(2) else piece
        pieces.append(bytes((len(name[:255]),)) + name[:255] + kept)
    table = b"".join(pieces)
    return struct.pack(">HI", 1 << 13, len(table)) + table


def _properties(mutator: Mutator) -> bytes:
    if mutator.chance(2):
        return mutator.bytes_of(_PROPERTIES)
    return mutator.damaged(_table(mutator), mutator.below(2))


def test_every_delivery_ends_as_a_message_or_as_a_dead_letter_that_amqp_can_carry() -> None:
    def check(given: Given) -> None:
        raw = decode("orders", *given)
        assert list(raw.headers) == list(decode("orders", *given).headers)
        check_texts(raw.headers)
        copy = check_end(raw)
        encode(copy)

    def make(mutator: Mutator) -> Given:
        return _properties(mutator), mutator.bytes_of((*BODIES, *VALUES))

    fuzz("rabbitmq.decode", make, check)
