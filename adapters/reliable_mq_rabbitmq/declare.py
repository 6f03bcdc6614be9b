"""Creating what is missing, and refusing what exists and is different."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from reliable_mq.adapter import GroupSpec, TopicSpec
from reliable_mq.errors import ConfigurationError
from reliable_mq_rabbitmq import errors
from reliable_mq_rabbitmq.asking import AskingChannel
from reliable_mq_rabbitmq.connection import Connection
from reliable_mq_rabbitmq.topology import (
    MAX_QUEUE_NAME,
    Layout,
    partition_queue,
    queue_arguments,
    single_queue,
)

_NEEDED = {
    "exchange_declare": "configure on it",
    "queue_declare": "configure on it",
    "queue_bind": "write on the queue and read on the exchange",
}

_LEADER_PATIENCE = 0.25
"""Seconds after which RabbitMQ answers for a quorum queue whose leader has not: that it is empty,
and has no consumers (``rabbit_quorum_queue:stat/1``, as of 3.10)."""
_ASKED = 3


class Declaration:
    """One call of ``declare``: exchanges first, then queues with their bindings.

    Idempotent and safe beside other processes: of several partitions the last is made first, so
    that a group whose partition 0 exists is complete, and one that a crash left unfinished is
    finished by the next call.
    """

    def __init__(self, connection: Connection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout

    def topic(self, spec: TopicSpec) -> None:
        """Declare the exchange of a topic, with a queue of its own where it is a catch-all."""
        if spec.options:
            raise ConfigurationError(
                f"topic {spec.name!r} has options {sorted(spec.options)}: RabbitMQ's adapter has "
                "none; use a policy on the broker"
            )
        with self._channel() as channel:
            self._create(
                channel,
                f"exchange {spec.name!r}",
                "exchange_declare",
                exchange=spec.name,
                exchange_type="topic",
                durable=True,
            )
        if spec.catch_all:
            arguments = queue_arguments(ordered=False, replication_factor=spec.replication_factor)
            self._queue(spec.name, arguments, exchange=spec.name, binding_key="#")

    def group(self, group: GroupSpec, layout: Layout, replication_factor: int | None) -> None:
        """Declare the queues of a group, unless they exist for another number of partitions."""
        self._check_partitions(group.group, layout)
        arguments = queue_arguments(ordered=group.ordered, replication_factor=replication_factor)
        for partition in reversed(range(layout.partitions)):
            self._queue(
                layout.queue(group.group, partition),
                arguments,
                exchange=layout.topic,
                binding_key=layout.binding_key(partition),
            )

    def _check_partitions(self, group: str, layout: Layout) -> None:
        existing = existing_partitions(self._connection, self._timeout, group, layout)
        if existing is not None:
            raise ConfigurationError(
                f"topic {layout.topic!r} is asked for with {layout.partitions} partitions, but the "
                f"queues of group {group!r} exist for {existing}: every service must name the "
                "same number; to change it, stop the publishers, drain the queues, delete them "
                "and declare anew"
            )

    def _queue(
        self, name: str, arguments: Mapping[str, Any], *, exchange: str, binding_key: str
    ) -> None:
        if len(name) > MAX_QUEUE_NAME:
            raise ConfigurationError(
                f"the queue name {name!r} has {len(name)} characters, the limit is "
                f"{MAX_QUEUE_NAME}: shorten the topic or the group"
            )
        with self._channel() as channel:
            self._create(
                channel,
                f"queue {name!r}",
                "queue_declare",
                queue=name,
                durable=True,
                arguments=dict(arguments),
            )
            self._create(
                channel,
                f"the binding of queue {name!r}",
                "queue_bind",
                queue=name,
                exchange=exchange,
                routing_key=binding_key,
            )

    def _create(self, channel: AskingChannel, what: str, operation: str, **arguments: Any) -> None:
        try:
            channel.ask(operation, **arguments)
        except errors.ChannelRefused as error:
            raise _different(what, error, _NEEDED[operation]) from error

    def _channel(self) -> AskingChannel:
        return AskingChannel(self._connection, self._timeout)


def _different(what: str, error: errors.ChannelRefused, permission: str) -> Exception:
    if error.code not in (errors.PRECONDITION_FAILED, errors.RESOURCE_LOCKED):
        return errors.refused(error, f"to declare {what}", permission)
    if "x-single-active-consumer" in error.text:
        return ConfigurationError(
            f"{what} exists, and one of ordered and unordered is asked for while the other exists "
            f"({error}): give the changed handler a new group name"
        )
    return ConfigurationError(
        f"{what} exists and is different ({error}): delete it on the broker when it is empty, or "
        "use another name"
    )


def message_count(connection: Connection, timeout: float, name: str) -> int | None:
    """Return how many messages of a queue are ready, None where there is no such queue.

    One that is too busy to tell looks empty to RabbitMQ, so such an answer that took long is not
    believed at once.
    """
    try:
        with AskingChannel(connection, timeout) as channel:
            return _told(channel, name)
    except errors.ChannelRefused as error:
        if error.code == errors.NOT_FOUND:
            return None
        raise errors.refused(error, f"to look at queue {name!r}") from error


def _told(channel: AskingChannel, name: str, times: int = _ASKED) -> int:
    asked_at = time.monotonic()
    queue = channel.ask("queue_declare", queue=name, passive=True)
    was_slow = time.monotonic() - asked_at >= _LEADER_PATIENCE
    if was_slow and not (queue.message_count or queue.consumer_count) and times > 1:
        return _told(channel, name, times - 1)
    return int(queue.message_count)


def existing_partitions(
    connection: Connection, timeout: float, group: str, layout: Layout
) -> int | None:
    """Return for how many partitions a group's queues exist, None where it is as in *layout*.

    None as well where the group is new, or was left unfinished with the same number.
    """
    topic, asked = layout.topic, layout.partitions
    exists = _looks(connection, timeout, topic, group)
    if asked == 1:
        return _count(exists) or None
    if message_count(connection, timeout, single_queue(topic, group)) is not None:
        return 1
    if exists(asked):
        return _count(exists, asked)
    if not exists(asked - 1):
        found = _count(exists)
        # Equal where another process made them all between these looks.
        return found if found not in (0, asked) else None
    return None


def number_of_partitions(connection: Connection, timeout: float, topic: str, group: str) -> int:
    """Return for how many partitions a group's queues exist; 1 where it has none."""
    if message_count(connection, timeout, single_queue(topic, group)) is not None:
        return 1
    return _count(_looks(connection, timeout, topic, group)) or 1


def _looks(connection: Connection, timeout: float, topic: str, group: str) -> Callable[[int], bool]:
    """Return what tells whether a partition, of several, has its queue."""

    def exists(partition: int) -> bool:
        name = partition_queue(topic, group, partition)
        return message_count(connection, timeout, name) is not None

    return exists


def _count(exists: Callable[[int], bool], first: int = 0) -> int:
    return next(partition for partition in count(first) if not exists(partition))
