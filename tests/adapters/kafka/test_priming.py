"""Which messages go ahead alone, because a broker does not know their producer. No broker."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer

from reliable_mq.message import Message
from reliable_mq.partitioning import partition_for
from reliable_mq_kafka.health import Health
from reliable_mq_kafka.producing import Line

PARTITIONS = 8


@pytest.fixture
def line() -> Line:
    def make(_: Health) -> Producer:
        return Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})

    line = Line(make)
    line._partitions["orders"] = PARTITIONS
    return line


def message(key: str | None, topic: str = "orders") -> Message:
    return Message(id="m", topic=topic, key=key)


def test_a_key_goes_ahead_until_its_own_partition_is_primed(line: Line) -> None:
    assert line.must_prime(message("ann"))
    line.prime("orders", partition_for(b"ann", PARTITIONS))
    assert not line.must_prime(message("ann"))
    other = next(k for k in map(str, range(99)) if partition_for(k.encode(), PARTITIONS)
                 != partition_for(b"ann", PARTITIONS))  # fmt: skip
    assert line.must_prime(message(other))


def test_a_few_keys_need_no_other_partition_than_theirs(line: Line) -> None:
    line.prime("orders", partition_for(b"ann", PARTITIONS))
    assert not line.is_primed("orders")
    assert not line.must_prime(message("ann"))


def test_what_has_no_order_never_goes_ahead(line: Line) -> None:
    assert not line.must_prime(message(None))


def test_a_topic_of_unknown_partitions_is_not_primed(line: Line) -> None:
    line.prime("news", 0)
    assert line.must_prime(message("ann", "news"))


def test_nothing_is_primed_in_a_topic_that_was_missing_meanwhile(line: Line) -> None:
    """In the log that takes its place no broker knows the producer."""
    number = partition_for(b"ann", PARTITIONS)
    line.prime("orders", number)
    line.forget("orders")
    line._partitions["orders"] = PARTITIONS
    assert line.must_prime(message("ann"))
    assert not line.knows("orders", number)


def test_a_key_that_the_client_will_refuse_is_no_error_here(line: Line) -> None:
    assert line.must_prime(message("\udc80"))
