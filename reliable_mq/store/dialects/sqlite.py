"""SQLite, by sqlite3 or aiosqlite: one writer at a time, so the library's writers take turns."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from sqlalchemy import ColumnElement, Connection, Engine, Insert, Integer, Table, literal_column
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError, OperationalError
from typing_extensions import override

from reliable_mq.errors import ConfigurationError
from reliable_mq.store.dialects.base import Room, Row, StoreDialect, Trouble, driver_error
from reliable_mq.store.dialects.claims import Expressions, Statements, parameters
from reliable_mq.store.dialects.fairness import FairLock, begin_immediate, hold
from reliable_mq.store.urls import identity_of, is_memory

_BUSY_TEXTS = ("database is locked", "database table is locked", "database schema is locked")
_FULL_TEXT = "database or disk is full"
_LENGTH = 1_000_000_000
"""SQLITE_MAX_LENGTH, unless it was built with another one."""

# julianday is the finest clock that versions before 3.42 have: milliseconds.
_NOW: ColumnElement[int] = literal_column(
    "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000", Integer
)


class SQLite(StoreDialect):
    """SQLite 3.35 or later (RETURNING)."""

    name = "sqlite"
    skip_locked = False
    _locks: ClassVar[WeakValueDictionary[object, FairLock]] = WeakValueDictionary()
    _lock_by_engine: ClassVar[WeakKeyDictionary[Engine, FairLock]] = WeakKeyDictionary()
    _locks_guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._claims = Statements(_claim)

    @classmethod
    def forget_locks(cls) -> None:
        """Begin anew in a forked child, where those who held or awaited a turn are gone."""
        cls._locks_guard = threading.Lock()
        cls._locks.clear()
        cls._lock_by_engine.clear()

    @override
    def now(self) -> ColumnElement[int]:
        return _NOW

    @override
    def begin(self, connection: Connection, *, idle_timeout: float | None = None) -> None:
        if in_transaction(connection):
            raise ConfigurationError(
                "the SQLite connection is in a transaction already: its pool hands one "
                "connection to several users (StaticPool, in memory); name a database file"
            )
        connection.begin()
        try:
            self.join(connection)
        except BaseException:
            connection.rollback()
            raise

    @override
    def join(self, connection: Connection) -> None:
        if in_transaction(connection):
            if is_memory(connection.engine.url):
                return  # perhaps another user's of the one connection; there is no other writer
            # An application's engine may emit BEGIN by itself (SQLAlchemy's savepoint recipe).
            connection.exec_driver_sql("ROLLBACK")
        # A deferred transaction that turns to writing fails at once (SQLITE_BUSY_SNAPSHOT).
        begin_immediate(connection)

    @override
    def claim(
        self, connection: Connection, inbox: Table, rows: Sequence[Row], *, lock_timeout: float
    ) -> set[str]:
        # There is nobody to wait for: the write lock is held already.
        values = [parameters(row) for row in rows]
        return set(connection.execute(self._claims.of(inbox, rows[0]), values).scalars())

    @override
    def is_lock_timeout(self, error: DBAPIError) -> bool:
        return self.classify(error) is Trouble.BUSY

    @override
    def classify(self, error: BaseException, connection: Connection | None = None) -> Trouble:
        text = str(driver_error(error))
        if isinstance(error, OperationalError) and text.startswith(_BUSY_TEXTS):
            return Trouble.BUSY
        if isinstance(error, OperationalError) and text == _FULL_TEXT:
            return Trouble.FULL
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return Trouble.GONE
        return Trouble.OTHER

    @override
    def room(self, connection: Connection) -> Room:
        driver = connection.connection.driver_connection
        size = _LENGTH  # that of aiosqlite can be asked on its own thread only
        if isinstance(driver, sqlite3.Connection):
            size = driver.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
        return Room(size, "SQLITE_LIMIT_LENGTH")

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
        known = self._lock_by_engine.get(engine)
        if known is not None:
            return known
        place = identity_of(engine.url, engine)
        with self._locks_guard:
            lock = self._locks.get(place)
            if lock is None:
                lock = self._locks[place] = FairLock()
            self._lock_by_engine[engine] = lock
            return lock

    @override
    def writing(self, engine: Engine) -> AbstractContextManager[None]:
        return hold(self.lock_of(engine), awaiting=engine.dialect.is_async)


os.register_at_fork(after_in_child=SQLite.forget_locks)


def _claim(inbox: Table, expressions: Expressions) -> Insert:
    statement = insert(inbox).values(expressions)
    return statement.on_conflict_do_nothing().returning(inbox.c.message_id)


def in_transaction(connection: Connection) -> bool:
    """Ask the driver itself whether SQLite has an open transaction."""
    driver = connection.connection.driver_connection
    return bool(getattr(driver, "in_transaction", False))
