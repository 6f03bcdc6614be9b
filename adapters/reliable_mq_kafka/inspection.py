"""What in the cluster's settings would break the promises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from confluent_kafka.admin import TopicDescription

from reliable_mq.adapter import Finding, Severity
from reliable_mq_kafka.admin import Admin

_OFFSETS = "__consumer_offsets"
_SHORT = timedelta(days=1)
_HOUR = timedelta(hours=1)

Settings = Mapping[str, str | None]


def inspect(admin: Admin, topics: Sequence[str], message_bytes: int) -> list[Finding]:
    """See ``Adapter.inspect``: the brokers, the declared topics, and the topic of the offsets."""
    brokers = admin.broker_ids()
    described = admin.describe([*topics, _OFFSETS])
    settings = admin.topic_settings(described)
    findings = list(_of_brokers(admin.broker_settings(min(brokers))))
    for name, description in described.items():
        findings += _of_copies(name, description, settings[name])
        if name != _OFFSETS:
            findings += _of_retention(name, settings[name])
            findings += _of_size(name, settings[name], message_bytes)
    findings += [_missing(name) for name in topics if name not in described]
    return findings


def _missing(topic: str) -> Finding:
    return Finding(
        severity=Severity.ERROR,
        subject=f"topic {topic}",
        what="it does not exist",
        why="what is published to it stays in the outbox",
        remedy="call declare()",
    )


def _of_brokers(settings: Settings) -> Iterator[Finding]:
    if settings.get("auto.create.topics.enable") == "true":
        yield Finding(
            severity=Severity.WARNING,
            subject="brokers",
            what="auto.create.topics.enable is true",
            why="another client's typing error makes a topic, and a deleted topic comes back "
            "with the brokers' defaults",
            remedy="set auto.create.topics.enable=false on every broker",
        )
    minutes = int(settings.get("offsets.retention.minutes") or 0)
    if 0 < minutes < _SHORT * 7 / timedelta(minutes=1):
        yield Finding(
            severity=Severity.WARNING,
            subject="brokers",
            what=f"offsets.retention.minutes is {minutes}",
            why="a group that is stopped for longer begins again at the earliest message",
            remedy="set offsets.retention.minutes to 10080 or more",
        )

    expiration = int(settings.get("producer.id.expiration.ms") or 0)
    if 0 < expiration < _HOUR / timedelta(milliseconds=1):
        yield Finding(
            severity=Severity.WARNING,
            subject="brokers",
            what=f"producer.id.expiration.ms is {expiration}",
            why="a producer that was silent for longer is not known any more, and what follows a "
            "refused message of a key may then be stored",
            remedy="set producer.id.expiration.ms to 3600000 or more on every broker",
        )


def _of_copies(topic: str, description: TopicDescription, settings: Settings) -> Iterator[Finding]:
    copies = min((len(one.replicas) for one in description.partitions), default=0)
    if copies < 3:
        yield Finding(
            severity=Severity.ERROR if copies < 2 else Severity.WARNING,
            subject=f"topic {topic}",
            what=f"its replication factor is {copies}",
            why="a broker that is lost takes acknowledged messages with it"
            if copies < 2
            else "while one broker is away there is a single copy, or nothing can be written",
            remedy="run 3 brokers or more and raise the replication factor to 3",
        )
    in_sync = int(settings.get("min.insync.replicas") or 1)
    if copies > 1 and in_sync < 2 and topic != _OFFSETS:
        yield Finding(
            severity=Severity.ERROR,
            subject=f"topic {topic}",
            what=f"min.insync.replicas is {in_sync}",
            why="a message counts as sent when one broker has it, and is lost with that broker",
            remedy=f"set min.insync.replicas=2 on topic {topic}",
        )
    if settings.get("unclean.leader.election.enable") == "true":
        yield Finding(
            severity=Severity.ERROR,
            subject=f"topic {topic}",
            what="unclean.leader.election.enable is true",
            why="a replica that lacks acknowledged messages may become the leader",
            remedy=f"set unclean.leader.election.enable=false on topic {topic}",
        )


def _of_retention(topic: str, settings: Settings) -> Iterator[Finding]:
    if "compact" in (settings.get("cleanup.policy") or ""):
        yield Finding(
            severity=Severity.ERROR,
            subject=f"topic {topic}",
            what="its cleanup.policy compacts it",
            why="of two messages of a key the older one may be deleted before a group has read it",
            remedy=f"set cleanup.policy=delete on topic {topic}",
        )
    milliseconds = int(settings.get("retention.ms") or -1)
    if 0 <= milliseconds < _SHORT / timedelta(milliseconds=1):
        yield Finding(
            severity=Severity.WARNING,
            subject=f"topic {topic}",
            what=f"its retention.ms is {milliseconds}",
            why="what a group has not read by then is deleted",
            remedy=f"set retention.ms on topic {topic} to longer than an outage of its consumers",
        )
    size = int(settings.get("retention.bytes") or -1)
    if size >= 0:
        yield Finding(
            severity=Severity.WARNING,
            subject=f"topic {topic}",
            what=f"its retention.bytes is {size}",
            why="a backlog of more than that is deleted, read or not",
            remedy=f"set retention.bytes=-1 on topic {topic}",
        )


def _of_size(topic: str, settings: Settings, message_bytes: int) -> Iterator[Finding]:
    limit = int(settings.get("max.message.bytes") or message_bytes)
    if limit < message_bytes:
        yield Finding(
            severity=Severity.WARNING,
            subject=f"topic {topic}",
            what=f"its max.message.bytes is {limit}",
            why=f"messages of up to {message_bytes} bytes are accepted from the application, and "
            "the larger ones are refused by the brokers and held",
            remedy=f"set max.message.bytes={message_bytes} on topic {topic}, or lower "
            "max_message_bytes",
        )
