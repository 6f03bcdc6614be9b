"""PostgreSQL, by psycopg 3 or asyncpg."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Insert,
    Table,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, InterfaceError
from typing_extensions import override

from reliable_mq.store.dialects.base import Row, StoreDialect, Trouble, driver_error

_BUSY = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available
}
_IDLE = {"25P03", "25P04"}  # idle_in_transaction_session_timeout, transaction_timeout
_GONE_CLASSES = ("08", "57P")  # connection exceptions, operator intervention

_SCHEMA_LOCK = 7307218391044825458  # any number, the same in every process

_LIMITS = text("SELECT set_config('idle_in_transaction_session_timeout', :idle, true)").columns()
_LOCK_TIMEOUT = text(
    "SELECT current_setting('lock_timeout'), set_config('lock_timeout', :limit, true)"
)
_RESTORE_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :limit, true)")


class PostgreSQL(StoreDialect):
    """PostgreSQL 12 or later."""

    name = "postgresql"

    @override
    def now(self) -> ColumnElement[int]:
        # now() is frozen at the transaction's begin.
        return literal_column(
            "CAST(extract(epoch from clock_timestamp()) * 1000000 AS BIGINT)", BigInteger
        )

    @override
    def begin(self, connection: Connection, *, idle_timeout: float | None = None) -> None:
        connection.execution_options(isolation_level="READ COMMITTED")
        connection.begin()
        if idle_timeout is not None:
            # 0 would switch the limit off.
            idle = max(1, round(idle_timeout * 1000))
            connection.execute(_LIMITS, {"idle": str(idle)})

    @override
    def claim(
        self, connection: Connection, inbox: Table, rows: Sequence[Row], *, lock_timeout: float
    ) -> set[str]:
        limit = str(max(1, round(lock_timeout * 1000)))
        before = connection.execute(_LOCK_TIMEOUT, {"limit": limit}).scalar_one()
        statement = (
            insert(inbox)
            .values([dict(row) for row in rows])
            .on_conflict_do_nothing()
            .returning(inbox.c.message_id)
        )
        new = set(connection.execute(statement).scalars())
        # The handler's own statements must not fail by a limit that is ours.
        connection.execute(_RESTORE_LOCK_TIMEOUT, {"limit": before})
        return new

    @override
    def is_lock_timeout(self, error: DBAPIError) -> bool:
        return _sqlstate(error) == "55P03"

    @override
    def classify(self, error: BaseException) -> Trouble:
        state = _sqlstate(error)
        if state in _BUSY:
            return Trouble.BUSY
        if state in _IDLE:
            return Trouble.IDLE
        if state is not None:
            return Trouble.GONE if state.startswith(_GONE_CLASSES) else Trouble.OTHER
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return Trouble.GONE
        if isinstance(error, InterfaceError | OSError):
            return Trouble.GONE
        return _without_state(error)

    @override
    def is_missing_table(self, error: DBAPIError) -> bool:
        return _sqlstate(error) in {"42P01", "3F000"}

    @override
    @contextmanager
    def changing_schema(self, engine: Engine) -> Iterator[Connection]:
        # CREATE TABLE IF NOT EXISTS alone fails with a unique violation when two processes do it.
        with engine.connect() as connection:
            self.begin(connection)
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})
            yield connection
            connection.commit()

    @override
    def insert_ignoring(self, table: Table) -> Insert:
        return insert(table).on_conflict_do_nothing()


def _sqlstate(error: BaseException) -> str | None:
    original = driver_error(error)
    for candidate in (original, getattr(original, "__cause__", None)):
        state = getattr(candidate, "sqlstate", None)
        if isinstance(state, str):
            return state
    return None


def _without_state(error: BaseException) -> Trouble:
    # psycopg reports a connection closed by the server or the network as an OperationalError
    # without a state ("the connection is closed", "server closed the connection unexpectedly").
    if isinstance(error, DBAPIError) and type(error.orig).__name__ == "OperationalError":
        return Trouble.GONE
    return Trouble.OTHER
