"""Entries of a stream: any fields, any number of them, ids that a producer made up."""

from __future__ import annotations

from typing import Any

from reliable_mq_redis.chunks import fields_of
from reliable_mq_redis.entries import order_of, received
from tests.fuzz.corpus import NAMES
from tests.fuzz.mutation import Mutator
from tests.fuzz.outcome import check_end, check_texts
from tests.fuzz.running import fuzz

_NAMES = tuple(name.encode() for name in NAMES)
_LARGEST = (1 << 64) - 1


def _entry(mutator: Mutator) -> list[Any]:
    id_ = f"{mutator.integer() & _LARGEST}-{mutator.integer() & _LARGEST}".encode()
    words = [word for pair in mutator.pairs(lambda: mutator.bytes_of(_NAMES)) for word in pair]
    if mutator.chance(2):
        words += (b"body", mutator.body())
    return [id_, words]


def test_every_entry_ends_as_a_message_or_as_a_dead_letter() -> None:
    def check(entry: list[Any]) -> None:
        delivery, again = (
            received("orders", "{orders}:0", 1, entry, redelivered=seen) for seen in (False, True)
        )
        assert delivery.raw == again.raw
        order_of(delivery)
        check_texts(delivery.raw.headers)
        copy = check_end(delivery.raw)
        fields_of(copy)

    fuzz("redis.received", _entry, check)
