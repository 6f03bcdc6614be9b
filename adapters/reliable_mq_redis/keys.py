"""Every name this adapter uses on the server. Those of streams are public: see the package.

The braces are literal: the topic is the hash tag, so that all keys of a topic live on one node
of a cluster and one script can use them together.
"""

from __future__ import annotations

RELEASED = "rmq-released"
"""The consumer that holds what was handed back, until any member takes it."""

CONSUMER_PREFIX = "rmq-"
"""Consumers of this library: only those are removed when they are dead and empty."""


def stream(topic: str, partition: int) -> str:
    """Return the stream of one partition; foreign producers add to partition 0."""
    return f"{{{topic}}}:{partition}"


def streams(topic: str, partitions: int) -> list[str]:
    """Return the streams of all partitions."""
    return [stream(topic, partition) for partition in range(partitions)]


def meta(topic: str) -> str:
    """Return the hash of lasting facts: partitions, retention, how each group reads."""
    return f"{{{topic}}}:meta"


def own(topic: str, group: str, partition: int) -> str:
    """Return the hash that says who of an ordered group owns a partition, and until when."""
    return f"{{{topic}}}:own:{group}:{partition}"


def members(topic: str, group: str) -> str:
    """Return the sorted set of an ordered group's live members, by the end of their lease."""
    return f"{{{topic}}}:members:{group}"


def seen(topic: str, half: int) -> str:
    """Return one of the two sets that remember what was published of late."""
    return f"{{{topic}}}:seen:{half}"


def floor(topic: str, instance: str) -> str:
    """Return the lowest publish generation of one publisher that may still be executed."""
    return f"{{{topic}}}:floor:{instance}"


def turn(topic: str) -> str:
    """Return the key that gives one member at a time the turn to tidy up."""
    return f"{{{topic}}}:turn"
