"""Topics, partitions and groups as rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Table, and_, func, select

from reliable_mq.adapter import GroupSpec, TopicSpec
from reliable_mq.errors import ConfigurationError
from reliable_mq.names import check_group, check_topic
from reliable_mq.store.times import duration_micros
from reliable_mq_sql.database import Database

RETENTION = "retention"


@dataclass(frozen=True, slots=True)
class TopicRow:
    """What a topic is: its number of partitions, and its retention in microseconds, if any."""

    partitions: int
    retention: int | None


def retention_of(spec: TopicSpec) -> int | None:
    """Return the retention that *spec* asks for, in microseconds.

    Raises ``ConfigurationError`` for another option or a value that is no positive duration.
    """
    unknown = sorted(set(spec.options) - {RETENTION})
    if unknown:
        raise ConfigurationError(
            f"topic {spec.name!r} has the option {', '.join(map(repr, unknown))}, "
            f"which sql:// does not know; it knows {RETENTION!r} (seconds)"
        )
    value = spec.options.get(RETENTION)
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
        raise ConfigurationError(
            f"the retention of topic {spec.name!r} must be a positive number of seconds, "
            f"not {value!r}"
        )
    return duration_micros(seconds)


class Topology:
    """Declares and looks up. Thread-safe; what was found is remembered until :meth:`forget`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, TopicRow] = {}

    # --- looking up ---

    def find(self, topics: Iterable[str]) -> Mapping[str, TopicRow]:
        """Return those of *topics* that exist."""
        wanted = set(topics)
        missing = [name for name in wanted if name not in self._known]
        if missing:
            self._known.update(self._database.read(lambda c: self._select(c, missing)))
        return {name: self._known[name] for name in wanted if name in self._known}

    def forget(self, topics: Iterable[str]) -> None:
        """Look these up anew the next time."""
        for name in topics:
            self._known.pop(name, None)

    def _select(self, connection: Connection, topics: Collection[str]) -> dict[str, TopicRow]:
        part = self._partition.c
        found = connection.execute(
            select(part.topic, part.partitions, part.retention).where(
                part.topic.in_(topics), part.partition == 0
            )
        )
        return {name: TopicRow(partitions, retention) for name, partitions, retention in found}

    def lag(self, topic: str, group: str) -> int:
        """Return how many messages lie behind the group's cursors, retained ones only."""
        part, cursor = self._partition.c, self._cursor.c
        greater = func.max if self._database.store.dialect.name == "sqlite" else func.greatest
        begin = greater(cursor.log_offset, part.first_offset)
        query = select(func.count(), func.sum(part.next_offset - begin)).where(
            self._joined(), cursor.topic == topic, cursor.consumer_group == group
        )
        count, lag = self._database.read(lambda c: c.execute(query).one())
        if count == 0:
            raise missing_group(topic, group)
        return int(lag)

    def _joined(self) -> Any:
        part, cursor = self._partition.c, self._cursor.c
        return and_(part.topic == cursor.topic, part.partition == cursor.partition)

    # --- declaring ---

    def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
        """Create what is missing, in one transaction."""
        asked = {check_topic(spec.name): retention_of(spec) for spec in topics}
        for group in groups:
            check_group(group.group)

        def work(connection: Connection) -> None:
            # Sorted, so that two that declare at once wait for each other in one order.
            for spec in sorted(topics, key=lambda one: one.name):
                self._declare_topic(connection, spec, asked[spec.name])
            for group in sorted(groups, key=lambda one: (one.topic, one.group)):
                self._declare_group(connection, group)

        self._database.write(work)
        self.forget(asked)

    def _declare_topic(
        self, connection: Connection, spec: TopicSpec, retention: int | None
    ) -> None:
        # The first partition's row decides: whoever inserts it settles the numbers, whoever
        # comes second waits here for the first to commit.
        self._insert_partitions(connection, spec.name, range(1), spec.partitions or 1, retention)
        found = self._select(connection, [spec.name])[spec.name]
        if spec.partitions not in (None, found.partitions):
            raise ConfigurationError(
                f"topic {spec.name!r} has {found.partitions} partitions, asked for are "
                f"{spec.partitions}: ask for {found.partitions}, or use a new topic"
            )
        if retention not in (None, found.retention):
            raise ConfigurationError(
                f"topic {spec.name!r} has a retention of {_shown(found.retention)}, asked for is "
                f"{_shown(retention)}: ask for the same, or use a new topic"
            )
        rest = range(1, found.partitions)
        self._insert_partitions(connection, spec.name, rest, found.partitions, found.retention)

    def _insert_partitions(
        self,
        connection: Connection,
        topic: str,
        numbers: range,
        partitions: int,
        retention: int | None,
    ) -> None:
        rows = [
            {
                "topic": topic,
                "partition": number,
                "partitions": partitions,
                "next_offset": 0,
                "first_offset": 0,
                "retention": retention,
            }
            for number in numbers
        ]
        if rows:
            insert = self._database.store.dialect.insert_ignoring(self._partition)
            connection.execute(insert, rows)

    def _declare_group(self, connection: Connection, spec: GroupSpec) -> None:
        # Locked, or the cleaner could remove entries between this look and the cursor's commit.
        part = self._partition.c
        found = connection.execute(
            select(part.partition, part.first_offset)
            .where(part.topic == spec.topic)
            .order_by(part.partition)
            .with_for_update()
        ).all()
        if not found:
            raise ConfigurationError(
                f"group {spec.group!r} is of topic {spec.topic!r}, which does not exist: "
                "declare the topic first"
            )
        rows = [
            {
                "consumer_group": spec.group,
                "topic": spec.topic,
                "partition": partition,
                "log_offset": first,
                "epoch": 0,
            }
            for partition, first in found
        ]
        connection.execute(self._database.store.dialect.insert_ignoring(self._cursor), rows)

    @property
    def _partition(self) -> Table:
        return self._database.store.tables.topic_partition

    @property
    def _cursor(self) -> Table:
        return self._database.store.tables.topic_cursor


def missing_group(topic: str, group: str) -> ConfigurationError:
    """Return the error for a group nobody declared."""
    return ConfigurationError(
        f"group {group!r} of topic {topic!r} does not exist: declare topic and group first"
    )


def _shown(retention: int | None) -> str:
    return "none" if retention is None else f"{retention / 1_000_000:g} s"
