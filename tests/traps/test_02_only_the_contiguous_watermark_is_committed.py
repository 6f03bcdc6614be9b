"""Trap 2: Kafka is told an offset behind which something is still unfinished."""

from __future__ import annotations

import signal
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.e2e.brokers import Broker
from tests.e2e.conftest import MakeMQ, StartProgram
from tests.e2e.program import Folder, Task
from tests.e2e.waiting import until


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    return postgresql_url


@pytest.mark.parametrize("kind", ["kafka"], indirect=True)
def test_trap_02_what_is_done_behind_an_unfinished_offset_does_not_move_the_commit_past_it(
    broker: Broker,
    build_mq: MakeMQ,
    start_program: StartProgram,
    folder: Folder,
    seen: Callable[[], list[str]],
    unique: str,
) -> None:
    mq = build_mq()
    for number in range(5):
        # The first is held up in its handler, the others are done.
        gate = "shut" if number == 0 else None
        mq.publish_direct(unique, Task(number=number, gate=gate), key="same", timeout=30)
    victim = start_program()
    until(lambda: len(seen()) == 4, victim.said)
    committed = until(lambda: _committed(broker.url, unique), victim.said)
    assert committed is not None
    assert committed.offset == 0
    victim.signal(signal.SIGKILL)
    assert victim.wait() == -9
    folder.ignore_gates()
    mq.run_until_idle(60)
    assert sorted(seen()) == ["0", "1", "2", "3", "4"]


def _committed(url: str, topic: str) -> TopicPartition | None:
    """Return the group's commit, once there is one of its consumer's: a declaration leaves 0."""
    consumer = Consumer({"bootstrap.servers": urlsplit(url).netloc, "group.id": "billing"})
    try:
        (found,) = consumer.committed([TopicPartition(topic, 0)], timeout=30)
    finally:
        consumer.close()
    return found if found.offset > 0 or found.metadata else None
