"""What a person sees of the outbox, and does with the rows that were refused for good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    case,
    delete,
    func,
    insert,
    literal,
    select,
)

from reliable_mq.crashpoints import crash_point
from reliable_mq.errors import ReliableMQError
from reliable_mq.message import HeaderValue
from reliable_mq.status import OutboxStatus
from reliable_mq.store.codec import unpack_headers
from reliable_mq.store.outbox.outgoing import raw_text, shown
from reliable_mq.store.outbox.sending import NO_ROUTE, NO_ROUTE_FOR_KEY
from reliable_mq.store.store import Store
from reliable_mq.store.times import duration_micros, from_micros


class DiscardTooEarlyError(ReliableMQError):
    """A held message cannot be discarded yet; ``wait`` is in how many seconds it can be."""

    def __init__(self, row_id: int, wait: float) -> None:
        super().__init__(
            f"message {row_id} was held a moment ago, and a relay that was stopped meanwhile may "
            f"still send it: discard it in {wait:.0f} s"
        )
        self.wait = wait


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxEntry:
    """One row of the outbox, as a person sees it. Times are aware UTC, by the database's clock.

    ``cause`` says why the last of ``attempts`` tries did not send it, ``try_at`` when the relay
    means to try again. A row that is ``held`` waits for a person, since ``held_at``.
    """

    id: int
    topic: str
    key: str | None
    message_id: str
    created_at: datetime
    attempts: int
    cause: str | None
    held: bool
    try_at: datetime | None = None
    held_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxContent:
    """An entry with what it carries. ``headers`` is None where they cannot be read."""

    entry: OutboxEntry
    body: bytes
    content_type: str | None
    headers: Mapping[str, HeaderValue] | None


class OutboxDesk:
    """Looks at the outbox and works on its held rows. Thread-safe.

    A relay may run meanwhile, here or elsewhere. *discard_after* is in seconds:
    ``relay.publish_timeout`` and ``relay.lease`` together.
    """

    def __init__(self, store: Store, *, discard_after: float) -> None:
        self._store = store
        self._outbox = store.tables.outbox
        self._held = store.tables.outbox_held
        self._discard_after = duration_micros(discard_after)

    # --- looking ---------------------------------------------------------------------------------

    def entries(
        self,
        *,
        held: bool | None = None,
        topic: str | None = None,
        limit: int = 100,
        after: int | None = None,
    ) -> list[OutboxEntry]:
        """Return up to *limit* rows by rising id, from the one behind *after*.

        *held*: True only held ones, False only those that are not, None both.
        """
        tables = [
            (table, is_held)
            for table, is_held in ((self._outbox, False), (self._held, True))
            if held in (None, is_held)
        ]
        found: list[OutboxEntry] = []
        with self._store.reading() as connection:
            for table, is_held in tables:
                statement = self._entry_columns(table, is_held)
                if topic is not None:
                    statement = statement.where(table.c.topic == topic)
                if after is not None:
                    statement = statement.where(table.c.id > after)
                rows = connection.execute(statement.order_by(table.c.id).limit(limit))
                found.extend(_entry(row, is_held) for row in rows)
        return sorted(found, key=lambda entry: entry.id)[:limit]

    def show(self, row_id: int) -> OutboxContent | None:
        """Return the row with its body and headers, or None where it is gone."""
        with self._store.reading() as connection:
            for table, is_held in ((self._outbox, False), (self._held, True)):
                content_type = raw_text(self._store, table.c.content_type)
                statement = self._entry_columns(table, is_held).add_columns(
                    table.c.body, table.c.headers, content_type
                )
                row = connection.execute(statement.where(table.c.id == row_id)).one_or_none()
                if row is not None:
                    return _content(row, is_held)
        return None

    # --- working ---------------------------------------------------------------------------------

    def retry(self, row_id: int) -> bool:
        """Put a held row back to its place in the outbox; False where it is not held.

        It is sent before the rows of its key that waited for it. Durable on return.
        """
        if not self._store.patiently(lambda: self._put_back(row_id)):
            return False
        self._store.after_append()
        return True

    def _put_back(self, row_id: int) -> bool:
        with self._store.transaction() as connection:
            found = self._take(connection, row_id, back=True)
            if found:
                crash_point("outbox.released")
        return found

    def discard(self, row_id: int) -> bool:
        """Remove a held row for ever; False where it is not held. Its key goes on without it.

        Raises :class:`DiscardTooEarlyError` while a relay may still be sending it: it could
        arrive behind the rows that are let go now.
        """
        if not self._store.patiently(lambda: self._remove(row_id)):
            return False
        self._store.after_append()
        return True

    def _remove(self, row_id: int) -> bool:
        with self._store.transaction() as connection:
            left = self._time_left(connection, row_id)
            if left is not None and left > 0:
                raise DiscardTooEarlyError(row_id, left / 1e6)
            return left is not None and self._take(connection, row_id, back=False)

    def _time_left(self, connection: Connection, row_id: int) -> int | None:
        held = self._held
        left = held.c.held_at + literal(self._discard_after) - self._store.now()
        found = select(left).where(held.c.id == row_id).with_for_update()
        return connection.execute(found).scalar_one_or_none()

    def _take(self, connection: Connection, row_id: int, *, back: bool) -> bool:
        held, outbox = self._held, self._outbox
        lock = select(held.c.id).where(held.c.id == row_id).with_for_update()
        if connection.execute(lock).scalar_one_or_none() is None:
            return False
        if back:
            # Attempts and cause begin anew, by their defaults.
            fresh = {"attempts", "cause", "try_at"}
            names = [column.name for column in outbox.c if column.name not in fresh]
            source = select(*(held.c[name] for name in names)).where(held.c.id == row_id)
            connection.execute(insert(outbox).from_select(names, source))
        connection.execute(delete(held).where(held.c.id == row_id))
        return True

    def _entry_columns(self, table: Table, is_held: bool) -> Select[Any]:
        c = table.c
        texts = [raw_text(self._store, column) for column in (c.topic, c.message_id)]
        since = (c.held_at if is_held else c.try_at).label("since")
        return select(c.id, *texts, c.message_key, c.created_at, c.attempts, c.cause, since)


def outbox_status(connection: Connection, store: Store) -> OutboxStatus:
    """Count everything. Reads the whole outbox (not its bodies).

    ``unroutable`` are all rows of a topic that has no route, and those of single keys that have
    none where the rest of their topic has.
    """
    c = store.tables.outbox.c
    topic = raw_text(store, c.topic)
    by_topic = select(
        topic,
        func.count(),
        func.min(c.created_at),
        func.sum(_one_if(c.cause.like(NO_ROUTE + "%"))),
        func.sum(_one_if(c.cause.like(NO_ROUTE_FOR_KEY + "%"))),
    ).group_by(c.topic)
    topics = connection.execute(by_topic).all()
    held = connection.scalar(select(func.count()).select_from(store.tables.outbox_held))
    now = connection.scalar(select(store.now()))
    oldest = min((int(row[2]) for row in topics), default=None)
    return OutboxStatus(
        pending=sum(row[1] for row in topics),
        oldest_age=None if oldest is None else max(0.0, (int(now or 0) - oldest) / 1e6),
        held=int(held or 0),
        unroutable=sum(row[1] if row[3] else int(row[4] or 0) for row in topics),
    )


def _one_if(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return case((condition, 1), else_=0)


def _entry(row: Row[Any], is_held: bool) -> OutboxEntry:
    since = None if row.since is None else from_micros(row.since)
    return OutboxEntry(
        id=row.id,
        topic=shown(row.topic),
        key=None if row.message_key is None else shown(bytes(row.message_key)),
        message_id=shown(row.message_id),
        created_at=from_micros(row.created_at),
        attempts=row.attempts,
        cause=row.cause,
        held=is_held,
        held_at=since if is_held else None,
        try_at=None if is_held else since,
    )


def _content(row: Row[Any], is_held: bool) -> OutboxContent:
    headers: Mapping[str, HeaderValue] | None
    try:
        headers = MappingProxyType(unpack_headers(bytes(row.headers)))
    except (ValueError, TypeError, LookupError, AttributeError):
        headers = None
    return OutboxContent(
        entry=_entry(row, is_held),
        body=bytes(row.body),
        content_type=None if row.content_type is None else shown(row.content_type),
        headers=headers,
    )
