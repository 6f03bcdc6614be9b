"""What in a topic's settings, or in the state of its copies, would break a promise."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from confluent_kafka.admin import TopicDescription

from reliable_mq.adapter import Finding, Severity
from reliable_mq_kafka.broker_checks import OFFSETS, TRANSACTIONS, Settings, number
from reliable_mq_kafka.declare import is_led

_DAY = timedelta(days=1) / timedelta(milliseconds=1)
_CLOCKS = timedelta(minutes=5) / timedelta(milliseconds=1)
_INTERNAL = frozenset({OFFSETS, TRANSACTIONS})


def missing(topic: str) -> Finding:
    """Return the finding for a topic that is not there."""
    return Finding(
        code="kafka-topic-missing",
        severity=Severity.ERROR,
        subject=f"topic {topic}",
        what="it does not exist",
        why="what is published to it stays in the outbox",
        remedy="call declare()",
    )


def of_topic(
    topic: str,
    description: TopicDescription,
    settings: Settings | None,
    message_bytes: int,
    partitions: int | None,
) -> Iterator[Finding]:
    """Yield what is wrong with one topic, declared or internal; without *settings* what shows."""
    yield from _of_copies(topic, description)
    yield from _of_count(topic, len(description.partitions), partitions)
    yield from _of_state(topic, description, settings or {})
    if settings is None:
        return
    yield from _of_writes(topic, description, settings)
    if topic not in _INTERNAL:
        yield from _of_retention(topic, settings)
        yield from _of_messages(topic, settings, message_bytes)


# --- copies -------------------------------------------------------------------------------------


def _copies(description: TopicDescription) -> int:
    return min((len(one.replicas) for one in description.partitions), default=0)


def _of_copies(topic: str, description: TopicDescription) -> Iterator[Finding]:
    copies = _copies(description)
    if copies < 3:
        yield Finding(
            code="kafka-replication",
            severity=Severity.ERROR if copies < 2 else Severity.WARNING,
            subject=f"topic {topic}",
            what=f"its replication factor is {copies}",
            why=f"a broker that is lost takes {_kept(topic)} with it"
            if copies < 2
            else "while one broker is away there is a single copy, or nothing can be written",
            remedy="run 3 brokers or more and raise the replication factor to 3",
        )


def _kept(topic: str) -> str:
    kept = {OFFSETS: "what groups have acknowledged", TRANSACTIONS: "the outcome of transactions"}
    return kept.get(topic, "confirmed messages")


def _of_count(topic: str, found: int, declared: int | None) -> Iterator[Finding]:
    if declared is not None and declared != found:
        yield Finding(
            code="kafka-partitions",
            severity=Severity.ERROR,
            subject=f"topic {topic}",
            what=f"it is declared with {declared} partitions and has {found}",
            why="declare() refuses it, so the application does not start; and where the number "
            "was changed under traffic, keys have moved and lost their order",
            remedy=f"declare it with {found} partitions, in every service",
        )


def _of_writes(topic: str, description: TopicDescription, settings: Settings) -> Iterator[Finding]:
    copies, in_sync = _copies(description), number(settings, "min.insync.replicas") or 1
    if copies > 1 and in_sync < 2:
        yield Finding(
            code="kafka-min-isr",
            severity=Severity.WARNING if topic in _INTERNAL else Severity.ERROR,
            subject=f"topic {topic}",
            what=f"min.insync.replicas is {in_sync}",
            why="what is written counts once a single broker has it, and is lost with that broker: "
            + _kept(topic),
            remedy=f"set min.insync.replicas=2 on topic {topic}",
        )
    elif in_sync > copies or in_sync == copies > 1:
        yield Finding(
            code="kafka-min-isr-high",
            severity=Severity.ERROR if in_sync > copies else Severity.WARNING,
            subject=f"topic {topic}",
            what=f"min.insync.replicas is {in_sync}, with {copies} replicas",
            why="nothing can be written"
            if in_sync > copies
            else "nothing can be written while one broker is away, not even for its restart",
            remedy=f"set min.insync.replicas=2 on topic {topic}"
            + (", and raise its replication factor to 3" if copies < 3 else ""),
        )
    if settings.get("unclean.leader.election.enable") == "true":
        yield Finding(
            code="kafka-unclean-election",
            severity=Severity.ERROR,
            subject=f"topic {topic}",
            what="unclean.leader.election.enable is true",
            why=f"a replica that lacks {_kept(topic)} may become the leader",
            remedy=f"set unclean.leader.election.enable=false on topic {topic}",
        )


def _of_state(topic: str, description: TopicDescription, settings: Settings) -> Iterator[Finding]:
    """Yield how many partitions are short of copies at the moment."""
    parts = description.partitions
    # With more than there are replicas the setting is at fault, not the state.
    in_sync = min(number(settings, "min.insync.replicas") or 1, _copies(description))
    leaderless = [one.id for one in parts if not is_led(one)]
    behind = [one.id for one in parts if len(one.isr) < len(one.replicas)]
    blocked = [one.id for one in parts if len(one.isr) < in_sync]
    if leaderless:
        yield _state(topic, leaderless, "no leader", "nothing can be written or read there")
    elif blocked:
        why = f"min.insync.replicas is {in_sync}: nothing can be written there"
        yield _state(topic, blocked, "too few replicas in sync", why)
    elif behind:
        why = "the next broker that dies may leave them with too few copies, or with none"
        yield _state(topic, behind, "replicas that are not in sync", why, Severity.WARNING)


def _state(
    topic: str,
    partitions: list[int],
    what: str,
    why: str,
    severity: Severity = Severity.ERROR,
) -> Finding:
    shown = ", ".join(map(str, sorted(partitions)))
    return Finding(
        code="kafka-in-sync",
        severity=severity,
        subject=f"topic {topic}",
        what=f"partitions {shown} have {what}",
        why=why,
        remedy="start the brokers that are down, and look why replicas do not keep up",
    )


# --- messages -----------------------------------------------------------------------------------


def _of_retention(topic: str, settings: Settings) -> Iterator[Finding]:
    if "compact" in (settings.get("cleanup.policy") or ""):
        yield Finding(
            code="kafka-compaction",
            severity=Severity.ERROR,
            subject=f"topic {topic}",
            what="its cleanup.policy compacts it",
            why="of two messages of a key the older one may be deleted before a group has read it",
            remedy=f"set cleanup.policy=delete on topic {topic}",
        )
    milliseconds = number(settings, "retention.ms")
    if milliseconds is not None and 0 <= milliseconds < _DAY:
        yield Finding(
            code="kafka-retention",
            severity=Severity.WARNING,
            subject=f"topic {topic}",
            what=f"its retention.ms is {milliseconds}",
            why="what a group has not read by then is deleted",
            remedy=f"set retention.ms on topic {topic} to longer than an outage of its consumers",
        )
    size = number(settings, "retention.bytes")
    if size is not None and size >= 0:
        yield Finding(
            code="kafka-retention-bytes",
            severity=Severity.WARNING,
            subject=f"topic {topic}",
            what=f"its retention.bytes is {size}",
            why="a backlog of more than that in a partition is deleted, read or not",
            remedy=f"set retention.bytes=-1 on topic {topic}",
        )


def _of_messages(topic: str, settings: Settings, message_bytes: int) -> Iterator[Finding]:
    limit = number(settings, "max.message.bytes")
    if limit is not None and limit < message_bytes:
        yield Finding(
            code="kafka-message-size",
            severity=Severity.WARNING,
            subject=f"topic {topic}",
            what=f"its max.message.bytes is {limit}",
            why=f"messages of up to {message_bytes} bytes are accepted from the application, and "
            "the larger ones are refused by the brokers and held",
            remedy=f"set max.message.bytes={message_bytes} on topic {topic}, or lower "
            "max_message_bytes",
        )
    if settings.get("message.timestamp.type") == "LogAppendTime":
        return
    for name in ("message.timestamp.before.max.ms", "message.timestamp.after.max.ms"):
        allowed = number(settings, name)
        if allowed is not None and allowed < _CLOCKS:
            yield Finding(
                code="kafka-timestamps",
                severity=Severity.WARNING,
                subject=f"topic {topic}",
                what=f"its {name} is {allowed}",
                why="messages of a publisher whose clock differs by more than that, or that "
                "waited in it for so long, are refused",
                remedy=f"set {name} to 300000 or more on topic {topic}, or "
                "message.timestamp.type=LogAppendTime",
            )
