"""What the databases do differently, behind one small interface.

All statements run on the caller's plain ``Connection``, inside its transaction. Nothing here
commits, but for :meth:`StoreDialect.changing_schema`. Errors pass through unwrapped;
:meth:`StoreDialect.classify` tells what they mean.

The connection may belong to an async engine. Then the methods that execute something are to be
called inside SQLAlchemy's greenlet bridge (``AsyncConnection.run_sync``, ``greenlet_spawn``), and
await there instead of blocking.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, Insert, Table
from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from reliable_mq.store.tables import Tables

Row = Mapping[str, Any]

_COMMENTS = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_SAVEPOINT = r"\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b"


def statements(*patterns: str) -> re.Pattern[str]:
    """Return what matches SQL that begins, after comments, with one of *patterns*."""
    return re.compile(rf"{_COMMENTS}(?P<what>{'|'.join(patterns)})\b", re.IGNORECASE | re.DOTALL)


ENDING = (
    "COMMIT",
    "END",
    "ABORT",
    r"BEGIN(?!\s+NOT\b)",  # MariaDB's BEGIN NOT ATOMIC is a block, not a transaction
    r"START\s+TRANSACTION",
    r"PREPARE\s+TRANSACTION",
    rf"ROLLBACK(?!{_SAVEPOINT})",
)
"""Beginnings of statements that end a transaction, or mean to, on any database."""

LASTING = 30.0
"""Seconds. An idle limit from here on may stay on a pooled connection, which spares a statement
for each transaction. A shorter one must not: plain reads that come later would meet it."""

OURS = "reliable_mq_engine"
"""Key in ``Connection.info`` of a connection whose engine the store made, not the application."""


class Trouble(Enum):
    """What a database error says about the transaction it ended."""

    BUSY = "busy"
    """Deadlock, serialization failure, lock time-out, database locked: run it again."""
    IDLE = "idle"
    """The database ended the transaction because it was silent for too long."""
    GONE = "gone"
    """The connection is lost; whether a COMMIT under way took effect is unknown."""
    FULL = "full"
    """There is no room left on the disk: the statement did nothing, and may when there is."""
    OTHER = "other"
    """Anything else: the statement's own fault."""


class Claimed(NamedTuple):
    """What became of the claim of one message."""

    new: bool
    waits: bool | None = None
    """Whether an earlier message of its key waits for a retry; None where nobody has looked."""
    known: bytes | None = None
    """The fingerprint under which it was known before; None also where nobody has looked."""


class Room(NamedTuple):
    """How much the database takes of one row."""

    size: int
    """Bytes, counted as :meth:`StoreDialect.size_of` counts."""
    limit: str
    """What sets it."""


class StoreDialect(ABC):
    """One kind of database. Thread-safe."""

    name: ClassVar[str]
    skip_locked: ClassVar[bool] = True
    ending: ClassVar[re.Pattern[str]] = statements(*ENDING)
    """Matches SQL that ends the transaction it runs in."""

    @abstractmethod
    def now(self) -> ColumnElement[int]:
        """Return the expression of the database's clock: microseconds since 1970, in UTC.

        It moves within a transaction, and does not depend on the session's time zone.
        """

    @abstractmethod
    def begin(self, connection: Connection, *, idle_timeout: float | None = None) -> None:
        """Begin a transaction of our own on a *connection* that is in none: READ COMMITTED.

        The database ends it after *idle_timeout* seconds of silence where it can; a limit below
        :data:`LASTING` is gone from the pooled connection after :meth:`finish`. On SQLite it
        takes the write lock at once, waiting as long as the connection's own busy time-out says;
        an error then is :attr:`Trouble.BUSY`, and the connection is in no transaction.
        """

    def begin_briefly(self, connection: Connection) -> None:
        """As :meth:`begin`, under the lasting limit of the connection, if it has one already.

        Otherwise under :data:`LASTING`: a short transaction must not be the reason why every
        later one of a handler, with a longer limit, needs a statement more.
        """
        self.begin(connection, idle_timeout=LASTING)

    def begin_unlimited(self, connection: Connection, *, idle_timeout: float) -> None:
        """As :meth:`begin`, but leave it to a statement to limit itself where that is possible.

        Where :meth:`idle_limit` is an expression, that is; the first statement is to have it.
        """
        self.begin(connection, idle_timeout=idle_timeout)

    def idle_limit(self, seconds: float) -> ColumnElement[Any] | None:
        """Return an expression that gives the transaction in which it is evaluated this limit.

        As :meth:`begin` does, and without a statement of its own; None where nothing can.
        """
        return None

    def join(self, connection: Connection) -> None:
        """Make a transaction that was just begun on *connection* fit for the application's use.

        No statement ran in it yet. On SQLite it takes the write lock as :meth:`begin` does;
        elsewhere a limit that :meth:`begin` left on one of our own connections is lifted.
        """
        return

    @abstractmethod
    def claim(
        self, connection: Connection, inbox: Table, rows: Sequence[Row], *, lock_timeout: float
    ) -> set[str]:
        """Insert inbox *rows* that are new and return the ``message_id`` of those.

        The rows are of one group and topic, without repetition, sorted by message id; where a
        column holds a SQL expression or NULL it does so in all of them. A row that another
        transaction is inserting is waited for up to *lock_timeout* seconds; then the error is
        one that :meth:`is_lock_timeout` recognises, and the transaction must be rolled back.
        """

    def claim_one(
        self,
        connection: Connection,
        tables: Tables,
        row: Row,
        *,
        key: bytes | None,
        lock_timeout: float,
    ) -> Claimed:
        """Insert one inbox *row* as :meth:`claim` does.

        Where that takes no further statement it also tells, with the message's *key* given,
        whether a row of that key waits in the retry table, and what the inbox knew of a message
        that is not new: both as of the statement's beginning, which is before it may have waited
        for another transaction.
        """
        new = self.claim(connection, tables.inbox, [row], lock_timeout=lock_timeout)
        return Claimed(bool(new))

    @abstractmethod
    def is_lock_timeout(self, error: DBAPIError) -> bool:
        """Tell whether *error*, raised by :meth:`claim`, means "in flight elsewhere"."""

    @abstractmethod
    def classify(self, error: BaseException, connection: Connection | None = None) -> Trouble:
        """Tell what *error*, raised by a statement or a COMMIT, means for the transaction.

        MariaDB ends a silent transaction by closing the socket without a word. Only with the
        *connection* given, it is told from any other loss by how long ago the limit began.
        """

    def among(self, column: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
        """Return the condition that *column* has one of *values*, which may be many."""
        return column.in_(values)

    @abstractmethod
    def insert_ignoring(self, table: Table) -> Insert:
        """Return an INSERT that skips rows whose key exists, for executemany with mappings."""

    @abstractmethod
    def room(self, connection: Connection) -> Room:
        """Return what may be written on *connection* by one statement, as one row.

        A larger one is an error each time, and on MariaDB and MySQL one that looks like a lost
        connection, which is no reason to give up.
        """

    def size_of(self, connection: Connection, value: bytes) -> int:
        """Return how much of the :meth:`room` *value* takes: its length, or up to twice that."""
        return len(value)

    @abstractmethod
    def is_missing_table(self, error: DBAPIError) -> bool:
        """Tell whether *error* says that a table or its schema does not exist."""

    @abstractmethod
    def changing_schema(self, engine: Engine) -> AbstractContextManager[Connection]:
        """Return a transaction that one process at a time has, to change the schema in.

        Committed at the end of the block. Others wait for their turn up to a minute.
        """

    def writing(self, engine: Engine) -> AbstractContextManager[None]:
        """Return what to hold around a writing transaction of ours: nothing but on SQLite.

        There it is the process's fair queue for the database file. With an async *engine* it is
        to be entered inside the greenlet bridge and awaits its turn.
        """
        return nullcontext()

    def can_commit(self, connection: Connection) -> bool:
        """Tell whether the database still has the transaction we believe in."""
        return True

    def read_in_bulk(self, connection: Connection) -> None:
        """Let large results of *connection* come in the form that costs least, until its close.

        The values are the same. Nothing to do where the driver knows one form only.
        """
        return

    def finish(self, connection: Connection) -> None:
        """Put the session back as it was, after the transaction ended; before the pool has it."""
        return


def driver_error(error: BaseException) -> BaseException | None:
    """Return the driver's own exception behind SQLAlchemy's, or the error itself."""
    return error.orig if isinstance(error, DBAPIError) else error


def is_ours(connection: Connection) -> bool:
    """Tell whether the store made the engine of *connection*, READ COMMITTED from the start."""
    return OURS in connection.info


def is_autocommit(bind: Connection | Engine) -> bool:
    """Tell whether each statement on *bind* commits by itself, by its options or its engine's.

    A connection's ``in_transaction()`` is True all the same.
    """
    level = bind.get_execution_options().get("isolation_level")
    if level is None:
        level = getattr(bind.dialect, "_on_connect_isolation_level", None)
    return bool(level == "AUTOCOMMIT")
