"""Where a member begins to read, while a transaction of its group is still open."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from reliable_mq.adapter import SENT, Subscription
from reliable_mq.errors import TransportError
from reliable_mq.testing.contract.base import fresh_name
from reliable_mq.testing.contract.messages import (
    numbered,
    numbers_of,
    one_key_per_partition,
)
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_kafka.adapter import KafkaAdapter
from reliable_mq_kafka.subscription import KafkaSubscription
from tests.adapters.kafka.conftest import Declare, Open

PARTITIONS = 4
EACH = 10
"""Messages of each partition; the numbers of partition 2 are 20 to 29."""
DONE = 6
"""So many of each partition are behind the group."""
LEFT = sorted(10 * one + number for one in range(PARTITIONS) for number in range(DONE, EACH))


class Past:
    """What the group has done before: committed, and in a transaction that nobody ends."""

    def __init__(self, place: str, topic: str, group: str) -> None:
        self._place = place
        self._topic = topic
        self._group = group
        self._open: Producer | None = None
        self._begun(range(PARTITIONS)).commit_transaction(60)

    def leave_open(self, partitions: Iterable[int]) -> None:
        """From now on it is not known where the group is in these *partitions*."""
        self._open = self._begun(partitions)

    def _begun(self, partitions: Iterable[int]) -> Producer:
        producer = Producer(
            {"bootstrap.servers": self._place, "transactional.id": fresh_name("before")}
        )
        producer.init_transactions(60)
        producer.begin_transaction()
        # A group without members takes offsets from anybody.
        nobody = Consumer({"bootstrap.servers": self._place, "group.id": self._group})
        offsets = [TopicPartition(self._topic, one, DONE) for one in partitions]
        producer.send_offsets_to_transaction(offsets, nobody.consumer_group_metadata(), 60)
        nobody.close()
        return producer

    def end(self) -> None:
        """Abort what is open: from now on that is known."""
        assert self._open is not None
        self._open.abort_transaction(60)


class Reader:
    """A member that notes what it receives."""

    def __init__(self, subscription: KafkaSubscription) -> None:
        self._subscription = subscription
        self.received: list[int] = []

    def serve(self) -> None:
        # A busy broker may not answer a new producer in time.
        with suppress(TransportError):
            self.received += numbers_of(self._subscription.receive(100, 0.05).deliveries)

    @property
    def owned(self) -> int:
        """How many partitions it has."""
        intake = self._subscription._intake
        return 0 if intake is None else sum(1 for _ in intake._share)


class Group:
    """Makes members of one group, with transactions of their own or, after these, without."""

    def __init__(self, open_one: Open, topic: str, stack: ExitStack, *, exactly: bool) -> None:
        self.topic, self.name = topic, fresh_name("group")
        self._open_one = open_one
        self._stack = stack
        self._exactly = exactly

    def join(self) -> Reader:
        adapter = self._open_one(query="session_timeout=6")
        subscription: Subscription
        if self._exactly:
            subscription = adapter.subscribe_transactional([self.topic], self.name, prefetch=100)
        else:
            subscription = adapter.subscribe([self.topic], self.name, prefetch=100, ordered=False)
        assert isinstance(subscription, KafkaSubscription)
        self._stack.callback(subscription.close)
        return Reader(subscription)


@pytest.fixture(params=["exactly-once", "at-least-once"])
def group(
    request: pytest.FixtureRequest,
    adapter: KafkaAdapter,
    open_one: Open,
    declare: Declare,
    resources: ExitStack,
) -> Group:
    topic = declare(partitions=PARTITIONS)
    for one, key in enumerate(one_key_per_partition(PARTITIONS)):
        messages = numbered(topic, range(10 * one, 10 * one + EACH), key=key)
        assert adapter.publish(messages, 60.0) == [SENT] * EACH
    return Group(open_one, topic, resources, exactly=request.param == "exactly-once")


@pytest.fixture
def past(group: Group, kafka_url: str) -> Past:
    return Past(kafka_url.partition("://")[2], group.topic, group.name)


def serve_until(readers: list[Reader], shares: list[int]) -> None:
    def shared() -> bool:
        for reader in readers:
            reader.serve()
        return [reader.owned for reader in readers] == shares

    wait_for(shared, f"shares {shares}")


def received_by(readers: list[Reader]) -> list[int]:
    return sorted(number for reader in readers for number in reader.received)


def read_all_that_is_left(readers: list[Reader], left: Sequence[int] = LEFT) -> None:
    def done() -> bool:
        for reader in readers:
            reader.serve()
        return set(left) <= set(received_by(readers))

    wait_for(done, "what is left")


@pytest.mark.parametrize("unknown", range(PARTITIONS))
def test_one_partition_of_which_that_is_not_known_keeps_no_other_waiting(
    group: Group, past: Past, unknown: int
) -> None:
    past.leave_open([unknown])
    reader = group.join()
    others = [number for number in LEFT if number // 10 != unknown]
    read_all_that_is_left([reader], others)
    assert sorted(reader.received) == others
    past.end()
    read_all_that_is_left([reader])
    assert sorted(reader.received) == LEFT


def test_a_member_begins_where_the_group_is_once_that_is_known(group: Group, past: Past) -> None:
    past.leave_open(range(PARTITIONS))
    reader = group.join()
    serve_until([reader], [PARTITIONS])
    past.end()
    read_all_that_is_left([reader])
    assert sorted(reader.received) == LEFT


def test_a_rebalance_while_that_is_not_known_leads_nobody_back_to_the_beginning(
    group: Group, past: Past
) -> None:
    past.leave_open(range(PARTITIONS))
    first = group.join()
    serve_until([first], [PARTITIONS])
    second = group.join()
    serve_until([first, second], [PARTITIONS // 2] * 2)
    past.end()
    read_all_that_is_left([first, second])
    assert received_by([first, second]) == LEFT


def test_a_group_that_has_committed_nothing_begins_at_the_beginning(group: Group) -> None:
    reader = group.join()
    everything = [10 * one + number for one in range(PARTITIONS) for number in range(EACH)]

    def done() -> bool:
        reader.serve()
        return len(reader.received) >= len(everything)

    wait_for(done, "everything")
    assert sorted(reader.received) == everything
