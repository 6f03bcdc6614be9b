"""Receiving, where Kafka differs from other brokers."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest
from confluent_kafka import Producer

from reliable_mq import wire
from reliable_mq.adapter import SENT, GroupSpec, Received, Subscription
from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq.testing.contract.messages import LIMITS, message, numbered, numbers_of
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import Deadline, wait_for
from reliable_mq_kafka.adapter import KafkaAdapter
from reliable_mq_kafka.ahead import Window
from reliable_mq_kafka.subscription import KafkaSubscription
from tests.adapters.kafka import records
from tests.adapters.kafka.conftest import Committed, Declare, Open, Subscribe
from tests.brokers import Kafka
from tests.conftest import OwnServer


def fill(adapter: KafkaAdapter, topic: str, numbers: range, key: str = "key") -> None:
    messages = numbered(topic, numbers, key=key)
    assert adapter.publish(messages, 20.0) == [SENT] * len(messages)


def own_of(subscription: Subscription) -> KafkaSubscription:
    assert isinstance(subscription, KafkaSubscription)
    return subscription


# --- committing ---


def test_acks_are_committed_while_the_member_is_served_and_only_up_to_the_first_gap(
    adapter: KafkaAdapter, declare: Declare, subscribe: Subscribe, committed: Committed
) -> None:
    topic = declare()
    fill(adapter, topic, range(10))
    reader = Reader(subscribe(topic))
    taken = reader.take(10)
    reader.ack([*taken[:4], *taken[6:]])
    wait_for(lambda: committed(topic) == 4, "offset 4", meanwhile=reader.idle)
    enough = Deadline(1.5)
    while not enough.passed:
        reader.idle()
    assert committed(topic) == 4
    reader.ack(taken[4:6])
    wait_for(lambda: committed(topic) == 10, "offset 10", meanwhile=reader.idle)


def test_flush_returns_when_the_brokers_have_the_commit(
    adapter: KafkaAdapter, declare: Declare, subscribe: Subscribe, committed: Committed
) -> None:
    topic = declare()
    fill(adapter, topic, range(10))
    reader = Reader(subscribe(topic))
    taken = reader.take(10)
    for count in (3, 7, 10):
        reader.ack_and_flush(taken[:count])
        assert committed(topic) == count


def test_a_revoked_partition_goes_on_exactly_behind_what_was_acknowledged(
    adapter: KafkaAdapter, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare(partitions=2)
    for partition, key in enumerate(("key-1", "key-0")):
        fill(adapter, topic, range(50), key=key)
        assert partition < 2
    first = Reader(subscribe(topic))
    taken = first.take(100)
    acked = [one for one in taken if int(one.raw.body) < 30]
    first.ack(acked)
    second = Reader(subscribe(topic, adapter=open_one()))
    wait_for(
        lambda: bool(second.received) and bool(first.lost),
        "the second member's share",
        meanwhile=lambda: [one.step(limit=limit) for one, limit in ((first, 0), (second, 9))],
    )
    kept = [one for one in second.received if one.partition == first.lost[0].partition]
    assert int(kept[0].raw.body) == 30


def test_a_late_ack_of_a_replaced_owner_moves_nothing(
    adapter: KafkaAdapter,
    open_one: Open,
    declare: Declare,
    subscribe: Subscribe,
    committed: Committed,
) -> None:
    topic = declare()
    fill(adapter, topic, range(20))
    # As for a stopped process: nothing of it runs until the group has replaced it.
    left = open_one(query="session_timeout=6", client_options={"max.poll.interval.ms": 6000})
    asleep = Reader(subscribe(topic, adapter=left))
    held = asleep.take(20)
    heir = Reader(subscribe(topic, adapter=open_one()))
    again = heir.take(20)
    assert numbers_of(again) == list(range(20))
    asleep.subscription.ack(held)
    with pytest.raises(TransportError):
        asleep.subscription.flush()
    asleep.wait_until_lost(held[0])
    assert committed(topic) == 0
    heir.ack_and_flush(again[:5])
    assert committed(topic) == 5


# --- long handlers, back-pressure ---


def test_a_handler_slower_than_max_poll_interval_keeps_its_partition(
    adapter: KafkaAdapter, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare()
    fill(adapter, topic, range(3))
    slow = open_one(query="session_timeout=6", client_options={"max.poll.interval.ms": 6000})
    reader = Reader(subscribe(topic, adapter=slow, prefetch=2))
    taken = reader.take(2)
    enough = Deadline(15.0)
    while not enough.passed:
        reader.idle()
    assert not reader.lost
    reader.ack_and_flush(taken)
    assert numbers_of(reader.take(1)) == [2]


def test_a_full_member_lets_others_in_although_its_client_has_thousands_queued(
    adapter: KafkaAdapter, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare(partitions=4)
    for start in range(0, 20_000, 1000):
        batch = [message(topic, b"x" * 100, key=f"key-{i}") for i in range(start, start + 1000)]
        assert adapter.publish(batch, 20.0) == [SENT] * 1000
    full = Reader(subscribe(topic, prefetch=5))
    full.take(5)
    second = Reader(subscribe(topic, adapter=open_one(), prefetch=5))
    wait_for(
        lambda: second.received,
        "a share for the second member",
        meanwhile=lambda: [full.step(), second.step()],
    )
    assert len(full.held) <= 5


def test_a_busy_member_commits_and_keeps_what_its_client_has_fetched(
    adapter: KafkaAdapter,
    declare: Declare,
    subscribe: Subscribe,
    committed: Committed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It would rightly look through what is queued after seconds in which nobody served it.
    monkeypatch.setattr(Window, "_SECONDS", 3600.0)
    topic = declare()
    fill(adapter, topic, range(3000))
    reader = Reader(subscribe(topic, prefetch=5))
    taken = reader.take(5)
    reader.ack(taken[:2])
    intake = own_of(reader.subscription)._intake
    assert intake is not None
    wait_for(
        lambda: intake.commits.settled, "the commit's outcome",
        meanwhile=lambda: reader.step(limit=0, timeout=0.0),
    )  # fmt: skip
    assert committed(topic) == 2
    assert not intake._steering.halted


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued is looked through often, which pauses the partitions."""
    monkeypatch.setattr(Window, "_LOOK", 0.0)
    monkeypatch.setattr(Window, "_SECONDS", 0.02)


@pytest.mark.usefixtures("_impatient")
def test_a_trickle_of_room_still_delivers_everything_in_order(
    adapter: KafkaAdapter, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare()
    fill(adapter, topic, range(1500))
    reader = Reader(subscribe(topic, prefetch=3))
    intake_halts = 0
    seen: list[Received] = []
    deadline = Deadline()
    while len(seen) < 1500:
        assert not deadline.passed
        taken = reader.step(timeout=0.2)
        seen += taken
        reader.step(limit=0, timeout=0.0)
        intake = own_of(reader.subscription)._intake
        assert intake is not None
        intake_halts += intake._steering.halted
        reader.ack(taken)
    assert numbers_of(seen) == list(range(1500))
    assert intake_halts, "nothing was tested: the partition was never paused"


@pytest.mark.usefixtures("_impatient")
def test_a_partition_that_comes_back_after_it_was_lost_while_paused_is_read_again(
    adapter: KafkaAdapter, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare(partitions=2)
    for start in range(0, 4000, 1000):
        batch = [message(topic, b"x", key=f"key-{i}") for i in range(start, start + 1000)]
        assert adapter.publish(batch, 20.0) == [SENT] * 1000
    first = Reader(subscribe(topic, prefetch=2))
    first.take(2)
    intake = own_of(first.subscription)._intake
    assert intake is not None
    wait_for(lambda: intake._steering.halted, "a pause", meanwhile=first.idle)
    second = Reader(subscribe(topic, adapter=open_one(), prefetch=2))
    wait_for(
        lambda: second.received and first.lost,
        "a share for the second member",
        meanwhile=lambda: [one.step(limit=limit) for one, limit in ((first, 0), (second, 9))],
    )
    moved = first.lost[0].partition
    second.close()
    taken: list[Received] = []

    def read_on() -> bool:
        step = first.step()
        taken.extend(step)
        first.ack(list(first.held))
        return any(one.partition == moved for one in taken)

    wait_for(read_on, "the partition that came back")


# --- handing back ---


def test_release_is_exact_time_after_time(
    adapter: KafkaAdapter, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare()
    fill(adapter, topic, range(2000))
    reader = Reader(subscribe(topic, prefetch=2000))
    left = list(range(2000))
    for round_ in range(12):
        taken = reader.take(40 + 13 * round_)
        assert numbers_of(taken) == left[: len(taken)]
        ended = taken[0].epoch
        # What was done behind the first unacknowledged does not come again; what is between does.
        reader.ack([*taken[:10], *taken[20:25]])
        reader.release([taken[-1]])
        left = [*left[10:20], *left[25:]]
        assert reader.subscription.receive(0, 0.0).lost[0].epoch == ended
        reader.held.clear()
    assert numbers_of(reader.take(len(left))) == left


def test_release_leaves_other_partitions_alone(
    adapter: KafkaAdapter, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare(partitions=2)
    fill(adapter, topic, range(20), key="key-0")
    fill(adapter, topic, range(20), key="key-1")
    reader = Reader(subscribe(topic))
    taken = reader.take(40)
    one, other = {delivery.partition for delivery in taken}
    reader.release([next(d for d in taken if d.partition == one)])
    again = reader.take(20)
    assert {lost.partition for lost in reader.lost} == {one}
    assert {delivery.partition for delivery in again} == {one}
    assert sum(d.partition == other for d in reader.held) == 20


# --- what arrives ---


def test_a_header_name_that_is_no_text_neither_crashes_nor_costs_the_message_its_id(
    adapter: KafkaAdapter, kafka_url: str, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare()
    # The interpreter takes other paths for what it has seen often.
    fill(adapter, topic, range(100))
    place = kafka_url.partition("://")[2]
    pairs = [(b"\xff\xfe", b"a"), (b"message-id", b"an-id"), (b"empty", None), (b"\xc0", None)]
    for _ in range(100):
        records.produce(place, topic, b"body", pairs)
    for taken in Reader(subscribe(topic)).take(200)[100:]:
        assert list(taken.raw.headers) == [
            ("\N{REPLACEMENT CHARACTER}", b"a"),
            ("message-id", b"an-id"),
            ("empty", b""),
            ("\N{REPLACEMENT CHARACTER}", b""),
        ]
        assert wire.decode(taken.raw, LIMITS).message.id == "an-id"


def test_a_record_without_value_key_or_headers_is_an_empty_message_named_by_its_place(
    kafka_url: str, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare()
    producer = Producer({"bootstrap.servers": kafka_url.partition("://")[2]})
    producer.produce(topic, None, timestamp=1_600_000_000_123)
    producer.flush(10)
    (taken,) = Reader(subscribe(topic)).take(1)
    decoded = wire.decode(taken.raw, LIMITS)
    assert (decoded.message.body, decoded.message.key) == (b"", None)
    assert decoded.message.id == f"{topic}/0/0@1600000000123"
    assert decoded.stable_id
    assert decoded.message.time.timestamp() == 1_600_000_000.123


def test_ends_of_transactions_leave_no_lag_and_aborted_messages_are_not_delivered(
    adapter: KafkaAdapter, kafka_url: str, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare()
    producer = Producer(
        {"bootstrap.servers": kafka_url.partition("://")[2], "transactional.id": topic}
    )
    producer.init_transactions(30)
    for number, finish in ((0, "commit"), (1, "abort"), (2, "commit"), (3, "abort")):
        producer.begin_transaction()
        producer.produce(topic, str(number).encode())
        producer.flush(10)
        getattr(producer, f"{finish}_transaction")(30)
    reader = Reader(subscribe(topic))
    taken = reader.take_only(2)
    assert numbers_of(taken) == [0, 2]
    reader.ack(taken)
    wait_for(lambda: adapter.lag(topic, "billing") == 0, "a lag of 0", meanwhile=reader.idle)


# --- groups ---


def test_handlers_of_one_group_on_different_topics_do_not_disturb_each_other(
    adapter: KafkaAdapter, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    topics = [declare(partitions=4) for _ in range(3)]
    for topic in topics:
        for key in range(8):
            fill(adapter, topic, range(10), key=f"key-{key}")
    readers = [Reader(subscribe(topic)) for topic in topics]
    readers += [Reader(subscribe(topic, adapter=open_one())) for topic in topics[:2]]

    def turn() -> None:
        for reader in readers:
            reader.ack(reader.step(timeout=0.05))

    wait_for(
        lambda: all(adapter.lag(topic, "billing") == 0 for topic in topics),
        "the end of every topic",
        meanwhile=turn,
    )
    for reader, topic in zip(readers, [*topics, *topics], strict=False):
        assert {one.raw.topic for one in reader.received} <= {topic}


def test_a_topic_that_does_not_exist_is_a_configuration_error(
    adapter: KafkaAdapter, subscribe: Subscribe
) -> None:
    reader = subscribe("no-such-topic")
    with pytest.raises(ConfigurationError, match=r"no-such-topic.*declare"):
        wait_for(lambda: reader.receive(1, 0.5).deliveries, "an error", seconds=20.0)


def test_a_session_that_the_brokers_do_not_accept_is_a_configuration_error(
    own_server: OwnServer, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    server = own_server("kafka", {"group.max.session.timeout.ms": "5000"})
    adapter = open_one(server.url, query="session_timeout=6")
    consumer = subscribe(declare(adapter=adapter), adapter=adapter)
    with pytest.raises(ConfigurationError, match=r"session_timeout"):
        wait_for(lambda: consumer.receive(1, 0.5).deliveries, "an error", seconds=20.0)


# --- outages ---


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_close_is_bounded_with_acks_that_cannot_be_committed(
    own: Kafka,
    open_one: Open,
    declare: Declare,
    subscribe: Subscribe,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    # It may take twice as long; the rest of what is allowed below is for a busy machine.
    monkeypatch.setattr("reliable_mq_kafka.subscription._CLOSE_WITHIN", 1.0)
    adapter = open_one(own.url, query="session_timeout=2")
    topic = declare(adapter=adapter)
    fill(adapter, topic, range(10))
    reader = Reader(subscribe(topic, adapter=adapter))
    taken = reader.take(10)
    getattr(own, how)()
    reader.ack(taken)
    with suppress(TransportError):
        reader.subscription.receive(0, 0.1)
    begin = time.monotonic()
    reader.close()
    adapter.close()
    assert time.monotonic() - begin < 10.0
    own.resume() if how == "pause" else own.restart()
    wait_for(lambda: not client_threads(), "the end of the client's threads")


def client_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("reliable-mq-kafka")]


def test_a_flush_that_the_brokers_do_not_answer_is_an_error(
    own: Kafka,
    open_one: Open,
    declare: Declare,
    subscribe: Subscribe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = open_one(own.url)
    topic = declare(adapter=adapter)
    fill(adapter, topic, range(2))
    reader = Reader(subscribe(topic, adapter=adapter))
    taken = reader.take(2)
    own.pause()
    with monkeypatch.context() as patch:
        patch.setattr("reliable_mq_kafka.subscription._FLUSH_WITHIN", 1.0)
        with pytest.raises(TransportError):
            reader.ack_and_flush(taken)
    own.resume()
    reader.ack_and_flush(taken)


def test_what_was_delivered_before_an_outage_comes_again_under_a_new_epoch(
    own: Kafka, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    adapter = open_one(own.url, query="session_timeout=30")
    topic = declare(adapter=adapter)
    fill(adapter, topic, range(10))
    reader = Reader(subscribe(topic, adapter=adapter))
    taken = reader.take(10)
    reader.ack_and_flush(taken[:4])
    own.kill()
    with pytest.raises(TransportError):
        wait_for(reader.step, "an error")
    own.restart()
    again = reader.take(6, through_outage=True)
    assert numbers_of(again) == list(range(4, 10))
    assert again[0].epoch > taken[0].epoch
    assert reader.has_lost(taken[9])


def test_a_group_that_is_declared_while_it_has_members_is_left_alone(
    adapter: KafkaAdapter, declare: Declare, subscribe: Subscribe, committed: Committed
) -> None:
    topic = declare()
    fill(adapter, topic, range(5))
    reader = Reader(subscribe(topic))
    reader.ack_and_flush(reader.take(5))
    other = declare()
    adapter.declare([], [GroupSpec(topic=topic, group="billing")])
    assert committed(topic) == 5
    assert adapter.lag(other, "billing") == 0
