"""Statements that go to the driver as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Delete, Dialect, Insert, Select
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.sql.compiler import SQLCompiler

from reliable_mq.store.columns import MYSQL_FAMILY
from reliable_mq.store.dialects.base import is_ours

Values = Mapping[str, Any]


class Direct:
    """A statement, compiled once for each engine.

    What SQLAlchemy does to each execution of one costs as much as the driver does, and these are
    run for every message. Values reach the driver unchanged, so they must be of types that need
    no conversion; but text of *identifiers* is encoded where the columns hold bytes (MariaDB and
    MySQL). *names* are those of all values.
    """

    def __init__(
        self,
        statement: Insert | Delete | Select[Any],
        names: Collection[str],
        *,
        identifiers: Collection[str] = (),
    ) -> None:
        self.statement = statement
        self._names = tuple(names)
        self._identifiers = tuple(identifiers)
        self._compiled: WeakKeyDictionary[Dialect, _Compiled] = WeakKeyDictionary()

    def execute(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Execute it with the values of each of *rows*, at least one, in an open transaction.

        One row goes past SQLAlchemy, on any engine, where nobody would notice: see
        :func:`is_watched`. Errors are those of :meth:`fetch`.
        """
        compiled = self._compiled_for(connection.dialect)
        if not compiled.is_plain:
            connection.execute(self.statement, rows)
        elif len(rows) > 1 or is_watched(connection) or not _is_active(connection):
            connection.exec_driver_sql(compiled.sql, compiled.parameters(rows))
        else:
            with _cursor(connection, compiled.sql) as cursor:
                cursor.execute(compiled.sql, compiled.parameters(rows))

    def fetch(self, connection: Connection, row: Values) -> Sequence[Any]:
        """Execute it with the values of *row* and return the first row of its result.

        On an engine of the store's own past SQLAlchemy, whose result object would cost as much as
        the driver and the server. Errors are SQLAlchemy's all the same, and a connection that was
        lost is invalidated, with the others of its pool. On an engine of the application's its
        log and its hooks see it, as they see everything.
        """
        compiled = self._compiled_for(connection.dialect)
        if not (compiled.is_plain and is_ours(connection)):
            return connection.execute(self.statement, row).one()
        with _cursor(connection, compiled.sql) as cursor:
            cursor.execute(compiled.sql, compiled.parameters([row]))
            return cast("Sequence[Any]", cursor.fetchone())

    def fetch_all(self, connection: Connection, row: Values) -> Sequence[Sequence[Any]]:
        """Return all rows, as :meth:`fetch` does the first, in the form that costs least."""
        compiled = self._compiled_for(connection.dialect)
        if not (compiled.is_plain and is_ours(connection)):
            return connection.execute(self.statement, row).all()
        with _cursor(connection, compiled.sql) as cursor:
            if connection.dialect.driver == "psycopg":
                # Binary: as text a body takes twice its size, and half of the time of a read.
                cursor.format = 1
            cursor.execute(compiled.sql, compiled.parameters([row]))
            return cast("Sequence[Sequence[Any]]", cursor.fetchall())

    def _compiled_for(self, dialect: Dialect) -> _Compiled:
        compiled = self._compiled.get(dialect)
        if compiled is None:
            encoded = self._identifiers if dialect.name in MYSQL_FAMILY else ()
            compiled = _Compiled(self.statement, dialect, self._names, encoded)
            self._compiled[dialect] = compiled
        return compiled


def is_watched(connection: Connection) -> bool:
    """Tell whether the application has its statements on *connection* shown to it, or logged."""
    # Of the dialect: "handle_error", and hooks that execute in its place.
    dialect = connection.dialect
    if connection._has_events or connection._echo or dialect._has_events:
        return True
    if getattr(dialect.do_execute, "__func__", None) is not DefaultDialect.do_execute:
        return True
    told: Any = connection.engine.dispatch
    return bool(told.before_cursor_execute or told.after_cursor_execute)


def _is_active(connection: Connection) -> bool:
    """Tell whether SQLAlchemy would let a statement into the transaction there is, if there is."""
    block = connection._trans_context_manager
    return connection.in_transaction() and (block is None or block._transaction_is_active())


def run(connection: Connection, sql: str) -> None:
    """Run *sql*, which has no parameters and no result, past SQLAlchemy on any engine.

    For what it would not let through, or count as its own: BEGIN and its end in AUTOCOMMIT.
    """
    with _cursor(connection, sql) as cursor:
        cursor.execute(sql)


@contextmanager
def invalidated_by_errors(connection: Connection) -> Iterator[None]:
    """Close *connection*, which is in AUTOCOMMIT, behind any error inside the block.

    There no ROLLBACK makes psycopg forget what it has prepared, and a statement that has become
    wrong, because a column has another type since, would fail for as long as the connection lives.
    """
    try:
        yield
    except BaseException as error:
        if not connection.invalidated:
            connection.invalidate(error)
        raise


@contextmanager
def _cursor(connection: Connection, sql: str) -> Iterator[Any]:
    """Give the block a cursor of the driver; its errors leave as SQLAlchemy's."""
    cursor = None
    try:
        cursor = connection.connection.cursor()
        yield cursor
    except connection.dialect.loaded_dbapi.Error as error:
        raise _translated(connection, error, sql) from error
    except BaseException as error:
        if not isinstance(error, Exception):
            # Cancelled in the middle of an answer that nobody will read.
            connection.invalidate(error)
        raise
    finally:
        if cursor is not None:
            cursor.close()


def _translated(connection: Connection, error: Any, sql: str) -> StatementError:
    dialect = connection.dialect
    if dialect.is_disconnect(error, connection.connection.dbapi_connection, None):
        # By a statement of its own SQLAlchemy sees that, and clears the pool as it always does.
        with suppress(DBAPIError):
            connection.exec_driver_sql("SELECT 1")
    translated: StatementError = DBAPIError.instance(
        sql,
        None,  # Values are the application's data, which an error has no business to show.
        error,
        dialect.loaded_dbapi.Error,
        hide_parameters=True,
        connection_invalidated=connection.invalidated,
        dialect=dialect,
    )
    return translated


class _Compiled:
    def __init__(
        self,
        statement: Insert | Delete | Select[Any],
        dialect: Dialect,
        names: Sequence[str],
        encoded: Sequence[str],
    ) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=list(names))
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 - what compiling gives
        self.sql = compiled.string
        # An injected clock may have parameters of its own, for SQLAlchemy to fill in.
        self.is_plain = set(compiled.binds) == set(names)
        self._order = compiled.positiontup
        self._encoded = encoded

    def parameters(self, rows: Sequence[Values]) -> Any:
        values = [self._values(row) for row in rows]
        return values[0] if len(values) == 1 else values

    def _values(self, row: Values) -> Any:
        if self._encoded:
            row = {**row, **{name: _bytes(row[name]) for name in self._encoded}}
        return row if self._order is None else tuple(row[name] for name in self._order)


def _bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value
