"""Receiving: looking at the partitions owned, when woken by a publish and from time to time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, bindparam, or_, select

from reliable_mq.adapter import Batch, Lost, Received
from reliable_mq.errors import ReliableMQError, TransportError
from reliable_mq_sql.cleaner import Cleaner
from reliable_mq_sql.database import Database
from reliable_mq_sql.ownership import TopicShare
from reliable_mq_sql.partitions import OwnedPartition
from reliable_mq_sql.rows import select_messages, to_raw

Rows: TypeAlias = "Sequence[Row[Any]]"

log = logging.getLogger("reliable_mq")

_COMMIT_AFTER = 0.2
"""Seconds an acknowledgement may wait for its commit while there is other work."""

_CLOSE_WITHIN = 5.0
_READ_AT_ONCE = 200


class SqlSubscription:
    """One member of a group. See ``reliable_mq.adapter.Subscription`` for what it promises."""

    def __init__(
        self,
        database: Database,
        shares: Sequence[TopicShare],
        cleaner: Cleaner,
        *,
        prefetch: int,
        listen: Callable[[], None],
        forget: Callable[[SqlSubscription], None],
    ) -> None:
        self._database = database
        self._shares = tuple(shares)
        self._cleaner = cleaner
        self._prefetch = prefetch
        self._listen = listen
        self._forget = forget
        # Made once: building them costs more than running them, and they run at every look.
        part = database.store.tables.topic_partition.c
        self._ends = select(part.topic, part.partition, part.next_offset).where(
            or_(*(part.topic == share.topic for share in self._shares))
        )
        entry = database.store.tables.topic_log.c
        self._entries = (
            select_messages(database.store.tables.topic_log)
            .where(
                entry.topic == bindparam("of_topic"),
                entry.partition == bindparam("of_number"),
                entry.log_offset >= bindparam("from_offset"),
            )
            .order_by(entry.log_offset)
            .limit(bindparam("at_most"))
        )
        self._poll = Poll(database.store.dialect.name)
        self._lost: list[Lost] = []
        self._woken = threading.Event()
        # An adapter may be closed on another thread than the one that receives.
        self._serving = threading.Lock()
        self._acked_at: float | None = None
        self._turn = 0
        self._closed = False

    @property
    def topics(self) -> tuple[str, ...]:
        """What it is subscribed to."""
        return tuple(share.topic for share in self._shares)

    # --- receiving ---

    def wake(self) -> None:
        """End a wait: there is something new. May be called by any thread."""
        self._woken.set()

    def receive(self, limit: int, timeout: float) -> Batch:
        """See ``Subscription.receive``; raises ``TransportError`` after ``close``."""
        end = time.monotonic() + timeout
        self._listen()
        while True:
            # Cleared before it looks: what is published from here on wakes it again.
            self._woken.clear()
            with self._serving:
                batch = self._step(limit)
            if batch.deliveries:
                self._poll.restart()
            left = end - time.monotonic()
            if batch.deliveries or batch.lost or left <= 0:
                return batch
            self._woken.wait(min(left, self._poll.next()))

    def _step(self, limit: int) -> Batch:
        if self._closed:
            raise TransportError("this subscription is closed")
        self._attend()
        self._clean()
        if self._is_commit_due():
            self._commit()
        room = min(limit, self._prefetch - sum(one.held for one in self._owned()))
        deliveries = self._read(room) if room > 0 else []
        # Nothing that can fail may come after a read that brought something.
        if not deliveries:
            self._commit()
        lost, self._lost = self._lost, []
        return Batch(deliveries, lost)

    def _attend(self) -> None:
        for share in self._shares:
            self._lost += share.attend()

    def _clean(self) -> None:
        for share in self._shares:
            self._cleaner.clean(share.topic, share.owned)

    def _owned(self) -> Iterator[OwnedPartition]:
        for share in self._shares:
            yield from share.owned.values()

    def _read(self, room: int) -> list[Received]:
        owned = list(self._owned())
        if not owned:
            return []
        self._turn += 1
        start = self._turn % len(owned)
        found = self._database.read(
            lambda c: self._read_partitions(c, owned[start:] + owned[:start], room)
        )
        # Only now: a read that failed half-way, or is made again, must leave no trace.
        return [delivery for one, rows in found for delivery in _deliver(one, rows)]

    def _read_partitions(
        self, connection: Connection, owned: Sequence[OwnedPartition], room: int
    ) -> list[tuple[OwnedPartition, Rows]]:
        # Looking at the end first would not be cheaper where there is one partition to look at.
        news = owned if len(owned) == 1 else self._with_news(connection, owned)
        found: list[tuple[OwnedPartition, Rows]] = []
        for one in news:
            if room > 0:
                rows = self._read_one(connection, one, min(room, _READ_AT_ONCE))
                found.append((one, rows))
                room -= len(rows)
        return found

    def _with_news(
        self, connection: Connection, owned: Sequence[OwnedPartition]
    ) -> list[OwnedPartition]:
        ends = self._read_ends(connection)
        return [one for one in owned if one.position < ends.get((one.topic, one.number), 0)]

    def _read_ends(self, connection: Connection) -> dict[tuple[str, int], int]:
        return {(row[0], row[1]): row[2] for row in connection.execute(self._ends)}

    def _read_one(self, connection: Connection, one: OwnedPartition, limit: int) -> Rows:
        place = {"of_topic": one.topic, "of_number": one.number, "from_offset": one.position}
        return connection.execute(self._entries, {**place, "at_most": limit}).all()

    # --- acknowledging ---

    def ack(self, deliveries: Sequence[Received]) -> None:
        """See ``Subscription.ack``; committed with the next idle moment, within 0.2 s of work."""
        if self._closed:
            return
        current = {(one.name, one.epoch): one for one in self._owned()}
        for delivery in deliveries:
            one = current.get((delivery.partition, delivery.epoch))
            if one is not None:
                one.ack(delivery.receipt)
        if self._acked_at is None:
            self._acked_at = time.monotonic()
        elif self._is_commit_due():
            self._commit()

    def flush(self) -> None:
        """See ``Subscription.flush``."""
        if self._closed:
            return
        self._commit()
        if self._lost or any(one.fenced for one in self._owned()):
            raise TransportError(
                "a partition was lost before its acknowledgements were committed; they come again"
            )

    def _is_commit_due(self) -> bool:
        return self._acked_at is not None and time.monotonic() - self._acked_at >= _COMMIT_AFTER

    def _commit(self) -> None:
        for share in self._shares:
            share.commit()
        self._acked_at = None

    # --- handing back ---

    def release(self, deliveries: Sequence[Received]) -> None:
        """See ``Subscription.release``. Needs no database: this member reads again by itself."""
        streams = {(delivery.partition, delivery.epoch) for delivery in deliveries}
        for one in self._owned():
            if (one.name, one.epoch) in streams:
                self._lost.append(one.rewind())

    def keep_alive(self, deliveries: Sequence[Received]) -> None:
        """See ``Subscription.keep_alive``: renews the leases where it is time to."""
        if not self._closed:
            for share in self._shares:
                self._lost += share.attend(look=False)

    def hand_over(self, partition: str) -> None:
        """See ``Subscription.hand_over``."""
        if self._closed:
            return
        for share in self._shares:
            for one in list(share.owned.values()):
                if one.name == partition:
                    self._lost.append(share.hand_over(one.number))

    def close(self) -> None:
        """See ``Subscription.close``. What cannot be released within 5 s is left to expire."""
        if self._closed:
            return
        self._closed = True
        self._forget(self)
        self.wake()
        try:
            self._database.within(_CLOSE_WITHIN, lambda check: self._leave())
        except ReliableMQError as error:
            # Nothing is lost by it: the leases expire, and others go on from the watermark.
            log.info("could not release partitions: %s", error)

    def _leave(self) -> None:
        with self._serving:
            for share in self._shares:
                share.leave()


def _deliver(one: OwnedPartition, rows: Rows) -> list[Received]:
    one.delivered(row.log_offset for row in rows)
    return [
        Received(
            raw=to_raw(row, one.topic, one.number),
            partition=one.name,
            epoch=one.epoch,
            receipt=row.log_offset,
        )
        for row in rows
    ]


class Poll:
    """How long to wait before the next look: short after work, longer the longer it is quiet.

    A look costs some tenths of a millisecond of this process, so twenty a second are about one
    per cent of a core; a publish of this process wakes without waiting, and on PostgreSQL so does
    one of another.
    """

    def __init__(self, dialect: str) -> None:
        self._shortest, self._longest = (0.005, 0.05) if dialect == "sqlite" else (0.02, 0.1)
        self._current = self._shortest

    def restart(self) -> None:
        """Begin with the shortest wait again."""
        self._current = self._shortest

    def next(self) -> float:
        """Return the wait in seconds before the next look."""
        wait = self._current
        self._current = min(self._current * 1.1, self._longest)
        return wait
