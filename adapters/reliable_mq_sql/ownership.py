"""Which partitions of a topic this member of a group owns, and its place in them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, select, update

from reliable_mq.adapter import Lost
from reliable_mq.clock import SystemClock
from reliable_mq.store.leases import LeaseSet
from reliable_mq_sql.database import Database
from reliable_mq_sql.partitions import OwnedPartition
from reliable_mq_sql.topology import missing_group

_LOOK = 0.5
"""Seconds between two looks whether members came or partitions are free."""


class TopicShare:
    """The partitions of one topic that one member owns. Used by one thread.

    A lease per partition says who owns it; its new owner writes itself into the cursor, in a
    transaction that confirms the lease, and from then on only it can move the cursor. An owner
    that was stopped meanwhile finds its commits ineffective. Its reads are not fenced and need
    not be: a stream begins at the cursor and never skips.
    """

    def __init__(
        self, database: Database, topic: str, group: str, *, owner: str, lease: float
    ) -> None:
        self.topic = topic
        self.owned: dict[int, OwnedPartition] = {}
        self._database = database
        self._group = group
        self._owner = owner
        self._duration = lease
        self._leases: LeaseSet | None = None
        self._renew_at = 0.0
        self._look_at = 0.0

    # --- keeping it ---

    def attend(self, *, look: bool = True) -> list[Lost]:
        """Renew when it is time; with *look* also when something is to be gained or given up.

        Returns what is lost.
        """
        leases = self._leases or self._join()
        now = time.monotonic()
        if now >= self._renew_at or (look and self._would_change(leases, now)):
            self.commit()
            self._database.run(leases.renew)
            self._renew_at = now + self._duration / 3
        return self._settle(leases.held)

    def _would_change(self, leases: LeaseSet, now: float) -> bool:
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK
        return self._database.read(leases.would_change)

    def _join(self) -> LeaseSet:
        cursor = self._database.store.tables.topic_cursor.c
        numbers = self._database.read(
            lambda c: (
                c.execute(
                    select(cursor.partition).where(self._of_group()).order_by(cursor.partition)
                )
                .scalars()
                .all()
            )
        )
        if not numbers:
            raise missing_group(self.topic, self._group)
        self._leases = LeaseSet(
            self._database.store,
            f"topic:{self.topic}:{self._group}",
            [str(number) for number in numbers],
            owner=self._owner,
            duration=self._duration,
            clock=SystemClock(),
        )
        return self._leases

    def _settle(self, held: Mapping[str, int]) -> list[Lost]:
        """Drop what is no longer leased, begin on what is newly leased."""
        gone = [
            one
            for one in self.owned.values()
            if one.fenced or held.get(str(one.number)) != one.lease_epoch
        ]
        lost = [self._drop(one) for one in gone]
        new = {int(name): epoch for name, epoch in held.items() if int(name) not in self.owned}
        if new:
            self._take_over(new)
        return lost

    def _drop(self, partition: OwnedPartition) -> Lost:
        del self.owned[partition.number]
        return partition.lost()

    def _take_over(self, epochs: Mapping[int, int]) -> None:
        offsets = self._database.write(lambda c: self._write_owner(c, epochs))
        for number, offset in offsets.items():
            self.owned[number] = OwnedPartition(self.topic, number, epochs[number], offset)

    def _write_owner(self, connection: Connection, epochs: Mapping[int, int]) -> dict[int, int]:
        assert self._leases is not None  # noqa: S101 - who holds leases has joined
        names = self._leases.confirm(connection, map(str, epochs))
        numbers = sorted(map(int, names))
        table = self._database.store.tables.topic_cursor
        for number in numbers:
            connection.execute(
                update(table)
                .where(self._of_group(), table.c.partition == number)
                .values(owner=self._owner, epoch=epochs[number])
            )
        return self._read_offsets(connection, numbers)

    def _read_offsets(self, connection: Connection, numbers: Collection[int]) -> dict[int, int]:
        cursor = self._database.store.tables.topic_cursor.c
        part = self._database.store.tables.topic_partition.c
        found = connection.execute(
            select(cursor.partition, cursor.log_offset, part.first_offset).where(
                self._of_group(),
                cursor.partition.in_(numbers),
                part.topic == cursor.topic,
                part.partition == cursor.partition,
            )
        )
        # Retention may have removed what the group never came to.
        return {number: max(offset, first) for number, offset, first in found}

    # --- acknowledging ---

    def commit(self, partitions: Iterable[OwnedPartition] | None = None) -> None:
        """Write the watermarks the database does not have yet.

        One that cannot be written means that the cursor is somebody else's, or was moved by
        hand: the ownership ends, and begins anew at the cursor if the lease is still ours.
        """
        chosen = self.owned.values() if partitions is None else partitions
        behind = [(one, one.watermark) for one in chosen if one.is_behind]
        if not behind:
            return
        moved = self._database.write(
            lambda c: [self._move(c, one, watermark) for one, watermark in behind]
        )
        for (one, watermark), is_ours in zip(behind, moved, strict=True):
            one.committed = watermark
            if not is_ours:
                one.fenced = True
                self._renew_at = 0.0

    def _move(self, connection: Connection, one: OwnedPartition, watermark: int) -> bool:
        table = self._database.store.tables.topic_cursor
        done = connection.execute(
            update(table)
            .where(
                self._of_group(),
                table.c.partition == one.number,
                table.c.owner == self._owner,
                table.c.epoch == one.lease_epoch,
                table.c.log_offset <= watermark,
            )
            .values(log_offset=watermark)
        )
        return done.rowcount == 1

    # --- giving up ---

    def hand_over(self, number: int) -> Lost:
        """Commit and release one partition, and leave it to others for a moment."""
        one = self.owned[number]
        self.commit([one])
        leases = self._leases
        assert leases is not None  # noqa: S101 - who owns something has joined
        self._database.run(lambda: leases.release(str(number)))
        # Others look every _LOOK seconds; ours come after theirs.
        self._look_at = time.monotonic() + 2 * _LOOK
        return self._drop(one)

    def leave(self) -> None:
        """Commit and release everything."""
        self.commit()
        self.owned.clear()
        if self._leases is not None:
            self._database.run(self._leases.release_all)

    def _of_group(self) -> ColumnElement[bool]:
        cursor: Any = self._database.store.tables.topic_cursor.c
        return and_(cursor.consumer_group == self._group, cursor.topic == self.topic)
