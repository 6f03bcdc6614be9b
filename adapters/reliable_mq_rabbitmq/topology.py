"""The names on the broker: which exchange, queues, bindings and routing keys a topic has.

They are public. A producer or consumer that does not use this library may rely on them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reliable_mq.adapter import TopicSpec

MAX_QUEUE_NAME = 249
"""Characters, as for every derived name of this library; AMQP itself allows 255 bytes."""

NO_DELIVERY_LIMIT = 2147483647
"""The broker counts a delivery for every unacknowledged message at each crash or hand-over, and
drops what exceeds the limit although no handler ever saw it; attempts are counted in the store."""


_ROUTING_KEY = re.compile(r"p\.([1-9][0-9]{0,3})\.[0-9]+")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a topic with *partitions* partitions lies on the broker.

    With one partition a group has the queue ``{topic}.{group}``, bound to everything, so that
    foreign producers need no routing key. With N of them it has ``{topic}.{group}.{i}``, bound to
    ``p.{N}.{i}``: a publisher with another N finds no queue, instead of mixing up the order.
    """

    topic: str
    partitions: int = 1

    def routing_key(self, partition: int) -> str:
        """Return the routing key of a partition, also with one partition (``p.1.0``)."""
        return f"p.{self.partitions}.{partition}"

    def binding_key(self, partition: int) -> str:
        """Return what the queue of a partition is bound with."""
        return "#" if self.partitions == 1 else self.routing_key(partition)

    def queue(self, group: str, partition: int) -> str:
        """Return the queue of one partition of a group."""
        return single_queue(self.topic, group) + ("" if self.partitions == 1 else f".{partition}")

    def queues(self, group: str) -> list[str]:
        """Return the queues of a group in the order of their partitions."""
        return [self.queue(group, partition) for partition in range(self.partitions)]


def single_queue(topic: str, group: str) -> str:
    """Return the only queue of a group where the topic has one partition."""
    return f"{topic}.{group}"


def partition_queue(topic: str, group: str, partition: int) -> str:
    """Return the queue of one partition where the topic has several."""
    return f"{topic}.{group}.{partition}"


def partitions_of(routing_key: str) -> int | None:
    """Return of how many partitions a routing key is, None where it is nobody's of ours."""
    found = _ROUTING_KEY.fullmatch(routing_key)
    return int(found[1]) if found else None


def matches(binding_key: str, routing_key: str) -> bool:
    """Tell whether a topic exchange routes *routing_key* by a binding with *binding_key*."""
    return _match(binding_key.split("."), routing_key.split("."))


def _match(pattern: Sequence[str], words: Sequence[str]) -> bool:
    if not pattern:
        return not words
    head, *rest = pattern
    if head == "#":
        return any(_match(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and head in ("*", words[0]) and _match(rest, words[1:])


def members_queues(topic: str, group: str) -> tuple[str, ...]:
    """Return the queues of which the first that works has the group's members as consumers.

    Each is on one node of a cluster, and cannot be used while that one is down: hence several.
    No topic and no group may have a colon, so that they collide with nobody's queue.
    """
    first = f"{topic}.{group}:members"
    return first, f"{first}.1", f"{first}.2"


def layout_of(topic: str, topics: Mapping[str, TopicSpec]) -> Layout:
    """Return the layout of *topic* by what the application declared, else with one partition."""
    spec = topics.get(topic)
    return Layout(topic, (spec.partitions if spec is not None else None) or 1)


def queue_arguments(*, ordered: bool, replication_factor: int | None = None) -> dict[str, Any]:
    """Return the arguments of a queue: replicated, dropping nothing, in order where asked."""
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": NO_DELIVERY_LIMIT,
    }
    if ordered:
        arguments["x-single-active-consumer"] = True
    if replication_factor is not None:
        arguments["x-quorum-initial-group-size"] = replication_factor
    return arguments


def members_arguments(expires: float) -> dict[str, Any]:
    """Return the arguments of a members queue that vanishes *expires* seconds after its use.

    A classic one: a quorum queue goes on counting the consumers of a node that died, until it is
    back (seen with 3.10). They would be taken for members that want a share.
    """
    return {"x-queue-type": "classic", "x-expires": int(expires * 1000)}
