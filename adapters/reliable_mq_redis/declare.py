"""Topics and groups: made where they are missing, compared where they exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from reliable_mq.adapter import GroupSpec, TopicSpec
from reliable_mq.errors import ConfigurationError
from reliable_mq.names import check_group, check_topic
from reliable_mq_redis import keys, scripts
from reliable_mq_redis.servers import Servers

ORDERED, UNORDERED = "ordered", "unordered"

_MAX_PARTITIONS = 1024
"""A script names all streams of a topic, and every member looks at all of them."""


def declare(
    servers: Servers,
    known: Mapping[str, TopicSpec],
    topics: Sequence[TopicSpec],
    groups: Sequence[GroupSpec],
) -> None:
    """Make what is missing. After an error what was made so far stays; a new call goes on."""
    asked = {spec.name: spec for spec in topics}
    for group in groups:
        asked.setdefault(group.topic, known.get(group.topic) or TopicSpec(name=group.topic))
    partitions = {name: _declare_topic(servers, spec) for name, spec in asked.items()}
    for group in groups:
        _declare_group(servers, group, partitions[group.topic])


def require(servers: Servers, topic: str, command: str, option: str) -> None:
    """Raise ``ConfigurationError`` where the server lacks *command*, which *option* needs."""
    (known,) = servers.call(topic, [("COMMAND", "INFO", command)], "looking at the server")
    if not known or not known[0]:
        raise ConfigurationError(
            f"broker_url asks for {option}, and the server does not know {command}: "
            "take the option out, or upgrade the server"
        )


def retention_of(spec: TopicSpec) -> int | None:
    """Return the retention a topic asks for in ms, None where it asks for none."""
    unknown = spec.options.keys() - {"retention"}
    if unknown:
        raise ConfigurationError(
            f"topic {spec.name!r} has the option {sorted(unknown)[0]!r}; Redis knows only "
            "'retention'"
        )
    value = spec.options.get("retention")
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 1:
        raise ConfigurationError(
            f"topic {spec.name!r} has retention={value!r}: give seconds, 1 or more, or a timedelta"
        )
    return round(seconds * 1000)


def _check(spec: TopicSpec) -> None:
    check_topic(spec.name)
    if spec.partitions is not None and not 1 <= spec.partitions <= _MAX_PARTITIONS:
        raise ConfigurationError(
            f"topic {spec.name!r} asks for {spec.partitions} partitions: "
            f"1 to {_MAX_PARTITIONS} are possible"
        )
    if spec.replication_factor not in {None, 1}:
        raise ConfigurationError(
            f"topic {spec.name!r} asks for replication_factor={spec.replication_factor}: Redis "
            "replicates whole servers; leave it out, and let publishes wait for replicas with "
            "wait=... in broker_url"
        )


def _declare_topic(servers: Servers, spec: TopicSpec) -> int:
    _check(spec)
    retention = retention_of(spec)
    asked = (str(spec.partitions or 1), "" if retention is None else str(retention))
    command = scripts.DECLARE_TOPIC.call([keys.meta(spec.name)], *asked)
    (reply,) = servers.call(spec.name, [command], f"declaring topic {spec.name!r}")
    there = tuple(word.decode() for word in reply)
    if spec.partitions is not None and there[0] != asked[0]:
        raise ConfigurationError(
            f"topic {spec.name!r} is asked for with {asked[0]} partitions and has {there[0]}; "
            "the number cannot change while messages of a key may be in their old partition"
        )
    if retention is not None and there[1] != asked[1]:
        raise ConfigurationError(
            f"topic {spec.name!r} is asked for with a retention of {_seconds(asked[1])} and has "
            f"{_seconds(there[1])}; to change it, set the field 'retention' (milliseconds) of the "
            f"hash {keys.meta(spec.name)!r}"
        )
    return _number(spec.name, there[0])


def _number(topic: str, text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ConfigurationError(
            f"the hash {keys.meta(topic)!r} says partitions={text!r}: it is not of this library, "
            "or was damaged"
        )
    return int(text)


def _seconds(milliseconds: str) -> str:
    return f"{int(milliseconds) / 1000:g} s" if milliseconds else "none"


def _declare_group(servers: Servers, spec: GroupSpec, partitions: int) -> None:
    check_group(spec.group)
    wanted = ORDERED if spec.ordered else UNORDERED
    command = scripts.DECLARE_GROUP.call(
        [keys.meta(spec.topic), *keys.streams(spec.topic, partitions)], spec.group, wanted
    )
    doing = f"declaring group {spec.group!r} of topic {spec.topic!r}"
    (reply,) = servers.call(spec.topic, [command], doing)
    check_reading(spec.topic, spec.group, wanted, reply.decode())


def check_reading(topic: str, group: str, wanted: str, there: str) -> None:
    """Raise ``ConfigurationError`` where a group reads in the other way than *wanted*."""
    if there != wanted:
        raise ConfigurationError(
            f"group {group!r} of topic {topic!r} is asked for as {wanted} and is {there}: members "
            "of both kinds together would lose the order; use a new group"
        )


def partitions_of(servers: Servers, topic: str) -> int:
    """Return the partitions of a topic; ``ConfigurationError`` where nobody declared it."""
    command = ("HGET", keys.meta(topic), "partitions")
    (reply,) = servers.call(topic, [command], f"looking up topic {topic!r}")
    if reply is None:
        raise not_declared(topic)
    return _number(topic, reply.decode())


def not_declared(topic: str) -> ConfigurationError:
    """Return the error for a topic that does not exist."""
    return ConfigurationError(f"topic {topic!r} does not exist on this server: call declare()")
