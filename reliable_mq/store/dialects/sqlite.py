"""SQLite: one writer at a time, so the library's writers of one process queue up fairly."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar
from weakref import WeakValueDictionary

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Insert,
    Integer,
    Table,
    literal_column,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError, OperationalError
from typing_extensions import override

from reliable_mq.store.dialects.base import Row, StoreDialect, Trouble, driver_error

_BUSY_TEXTS = ("database is locked", "database table is locked", "database schema is locked")
_PAUSE = 0.002
"""Seconds between two of our writing transactions, in which other processes get their turn."""


class FairLock:
    """A lock that is given in the order in which it was asked for.

    SQLite's own waiting is a lottery in which back-to-back writers starve everybody else.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._held = False
        self._free_at = 0.0

    def ask(self) -> threading.Event:
        """Queue up; the returned event is set once the lock is the caller's."""
        turn = threading.Event()
        with self._guard:
            if self._held:
                self._waiting.append(turn)
            else:
                self._held = True
                turn.set()
        return turn

    def give_up(self, turn: threading.Event) -> None:
        """Leave the queue, or the lock if it has just been granted."""
        with self._guard:
            if not turn.is_set():
                self._waiting.remove(turn)
                return
        self.release()

    def release(self) -> None:
        """Hand the lock to the one who waits longest."""
        with self._guard:
            self._free_at = time.monotonic() + _PAUSE
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._held = False

    def pause_left(self) -> float:
        """Return how many seconds the next owner should let other processes go first."""
        return max(0.0, self._free_at - time.monotonic())


class SQLite(StoreDialect):
    """SQLite 3.35 or later (RETURNING), by sqlite3 or aiosqlite."""

    name = "sqlite"
    skip_locked = False
    _locks: ClassVar[WeakValueDictionary[str, FairLock]] = WeakValueDictionary()
    _locks_guard: ClassVar[threading.Lock] = threading.Lock()

    @override
    def now(self) -> ColumnElement[int]:
        # julianday is the finest clock older versions have: milliseconds.
        return literal_column(
            "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000", Integer
        )

    @override
    def begin(self, connection: Connection, *, idle_timeout: float | None = None) -> None:
        # A deferred transaction that turns to writing fails at once (SQLITE_BUSY_SNAPSHOT).
        connection.begin()
        if in_transaction(connection):
            # An application's engine may emit BEGIN by itself (SQLAlchemy's savepoint recipe).
            connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    @override
    def claim(
        self, connection: Connection, inbox: Table, rows: Sequence[Row], *, lock_timeout: float
    ) -> set[str]:
        statement = (
            insert(inbox)
            .values([dict(row) for row in rows])
            .on_conflict_do_nothing()
            .returning(inbox.c.message_id)
        )
        return set(connection.execute(statement).scalars())

    @override
    def is_lock_timeout(self, error: DBAPIError) -> bool:
        return self.classify(error) is Trouble.BUSY

    @override
    def classify(self, error: BaseException) -> Trouble:
        text = str(driver_error(error))
        if isinstance(error, OperationalError) and text.startswith(_BUSY_TEXTS):
            return Trouble.BUSY
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return Trouble.GONE
        return Trouble.OTHER

    @override
    def is_missing_table(self, error: DBAPIError) -> bool:
        return str(driver_error(error)).startswith("no such table")

    @override
    @contextmanager
    def changing_schema(self, engine: Engine) -> Iterator[Connection]:
        with engine.connect() as connection:
            self.begin(connection)
            yield connection
            connection.commit()

    @override
    def insert_ignoring(self, table: Table) -> Insert:
        return insert(table).on_conflict_do_nothing()

    @override
    def can_commit(self, connection: Connection) -> bool:
        # "ON CONFLICT ROLLBACK" and a full disk end the transaction without our knowledge.
        return in_transaction(connection)

    def lock_of(self, engine: Engine) -> FairLock:
        """Return the one lock of this process for the database file of *engine*."""
        name = str(engine.url.database or id(engine.pool))
        with self._locks_guard:
            lock = self._locks.get(name)
            if lock is None:
                lock = self._locks[name] = FairLock()
            return lock

    @override
    def writing(self, engine: Engine) -> AbstractContextManager[None]:
        return _hold(self.lock_of(engine))


@contextmanager
def _hold(lock: FairLock) -> Iterator[None]:
    turn = lock.ask()
    try:
        turn.wait()
        if left := lock.pause_left():
            time.sleep(left)
    except BaseException:
        lock.give_up(turn)
        raise
    try:
        yield
    finally:
        lock.release()


def in_transaction(connection: Connection) -> bool:
    """Ask the driver itself whether SQLite has an open transaction."""
    driver = connection.connection.driver_connection
    return bool(getattr(driver, "in_transaction", False))
