"""Deliveries that wait for their next attempt, as rows: any delay, order kept, counted once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, delete, func, insert, literal, select, update

from reliable_mq.message import Message, fingerprint
from reliable_mq.store.rows import received_columns, received_message
from reliable_mq.store.tables import RETRY_SLOTS, slot_of
from reliable_mq.store.times import duration_micros
from reliable_mq.wire import RawHeaders

if TYPE_CHECKING:
    from reliable_mq.store.store import Store

SLOT_NAMES = tuple(str(slot) for slot in range(RETRY_SLOTS))
"""The names of the leases of a group."""


def lease_kind(topic: str, group: str) -> str:
    """Return the kind of the leases on a group's retry rows; these rows say that it exists."""
    return f"retry:{topic}:{group}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A retry row as it was read. ``attempt`` is how many were made; 0 means parked."""

    seq: int
    group: str
    attempt: int
    message: Message
    headers: RawHeaders
    replays: int


class Retries:
    """The retry rows of one store. Stateless; every method runs in the caller's transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table = store.tables.retry

    def add(
        self,
        connection: Connection,
        group: str,
        message: Message,
        headers: RawHeaders,
        *,
        attempt: int,
        delay: float = 0.0,
        cause: str | None = None,
        replays: int = 0,
    ) -> None:
        """Let *message* wait *delay* seconds, behind all of its key that wait already."""
        now = self._store.now()
        values = received_columns(message, headers) | {
            "consumer_group": group,
            "fingerprint": fingerprint(message.body),
            "slot": slot_of(message.key, message.id, RETRY_SLOTS),
            "attempt": attempt,
            "due_at": now + duration_micros(delay),
            "created_at": now,
            "cause": cause,
            "replays": replays,
        }
        connection.execute(insert(self._table).values(values))

    def key_waits(self, connection: Connection, group: str, topic: str, key: str | None) -> bool:
        """Tell whether a message of this key waits, so that a later one must wait behind it."""
        if key is None:
            return False
        columns = self._table.c
        found = connection.execute(
            select(literal(1))
            .where(
                columns.consumer_group == group,
                columns.topic == topic,
                columns.message_key == key.encode(),
            )
            .limit(1)
        )
        return found.first() is not None

    def any_key_waits(
        self, connection: Connection, group: str, topic: str, keys: Sequence[str]
    ) -> bool:
        """Tell whether a message of any of *keys* waits."""
        if not keys:
            return False
        columns = self._table.c
        query = select(literal(1)).where(
            columns.consumer_group == group,
            columns.topic == topic,
            self._store.dialect.among(columns.message_key, [key.encode() for key in keys]),
        )
        return connection.execute(query.limit(1)).first() is not None

    def due(
        self,
        connection: Connection,
        group: str,
        topic: str,
        slots: Sequence[int],
        *,
        limit: int,
        heads_only: bool,
    ) -> list[Waiting]:
        """Return rows that are due in *slots*, the longest due first.

        With *heads_only* (ordered groups) only the first row of each key; the choice is made
        without a lock, so :meth:`lock` and :meth:`is_head` must confirm it.
        """
        if not slots:
            return []
        table = self._table
        query = (
            select(table)
            .where(
                table.c.consumer_group == group,
                table.c.topic == topic,
                table.c.slot.in_(slots),
                table.c.due_at <= self._store.now(),
            )
            .order_by(table.c.due_at, table.c.seq)
            .limit(limit)
        )
        if heads_only:
            query = query.where(~self._earlier_exists())
        return [_waiting(row) for row in connection.execute(query)]

    def _earlier_exists(self) -> Any:
        row, earlier = self._table.c, self._table.alias("earlier")
        return (
            select(literal(1))
            .where(
                earlier.c.consumer_group == row.consumer_group,
                earlier.c.topic == row.topic,
                earlier.c.message_key == row.message_key,
                earlier.c.seq < row.seq,
            )
            .correlate(self._table)
            .exists()
        )

    def lock(self, connection: Connection, waiting: Waiting) -> bool:
        """Lock the row; False where it changed since it was read or another one holds it."""
        query = select(self._table.c.seq).where(*self._unchanged(waiting))
        if self._store.dialect.skip_locked:
            query = query.with_for_update(skip_locked=True)
        return connection.execute(query).one_or_none() is not None

    def is_head(self, connection: Connection, waiting: Waiting) -> bool:
        """Tell, by a statement of its own after the lock, whether no row of the key is earlier."""
        key = waiting.message.key
        if key is None:
            return True
        columns = self._table.c
        first = connection.execute(
            select(func.min(columns.seq)).where(
                columns.consumer_group == waiting.group,
                columns.topic == waiting.message.topic,
                columns.message_key == key.encode(),
            )
        ).scalar_one()
        return bool(first == waiting.seq)

    def next_of_key(self, connection: Connection, waiting: Waiting) -> Waiting | None:
        """Return the key's first row if that is due, to go on with at once."""
        key = waiting.message.key
        if key is None:
            return None
        columns = self._table.c
        query = (
            select(self._table)
            .where(
                columns.consumer_group == waiting.group,
                columns.topic == waiting.message.topic,
                columns.message_key == key.encode(),
            )
            .order_by(columns.seq)
            .limit(1)
            .subquery()
        )
        due = select(query).where(query.c.due_at <= self._store.now())
        row = connection.execute(due).one_or_none()
        return None if row is None else _waiting(row)

    def _unchanged(self, waiting: Waiting) -> list[Any]:
        columns = self._table.c
        return [columns.seq == waiting.seq, columns.attempt == waiting.attempt]

    def finish(self, connection: Connection, waiting: Waiting) -> bool:
        """Delete the row; False: another attempt took it, and ours must be rolled back."""
        done = connection.execute(delete(self._table).where(*self._unchanged(waiting)))
        return done.rowcount == 1

    def postpone(
        self,
        connection: Connection,
        waiting: Waiting,
        *,
        attempt: int,
        delay: float,
        cause: str | None,
    ) -> bool:
        """Record a failed attempt and the next due time; False as in :meth:`finish`."""
        done = connection.execute(
            update(self._table)
            .where(*self._unchanged(waiting))
            .values(
                attempt=attempt,
                due_at=self._store.now() + duration_micros(delay),
                cause=cause,
            )
        )
        return done.rowcount == 1

    def count(self, connection: Connection, group: str, topic: str) -> int:
        """Return how many rows wait, followers included."""
        columns = self._table.c
        query = select(func.count()).where(columns.consumer_group == group, columns.topic == topic)
        return int(connection.execute(query).scalar_one())

    def next_due_in(
        self, connection: Connection, group: str, topic: str, *, heads_only: bool
    ) -> float | None:
        """Return the seconds until the first row is due (negative: overdue), None without rows.

        With *heads_only* (ordered groups) followers, which are due at once but move only after
        their head, do not count.
        """
        table = self._table
        query = select(func.min(table.c.due_at) - self._store.now()).where(
            table.c.consumer_group == group,
            table.c.topic == topic,
        )
        if heads_only:
            query = query.where(~self._earlier_exists())
        micros = connection.execute(query).scalar_one()
        return None if micros is None else int(micros) / 1_000_000


def _waiting(row: Row[Any]) -> Waiting:
    message, headers = received_message(row)
    return Waiting(
        seq=row.seq,
        group=row.consumer_group,
        attempt=row.attempt,
        message=message,
        headers=headers,
        replays=row.replays,
    )
