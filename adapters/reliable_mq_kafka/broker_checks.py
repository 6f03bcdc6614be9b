"""What in the settings of a broker would break a promise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TypeAlias

from reliable_mq.adapter import Finding, Severity
from reliable_mq_kafka.options import Options

Settings: TypeAlias = Mapping[str, str | None]

OFFSETS = "__consumer_offsets"
TRANSACTIONS = "__transaction_state"

_WEEK = timedelta(days=7) / timedelta(minutes=1)
_HOUR = timedelta(hours=1) / timedelta(milliseconds=1)


def number(settings: Settings, name: str) -> int | None:
    """Return a setting that is a number; None where it is not there."""
    text = settings.get(name)
    return None if text is None else int(text)


def of_broker(
    subject: str, settings: Settings, options: Options, message_bytes: int
) -> Iterator[Finding]:
    """Yield what is wrong with the settings of one broker."""
    if settings.get("auto.create.topics.enable") == "true":
        yield Finding(
            code="kafka-auto-create",
            severity=Severity.WARNING,
            subject=subject,
            what="auto.create.topics.enable is true",
            why="another client's typing error makes a topic, and a deleted topic comes back "
            "with the brokers' defaults",
            remedy="set auto.create.topics.enable=false on every broker",
        )
    yield from _memory(subject, settings)
    yield from _limits(subject, settings, options)
    yield from _requests(subject, settings, message_bytes)


def _memory(subject: str, settings: Settings) -> Iterator[Finding]:
    minutes = number(settings, "offsets.retention.minutes")
    if minutes is not None and minutes < _WEEK:
        yield Finding(
            code="kafka-offsets-retention",
            severity=Severity.WARNING,
            subject=subject,
            what=f"offsets.retention.minutes is {minutes}",
            why="a group that is stopped for longer begins again at the earliest message",
            remedy="set offsets.retention.minutes to 10080 or more on every broker",
        )
    expiration = number(settings, "producer.id.expiration.ms")
    if expiration is not None and expiration < _HOUR:
        yield Finding(
            code="kafka-producer-expiration",
            severity=Severity.WARNING,
            subject=subject,
            what=f"producer.id.expiration.ms is {expiration}",
            why="a producer that was silent for longer is not known any more, and what follows a "
            "refused message of a key may then be stored",
            remedy="set producer.id.expiration.ms to 3600000 or more on every broker",
        )


def _limits(subject: str, settings: Settings, options: Options) -> Iterator[Finding]:
    session = round(options.session_timeout * 1000)
    least = number(settings, "group.min.session.timeout.ms")
    most = number(settings, "group.max.session.timeout.ms")
    if (least is not None and session < least) or (most is not None and session > most):
        yield Finding(
            code="kafka-session-limits",
            severity=Severity.ERROR,
            subject=subject,
            what=f"it takes sessions of {least} to {most} ms, and session_timeout in broker_url "
            f"is {session} ms",
            why="no process can join a group: nothing is received",
            remedy="change session_timeout, or group.min.session.timeout.ms and "
            "group.max.session.timeout.ms on every broker",
        )
    transaction = round(options.transaction_timeout * 1000)
    longest = number(settings, "transaction.max.timeout.ms")
    if longest is not None and transaction > longest:
        yield Finding(
            code="kafka-transaction-limit",
            severity=Severity.WARNING,
            subject=subject,
            what=f"transaction.max.timeout.ms is {longest}, and transaction_timeout in broker_url "
            f"is {transaction} ms",
            why="handlers with guarantee='exactly-once' cannot begin",
            remedy="lower transaction_timeout, or raise transaction.max.timeout.ms on every broker",
        )


def _requests(subject: str, settings: Settings, message_bytes: int) -> Iterator[Finding]:
    largest = number(settings, "socket.request.max.bytes")
    if largest is not None and largest < message_bytes:
        yield Finding(
            code="kafka-request-size",
            severity=Severity.WARNING,
            subject=subject,
            what=f"socket.request.max.bytes is {largest}",
            why=f"messages of up to {message_bytes} bytes are accepted from the application; the "
            "broker hangs up on larger ones, which are tried again for ever",
            remedy="raise socket.request.max.bytes on every broker, or lower max_message_bytes",
        )


def of_internal_topics(
    subject: str, settings: Settings, missing: set[str], *, brokers: int
) -> Iterator[Finding]:
    """Yield what will be wrong with the brokers' own topics that are not there yet."""
    names = {
        OFFSETS: ("offsets.topic.replication.factor", "min.insync.replicas"),
        TRANSACTIONS: (
            "transaction.state.log.replication.factor",
            "transaction.state.log.min.isr",
        ),
    }
    for topic in sorted(missing & names.keys()):
        copies, in_sync = (number(settings, name) for name in names[topic])
        least = min(3, brokers)
        if copies is not None and copies < least:
            yield _internal(subject, topic, names[topic][0], copies, least)
        elif in_sync is not None and in_sync < 2 and brokers > 1:
            yield _internal(subject, topic, names[topic][1], in_sync, 2)


def _internal(subject: str, topic: str, name: str, value: int, least: int) -> Finding:
    return Finding(
        code="kafka-internal-topics",
        severity=Severity.WARNING,
        subject=subject,
        what=f"{name} is {value}, with which {topic} will be made",
        why="a broker that is lost may take with it what groups have acknowledged"
        if topic == OFFSETS
        else "a broker that is lost may take the outcome of transactions with it",
        remedy=f"set {name}={least} on every broker before {topic} is made by its first use",
    )
