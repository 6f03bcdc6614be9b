"""Messages a group gave up on: kept, shown, replayed once or discarded by a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, delete, func, literal, select

from reliable_mq.errors import IncompleteDeadLetterError
from reliable_mq.message import DeadLetter, Message, fingerprint, new_message_id
from reliable_mq.store.inbox import Inbox
from reliable_mq.store.retries import Retries, Waiting
from reliable_mq.store.room import refuse_too_large
from reliable_mq.store.rows import received_columns, received_message
from reliable_mq.store.times import from_micros
from reliable_mq.wire import RawHeaders

if TYPE_CHECKING:
    from reliable_mq.store.store import Store


_BESIDE = 65_536
"""Bytes that a row takes beside body, headers and cause, at most."""

_OF_A_WAITING_ONE = (
    "consumer_group",
    "message_id",
    "topic",
    "message_key",
    "body",
    "headers",
    "content_type",
    "message_time",
    "fingerprint",
)
"""Columns that a dead letter has from the retry row it was."""


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """A dead letter with what only an operator's tool shows: the raw header pairs."""

    letter: DeadLetter
    headers: RawHeaders
    conflict: bool
    replays: int


class DeadLetters:
    """The dead letters of one store. Every method runs in the caller's transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._table = store.tables.dead_letter
        self._inbox = Inbox(store)
        self._retries = Retries(store)

    def add(
        self,
        connection: Connection,
        group: str,
        message: Message,
        headers: RawHeaders,
        *,
        attempts: int,
        cause: str,
        conflict: bool = False,
        replays: int = 0,
        whole: bytes | None = None,
    ) -> bool:
        """Keep *message*; False where the same dead letter (same body too) is there already.

        Where the database cannot take all of the message, what it can take is given, and *whole*
        is the fingerprint of the rest with it: by that the letter is known to be incomplete.
        """
        values = received_columns(message, headers) | {
            "consumer_group": group,
            "fingerprint": whole or fingerprint(message.body),
            "attempts": attempts,
            "cause": cause,
            "conflict": conflict,
            "died_at": self._store.now(),
            "replays": replays,
        }
        statement = self._store.dialect.insert_ignoring(self._table)
        done = connection.execute(
            statement.values(values), execution_options={"preserve_rowcount": True}
        )
        return done.rowcount == 1

    def add_waiting(
        self, connection: Connection, waiting: Waiting, *, attempts: int, cause: str, replays: int
    ) -> bool:
        """Keep what the retry row *waiting* has; False as in :meth:`add`.

        Its body does not leave the database: that may not take it a second time, if its limit was
        lowered since.
        """
        row = self._store.tables.retry.c
        values: dict[str, Any] = {name: row[name] for name in _OF_A_WAITING_ONE} | {
            "attempts": literal(attempts),
            "cause": literal(cause),
            "conflict": literal(False),
            "died_at": self._store.now(),
            "replays": literal(replays),
        }
        source = select(*values.values()).where(row.seq == waiting.seq)
        statement = self._store.dialect.insert_ignoring(self._table)
        done = connection.execute(
            statement.from_select(list(values), source),
            execution_options={"preserve_rowcount": True},
        )
        return done.rowcount == 1

    def list(
        self,
        connection: Connection,
        *,
        topic: str | None = None,
        group: str | None = None,
        limit: int = 100,
        after: int | None = None,
    ) -> list[StoredDeadLetter]:
        """Return up to *limit* of them by rising id, those behind *after*."""
        columns = self._table.c
        query = select(self._table).order_by(columns.id).limit(limit)
        if topic is not None:
            query = query.where(columns.topic == topic)
        if group is not None:
            query = query.where(columns.consumer_group == group)
        if after is not None:
            query = query.where(columns.id > after)
        return [_stored(row) for row in connection.execute(query)]

    def get(self, connection: Connection, id_: int) -> StoredDeadLetter | None:
        """Return one, or None."""
        query = select(self._table).where(self._table.c.id == id_)
        row = connection.execute(query).one_or_none()
        return None if row is None else _stored(row)

    def counts(self, connection: Connection) -> dict[tuple[str, str], int]:
        """Return how many there are by (topic, group)."""
        columns = self._table.c
        query = select(columns.topic, columns.consumer_group, func.count()).group_by(
            columns.topic, columns.consumer_group
        )
        return {(topic, group): n for topic, group, n in connection.execute(query)}

    def replay(self, connection: Connection, id_: int) -> bool:
        """Turn it into a retry that is due now, attempts counted anew; False: it is gone.

        For its group only. Its inbox row stays, so nothing else can handle the message. One that
        died of an id conflict is another message by content: it gets an id of its own. Raises
        ``IncompleteDeadLetterError`` where a part of the message is missing, and
        ``MessageTooLargeError`` where the database takes less than when it was kept.
        """
        stored = self._take(connection, id_)
        if stored is None:
            return False
        if not stored.letter.complete:
            raise IncompleteDeadLetterError(
                f"dead letter {id_} cannot be replayed, it is not the whole message: "
                f"{stored.letter.cause}"
            )
        letter, message = stored.letter, stored.letter.message
        columns = received_columns(message, stored.headers)
        beside = _BESIDE + 2 * len(letter.cause.encode())
        refuse_too_large(self._store, connection, columns, beside=beside)
        if stored.conflict:
            message = _renamed(message)
            self._inbox.claim(connection, letter.group, [message], lock_timeout=5.0, done=False)
        self._retries.add(
            connection,
            letter.group,
            message,
            stored.headers,
            attempt=0,
            cause=letter.cause,
            replays=stored.replays + 1,
        )
        return True

    def discard(self, connection: Connection, id_: int) -> bool:
        """Delete it for good; False: it is gone. A late copy of the message is not handled."""
        stored = self._take(connection, id_)
        if stored is None:
            return False
        message = stored.letter.message
        if not stored.conflict:
            self._inbox.mark_done(connection, stored.letter.group, message.topic, message.id)
        return True

    def _take(self, connection: Connection, id_: int) -> StoredDeadLetter | None:
        query = select(self._table).where(self._table.c.id == id_)
        if self._store.dialect.skip_locked:
            query = query.with_for_update()
        row = connection.execute(query).one_or_none()
        if row is None:
            return None
        deleted = connection.execute(delete(self._table).where(self._table.c.id == id_))
        return _stored(row) if deleted.rowcount == 1 else None


def _renamed(message: Message) -> Message:
    return Message(
        id=new_message_id(),
        topic=message.topic,
        key=message.key,
        body=message.body,
        headers=message.headers,
        content_type=message.content_type,
        time=message.time,
    )


def _stored(row: Row[Any]) -> StoredDeadLetter:
    message, headers = received_message(row)
    letter = DeadLetter(
        id=row.id,
        message=message,
        group=row.consumer_group,
        attempts=row.attempts,
        cause=row.cause,
        died_at=from_micros(row.died_at),
        complete=bytes(row.fingerprint) == fingerprint(message.body),
    )
    return StoredDeadLetter(letter, headers, bool(row.conflict), row.replays)
