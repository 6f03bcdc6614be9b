"""Rows of the outbox, from the message to the INSERT."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, Insert, Table, insert

from reliable_mq.crashpoints import crash_point
from reliable_mq.errors import NoTransactionError
from reliable_mq.message import Message
from reliable_mq.store.codec import pack_headers
from reliable_mq.store.dialects.base import is_autocommit
from reliable_mq.store.direct import Direct
from reliable_mq.store.room import refuse_too_large
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


_numbers = itertools.count()


class _Held(NamedTuple):
    """A message that waits; *number* rises with each publish, so that they sort by it."""

    number: int
    savepoint: int
    store: Store
    message: Message


class Pending:
    """Messages of one transaction, in the order of their publishing, not yet in the database.

    Each may have the number of the connection's savepoint it belongs to. These numbers rise, and
    a later savepoint lies inside every earlier one that is still open; 0 is outside of all.
    """

    __slots__ = ("_held", "_size")

    def __init__(self) -> None:
        self._held: list[_Held] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Message]:
        return (held.message for held in sorted(self._held))

    @property
    def is_large(self) -> bool:
        """Whether they had better be written before the commit."""
        return len(self._held) >= MAX_ROWS or self._size >= MAX_BYTES

    @property
    def store(self) -> Store:
        """The one that the first message is for."""
        return self._held[0].store

    def add(self, store: Store, message: Message, *, savepoint: int = 0) -> None:
        """Put *message* behind all that was published before, here or elsewhere."""
        self._held.append(_Held(next(_numbers), savepoint, store, message))
        self._size += len(message.body)

    def extend(self, other: Pending) -> None:
        """Take over what another one holds, each message at its place among our own."""
        self._held.extend(other._held)
        self._size += other._size
        other._keep([])

    def part(self, store: Store, *, savepoint: int) -> Pending:
        """Give away what is for *store*, as of *savepoint*."""
        part = Pending()
        given = [held for held in self._held if held.store is store]
        part._keep([held._replace(savepoint=savepoint) for held in given])
        self._keep([held for held in self._held if held.store is not store])
        return part

    def roll_back_to(self, savepoint: int) -> None:
        """Forget what was published since *savepoint* began."""
        # What was written already, the database undoes by itself.
        self._keep([held for held in self._held if held.savepoint < savepoint])

    def lies_in(self, savepoint: int) -> bool:
        """Tell whether a rollback to *savepoint*, the innermost, should undo all of it."""
        return all(held.savepoint >= savepoint for held in self._held)

    def write(self, store: Store, connection: Connection) -> None:
        """Insert the messages for *store*, in order, and forget them.

        What could not be written is still held when an error leaves: a second attempt to commit
        must not commit without it.
        """
        write(
            store, connection, [held.message for held in sorted(self._held) if held.store is store]
        )
        self._keep([held for held in self._held if held.store is not store])

    def _keep(self, held: list[_Held]) -> None:
        self._held = held
        self._size = sum(len(one.message.body) for one in held)


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

    Raises ``ConfigurationError`` where nobody would relay them (:meth:`Store.verify`),
    ``NoTransactionError`` where each statement commits by itself, and ``MessageTooLargeError``.
    """
    refuse_autocommit(connection)
    store.verify(connection)
    rows = [outbox_row(message) for message in messages]
    for row in rows:
        refuse_too_large(store, connection, row)
    store.outbox_insert.execute(connection, rows)
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
