"""How much a group has before it, and for how long a topic keeps what it has."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from reliable_mq.errors import ConfigurationError
from reliable_mq_redis import keys, scripts
from reliable_mq_redis.declare import partitions_of
from reliable_mq_redis.servers import Servers


def lag(servers: Servers, topic: str, group: str) -> int:
    """Return the entries not delivered yet and those delivered and not acknowledged."""
    names = keys.streams(topic, partitions_of(servers, topic))
    return sum(_lag_of(servers, topic, name, group) for name in names)


def _lag_of(servers: Servers, topic: str, stream: str, group: str) -> int:
    place: tuple[str | bytes | int, ...] = ("", 0, "", 0)
    while True:
        command = scripts.LAG.call([stream], group, *place)
        ((status, *rest),) = servers.call(topic, [command], f"counting the lag of {stream!r}")
        if status < 0:
            raise ConfigurationError(
                f"group {group!r} does not exist on topic {topic!r}: call declare()"
            )
        if status:
            return int(rest[0]) + int(rest[1])
        place = tuple(rest)


def redelivery_bound(servers: Servers, topics: Sequence[str], *, late: float) -> timedelta | None:
    """Return the longest retention of *topics*; None where one keeps what is not acknowledged.

    *late* is by how many seconds the deletion may come after its time.
    """
    longest = timedelta(0)
    for topic in topics:
        command = ("HGET", keys.meta(topic), "retention")
        (reply,) = servers.call(topic, [command], f"looking up topic {topic!r}")
        if reply is None:
            return None
        longest = max(longest, timedelta(milliseconds=int(reply)))
    return longest + timedelta(seconds=late) if topics else None
