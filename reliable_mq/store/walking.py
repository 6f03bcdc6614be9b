"""Walking along indexes on PostgreSQL, whatever its planner thinks of it.

A plan that was made (and, prepared, kept) while a table was empty would sort ten million rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from reliable_mq.store.dialects.base import is_ours
from reliable_mq.store.direct import invalidated_by_errors, run

if TYPE_CHECKING:
    from reliable_mq.store.store import Store

_OFF = ("enable_seqscan", "enable_bitmapscan", "enable_sort", "jit")

_LEVEL = "ISOLATION LEVEL READ COMMITTED"

_FOR_GOOD = f"SET SESSION CHARACTERISTICS AS TRANSACTION {_LEVEL}; " + "; ".join(
    f"SET {name} = off" for name in _OFF
)
_ONCE = f"BEGIN {_LEVEL} READ ONLY; " + "; ".join(f"SET LOCAL {name} = off" for name in _OFF)
"""One round trip, on a connection that begins no transactions by itself."""

_WALKS = "reliable_mq_walks"
"""Key in ``Connection.info`` of a connection that has these settings for good."""


def walk_for_good(connection: Any, record: Any) -> None:
    """Put the settings on a new connection of the driver's, in AUTOCOMMIT, for all its life.

    A listener for "connect". Does nothing where a pooler may be in between, which could hand the
    session to somebody else, and that is wherever the driver does not know whose it is.
    """
    login = getattr(connection, "info", None)
    cursor = connection.cursor()
    try:
        cursor.execute("SELECT pg_backend_pid()")
        (own,) = cursor.fetchone()
        if own == getattr(login, "backend_pid", None):
            cursor.execute(_FOR_GOOD)
            record.info[_WALKS] = True
    finally:
        cursor.close()


@contextmanager
def walking(store: Store) -> Iterator[Connection]:
    """Give the block a connection to read on.

    On PostgreSQL its plans walk along indexes: each statement a transaction by itself on a
    connection that the store has made for that, all in one on an engine of the application's and
    behind a pooler. On other databases it is as their engine gives it, but READ COMMITTED.
    """
    with store.walking_engine.connect() as connection:
        with _ways(store, connection):
            yield connection
        # Not a ROLLBACK: after one psycopg forgets the statement that it has prepared.
        connection.commit()


@contextmanager
def walking_alone(store: Store) -> Iterator[Connection | None]:
    """Give the block a connection on which plans walk along indexes, made by the store for that.

    Each statement is a transaction by itself there. None on other databases, on an engine of the
    application's and behind a pooler.
    """
    if store.walking_engine is store.engine:
        yield None
        return
    with store.walking_engine.connect() as connection:
        if _WALKS in connection.info:
            with invalidated_by_errors(connection):
                yield connection
            connection.commit()
        else:
            yield None


def _ways(store: Store, connection: Connection) -> AbstractContextManager[None]:
    if _WALKS in connection.info:
        return invalidated_by_errors(connection)
    if store.dialect.name == "postgresql":
        return _transaction(connection)
    if store.dialect.name == "mysql" and not is_ours(connection):
        # Its engine's own level may lock what is read, which we delete beside.
        store.dialect.begin(connection)
    return nullcontext()


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    """Read inside the block in one transaction, which takes two round trips."""
    connection.execution_options(isolation_level="AUTOCOMMIT")
    try:
        run(connection, _ONCE)
        yield
        run(connection, "COMMIT")
    except BaseException:
        _undo(connection)
        raise


def _undo(connection: Connection) -> None:
    """End a transaction that nobody else ends: in AUTOCOMMIT SQLAlchemy knows of none."""
    if not connection.invalidated:
        try:
            run(connection, "ROLLBACK")
        except DBAPIError as error:
            connection.invalidate(error)
