"""What the broker shows of settings that would break the promises.

Over AMQP it shows little, and no policies: those are seen by the management API only, where the
URL names it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from reliable_mq.adapter import Finding, GroupSpec, Severity, TopicSpec
from reliable_mq_rabbitmq import audit, errors
from reliable_mq_rabbitmq.asking import AskingChannel
from reliable_mq_rabbitmq.connection import Connection
from reliable_mq_rabbitmq.declare import existing_partitions, message_count
from reliable_mq_rabbitmq.management import Management
from reliable_mq_rabbitmq.options import Options, is_loopback
from reliable_mq_rabbitmq.topology import layout_of, queue_arguments

_OLDEST_VERSION = (3, 8)


class Inspection:
    """One look at the broker, with the eyes of an ordinary client."""

    def __init__(self, connection: Connection, options: Options) -> None:
        self._connection = connection
        self._options = options
        self._timeout = options.operation_timeout
        self._version = _version(connection)

    def findings(
        self, topics: Mapping[str, TopicSpec], groups: Collection[GroupSpec]
    ) -> Iterator[Finding]:
        """Look at the connection, then at what was declared."""
        yield from plain_text_findings(self._options)
        yield from self._old()
        for topic in sorted(topics):
            yield from self._exchange(topic)
        for group in sorted(groups, key=lambda spec: (spec.topic, spec.group)):
            yield from self._group(group, topics)
        if self._options.management is None:
            yield audit.unchecked()
        else:
            look = audit.Audit(Management(self._options), self._version[0])
            yield from look.findings(topics, groups)

    def _old(self) -> Iterator[Finding]:
        if self._version < _OLDEST_VERSION:
            version = ".".join(map(str, self._version))
            yield Finding(
                code="rabbitmq-version",
                severity=Severity.ERROR,
                subject="RabbitMQ",
                what=f"the broker has version {version}",
                why="it has no quorum queues, on which durability and order rest",
                remedy="upgrade to 3.10 or later",
            )

    def _group(self, group: GroupSpec, topics: Mapping[str, TopicSpec]) -> Iterator[Finding]:
        layout = layout_of(group.topic, topics)
        subject = f"group {group.group!r} of topic {group.topic!r}"
        existing = existing_partitions(self._connection, self._timeout, group.group, layout)
        if existing is not None:
            yield Finding(
                code="rabbitmq-partitions",
                severity=Severity.ERROR,
                subject=subject,
                what=f"its queues exist for {existing} partitions, {layout.partitions} are named",
                why="what is published for the one number does not reach queues of the other",
                remedy="name the same number in every service",
            )
            return
        for queue in layout.queues(group.group):
            if message_count(self._connection, self._timeout, queue) is None:
                yield _missing(subject, f"there is no queue {queue!r}")
            else:
                yield from self._kind(subject, queue, group, topics.get(group.topic))

    def _kind(
        self, subject: str, queue: str, group: GroupSpec, topic: TopicSpec | None
    ) -> Iterator[Finding]:
        factor = topic.replication_factor if topic is not None else None
        arguments = queue_arguments(ordered=group.ordered, replication_factor=factor)
        # It exists, so that this declares nothing: the broker only compares.
        refusal = self._refusal("queue_declare", queue=queue, durable=True, arguments=arguments)
        yield from self._difference(refusal, subject, f"queue {queue!r}", "rabbitmq-queue-kind")

    def _exchange(self, topic: str) -> Iterator[Finding]:
        subject = f"topic {topic!r}"
        if self._refusal("exchange_declare", exchange=topic, passive=True) is not None:
            yield _missing(subject, f"there is no exchange {topic!r}")
            return
        if self._options.management is not None:
            return  # Which tells all of it.
        refusal = self._refusal(
            "exchange_declare", exchange=topic, exchange_type="topic", durable=True
        )
        yield from self._difference(refusal, subject, "its exchange", "rabbitmq-exchange-kind")

    def _difference(
        self, refusal: errors.ChannelRefused | None, subject: str, what: str, code: str
    ) -> Iterator[Finding]:
        """Say what the broker answered when it was to compare."""
        if refusal is None:
            return
        if refusal.code != errors.ACCESS_REFUSED:
            yield Finding(
                code=code,
                severity=Severity.ERROR,
                subject=subject,
                what=f"{what} is not as it should be: {refusal}",
                why="durability, order and redelivery depend on it, and declare() refuses it",
                remedy="delete it when it is empty and declare anew, or use a new name",
            )
        elif self._options.management is None:
            yield _not_compared(subject, what)

    def _refusal(self, operation: str, **arguments: Any) -> errors.ChannelRefused | None:
        try:
            with AskingChannel(self._connection, self._timeout) as channel:
                channel.ask(operation, **arguments)
        except errors.ChannelRefused as error:
            return error
        return None


def _version(connection: Connection) -> tuple[int, int]:
    """Return the first two numbers of the broker's version; the oldest that will do if unknown."""
    text = str(connection.opened().server_properties.get("version", ""))
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else _OLDEST_VERSION


def plain_text_findings(options: Options) -> Iterator[Finding]:
    """Warn of a password that travels as plain text to another machine."""
    hosts = () if options.tls else options.hosts
    place = options.management
    asked = () if place is None or place.tls else place.hosts
    for scheme, places, remedy in (("amqp", hosts, "amqps"), ("http", asked, "https")):
        far = [host for host, _ in places if not is_loopback(host)]
        if far:
            yield Finding(
                code="rabbitmq-plain-text",
                severity=Severity.WARNING,
                subject="broker_url",
                what=f"{scheme}:// sends password and data to {', '.join(far)} as plain text",
                why="whoever can listen on the way can read them, and act as this user",
                remedy=f"use {remedy}://, unless that network is private",
            )


def _not_compared(subject: str, what: str) -> Finding:
    return Finding(
        code="rabbitmq-not-checked",
        severity=Severity.INFO,
        subject=subject,
        what=f"{what} was not compared: the user may not configure it",
        why="durability, order and redelivery depend on its kind",
        remedy="run it as the user that declares, or add management to broker_url",
    )


def _missing(subject: str, what: str) -> Finding:
    return Finding(
        code="rabbitmq-missing",
        severity=Severity.ERROR,
        subject=subject,
        what=what,
        why="messages for it have no place to go; they wait in the outbox",
        remedy="run declare",
    )
