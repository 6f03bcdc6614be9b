"""The inbox: which messages a group has taken responsibility for.

A row is written in the transaction of whatever follows from the message, so it is there exactly
if that is. ``done_at`` stays empty while the message waits for a retry or lies dead: only what
is done may be forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, delete, select, tuple_, update

from reliable_mq.message import Message, fingerprint
from reliable_mq.store.times import duration_micros

if TYPE_CHECKING:
    from reliable_mq.store.dialects.base import Claimed
    from reliable_mq.store.store import Store

CLEAN_CHUNK = 5000


class Seen(Enum):
    """What the inbox knows of a message that was not new."""

    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    GONE = "gone"
    """The row that stood in the way is no longer there: ask again."""


class Inbox:
    """The inbox of one store. Stateless; every method runs in the caller's transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table = store.tables.inbox

    def claim(
        self,
        connection: Connection,
        group: str,
        messages: Sequence[Message],
        *,
        lock_timeout: float,
        done: bool = True,
    ) -> set[str]:
        """Insert the rows of *messages* and return the ids that were new to *group*.

        The messages are of one topic, without repetition of an id. Waits up to *lock_timeout*
        seconds for another transaction that is inserting one of them (see
        :meth:`StoreDialect.claim`). With *done* False the message stays remembered until
        :meth:`mark_done`.
        """
        ordered = sorted(messages, key=lambda message: message.id.encode())
        rows = [self._row(group, message, done) for message in ordered]
        return self._store.dialect.claim(connection, self._table, rows, lock_timeout=lock_timeout)

    def claim_one(
        self,
        connection: Connection,
        group: str,
        message: Message,
        *,
        lock_timeout: float,
        done: bool = True,
        look_for_key: bool = False,
    ) -> Claimed:
        """Claim one message; with *look_for_key*, maybe tell whether one of its key waits.

        See :meth:`StoreDialect.claim_one`.
        """
        key = message.key.encode() if look_for_key and message.key is not None else None
        return self._store.dialect.claim_one(
            connection,
            self._store.tables,
            self._row(group, message, done),
            key=key,
            lock_timeout=lock_timeout,
        )

    def _row(self, group: str, message: Message, done: bool) -> dict[str, Any]:
        now = self._store.now()
        return {
            "consumer_group": group,
            "topic": message.topic,
            "message_id": message.id,
            "fingerprint": fingerprint(message.body),
            "received_at": now,
            "done_at": now if done else None,
        }

    def seen(
        self, connection: Connection, group: str, message: Message, known: bytes | None = None
    ) -> Seen:
        """Tell what the row says that kept *message* from being new.

        *known* is its fingerprint, where the claim has told it.
        """
        found = known or self._fingerprint(connection, group, message)
        if found is None:
            return Seen.GONE
        same = bytes(found) == fingerprint(message.body)
        return Seen.DUPLICATE if same else Seen.CONFLICT

    def _fingerprint(self, connection: Connection, group: str, message: Message) -> bytes | None:
        table = self._table
        query = select(table.c.fingerprint).where(*self._is(group, message.topic, message.id))
        if self._store.dialect.name == "mysql":
            # A plain read would use a snapshot from before the other transaction's commit.
            query = query.with_for_update(read=True)
        found: bytes | None = connection.execute(query).scalar_one_or_none()
        return found

    def mark_done(self, connection: Connection, group: str, topic: str, message_id: str) -> None:
        """Say that nothing follows from this message any more, so that it may be forgotten."""
        connection.execute(
            update(self._table)
            .where(*self._is(group, topic, message_id))
            .values(done_at=self._store.now())
        )

    def mark_waiting(self, connection: Connection, group: str, topic: str, message_id: str) -> None:
        """Take back a claim's "done": something still follows from this message."""
        connection.execute(
            update(self._table).where(*self._is(group, topic, message_id)).values(done_at=None)
        )

    def seen_many(
        self, connection: Connection, group: str, topic: str, message_ids: Sequence[str]
    ) -> dict[str, bytes]:
        """Return the fingerprints of those of *message_ids* the inbox has."""
        columns = self._table.c
        query = select(columns.message_id, columns.fingerprint).where(
            columns.consumer_group == group,
            columns.topic == topic,
            self._store.dialect.among(columns.message_id, message_ids),
        )
        return {row.message_id: bytes(row.fingerprint) for row in connection.execute(query)}

    def _is(self, group: str, topic: str, message_id: str) -> list[Any]:
        columns = self._table.c
        return [
            columns.consumer_group == group,
            columns.topic == topic,
            columns.message_id == message_id,
        ]

    def clean(self, connection: Connection, retention: float) -> int:
        """Delete up to 5,000 rows done more than *retention* seconds ago; return how many."""
        columns = self._table.c
        keys = (columns.consumer_group, columns.topic, columns.message_id)
        old = (
            select(*keys)
            .where(columns.done_at < self._store.now() - duration_micros(retention))
            .limit(CLEAN_CHUNK)
        )
        if self._store.dialect.skip_locked:
            # Two cleaners take different rows instead of waiting for each other.
            old = old.with_for_update(skip_locked=True)
        found = [tuple(row) for row in connection.execute(old)]
        for start in range(0, len(found), 500):
            chunk = found[start : start + 500]
            connection.execute(delete(self._table).where(tuple_(*keys).in_(chunk)))
        return len(found)
