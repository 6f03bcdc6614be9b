"""Removing what every group has acknowledged, or what is older than the topic's retention."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, select, update

from reliable_mq_sql.database import Database

_AT_ONCE = 5000
"""Entries removed from a partition in one short transaction."""


class Cleaner:
    """Cleans partitions in rounds, *every* so many seconds a topic. Used by one thread at a time.

    In two steps: ``first_offset`` moves under the lock on the partition's row, which a joining
    group takes too, so that no group begins on entries about to vanish. Entries before it are
    nobody's and are deleted afterwards, when publishers need not wait for it.
    """

    def __init__(self, database: Database, *, every: float = 1.0) -> None:
        self._database = database
        self._every = every
        self._next: dict[str, float] = {}
        self._swept: set[tuple[str, int]] = set()

    def clean(self, topic: str, partitions: Collection[int]) -> None:
        """Clean *partitions* of *topic*, unless a round for the topic was just made."""
        now = time.monotonic()
        if not partitions or now < self._next.get(topic, 0.0):
            return
        self._next[topic] = now + self._every
        movable = self._database.read(lambda c: self._movable(c, topic, partitions))
        for partition in movable:
            self._database.write(lambda c, p=partition: self._move(c, topic, p))  # type: ignore[misc]
        # A partition never swept here may hold what another process did not come to delete.
        new = {number for number in partitions if (topic, number) not in self._swept}
        for partition in new | movable:
            if self._database.write(lambda c, p=partition: self._sweep(c, topic, p)):  # type: ignore[misc]
                self._swept.add((topic, partition))
            else:
                self._swept.discard((topic, partition))
                self._next[topic] = 0.0

    # --- moving first_offset ---

    def _movable(self, connection: Connection, topic: str, partitions: Collection[int]) -> set[int]:
        part, cursor = self._part.c, self._database.store.tables.topic_cursor.c
        rows = connection.execute(
            select(part.partition, part.first_offset, part.retention, func.min(cursor.log_offset))
            .select_from(self._part)
            .outerjoin(
                self._database.store.tables.topic_cursor,
                and_(cursor.topic == part.topic, cursor.partition == part.partition),
            )
            .where(part.topic == topic, part.partition.in_(partitions))
            .group_by(part.partition, part.first_offset, part.retention)
        ).all()
        return {
            number
            for number, first, retention, acked in rows
            if (acked is not None and acked > first)
            or (retention is not None and self._is_old(connection, topic, number, first, retention))
        }

    def _is_old(
        self, connection: Connection, topic: str, partition: int, first: int, retention: int
    ) -> bool:
        log = self._log.c
        oldest = connection.execute(
            select(log.created_at < self._database.store.now() - retention)
            .where(self._in_partition(self._log, topic, partition), log.log_offset >= first)
            .order_by(log.log_offset)
            .limit(1)
        ).scalar()
        return bool(oldest)

    def _move(self, connection: Connection, topic: str, partition: int) -> None:
        part, cursor = self._part.c, self._database.store.tables.topic_cursor
        first, end, retention = connection.execute(
            select(part.first_offset, part.next_offset, part.retention)
            .where(self._in_partition(self._part, topic, partition))
            .with_for_update()
        ).one()
        acked = connection.execute(
            select(func.min(cursor.c.log_offset)).where(
                self._in_partition(cursor, topic, partition)
            )
        ).scalar()
        target = max(first, first if acked is None else acked)
        if retention is not None:
            target = self._first_young(connection, topic, partition, target, end, retention)
        if target > first:
            connection.execute(
                update(self._part)
                .where(self._in_partition(self._part, topic, partition))
                .values(first_offset=target)
            )

    def _first_young(
        self,
        connection: Connection,
        topic: str,
        partition: int,
        begin: int,
        end: int,
        retention: int,
    ) -> int:
        log = self._log.c
        young = connection.execute(
            select(log.log_offset)
            .where(
                self._in_partition(self._log, topic, partition),
                log.log_offset >= begin,
                log.created_at >= self._database.store.now() - retention,
            )
            .order_by(log.log_offset)
            .limit(1)
        ).scalar()
        return end if young is None else young

    # --- deleting ---

    def _sweep(self, connection: Connection, topic: str, partition: int) -> bool:
        """Delete some of what lies before ``first_offset``; return whether that was all."""
        first = connection.execute(
            select(self._part.c.first_offset).where(
                self._in_partition(self._part, topic, partition)
            )
        ).scalar()
        lowest = connection.execute(
            select(func.min(self._log.c.log_offset)).where(
                self._in_partition(self._log, topic, partition)
            )
        ).scalar()
        if first is None or lowest is None or lowest >= first:
            return True
        upper = min(first, lowest + _AT_ONCE)
        connection.execute(
            delete(self._log).where(
                self._in_partition(self._log, topic, partition), self._log.c.log_offset < upper
            )
        )
        return bool(upper == first)

    # --- small parts ---

    @property
    def _part(self) -> Table:
        return self._database.store.tables.topic_partition

    @property
    def _log(self) -> Table:
        return self._database.store.tables.topic_log

    @staticmethod
    def _in_partition(table: Table, topic: str, partition: int) -> ColumnElement[bool]:
        columns: Any = table.c
        return and_(columns.topic == topic, columns.partition == partition)
