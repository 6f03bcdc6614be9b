"""Foreign clients that send what no client of ours would: each record is one of its broker."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from tests.adapters.kafka.records import produce
from tests.adapters.rabbitmq.foreign import RawProperties, channel, long_string
from tests.fuzz.corpus import NAMES
from tests.fuzz.mutation import Mutator

Make = Callable[[Mutator], Any]
Pairs = list[tuple[bytes, bytes]]

_NAMES = tuple(name.encode() for name in NAMES)
_SCALARS = (
    b"t\x01",
    b"I\xff\xff\xff\xff",
    b"l\x80" + b"\0" * 7,
    b"d" + struct.pack(">d", 1e308),  # a NaN the broker does not take
    b"T" + b"\x7f" * 8,
    b"V",
    b"A" + struct.pack(">I", 2) + b"VV",
)


def record(mutator: Mutator) -> tuple[bytes, Pairs]:
    """Return body and headers of a record that the broker has to take."""
    body = mutator.body()
    # An id of an earlier one is a duplicate, or a conflict: both have to be counted as well.
    return body, mutator.pairs(lambda: mutator.bytes_of(_NAMES))[:100]


def send_kafka(url: str, topic: str, records: Sequence[tuple[bytes, Pairs]]) -> int:
    """Append to partition 0, byte by byte; return how many."""
    for body, pairs in records:
        produce(urlsplit(url).netloc, topic, body, [*pairs])
    return len(records)


def send_redis(url: str, topic: str, records: Sequence[tuple[bytes, Pairs]]) -> int:
    """Add entries, of any fields, also several of a name; return how many."""
    import redis

    with redis.Redis.from_url(url) as client:
        for body, pairs in records:
            words = [word for pair in pairs for word in pair]
            client.execute_command("XADD", f"{{{topic}}}:0", "*", *words, "body", body)
    return len(records)


def send_rabbitmq(url: str, topic: str, records: Sequence[tuple[bytes, Pairs]]) -> int:
    """Publish with a header table of any names and types, confirmed; return how many."""
    with channel(url.partition("?")[0]) as opened:
        opened.confirm_delivery()
        for number, (body, pairs) in enumerate(records):
            properties: Any = RawProperties(_properties(number, pairs))
            opened.basic_publish(topic, "", body, properties, mandatory=True)
    return len(records)


def _properties(number: int, pairs: Pairs) -> bytes:
    pieces = []
    for place, (name, value) in enumerate(pairs):
        odd = _SCALARS[(number + place) % len(_SCALARS)]
        kept = odd if (number + place) % 4 == 0 else long_string(value)
        pieces.append(bytes((len(name[:255]),)) + name[:255] + kept)
    table = b"".join(pieces)
    return struct.pack(">HI", 1 << 13, len(table)) + table


SENDERS: dict[str, Callable[[str, str, Sequence[tuple[bytes, Pairs]]], int]] = {
    "kafka": send_kafka,
    "rabbitmq": send_rabbitmq,
    "redis": send_redis,
}
