"""MariaDB (tested) and MySQL (the same statements; see docs/stores.md), by PyMySQL or asyncmy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Insert,
    Table,
    insert,
    literal_column,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, InterfaceError
from typing_extensions import override

from reliable_mq.errors import ConfigurationError
from reliable_mq.store.dialects.base import Row, StoreDialect, Trouble, driver_error

_LOCK_TIMEOUT = 1205
_BUSY = {
    _LOCK_TIMEOUT,
    1213,  # deadlock
    1020,  # record has changed since last read (snapshot isolation, MariaDB 11.6.2 and later)
}
_IDLE = {1927, 4031}  # connection was killed (idle_transaction_timeout); disconnected by inactivity
_GONE = {1053, 1152, 1158, 1159, 1160, 1161, 1184, 2002, 2003, 2006, 2013, 2055}
_IDLE_BEFORE = "reliable_mq_idle_before"


class MySQL(StoreDialect):
    """MariaDB 10.6 or later, MySQL 8.0 or later (both have SKIP LOCKED)."""

    name = "mysql"

    @override
    def now(self) -> ColumnElement[int]:
        # UTC_TIMESTAMP, because NOW() is in the session's time zone; (6) for microseconds.
        return literal_column(
            "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))", BigInteger
        )

    @override
    def begin(self, connection: Connection, *, idle_timeout: float | None = None) -> None:
        # Under REPEATABLE READ a read that meets the table's end blocks every producer.
        connection.execution_options(isolation_level="READ COMMITTED")
        if idle_timeout is not None and _is_mariadb(connection):
            self._limit_idling(connection, idle_timeout)
        else:
            connection.begin()

    @staticmethod
    def _limit_idling(connection: Connection, idle_timeout: float) -> None:
        connection.begin()
        limit = max(1, round(idle_timeout))
        known = connection.info.get(_IDLE_BEFORE)
        if known is None:
            before = connection.exec_driver_sql("SELECT @@session.idle_transaction_timeout")
            connection.info[_IDLE_BEFORE] = before.scalar_one()
        connection.exec_driver_sql(f"SET SESSION idle_transaction_timeout = {limit}")

    @override
    def finish(self, connection: Connection) -> None:
        before = connection.info.pop(_IDLE_BEFORE, None)
        if before is not None and not connection.closed and not connection.invalidated:
            connection.exec_driver_sql(f"SET SESSION idle_transaction_timeout = {int(before)}")

    @override
    def claim(
        self, connection: Connection, inbox: Table, rows: Sequence[Row], *, lock_timeout: float
    ) -> set[str]:
        # INSERT IGNORE would cut what is too long; every value was checked for length before.
        statement = insert(inbox).prefix_with("IGNORE").values([dict(row) for row in rows])
        limit = max(1, round(lock_timeout))
        with _lock_wait(connection, limit):
            if len(rows) == 1:
                inserted = connection.execute(statement).rowcount
                return {rows[0]["message_id"]} if inserted == 1 else set()
            if _is_mariadb(connection):
                returning = statement.returning(inbox.c.message_id)
                return set(connection.execute(returning).scalars())
            return self._claim_one_by_one(connection, inbox, rows)

    @staticmethod
    def _claim_one_by_one(connection: Connection, inbox: Table, rows: Sequence[Row]) -> set[str]:
        # MySQL has no RETURNING, and the row count of a set does not name the new ones.
        one = insert(inbox).prefix_with("IGNORE")
        return {
            row["message_id"] for row in rows if connection.execute(one, [dict(row)]).rowcount == 1
        }

    @override
    def is_lock_timeout(self, error: DBAPIError) -> bool:
        return _code(error) == _LOCK_TIMEOUT

    @override
    def classify(self, error: BaseException) -> Trouble:
        code = _code(error)
        if code in _BUSY:
            return Trouble.BUSY
        if code in _IDLE:
            return Trouble.IDLE
        if code in _GONE:
            return Trouble.GONE
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return Trouble.GONE
        return Trouble.GONE if isinstance(error, InterfaceError | OSError) else Trouble.OTHER

    @override
    def is_missing_table(self, error: DBAPIError) -> bool:
        return _code(error) in {1049, 1146}

    @override
    @contextmanager
    def changing_schema(self, engine: Engine) -> Iterator[Connection]:
        # DDL commits by itself here, so the lock must be one of the session.
        with engine.connect() as connection:
            lock = text("SELECT GET_LOCK(CONCAT('reliable_mq:', MD5(DATABASE())), 60)")
            if connection.execute(lock).scalar_one() != 1:
                raise ConfigurationError("another process has been changing the schema for 60 s")
            try:
                yield connection
                connection.commit()
            finally:
                connection.rollback()
                release = text("DO RELEASE_LOCK(CONCAT('reliable_mq:', MD5(DATABASE())))")
                connection.execute(release)

    @override
    def insert_ignoring(self, table: Table) -> Insert:
        return insert(table).prefix_with("IGNORE")


class _lock_wait:  # noqa: N801 - used as a function
    """Bound the wait for row locks inside the block, and only there."""

    def __init__(self, connection: Connection, seconds: int) -> None:
        self._connection = connection
        self._seconds = seconds
        self._before: Any = None

    def __enter__(self) -> None:
        self._before = self._connection.scalar(
            select(literal_column("@@session.innodb_lock_wait_timeout"))
        )
        self._set(self._seconds)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # After a lock time-out the session lives on (only the statement was undone).
        if error is None or (isinstance(error, DBAPIError) and not error.connection_invalidated):
            self._set(self._before)

    def _set(self, seconds: int) -> None:
        self._connection.execute(text(f"SET SESSION innodb_lock_wait_timeout = {int(seconds)}"))


def _is_mariadb(connection: Connection) -> bool:
    return bool(getattr(connection.dialect, "is_mariadb", False))


def _code(error: BaseException) -> int | None:
    original = driver_error(error)
    arguments = getattr(original, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None
