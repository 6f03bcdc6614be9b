"""How many messages wait in the queues of a group."""

from __future__ import annotations

from collections.abc import Mapping

from reliable_mq.adapter import TopicSpec
from reliable_mq.errors import ConfigurationError
from reliable_mq_rabbitmq.connection import Connection
from reliable_mq_rabbitmq.declare import message_count, number_of_partitions
from reliable_mq_rabbitmq.topology import Layout


def ready(
    connection: Connection,
    timeout: float,
    topic: str,
    group: str,
    topics: Mapping[str, TopicSpec],
) -> int:
    """Return the messages that no consumer holds; *timeout* is for each reply of the broker.

    Where *topics* does not say how many partitions there are, the queues that exist say it.
    Raises ``ConfigurationError`` where the group was not declared.
    """
    spec = topics.get(topic)
    partitions = spec.partitions if spec is not None else None
    if partitions is None:
        partitions = number_of_partitions(connection, timeout, topic, group)
    total = 0
    for queue in Layout(topic, partitions).queues(group):
        count = message_count(connection, timeout, queue)
        if count is None:
            raise ConfigurationError(
                f"group {group!r} of topic {topic!r} has no queue {queue!r}: declare it first"
            )
        total += count
    return total
