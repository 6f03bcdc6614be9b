"""Topics, groups, and what the brokers say of themselves."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from reliable_mq.adapter import SENT, GroupSpec, TopicSpec
from reliable_mq.errors import ConfigurationError
from reliable_mq.testing.contract.base import fresh_name
from reliable_mq.testing.contract.messages import message
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_kafka.adapter import KafkaAdapter
from reliable_mq_kafka.declare import _new_topic
from tests.adapters.kafka.conftest import GROUP, Committed, Declare, Open
from tests.conftest import OwnServer


def settings(adapter: KafkaAdapter, topic: str) -> dict[str, str | None]:
    return adapter._admin.topic_settings([topic])[topic]


def test_options_become_settings_of_the_topic(adapter: KafkaAdapter, declare: Declare) -> None:
    topic = declare(options={"retention.ms": 3_600_000, "preallocate": True})
    found = settings(adapter, topic)
    assert (found["retention.ms"], found["preallocate"]) == ("3600000", "true")


def test_a_new_topic_takes_every_message_that_the_application_may_publish(
    open_one: Open, declare: Declare
) -> None:
    adapter = open_one(max_message_bytes=3_000_000)
    topic = declare(adapter=adapter)
    headers = {f"header-{index}": "x" * 1000 for index in range(60)}
    largest = message(topic, bytes(3_000_000), key="k" * 1024)
    object.__setattr__(largest, "headers", headers)
    assert adapter.publish([largest], 20.0) == [SENT]


def test_three_replicas_need_two_that_have_a_message() -> None:
    topic = _new_topic(TopicSpec(name="orders"), 3, 1_000_000)
    assert topic.replication_factor == 3
    assert (topic.config or {})["min.insync.replicas"] == "2"
    alone = _new_topic(TopicSpec(name="orders"), 1, 1_000_000)
    assert "min.insync.replicas" not in (alone.config or {})
    asked = _new_topic(
        TopicSpec(name="orders", replication_factor=5, options={"min.insync.replicas": 3}), 3, 1
    )
    assert asked.replication_factor == 5
    assert (asked.config or {})["min.insync.replicas"] == "3"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (TopicSpec(name="x", replication_factor=3), "replication_factor"),
        (TopicSpec(name="x", options={"no.such.setting": 1}), "options"),
        (TopicSpec(name="x", options={"retention.ms": "soon"}), "options"),
        (TopicSpec(name="no/topic"), "topic 'no/topic'"),
    ],
)
def test_a_topic_the_brokers_cannot_make_is_a_configuration_error(
    adapter: KafkaAdapter, spec: TopicSpec, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        adapter.declare([spec], [])


def test_a_group_of_a_topic_that_does_not_exist_is_a_configuration_error(
    adapter: KafkaAdapter,
) -> None:
    with pytest.raises(ConfigurationError, match="no-such-topic"):
        adapter.declare([], [GroupSpec(topic="no-such-topic", group=GROUP)])


def test_a_declared_group_has_an_offset_before_anything_is_consumed(
    adapter: KafkaAdapter, declare: Declare, committed: Committed
) -> None:
    topic = declare("early")
    assert committed(topic, group="early") == 0
    assert adapter.publish([message(topic) for _ in range(5)], 20.0) == [SENT] * 5
    adapter.declare([], [GroupSpec(topic=topic, group="late")])
    assert committed(topic, group="late") == 0
    assert adapter.lag(topic, "late") == 5


def test_declare_moves_no_offset_that_exists(
    adapter: KafkaAdapter, declare: Declare, committed: Committed, kafka_url: str
) -> None:
    topic = declare(partitions=2)
    assert adapter.publish([message(topic, key=f"{i}") for i in range(20)], 20.0) == [SENT] * 20
    consumer = Consumer({"bootstrap.servers": kafka_url.partition("://")[2], "group.id": GROUP})
    consumer.commit(offsets=[TopicPartition(topic, 1, 3)], asynchronous=False)
    consumer.close()
    adapter.declare([TopicSpec(name=topic)], [GroupSpec(topic=topic, group=GROUP)])
    assert (committed(topic, 0), committed(topic, 1)) == (0, 3)


def test_lag_counts_from_the_earliest_retained_where_the_commit_is_older(
    adapter: KafkaAdapter, declare: Declare
) -> None:
    topic = declare()
    assert adapter.publish([message(topic) for _ in range(10)], 20.0) == [SENT] * 10
    client, _ = adapter._admin._use()
    place = TopicPartition(topic, 0, 4)
    client.delete_records([place])[place].result()
    assert adapter.lag(topic, GROUP) == 6


def test_lag_of_a_topic_that_does_not_exist_is_a_configuration_error(
    adapter: KafkaAdapter,
) -> None:
    with pytest.raises(ConfigurationError, match="no-such-topic"):
        adapter.lag("no-such-topic", GROUP)


def test_a_redelivery_is_bounded_by_the_longest_life_of_a_segment(
    adapter: KafkaAdapter, declare: Declare
) -> None:
    hour, day = 3_600_000, 86_400_000
    short = declare(options={"retention.ms": hour, "segment.ms": hour})
    long = declare(options={"retention.ms": day, "segment.ms": hour})
    ever = declare(options={"retention.ms": -1})
    kept = declare(options={"cleanup.policy": "compact"})
    assert adapter.redelivery_bound([short]) == timedelta(hours=2)
    assert adapter.redelivery_bound([short, long]) == timedelta(hours=25)
    assert adapter.redelivery_bound([short, ever]) is None
    assert adapter.redelivery_bound([kept]) is None
    assert adapter.redelivery_bound([]) is None


def test_a_message_outlives_its_retention_while_its_segment_is_written(
    own_server: OwnServer, open_one: Open, declare: Declare
) -> None:
    server = own_server("kafka", {"log.retention.check.interval.ms": "200"})
    adapter = open_one(server.url)
    segments = {"written": 604_800_000, "closed": 1000}
    topics = {
        name: declare(adapter=adapter, options={"retention.ms": 3000, "segment.ms": milliseconds})
        for name, milliseconds in segments.items()
    }

    def first_of(name: str) -> int:
        return adapter._admin.earliest([(topics[name], 0)])[topics[name], 0]

    def write() -> None:
        batch = [message(topic) for topic in topics.values()]
        assert adapter.publish(batch, 30.0) == [SENT] * 2

    # The newest of the segment stays young also where nothing is written for seconds, as on a busy
    # machine: it is dated half an hour ahead, of which brokers take an hour.
    producer = Producer({"bootstrap.servers": server.url.partition("://")[2]})
    for later in (0, 1800):
        moment = round(1000 * (time.time() + later))
        producer.produce(topics["written"], b"{}", timestamp=moment)
    assert producer.flush(30) == 0
    wait_for(lambda: first_of("closed") > 0, "the end of a closed segment", meanwhile=write)
    assert first_of("written") == 0


def test_a_fresh_name_is_not_there_until_it_is_declared(adapter: KafkaAdapter) -> None:
    name = fresh_name("topic")
    assert adapter._admin.describe([name]) == {}
    adapter.declare([TopicSpec(name=name, partitions=3)], [])
    assert len(adapter._admin.describe([name])[name].partitions) == 3
