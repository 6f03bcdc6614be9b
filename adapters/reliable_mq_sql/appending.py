"""The end of the log: offsets are drawn under a lock on each partition's row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    and_,
    bindparam,
    insert,
    literal_column,
    select,
    tuple_,
    update,
)

from reliable_mq.message import Message
from reliable_mq.store import Store
from reliable_mq.store.direct import Direct
from reliable_mq.store.room import refuse_too_large
from reliable_mq_sql.database import Database
from reliable_mq_sql.rows import to_row

Place = tuple[str, int]

_NEW = "new_"
"""Before the names of a row's values: those of columns are SQLAlchemy's own."""

_ONE: ColumnElement[int] = literal_column("1", Integer)


class TopicChanged(Exception):
    """A topic is not as it was remembered."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message of a publish, its position there and where it goes."""

    index: int
    message: Message
    place: Place


class Log:
    """The end of the log. Its statements are made once: building them costs as much as running."""

    def __init__(self, database: Database) -> None:
        self._store = store = database.store
        # In what locks rows: a process that is stopped there must not keep them from others.
        limit = database.idle_limit
        limits = () if limit is None else (limit,)
        part = store.tables.topic_partition
        columns = part.c
        here = and_(
            columns.topic == bindparam("of_topic"), columns.partition == bindparam("of_number")
        )
        self._draw = (
            update(part)
            .where(here)
            .values(next_offset=columns.next_offset + bindparam("count"))
            .returning(columns.next_offset, store.now(), *limits)
        )
        self._lock = (
            select(columns.topic, columns.partition, columns.next_offset, store.now(), *limits)
            .where(
                tuple_(columns.topic, columns.partition).in_(bindparam("places", expanding=True))
            )
            .order_by(columns.topic, columns.partition)
            .with_for_update()
        )
        self._move = update(part).where(here).values(next_offset=bindparam("to_offset"))
        self._insert = insert(store.tables.topic_log)
        self._limit = select(*limits) if limits else None
        self._takes_one = store.dialect.name == "postgresql"
        self._single = _single(store, limits)

    def append(self, connection: Connection, entries: Sequence[Entry]) -> None:
        """Store *entries* at the ends of their partitions.

        The partitions' rows stay locked until the commit: the order of offsets is the order of
        commits, and whoever reads up to an offset has read everything before it. The first
        statement has the database's limit for idle transactions in it, where it can.
        """
        if len(entries) == 1 and self._takes_one:
            self._append_one(connection, entries[0])
        else:
            self._append_all(connection, entries)

    def _append_one(self, connection: Connection, entry: Entry) -> None:
        """Draw the offset and store the row by one statement.

        The way of what comes alone and has somebody waiting for it.
        """
        row = to_row(entry.message, entry.place[1])
        refuse_too_large(self._store, connection, row)
        values = {_NEW + name: value for name, value in row.items()}
        if not self._single.fetch_all(connection, values):
            raise TopicChanged

    def _append_all(self, connection: Connection, entries: Sequence[Entry]) -> None:
        counts = Counter(entry.place for entry in entries)
        if len(counts) == 1 and connection.dialect.update_returning:
            offsets, now = self._draw_from_one(connection, *counts.popitem())
        else:
            offsets, now = self._draw_from_many(connection, counts)
        rows = []
        for entry in entries:
            row = to_row(entry.message, entry.place[1])
            row["log_offset"] = offsets[entry.place]
            row["created_at"] = now
            offsets[entry.place] += 1
            rows.append(row)
        for row in rows:
            refuse_too_large(self._store, connection, row)
        connection.execute(self._insert, rows)
        if self._limit is not None:
            # Behind rows that psycopg sent in a pipeline PostgreSQL may count no idle time: the
            # end of that is a message that stops the clock, and no statement that starts it.
            connection.execute(self._limit)

    def _draw_from_one(
        self, connection: Connection, place: Place, count: int
    ) -> tuple[dict[Place, int], int]:
        """Return the offset to begin with, and the time, by one statement."""
        topic, number = place
        values = {"of_topic": topic, "of_number": number, "count": count}
        found = connection.execute(self._draw, values).all()
        if not found:
            raise TopicChanged
        end, now, *_ = found[0]
        return {place: end - count}, now

    def _draw_from_many(
        self, connection: Connection, counts: Mapping[Place, int]
    ) -> tuple[dict[Place, int], int]:
        """Return the offsets to begin with, and the time; locks in one order."""
        found = connection.execute(self._lock, {"places": sorted(counts)}).all()
        if len(found) != len(counts):
            raise TopicChanged
        offsets = {(row[0], row[1]): row[2] for row in found}
        moved = [
            {"of_topic": topic, "of_number": number, "to_offset": offset + counts[topic, number]}
            for (topic, number), offset in sorted(offsets.items())
        ]
        connection.execute(self._move, moved)
        return offsets, found[0][3]


def _single(store: Store, limits: Sequence[ColumnElement[Any]]) -> Direct:
    """Return the statement that draws the offset of one row and inserts it."""
    part, log = store.tables.topic_partition, store.tables.topic_log
    drawn = (
        update(part)
        .where(part.c.topic == _value(log.c.topic), part.c.partition == _value(log.c.partition))
        .values(next_offset=part.c.next_offset + _ONE)
        .returning((part.c.next_offset - _ONE).label("log_offset"), store.now().label("created_at"))
        .cte("drawn")
    )
    columns = list(log.c)
    values = [drawn.c[one.name] if one.name in drawn.c else _value(one) for one in columns]
    row = select(*values).select_from(drawn)
    statement = insert(log).from_select(columns, row).returning(log.c.log_offset, *limits)
    names = [_NEW + one.name for one in columns if one.name not in drawn.c]
    return Direct(statement, names)


def _value(column: Column[Any]) -> ColumnElement[Any]:
    return bindparam(_NEW + column.name, type_=column.type)
