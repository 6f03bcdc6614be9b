"""Trap 11: of a batch one message is refused, and those behind it in its key go ahead."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from sqlalchemy import Engine, text

from reliable_mq import ReliableMQ
from tests.e2e.brokers import Broker
from tests.e2e.conftest import MakeMQ
from tests.e2e.program import Task

Seen = Callable[[], list[str]]


def publish(mq: ReliableMQ, topic: str, *, size: int = 0) -> None:
    """Number 1, of twice *size* characters, is in trouble; 0 to 2 have one key, 3 another."""
    with mq.transaction():
        for number, key in enumerate(("a", "a", "a", "b")):
            # Nothing that compresses: the broker weighs what it is sent.
            gate = secrets.token_hex(size) if number == 1 and size else None
            mq.publish(topic, Task(number=number, gate=gate), key=key, message_id=str(number))


def check(mq: ReliableMQ, seen: Seen) -> None:
    """Its key stopped at it, and no other."""
    mq.run_until_idle(60)
    outbox = mq.status().outbox
    assert (outbox.pending, outbox.held) == (1, 1)
    assert sorted(seen()) == ["0", "3"]


@pytest.mark.parametrize("kind", ["kafka"], indirect=True)
def test_trap_11_a_message_too_large_for_its_topic_stops_its_key_and_no_other(
    broker: Broker, build_mq: MakeMQ, seen: Seen, unique: str
) -> None:
    small = NewTopic(unique, num_partitions=1, config={"max.message.bytes": "2000"})
    client = AdminClient({"bootstrap.servers": urlsplit(broker.url).netloc})
    client.create_topics([small])[unique].result(60)
    mq = build_mq()
    publish(mq, unique, size=5000)
    check(mq, seen)


@pytest.mark.parametrize("kind", ["sql"], indirect=True)
def test_trap_11_a_message_that_cannot_be_read_stops_its_key_and_no_other(
    build_mq: MakeMQ, engine: Engine, seen: Seen, unique: str
) -> None:
    mq = build_mq()
    publish(mq, unique)
    with engine.begin() as connection:
        broken = "UPDATE reliable_mq_outbox SET headers = :junk WHERE message_id = '1'"
        connection.execute(text(broken), {"junk": b"no json"})
    check(mq, seen)
