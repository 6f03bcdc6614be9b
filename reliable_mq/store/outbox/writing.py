"""Rows of the outbox, from the message to the INSERT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, Engine, Insert, Table, insert

from reliable_mq.crashpoints import crash_point
from reliable_mq.errors import NoTransactionError
from reliable_mq.message import Message
from reliable_mq.store.codec import pack_headers
from reliable_mq.store.dialects.base import is_autocommit
from reliable_mq.store.direct import Direct
from reliable_mq.store.tables import OUTBOX_SLOTS, slot_of
from reliable_mq.store.times import to_micros

if TYPE_CHECKING:
    from reliable_mq.store.store import Store

OutboxRow = dict[str, Any]

COLUMNS = (
    "slot",
    "message_id",
    "topic",
    "message_key",
    "body",
    "headers",
    "content_type",
    "message_time",
)
TEXT_COLUMNS = ("message_id", "topic", "content_type")
"""Those that are VARBINARY on MariaDB and MySQL."""

_NONE: Mapping[str, Any] = {}

MAX_ROWS = 1000
MAX_BYTES = 1024 * 1024


def outbox_row(message: Message) -> OutboxRow:
    """Return the columns of *message* that the application, not the database, decides."""
    key = message.key
    return {
        "slot": slot_of(key, message.id, OUTBOX_SLOTS),
        "message_id": message.id,
        "topic": message.topic,
        "message_key": None if key is None else key.encode(),
        "body": message.body,
        "headers": pack_headers(message.headers),
        "content_type": message.content_type,
        "message_time": to_micros(message.time),
    }


class Pending:
    """Messages of one transaction, in the order of their publishing, not yet in the database."""

    __slots__ = ("_messages", "_size")

    def __init__(self) -> None:
        self._messages: list[tuple[Store, Message]] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return (message for _, message in self._messages)

    @property
    def is_large(self) -> bool:
        """Whether they had better be written before the commit."""
        return len(self._messages) >= MAX_ROWS or self._size >= MAX_BYTES

    def add(self, store: Store, message: Message) -> None:
        """Put *message* behind the others."""
        self._messages.append((store, message))
        self._size += len(message.body)

    def extend(self, later: Pending) -> None:
        """Take over what another one holds, behind our own."""
        self._messages.extend(later._messages)
        self._size += later._size
        later._messages = []
        later._size = 0

    def truncate(self, length: int) -> None:
        """Forget all but the first *length*."""
        del self._messages[length:]
        self._size = sum(len(message.body) for message in self)

    def write(self, connect: Callable[[Store], Connection]) -> set[Store]:
        """Insert the messages of each store, in order, and forget them; return the stores.

        What could not be written is still held when an error leaves: a second attempt to commit
        must not commit without it.
        """
        written: set[Store] = set()
        while self._messages:
            store = self._messages[0][0]
            write(
                store, connect(store), [message for own, message in self._messages if own is store]
            )
            written.add(store)
            self._messages = [pair for pair in self._messages if pair[0] is not store]
        self._size = 0
        return written


class OutboxInsert:
    """The INSERT of one outbox table.

    An application's transaction often consists of one other statement: hence :class:`Direct`.
    """

    def __init__(self, table: Table, now: ColumnElement[int]) -> None:
        # Inline: nobody needs the new ids, so none is asked for (RETURNING).
        self.statement: Insert = insert(table).inline().values(created_at=now)
        self._direct = Direct(self.statement, COLUMNS, identifiers=TEXT_COLUMNS)

    def execute(self, connection: Connection, rows: Sequence[OutboxRow]) -> None:
        """Insert *rows*, at least one, numbered in their order."""
        self._direct.execute(connection, rows)


def write(store: Store, connection: Connection, messages: Sequence[Message]) -> None:
    """Insert *messages* in their order, in the transaction on *connection*.

    Raises ``ConfigurationError`` where nobody would relay them (:meth:`Store.verify`) and
    ``NoTransactionError`` where each statement commits by itself.
    """
    refuse_autocommit(connection)
    store.verify(connection)
    store.outbox_insert.execute(connection, [outbox_row(message) for message in messages])
    crash_point("outbox.inserted")


def refuse_autocommit(bind: Connection | Engine, options: Mapping[str, Any] = _NONE) -> None:
    """Raise ``NoTransactionError`` where each statement on *bind* commits by itself.

    *options* are execution options that win over those of an engine.
    """
    level = options.get("isolation_level") if isinstance(bind, Engine) else None
    if level == "AUTOCOMMIT" or (level is None and is_autocommit(bind)):
        raise NoTransactionError(
            "the connection is in AUTOCOMMIT mode, where a message would be sent whatever becomes "
            "of the other statements: use an engine or connection without it, or publish_direct()"
        )
