"""A topic that is deleted and made anew under the same name, and one that only looks like it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from confluent_kafka import Consumer, TopicPartition

from reliable_mq.adapter import SENT, Handled, Received, Subscription, TopicSpec
from reliable_mq.errors import TransportError
from reliable_mq.testing.contract.base import fresh_name
from reliable_mq.testing.contract.messages import numbered, numbers_of
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_kafka import identities
from reliable_mq_kafka.adapter import KafkaAdapter
from reliable_mq_kafka.completed import decode, log_of
from reliable_mq_kafka.subscription import KafkaSubscription
from reliable_mq_kafka.transactional import TransactionalSubscription
from tests.adapters.kafka.conftest import Open
from tests.adapters.kafka.copying import delete

OLD = 100
"""So many messages the former topic had; their numbers are below those of the new one."""
SHORTER, LONGER = 20, 250
FIRST = 1000


class Member:
    """A subscription that acknowledges what it receives, in transactions or without."""

    def __init__(self, subscription: KafkaSubscription) -> None:
        self._subscription = subscription
        self.received: list[int] = []

    def receive(self) -> None:
        self.end(self.take())

    def end(self, taken: list[Received]) -> None:
        if not isinstance(self._subscription, TransactionalSubscription):
            self._subscription.ack(taken)
        elif taken:
            assert not self._subscription.commit([Handled(one) for one in taken])

    def take(self) -> list[Received]:
        taken: list[Received] = []
        # A busy broker may not answer a new producer in time.
        with suppress(TransportError):
            taken.extend(self._subscription.receive(500, 0.2).deliveries)
        self.received += numbers_of(taken)
        return taken

    def receive_all(self, numbers: range) -> None:
        wait_for(lambda: set(numbers) <= set(self.received), "all", meanwhile=self.receive)

    @property
    def knows(self) -> bool:
        """Tell whether it knows which log it reads."""
        intake = self._subscription._intake
        return intake is not None and all(one.log for one in intake._share)

    def close(self) -> None:
        self._subscription.close()


class Town:
    """A topic that can be made anew, and its group."""

    def __init__(self, place: str, adapter: KafkaAdapter, stack: ExitStack) -> None:
        self._place = place
        self.adapter = adapter
        self._stack = stack
        self.topic, self.group = fresh_name("topic"), fresh_name("group")
        self.make()
        self.send(range(OLD))

    def make(self) -> None:
        self.adapter.declare([TopicSpec(name=self.topic, partitions=1)], [])

    def make_anew(self) -> None:
        delete(self._place, self.topic)
        self.make()

    def send(self, numbers: range) -> None:
        left = list(numbers)
        while left:  # A producer learns only by a try that its topic is another one.
            outcomes = self.adapter.publish(numbered(self.topic, left), 60.0)
            left = [one for one, outcome in zip(left, outcomes, strict=True) if outcome != SENT]

    def join(self, *, exactly: bool = False) -> Member:
        topics = [self.topic]
        found: Subscription
        if exactly:
            found = self.adapter.subscribe_transactional(topics, self.group, prefetch=500)
        else:
            found = self.adapter.subscribe(topics, self.group, prefetch=500, ordered=True)
        assert isinstance(found, KafkaSubscription)
        self._stack.callback(found.close)
        return Member(found)

    def committed(self) -> TopicPartition:
        with self._stranger() as stranger:
            (found,) = stranger.committed([TopicPartition(self.topic, 0)], timeout=30)
        return found

    def commit(self, offset: TopicPartition) -> None:
        """Commit for the group, which must have no member."""
        with self._stranger() as stranger:
            stranger.commit(offsets=[offset], asynchronous=False)

    @contextmanager
    def _stranger(self) -> Iterator[Consumer]:
        consumer = Consumer({"bootstrap.servers": self._place, "group.id": self.group})
        try:
            yield consumer
        finally:
            consumer.close()

    def see_the_change(self, former: str | None) -> None:
        """Return once the application knows that another topic has taken the place of *former*."""

        def seen() -> bool:
            found = self.adapter._identities.of(self.topic)
            return found is not None and former in found.former

        wait_for(seen, "the new topic's id")

    def is_done(self, end: int) -> bool:
        return self.committed().offset == end and self.adapter.lag(self.topic, self.group) == 0


@pytest.fixture
def town(
    kafka_url: str, open_one: Open, resources: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> Town:
    monkeypatch.setattr(identities, "LOOK_EVERY", 0.2)
    monkeypatch.setattr(identities, "LOOK_AGAIN", 0.05)
    return Town(kafka_url.partition("://")[2], open_one(), resources)


@pytest.fixture(params=["exactly-once", "at-least-once"])
def member(request: pytest.FixtureRequest, town: Town) -> Member:
    """A member that has read everything there is, and knows of which topic it is."""
    member = town.join(exactly=request.param == "exactly-once")
    member.receive_all(range(OLD))
    wait_for(lambda: member.knows and town.is_done(OLD), "a commit", meanwhile=member.receive)
    return member


@pytest.mark.parametrize("count", [SHORTER, LONGER])
def test_a_topic_that_is_made_anew_is_read_from_its_beginning(
    town: Town, member: Member, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    town.make_anew()
    new = range(FIRST, FIRST + count)
    town.send(new)
    member.receive_all(new)
    wait_for(lambda: town.is_done(count), "a commit", meanwhile=member.receive)
    assert caplog.text.count("made anew") == 1
    town.send(range(FIRST + count, FIRST + count + 5))
    member.receive_all(range(FIRST + count, FIRST + count + 5))


def leave_some(town: Town, *, exactly: bool) -> TopicPartition:
    """Have a member read everything and end, with ten that are not done; return its commit."""
    member = town.join(exactly=exactly)
    taken: list[Received] = []
    wait_for(lambda: len(taken) == OLD, "all", meanwhile=lambda: taken.extend(member.take()))
    wait_for(lambda: member.knows, "the topic's id", meanwhile=member.take)
    # Without transactions it is told too what is done behind the others.
    member.end(taken[:50] if exactly else [*taken[:50], *taken[60:]])
    member.close()
    left = town.committed()
    assert (left.offset, log_of(left.metadata) is None) == (50, False)
    assert decode(left.metadata, 50) == ([] if exactly else [range(60, OLD)])
    return left


@pytest.mark.parametrize("exactly", [True, False])
def test_an_offset_of_a_topic_elsewhere_counts_and_what_was_done_behind_it_does_not(
    town: Town, open_one: Open, *, exactly: bool, caplog: pytest.LogCaptureFixture
) -> None:
    left = leave_some(town, exactly=exactly)
    town.make_anew()
    new = range(FIRST, FIRST + LONGER)
    town.send(new)
    # As whoever copies commits from one cluster to the other does it, for an application that
    # has not been with the former one.
    town.commit(left)
    town.adapter = open_one()
    heir = town.join(exactly=exactly)
    heir.receive_all(new[50:])
    wait_for(lambda: town.is_done(LONGER), "a commit", meanwhile=heir.receive)
    assert heir.received == list(new[50:])
    assert caplog.text.count("was told of the topic with the id") == (0 if exactly else 1)
    assert "made anew" not in caplog.text


@pytest.mark.parametrize("exactly", [True, False])
def test_a_late_commit_for_a_topic_that_was_seen_to_be_replaced_does_not_count(
    town: Town, *, exactly: bool
) -> None:
    left = leave_some(town, exactly=exactly)
    town.make_anew()
    new = range(FIRST, FIRST + LONGER)
    town.send(new)
    town.see_the_change(log_of(left.metadata))
    # As a member leaves it that has not seen it, and is killed then.
    town.commit(left)
    heir = town.join(exactly=exactly)
    heir.receive_all(new)
    wait_for(lambda: town.is_done(LONGER), "a commit", meanwhile=heir.receive)


def test_what_was_done_behind_the_offset_is_skipped_where_the_topic_is_the_same(
    town: Town, open_one: Open
) -> None:
    leave_some(town, exactly=False)
    # Of an application that starts: it has yet to ask for the topic's id.
    town.adapter = open_one()
    heir = town.join()
    town.send(range(OLD, OLD + 1))
    heir.receive_all(range(OLD, OLD + 1))
    assert heir.received == [*range(50, 60), OLD]
