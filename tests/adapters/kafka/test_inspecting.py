"""What ``inspect`` says of brokers and topics that are really set up wrongly, and of good ones."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import NewTopic

from reliable_mq.adapter import AdapterContext, Finding, GroupSpec, Severity, TopicSpec
from reliable_mq.testing.contract.base import fresh_name
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_kafka import open_adapter
from reliable_mq_kafka.adapter import KafkaAdapter
from reliable_mq_kafka.broker_checks import of_broker, of_internal_topics
from reliable_mq_kafka.options import Options
from tests.adapters.kafka.conftest import GROUP, Declare, Open
from tests.conftest import OwnServer

ERROR, WARNING = Severity.ERROR, Severity.WARNING
ALONE = ("kafka-replication", ERROR)
"""What a single broker cannot do."""


def of(adapter: KafkaAdapter, subject: str) -> list[Finding]:
    found = adapter.inspect()
    assert all(one.code and one.what and one.why and one.remedy for one in found)
    return [one for one in found if one.subject == subject]


def codes(findings: list[Finding]) -> set[tuple[str, Severity]]:
    assert len({one.code for one in findings}) == len(findings)
    return {(one.code, one.severity) for one in findings}


# --- topics -------------------------------------------------------------------------------------


def test_a_good_topic_has_only_what_one_broker_cannot_do(
    adapter: KafkaAdapter, declare: Declare
) -> None:
    topic = declare(partitions=3)
    assert codes(of(adapter, f"topic {topic}")) == {ALONE}
    assert of(adapter, f"group {GROUP} of topic {topic}") == []


@pytest.mark.parametrize(
    ("options", "code", "severity", "what"),
    [
        ({"cleanup.policy": "compact"}, "kafka-compaction", ERROR, "cleanup.policy"),
        ({"cleanup.policy": "compact,delete"}, "kafka-compaction", ERROR, "cleanup.policy"),
        (
            {"unclean.leader.election.enable": True},
            "kafka-unclean-election",
            ERROR,
            "unclean.leader.election.enable is true",
        ),
        ({"retention.ms": 1000}, "kafka-retention", WARNING, "retention.ms is 1000"),
        ({"retention.bytes": 1000}, "kafka-retention-bytes", WARNING, "retention.bytes is 1000"),
        ({"max.message.bytes": 999}, "kafka-message-size", WARNING, "max.message.bytes is 999"),
        ({"min.insync.replicas": 2}, "kafka-min-isr-high", ERROR, "2, with 1 replicas"),
        (
            {"message.timestamp.before.max.ms": 1000},
            "kafka-timestamps",
            WARNING,
            "message.timestamp.before.max.ms is 1000",
        ),
        (
            {"message.timestamp.after.max.ms": 1000},
            "kafka-timestamps",
            WARNING,
            "message.timestamp.after.max.ms is 1000",
        ),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if type(value) is dict else "",
)
def test_a_topic_whose_settings_break_a_promise_is_found(
    adapter: KafkaAdapter,
    declare: Declare,
    options: dict[str, object],
    code: str,
    severity: Severity,
    what: str,
) -> None:
    found = of(adapter, f"topic {declare(options=options)}")
    assert codes(found) == {ALONE, (code, severity)}
    assert what in next(one.what for one in found if one.code == code)


def test_timestamps_of_the_brokers_do_not_depend_on_clocks(
    adapter: KafkaAdapter, declare: Declare
) -> None:
    stamped = {"message.timestamp.type": "LogAppendTime", "message.timestamp.after.max.ms": 1000}
    assert codes(of(adapter, f"topic {declare(options=stamped)}")) == {ALONE}


def test_a_missing_topic_and_one_with_other_partitions_are_found(
    adapter: KafkaAdapter, declare: Declare, topics: dict[str, TopicSpec]
) -> None:
    topic = declare(partitions=2)
    topics[topic] = TopicSpec(name=topic, partitions=5)
    topics["not-made"] = TopicSpec(name="not-made")
    (missing,) = of(adapter, "topic not-made")
    assert (missing.code, missing.severity) == ("kafka-topic-missing", ERROR)
    found = of(adapter, f"topic {topic}")
    assert codes(found) == {ALONE, ("kafka-partitions", ERROR)}
    assert "declared with 5 partitions and has 2" in found[-1].what


# --- groups -------------------------------------------------------------------------------------


def test_a_group_without_offsets_is_found_with_its_partitions(
    adapter: KafkaAdapter, declare: Declare, topics: dict[str, TopicSpec], kafka_url: str
) -> None:
    topic = declare("declared", partitions=3)
    consumer = Consumer({"bootstrap.servers": kafka_url.partition("://")[2], "group.id": "half"})
    consumer.commit(offsets=[TopicPartition(topic, 1, 0)], asynchronous=False)
    consumer.close()
    groups = [GroupSpec(topic=topic, group=name) for name in ("declared", "half", "unheard-of")]
    context = AdapterContext(instance="doctor", topics=topics, groups=groups)
    # As the doctor does: an adapter that has declared nothing.
    doctor = open_adapter(kafka_url, context)
    try:
        found = {one.subject: one for one in doctor.inspect() if one.code == "kafka-group-new"}
    finally:
        doctor.close()
    assert found.keys() == {f"group {one} of topic {topic}" for one in ("half", "unheard-of")}
    assert "partitions 0, 2" in found[f"group half of topic {topic}"].what
    assert {one.severity for one in found.values()} == {WARNING}


# --- brokers ------------------------------------------------------------------------------------


def test_brokers_whose_settings_break_a_promise_are_found(
    own_server: OwnServer, open_one: Open, topics: dict[str, TopicSpec]
) -> None:
    server = own_server(
        "kafka",
        {
            "auto.create.topics.enable": "true",
            "offsets.retention.minutes": "60",
            "producer.id.expiration.ms": "60000",
            "group.min.session.timeout.ms": "3000",
            "group.max.session.timeout.ms": "5000",
            "transaction.max.timeout.ms": "5000",
            "socket.request.max.bytes": "500000",
            "message.max.bytes": "300000",
            "log.cleanup.policy": "compact",
            "unclean.leader.election.enable": "true",
        },
    )
    found = of(open_one(server.url, query="session_timeout=6"), "broker 1")
    wrong = {
        "kafka-auto-create": "auto.create.topics.enable is true",
        "kafka-offsets-retention": "offsets.retention.minutes is 60",
        "kafka-producer-expiration": "producer.id.expiration.ms is 60000",
        "kafka-session-limits": "3000 to 5000 ms, and session_timeout in broker_url is 6000",
        "kafka-transaction-limit": "transaction.max.timeout.ms is 5000",
        "kafka-request-size": "socket.request.max.bytes is 500000",
    }
    assert {one.code for one in found} == wrong.keys()
    assert all(wrong[one.code] in one.what for one in found)
    assert [one.code for one in found if one.severity is ERROR] == ["kafka-session-limits"]
    short = of(open_one(server.url, query="session_timeout=2"), "broker 1")
    assert "session_timeout in broker_url is 2000" in " ".join(one.what for one in short)

    # What a topic does not say itself it has from the brokers.
    adapter = open_one(server.url, query="session_timeout=4")
    name = fresh_name("inherits")
    client, _ = adapter._admin._use()
    client.create_topics([NewTopic(name, 1, 1)])[name].result()
    topics[name] = TopicSpec(name=name)
    wait_for(lambda: adapter._admin.describe([name]), "the broker to know the topic")
    assert codes(of(adapter, f"topic {name}")) == {
        ALONE,
        ("kafka-message-size", WARNING),
        ("kafka-compaction", ERROR),
        ("kafka-unclean-election", ERROR),
    }


def test_to_ask_for_a_topic_creates_none_where_the_brokers_would(
    own_server: OwnServer, open_one: Open, topics: dict[str, TopicSpec]
) -> None:
    server = own_server("kafka", {"auto.create.topics.enable": "true"})
    topics["orders"] = TopicSpec(name="orders", partitions=3)
    adapter = open_one(server.url)
    for _ in range(3):
        assert codes(of(adapter, "topic orders")) == {("kafka-topic-missing", ERROR)}
    adapter.declare(list(topics.values()), [])  # raises where it has another number of partitions
    assert codes(of(adapter, "topic orders")) == {ALONE}


def test_the_brokers_defaults_are_good(adapter: KafkaAdapter) -> None:
    assert of(adapter, "broker 1") == []


def test_settings_that_a_broker_does_not_know_are_passed_over() -> None:
    assert list(of_broker("broker", {}, Options(), 1_000_000)) == []


def test_internal_topics_that_are_not_made_yet_are_looked_at_in_the_brokers_settings() -> None:
    good = {
        "offsets.topic.replication.factor": "3",
        "min.insync.replicas": "2",
        "transaction.state.log.replication.factor": "3",
        "transaction.state.log.min.isr": "2",
    }
    both = {"__consumer_offsets", "__transaction_state"}

    def found(*, brokers: int = 3, **changes: str) -> list[str]:
        settings = {**good, **{name.replace("_", "."): value for name, value in changes.items()}}
        return [
            one.what.partition(",")[0]
            for one in of_internal_topics("broker 1", settings, both, brokers=brokers)
        ]

    assert found() == []
    assert found(brokers=1, offsets_topic_replication_factor="1", min_insync_replicas="1") == []
    assert found(offsets_topic_replication_factor="1") == ["offsets.topic.replication.factor is 1"]
    assert found(min_insync_replicas="1") == ["min.insync.replicas is 1"]
    assert found(transaction_state_log_replication_factor="2") == [
        "transaction.state.log.replication.factor is 2"
    ]
    assert found(transaction_state_log_min_isr="1") == ["transaction.state.log.min.isr is 1"]
    both.clear()
    assert found(transaction_state_log_min_isr="1") == []
