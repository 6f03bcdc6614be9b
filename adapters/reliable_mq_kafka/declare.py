"""Creating topics and groups where they are missing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from confluent_kafka import Node, TopicPartitionInfo
from confluent_kafka.admin import NewTopic, TopicDescription

from reliable_mq.adapter import GroupSpec, TopicSpec
from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq.names import check_group, check_topic
from reliable_mq_kafka.admin import Admin
from reliable_mq_kafka.partitions import Place

_MAX_REPLICAS = 3
_BROKERS_LIMIT = 1_048_588
"""``max.message.bytes`` where nobody says otherwise."""

_SPREADS_WITHIN = 10.0
_LOOK_EVERY = 0.05


def declare(
    admin: Admin,
    topics: Sequence[TopicSpec],
    groups: Sequence[GroupSpec],
    *,
    message_bytes: int,
) -> None:
    """See ``Adapter.declare``; *message_bytes* is the largest record a publish may make."""
    for spec in topics:
        check_topic(spec.name)
    for member in groups:
        check_group(member.group)
    existing = admin.describe(spec.name for spec in topics)
    missing = [spec for spec in topics if spec.name not in existing]
    if missing:
        replicas = min(_MAX_REPLICAS, len(admin.broker_ids(missing[0].name)))
        admin.create([_new_topic(spec, replicas, message_bytes) for spec in missing])
        existing |= _await_leaders(admin, {spec.name for spec in missing})
    for spec in topics:
        _compare(spec, existing[spec.name])
    _declare_groups(admin, groups)


def _new_topic(spec: TopicSpec, replicas: int, message_bytes: int) -> NewTopic:
    replicas = spec.replication_factor or replicas
    options = {"max.message.bytes": str(max(_BROKERS_LIMIT, message_bytes))}
    if replicas >= _MAX_REPLICAS:
        # A write that only one replica has is not durable yet.
        options["min.insync.replicas"] = "2"
    options |= {name: _setting(value) for name, value in spec.options.items()}
    return NewTopic(
        spec.name,
        num_partitions=spec.partitions or 1,
        replication_factor=replicas,
        config=options,
    )


def _setting(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _await_leaders(admin: Admin, names: set[str]) -> dict[str, TopicDescription]:
    """Return the new topics once the brokers know them and each partition has a leader."""
    deadline = time.monotonic() + _SPREADS_WITHIN
    while True:
        found = admin.describe(names)
        if len(found) == len(names) and all(map(_serves, found.values())):
            return found
        if time.monotonic() >= deadline:
            raise TransportError(
                f"the brokers created {', '.join(sorted(names))} and do not serve it yet"
            )
        time.sleep(_LOOK_EVERY)


def _serves(topic: TopicDescription) -> bool:
    return bool(topic.partitions) and all(map(is_led, topic.partitions))


def is_led(partition: TopicPartitionInfo) -> bool:
    """Tell whether a partition has a leader; the client's types do not know that it may not."""
    leader: Node | None = partition.leader
    return leader is not None


def _compare(spec: TopicSpec, found: TopicDescription) -> None:
    actual = len(found.partitions)
    if spec.partitions is not None and spec.partitions != actual:
        raise ConfigurationError(
            f"topic {spec.name!r} is declared with {spec.partitions} partitions and exists with "
            f"{actual}; declare it with {actual}, or stop its publishers, drain it and change it "
            "with Kafka's own tools (keys move to other partitions then)"
        )


def _declare_groups(admin: Admin, groups: Sequence[GroupSpec]) -> None:
    described = admin.describe(member.topic for member in groups)
    by_group: dict[str, list[str]] = {}
    for member in groups:
        if member.topic not in described:
            raise ConfigurationError(
                f"group {member.group!r} is declared for topic {member.topic!r}, which does not "
                "exist: declare the topic too"
            )
        by_group.setdefault(member.group, []).append(member.topic)
    for group, names in by_group.items():
        _begin_at_the_earliest(admin, group, places_of(names, described))


def _begin_at_the_earliest(admin: Admin, group: str, places: Sequence[Place]) -> None:
    """Commit a beginning for a group that has none: it is known to the brokers from now on."""
    committed = admin.committed(group, places)
    missing = [place for place in places if place not in committed]
    if missing:
        admin.commit(group, admin.earliest(missing))


def places_of(topics: Iterable[str], described: Mapping[str, TopicDescription]) -> list[Place]:
    """Return every partition of *topics*."""
    return [(name, one.id) for name in topics for one in described[name].partitions]
