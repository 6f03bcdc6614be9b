"""MariaDB (tested) and MySQL (the same statements; see docs/stores.md), by PyMySQL or asyncmy."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Insert,
    Table,
    insert,
    literal_column,
    text,
)
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal
from typing_extensions import override

from reliable_mq.errors import ConfigurationError
from reliable_mq.store.dialects.base import (
    ENDING,
    LASTING,
    Room,
    Row,
    StoreDialect,
    Trouble,
    driver_error,
    is_autocommit,
    is_ours,
    statements,
)
from reliable_mq.store.dialects.claims import Expressions, Statements, parameters

_LOCK_TIMEOUT = 1205
_BUSY = {
    _LOCK_TIMEOUT,
    1213,  # deadlock
    1020,  # record has changed since last read (snapshot isolation, MariaDB 11.6.2 and later)
}
_IDLE = {1927, 4031}  # connection was killed (idle_transaction_timeout); disconnected by inactivity
_GONE = {1040, 1053, 1152, 1158, 1159, 1160, 1161, 1184, 2002, 2003, 2006, 2013, 2055}
_FULL = {1021, 1114}  # disk full; table full, which a storage engine says instead
_NO_SPACE = re.compile(r"\b(?:error|errno):? 28\b")  # ENOSPC, inside of various errors
_MISSING = {1049, 1146}  # unknown database, no such table
_LIMIT = "reliable_mq_idle_limit"
_LIMIT_BEFORE = "reliable_mq_idle_before"
_LOCK_WAIT_BEFORE = "reliable_mq_lock_wait_before"
_PACKET = "reliable_mq_packet"
_OUR_DRIVERS = ("pymysql", "asyncmy")

# UTC_TIMESTAMP, because NOW() is in the session's time zone; (6) for microseconds.
_NOW: ColumnElement[int] = literal_column(
    "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))", BigInteger
)


# They commit what was done before them.
_COMMITS = (
    r"(?:CREATE|DROP)\s+(?!TEMPORARY\b)\w+",
    "ALTER",
    "TRUNCATE",
    "RENAME",
    "GRANT",
    "REVOKE",
    "FLUSH",
    r"(?:UN)?LOCK\s+TABLES?",
    r"(?:ANALYZE|OPTIMIZE|REPAIR)\s+(?:\w+\s+)?TABLE",
    r"SET\s+(?:SESSION\s+|@@(?:session\.)?)?AUTOCOMMIT",
)


class MySQL(StoreDialect):
    """MariaDB 10.6 or later, MySQL 8.0 or later (both have SKIP LOCKED)."""

    name = "mysql"
    ending = statements(*ENDING, *_COMMITS)

    def __init__(self) -> None:
        self._claims: dict[int | None, Statements[Insert]] = {}
        self._limits_end: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()

    @override
    def now(self) -> ColumnElement[int]:
        return _NOW

    @override
    def begin(self, connection: Connection, *, idle_timeout: float | None = None) -> None:
        limit = None if idle_timeout is None else max(1, round(idle_timeout))
        if is_ours(connection):
            connection.begin()
            _limit_idling(connection, limit)
        else:
            _begin_read_committed(connection, limit)
        if limit is not None and _is_mariadb(connection):
            self._limits_end[connection] = time.monotonic() + limit

    @override
    def begin_briefly(self, connection: Connection) -> None:
        # What finish() has left on a connection lasts long enough.
        self.begin(connection, idle_timeout=connection.info.get(_LIMIT) or LASTING)

    @override
    def join(self, connection: Connection) -> None:
        _limit_idling(connection, None)

    @override
    def finish(self, connection: Connection) -> None:
        if connection.closed or connection.invalidated:
            return
        limit = connection.info.get(_LIMIT)
        if is_ours(connection) and (limit is None or limit >= LASTING):
            return
        try:
            _limit_idling(connection, None)
        except DBAPIError:
            # Broken, in a way that nobody noticed yet: the pool must not have it back, and what
            # broke it is the error to be seen.
            connection.invalidate()

    @override
    def claim(
        self, connection: Connection, inbox: Table, rows: Sequence[Row], *, lock_timeout: float
    ) -> set[str]:
        # INSERT IGNORE would cut what is too long; every value was checked for length before.
        seconds = max(1, round(lock_timeout))
        if _is_mariadb(connection):
            return self._claim_all(
                connection, self._statement(seconds, inbox, rows[0]), inbox, rows
            )
        with _lock_wait(connection, seconds):
            return _claim_one_by_one(connection, self._statement(None, inbox, rows[0]), rows)

    @staticmethod
    def _claim_all(
        connection: Connection, statement: Insert, inbox: Table, rows: Sequence[Row]
    ) -> set[str]:
        if len(rows) == 1:
            return _claim_one_by_one(connection, statement, rows)
        new = connection.execute(
            statement.returning(inbox.c.message_id), [parameters(row) for row in rows]
        )
        return set(new.scalars())

    def _statement(self, lock_wait: int | None, inbox: Table, row: Row) -> Insert:
        statements = self._claims.get(lock_wait)
        if statements is None:

            def build(table: Table, expressions: Expressions) -> Insert:
                return _insert_ignoring(table, lock_wait).values(expressions)

            statements = self._claims.setdefault(lock_wait, Statements(build))
        return statements.of(inbox, row)

    @override
    def is_lock_timeout(self, error: DBAPIError) -> bool:
        return _code(error) == _LOCK_TIMEOUT

    @override
    def classify(self, error: BaseException, connection: Connection | None = None) -> Trouble:
        code = _code(error)
        if code in _BUSY:
            return Trouble.BUSY
        if code in _IDLE:
            return Trouble.IDLE
        if code in _GONE or isinstance(error, InterfaceError | OSError) or _invalidates(error):
            return Trouble.IDLE if self._has_idled(connection) else Trouble.GONE
        if code in _FULL or (code is not None and _NO_SPACE.search(str(driver_error(error)))):
            return Trouble.FULL
        return Trouble.OTHER

    def _has_idled(self, connection: Connection | None) -> bool:
        end = None if connection is None else self._limits_end.get(connection)
        return end is not None and time.monotonic() >= end

    @override
    def room(self, connection: Connection) -> Room:
        # A session keeps the limit that the server had when it began.
        size = connection.info.get(_PACKET)
        if size is None:
            asked = connection.exec_driver_sql("SELECT @@session.max_allowed_packet")
            size = connection.info[_PACKET] = int(asked.scalar_one())
        return Room(size, "max_allowed_packet")

    @override
    def size_of(self, connection: Connection, value: bytes) -> int:
        # It becomes text: in hexadecimal, or with some of the bytes escaped, as the driver likes.
        driver: Any = connection.connection.driver_connection
        if connection.dialect.driver in _OUR_DRIVERS and len(value) <= self.room(connection).size:
            return len(driver.escape(value))
        return 2 * len(value)

    @override
    def is_missing_table(self, error: DBAPIError) -> bool:
        return _code(error) in _MISSING

    @override
    @contextmanager
    def changing_schema(self, engine: Engine) -> Iterator[Connection]:
        # DDL commits by itself here, so the lock must be one of the session.
        lock = text("SELECT GET_LOCK(CONCAT('reliable_mq:', MD5(DATABASE())), 60)")
        release = text("DO RELEASE_LOCK(CONCAT('reliable_mq:', MD5(DATABASE())))")
        with engine.connect() as connection:
            if connection.execute(lock).scalar_one() != 1:
                raise ConfigurationError("another process has been changing the schema for 60 s")
            try:
                yield connection
                connection.commit()
            finally:
                connection.rollback()
                connection.execute(release)

    @override
    def insert_ignoring(self, table: Table) -> Insert:
        return insert(table).prefix_with("IGNORE")


# --- the transaction's limits -----------------------------------------------------------------


def _begin_read_committed(connection: Connection, limit: int | None) -> None:
    if is_autocommit(connection):
        # To the server's own level, which is that of the session: nothing to put back.
        connection.execution_options(isolation_level=connection.default_isolation_level)
    connection.begin()
    _limit_idling(connection, limit)
    # Under REPEATABLE READ a read that meets the table's end blocks every producer. This is for
    # the next transaction only, which begins with the next statement.
    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")


def _limit_idling(connection: Connection, limit: int | None) -> None:
    """Let the server end transactions that are silent for *limit* seconds; None: as it was."""
    if limit == connection.info.get(_LIMIT) or not _is_mariadb(connection):
        return
    before = connection.info.get(_LIMIT_BEFORE)
    if before is None:
        asked = connection.exec_driver_sql("SELECT @@session.idle_transaction_timeout")
        before = connection.info[_LIMIT_BEFORE] = int(asked.scalar_one())
    wanted = before if limit is None else limit
    connection.exec_driver_sql(f"SET SESSION idle_transaction_timeout = {wanted}")
    connection.info[_LIMIT] = limit


# --- claims -------------------------------------------------------------------------------------


class _BoundedInsert(Insert):
    """An INSERT that waits for row locks for so many seconds (MariaDB's SET STATEMENT)."""

    inherit_cache = False
    _traverse_internals = [  # noqa: RUF012 - as SQLAlchemy's own statements have it
        *Insert._traverse_internals,
        ("lock_wait", InternalTraversal.dp_plain_obj),
    ]

    def __init__(self, table: Table, lock_wait: int) -> None:
        super().__init__(table)
        self.lock_wait = lock_wait


@compiles(_BoundedInsert)
def _compile_bounded(element: _BoundedInsert, compiler: SQLCompiler, **options: Any) -> str:
    bare: str = compiler.visit_insert(element, **options)  # type: ignore[no-untyped-call]
    return f"SET STATEMENT innodb_lock_wait_timeout={element.lock_wait:d} FOR {bare}"


def _insert_ignoring(table: Table, lock_wait: int | None) -> Insert:
    bare = insert(table) if lock_wait is None else _BoundedInsert(table, lock_wait)
    return bare.prefix_with("IGNORE")


def _claim_one_by_one(connection: Connection, statement: Insert, rows: Sequence[Row]) -> set[str]:
    # MySQL has no RETURNING, and the row count of a set does not name the new ones.
    return {
        row["message_id"]
        for row in rows
        if connection.execute(statement, parameters(row)).rowcount == 1
    }


@contextmanager
def _lock_wait(connection: Connection, seconds: int) -> Iterator[None]:
    """Bound the wait for row locks inside the block, and only there."""
    before = connection.info.get(_LOCK_WAIT_BEFORE)
    if before is None:
        asked = connection.exec_driver_sql("SELECT @@session.innodb_lock_wait_timeout")
        before = connection.info[_LOCK_WAIT_BEFORE] = int(asked.scalar_one())
    connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {seconds}")
    try:
        yield
    finally:
        # After a lock time-out the session lives on (only the statement was undone).
        if not connection.closed and not connection.invalidated:
            connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {before}")


def _is_mariadb(connection: Connection) -> bool:
    return bool(getattr(connection.dialect, "is_mariadb", False))


def _invalidates(error: BaseException) -> bool:
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _code(error: BaseException) -> int | None:
    original = driver_error(error)
    arguments = getattr(original, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None
