"""Handlers on a real broker: in parallel within a partition, slower than the client may wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from reliable_mq import Message, ReliableMQ, Settings
from reliable_mq.adapter import SENT
from reliable_mq.testing.contract.messages import numbered
from tests.e2e.waiting import until

KEYS = [f"key-{index}" for index in range(4)]

Make = Callable[..., ReliableMQ]


@pytest.fixture
def make(kafka_url: str, postgresql_url: str, unique: str) -> Iterator[Make]:
    with ExitStack() as stack:

        def build(**client_options: object) -> ReliableMQ:
            settings = Settings(
                broker_url=f"{kafka_url}?session_timeout=6",
                database_url=postgresql_url,  # SQLite has one writer at a time
                group=unique,
                client_options=client_options,
            )
            mq = stack.enter_context(ReliableMQ(settings))
            mq.topic(unique, partitions=1)
            return mq

        yield build


def send(mq: ReliableMQ, topic: str, numbers: range) -> None:
    mq.declare()
    messages = [one for key in KEYS for one in numbered(topic, numbers, key=key)]
    assert mq._runtime.adapter.publish(messages, 60.0) == [SENT] * len(messages)


def test_four_keys_of_one_partition_are_handled_at_once_each_in_its_order(
    make: Make, unique: str
) -> None:
    mq = make()
    together = threading.Barrier(len(KEYS))
    seen: dict[str, list[int]] = {key: [] for key in KEYS}

    @mq.handler(unique, ordered=True, concurrency=len(KEYS))
    def handle(number: int, message: Message) -> None:
        if number == 0:
            together.wait(60)  # broken, unless the first of every key is being handled now
        seen[message.key or ""].append(number)

    send(mq, unique, range(10))
    with mq.running():
        until(lambda: sum(map(len, seen.values())) == 10 * len(KEYS), seen)
    assert seen == {key: list(range(10)) for key in KEYS}
    assert not together.broken


def test_a_handler_slower_than_the_client_may_wait_is_called_once_and_keeps_its_partition(
    make: Make, unique: str
) -> None:
    mq = make(**{"max.poll.interval.ms": 6000})
    calls: list[str] = []
    enough = threading.Event()

    @mq.handler(unique, concurrency=1)
    def handle(number: int, message: Message) -> None:
        calls.append(f"{message.key}:{number}")
        if len(calls) == 1:
            enough.wait(15.0)  # more than twice as long as it may

    send(mq, unique, range(2))
    with mq.running():
        until(lambda: len(calls) >= 2 * len(KEYS), calls)
        until(lambda: mq.status().groups[unique, unique].lag == 0, mq.status)
    assert sorted(calls) == sorted(f"{key}:{number}" for key in KEYS for number in range(2))
