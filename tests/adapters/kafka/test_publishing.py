"""Publishing, where Kafka differs from other brokers."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from reliable_mq.adapter import SENT, Outcome, Refused, TopicSpec, Unknown, Unroutable
from reliable_mq.message import Message, new_message_id
from reliable_mq.partitioning import partition_for
from reliable_mq.testing.contract.messages import message
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_kafka.adapter import KafkaAdapter
from tests.adapters.kafka.conftest import Declare, Open, Subscribe
from tests.adapters.kafka.copying import delete
from tests.brokers import Kafka

TIMEOUT = 20.0


def batch(topic: str, sizes: dict[int, int], count: int, *, keys: int = 3) -> list[Message]:
    """Messages 0 to count-1 over some keys; *sizes* says which are longer, and how long."""
    return [
        message(topic, bytes(sizes.get(index, 50)), key=f"key-{index % keys}")
        for index in range(count)
    ]


def stored(server: Kafka | str, topic: str, partitions: int = 1) -> list[str]:
    """Return the ids of what is on the broker, by partition and in order."""
    place = server.bootstrap if isinstance(server, Kafka) else server.partition("://")[2]
    consumer = Consumer(
        {
            "bootstrap.servers": place,
            "group.id": "reads-all",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    found, ended = [], 0
    try:
        while ended < partitions:
            record = consumer.poll(10)
            assert record is not None, "the broker did not answer"
            if record.error():
                ended += 1
                continue
            headers = dict(record.headers() or [])
            found.append(headers["message-id"].decode())  # type: ignore[union-attr]
    finally:
        consumer.close()
    return found


def test_what_a_wrong_clock_dates_is_not_refused_for_good(
    open_one: Open, declare: Declare, kafka_url: str
) -> None:
    # A topic that takes no record from before its arrival is the same to it. Each waits a little
    # in the client: within one millisecond it would be taken.
    adapter = open_one(client_options={"linger.ms": 50})
    topic = declare(options={"message.timestamp.before.max.ms": 0})
    late = [message(topic, key="a"), message(topic, key="b")]
    outcomes = adapter.publish(late, TIMEOUT)
    assert kinds(outcomes) == {"Unroutable": 2}
    assert all("clock" in one.cause for one in outcomes if isinstance(one, Unroutable))
    admin = AdminClient({"bootstrap.servers": kafka_url.partition("://")[2]})
    bound = ConfigEntry(
        "message.timestamp.before.max.ms",
        "3600000",
        incremental_operation=AlterConfigOpType.SET,
    )
    resource = ConfigResource("TOPIC", topic, incremental_configs=[bound])
    admin.incremental_alter_configs([resource])[resource].result(TIMEOUT)
    wait_for(lambda: adapter.publish(late, TIMEOUT) == [SENT] * 2, "the topic's new bound")


def kinds(outcomes: list[Outcome]) -> Counter[str]:
    return Counter(type(outcome).__name__ for outcome in outcomes)


def test_keys_go_to_the_partition_that_the_library_computes(
    adapter: KafkaAdapter, declare: Declare, kafka_url: str
) -> None:
    topic = declare(partitions=5)
    messages = [message(topic, key=key) for key in ("a", "ключ", "x" * 100, "key-7", "\N{SNOWMAN}")]
    assert adapter.publish(messages, TIMEOUT) == [SENT] * 5
    expected = sorted(messages, key=lambda one: partition_for((one.key or "").encode(), 5))
    assert stored(kafka_url, topic, 5) or expected
    consumer = Consumer({"bootstrap.servers": kafka_url.partition("://")[2], "group.id": "looks"})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(5)])
    found: dict[bytes | None, int | None] = {}
    while len(found) < 5:
        record = consumer.poll(10)
        assert record is not None
        found[record.key()] = record.partition()
    consumer.close()
    assert found == {
        (one.key or "").encode(): partition_for((one.key or "").encode(), 5) for one in messages
    }


def test_a_message_too_large_for_its_topic_is_refused_and_blocks_its_key_alone(
    adapter: KafkaAdapter, declare: Declare, kafka_url: str
) -> None:
    topic = declare(options={"max.message.bytes": 3000})
    messages = batch(topic, {31: 5000}, 90)
    outcomes = adapter.publish(messages, TIMEOUT)
    assert [index for index, one in enumerate(outcomes) if isinstance(one, Refused)] == [31]
    behind = {index for index in range(32, 90) if index % 3 == 1}
    assert {i for i, one in enumerate(outcomes) if isinstance(one, Unknown)} == behind
    sent = [one.id for one, outcome in zip(messages, outcomes, strict=True) if outcome == SENT]
    on_broker = list(dict.fromkeys(stored(kafka_url, topic)))
    assert sorted(on_broker) == sorted(sent)
    for key in range(3):
        ids = [one.id for one in messages if one.key == f"key-{key}"]
        in_order = [one for one in on_broker if one in ids]
        assert in_order == [one for one in ids if one in sent]


def test_nothing_behind_a_refused_message_of_its_key_is_stored_even_when_it_was_sent_already(
    adapter: KafkaAdapter, declare: Declare, kafka_url: str
) -> None:
    topic = declare(options={"max.message.bytes": 20_000})
    # So many that they fill several requests, which are under way at the same time.
    messages = [
        message(topic, bytes(30_000 if index == 40 else 4000), key="key") for index in range(200)
    ]
    outcomes = adapter.publish(messages, TIMEOUT)
    assert outcomes[:40] == [SENT] * 40
    assert isinstance(outcomes[40], Refused)
    assert kinds(outcomes[41:]) == {"Unknown": 159}
    unique = list(dict.fromkeys(stored(kafka_url, topic)))
    assert unique == [one.id for one in messages[:40]]


def test_nothing_overtakes_a_refused_message_in_a_partition_new_to_the_producer(
    open_one: Open, declare: Declare, kafka_url: str
) -> None:
    # A request for each message, so that several are under way when the first is refused. In a
    # partition where it does not know the producer, a broker takes any of them.
    adapter = open_one(client_options={"batch.num.messages": 1})
    assert adapter.publish([message(declare())], TIMEOUT) == [SENT]
    for _ in range(4):
        topic = declare(partitions=2, options={"max.message.bytes": 20_000})
        sizes = [30_000, *[400] * 199]
        outcomes = adapter.publish([message(topic, bytes(n), key="key") for n in sizes], TIMEOUT)
        assert isinstance(outcomes[0], Refused)
        assert kinds(outcomes[1:]) == {"Unknown": 199}
        assert stored(kafka_url, topic, 2) == []
        # The refusal ended the producer; the next one is to be known by name as well.
        assert adapter.publish([message(declare())], TIMEOUT) == [SENT]


def test_a_producer_that_is_old_makes_room_for_a_new_one(
    adapter: KafkaAdapter, declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = declare()
    assert adapter.publish([message(topic)], TIMEOUT) == [SENT]
    first = adapter._publisher._line
    assert first is not None
    monkeypatch.setattr(first, "_retires_at", 0.0)
    assert adapter.publish([message(topic)], TIMEOUT) == [SENT]
    assert adapter._publisher._line is not first
    assert not hasattr(first, "producer"), "it was not closed"


def test_messages_that_fit_one_by_one_are_sent_where_their_batch_is_too_large(
    adapter: KafkaAdapter, declare: Declare, kafka_url: str
) -> None:
    topic = declare(options={"max.message.bytes": 10_000})
    messages = [message(topic, bytes(900), key=f"key-{i % 20}") for i in range(200)]
    assert adapter.publish(messages, TIMEOUT) == [SENT] * 200
    assert set(stored(kafka_url, topic)) == {one.id for one in messages}
    # What was learned: requests are smaller now, and none is refused any more.
    for _ in range(4):
        adapter.publish(messages, TIMEOUT)
    begin = len(stored(kafka_url, topic))
    assert adapter.publish(messages, TIMEOUT) == [SENT] * 200
    assert len(stored(kafka_url, topic)) == begin + 200


def test_an_unknown_topic_is_unroutable_soon_and_does_not_hold_up_the_others(
    adapter: KafkaAdapter, declare: Declare
) -> None:
    topic = declare()
    mixed = [message("no-such-topic", key="a"), message(topic, key="a"), message("no-such-topic")]
    begin = time.monotonic()
    outcomes = adapter.publish(mixed, 60.0)
    assert time.monotonic() - begin < 15.0
    assert [type(one) for one in outcomes] == [Unroutable, type(SENT), Unroutable]
    assert "no-such-topic" in outcomes[0].cause  # type: ignore[union-attr]


def test_an_unknown_topic_is_not_created_by_a_publish(adapter: KafkaAdapter) -> None:
    (outcome,) = adapter.publish([message("never-made")], TIMEOUT)
    assert isinstance(outcome, Unroutable)
    assert not adapter._admin.describe(["never-made"])


def test_what_is_queued_at_the_deadline_is_not_stored_later(
    own: Kafka, open_one: Open, declare: Declare
) -> None:
    adapter = open_one(own.url)
    topic = declare(adapter=adapter)
    first = [message(topic, key="key")]
    assert adapter.publish(first, TIMEOUT) == [SENT]
    own.kill()
    # With no connection nothing leaves the client.
    lost = [message(topic, key="key") for _ in range(50)]
    begin = time.monotonic()
    outcomes = adapter.publish(lost, 1.0)
    assert time.monotonic() - begin < 8.0
    assert kinds(outcomes) == {"Unknown": 50}
    own.restart()
    last = [message(topic, key="key")]
    wait_for(lambda: adapter.publish(last, TIMEOUT) == [SENT], "a confirmation")
    assert dict.fromkeys(stored(own, topic)) == {one.id: None for one in (*first, *last)}


def test_an_unknown_outcome_says_what_is_wrong_with_the_connection(
    own: Kafka, open_one: Open, declare: Declare
) -> None:
    adapter = open_one(own.url)
    topic = declare(adapter=adapter)
    own.kill()
    (outcome,) = adapter.publish([message(topic)], 2.0)
    assert isinstance(outcome, Unknown)
    assert own.bootstrap in outcome.cause


def test_a_publisher_whose_time_is_up_does_not_cost_the_others_theirs(
    own: Kafka, open_one: Open, declare: Declare
) -> None:
    adapter = open_one(own.url)
    topic = declare(adapter=adapter)
    assert adapter.publish([message(topic)], TIMEOUT) == [SENT]
    own.pause()
    outcomes: list[Outcome] = []
    patient = threading.Thread(
        target=lambda: outcomes.extend(adapter.publish([message(topic)] * 3, 60.0))
    )
    patient.start()
    (hasty,) = adapter.publish([message(topic)], 0.5)
    assert isinstance(hasty, Unknown)
    own.resume()
    patient.join()
    assert outcomes == [SENT] * 3


def test_more_than_the_clients_queue_holds_is_sent_all_the_same(
    open_one: Open, declare: Declare, kafka_url: str
) -> None:
    adapter = open_one(client_options={"queue.buffering.max.messages": 10})
    topic = declare()
    messages = [message(topic, key="key") for _ in range(500)]
    assert adapter.publish(messages, TIMEOUT) == [SENT] * 500
    assert stored(kafka_url, topic) == [one.id for one in messages]


def test_a_full_queue_does_not_outlast_the_deadline(
    own: Kafka, open_one: Open, declare: Declare
) -> None:
    adapter = open_one(own.url, client_options={"queue.buffering.max.messages": 10})
    topic = declare(adapter=adapter)
    own.kill()
    begin = time.monotonic()
    outcomes = adapter.publish([message(topic, key="key") for _ in range(50)], 1.0)
    assert time.monotonic() - begin < 8.0
    assert kinds(outcomes) == {"Unknown": 50}


def test_a_key_that_cannot_be_encoded_is_refused_and_nothing_else(
    adapter: KafkaAdapter, declare: Declare
) -> None:
    topic = declare()
    bad = Message(id=new_message_id(), topic=topic, key="\ud800")
    outcomes = adapter.publish([message(topic), bad, message(topic)], TIMEOUT)
    assert [type(one) for one in outcomes] == [type(SENT), Refused, type(SENT)]


def test_a_topic_that_was_deleted_is_unroutable(
    adapter: KafkaAdapter, declare: Declare, kafka_url: str
) -> None:
    topic = declare()
    assert adapter.publish([message(topic)], TIMEOUT) == [SENT]
    delete(kafka_url.partition("://")[2], topic)
    (outcome,) = adapter.publish([message(topic)], 60.0)
    assert isinstance(outcome, Unroutable)


def test_an_idle_adapter_does_not_gather_what_its_clients_report(
    own: Kafka, open_one: Open, declare: Declare
) -> None:
    adapter = open_one(own.url)
    topic = declare(adapter=adapter)
    assert adapter.publish([message(topic)], TIMEOUT) == [SENT]
    line = adapter._publisher._line
    assert line is not None
    own.kill()
    # Nobody publishes; what the producer reports is taken from it all the same.
    wait_for(lambda: line.health.troubled, "the report of the outage")


def test_after_close_a_publish_is_unknown_and_the_rest_raises(
    adapter: KafkaAdapter, declare: Declare
) -> None:
    topic = declare()
    adapter.close()
    (outcome,) = adapter.publish([message(topic)], TIMEOUT)
    assert isinstance(outcome, Unknown)
    with pytest.raises(Exception, match="closed"):
        adapter.declare([TopicSpec(name=topic)], [])


def test_close_ends_a_publish_that_waits(own: Kafka, open_one: Open, declare: Declare) -> None:
    adapter = open_one(own.url)
    topic = declare(adapter=adapter)
    assert adapter.publish([message(topic)], TIMEOUT) == [SENT]
    own.pause()
    outcomes: list[Outcome] = []
    waiting = threading.Thread(
        target=lambda: outcomes.extend(adapter.publish([message(topic)], 120.0))
    )
    waiting.start()
    line = adapter._publisher._line
    assert line is not None
    wait_for(lambda: len(line.producer) > 0, "a message under way")
    begin = time.monotonic()
    adapter.close()
    waiting.join()
    assert time.monotonic() - begin < 10.0
    assert kinds(outcomes) == {"Unknown": 1}


# --- compression ---


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_what_is_compressed_arrives_whole_and_counts_for_the_broker_as_it_is_sent(
    open_one: Open, declare: Declare, subscribe: Subscribe, codec: str
) -> None:
    adapter = open_one(client_options={"compression.type": codec})
    topic = declare(adapter=adapter, options={"max.message.bytes": 20_000})
    bodies = [bytes([number]) * 100_000 for number in range(3)]
    outcomes = adapter.publish([message(topic, body) for body in bodies], 60.0)
    if codec == "none":
        assert [type(one) for one in outcomes] == [Refused] * 3
        return
    assert outcomes == [SENT] * 3
    reader = Reader(subscribe(topic, adapter=adapter))
    assert [one.raw.body for one in reader.take(3)] == bodies
