"""Putting a message into the outbox, inside whatever transaction the application has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from reliable_mq.errors import NoTransactionError
from reliable_mq.message import Message
from reliable_mq.store.current import Target
from reliable_mq.store.outbox import connection_buffer, session_buffer

if TYPE_CHECKING:
    from reliable_mq.store.store import Store

AnyTarget = Target | scoped_session[Any] | async_scoped_session[Any]


def append(store: Store, target: AnyTarget, message: Message) -> None:
    """Put *message* into the outbox of *store* when the transaction of *target* commits.

    Nothing is sent if it rolls back, to a savepoint included. Rows get their numbers in the order
    of these calls, whichever session or connection of the transaction they name. The messages of
    a transaction are kept in memory and written by one INSERT right before its COMMIT, so that an
    error of the database shows there; above 1,000 messages or 1 MiB a synchronous one writes them
    at once, unless they have to wait for earlier ones. Never awaits.

    Raises ``NoTransactionError`` where *target* has no transaction that could hold the message,
    and ``ConfigurationError``, at the commit, where nobody would relay what it writes.
    """
    inner = _unwrap(target)
    if isinstance(inner, Session):
        session_buffer.add(inner, store, message)
    else:
        connection_buffer.add(inner, store, message)


def pending(target: AnyTarget) -> list[Message]:
    """Return what was published into the transaction of *target* and is not written to it yet."""
    inner = _unwrap(target)
    if isinstance(inner, Session):
        return session_buffer.pending(inner)
    return connection_buffer.pending(inner)


def flush(connection: Connection) -> None:
    """Write the messages published into *connection* now, inside its transaction.

    Its COMMIT would do so by itself. Done before, an error of the INSERT cannot be taken for a
    COMMIT of unknown outcome. Inside a savepoint, messages from outside it stay unwritten.
    """
    connection_buffer.flush(connection)


def _unwrap(target: AnyTarget) -> Session | Connection:
    if isinstance(target, Session | Connection):
        return target
    if isinstance(target, AsyncSession):
        return target.sync_session
    if isinstance(target, AsyncConnection):
        if target.sync_connection is None:
            raise NoTransactionError(
                "the AsyncConnection is not started: await it, or 'async with'"
            )
        return target.sync_connection
    if isinstance(target, scoped_session | async_scoped_session):
        return _unwrap(target())
    raise TypeError(
        "session must be a Session, AsyncSession, Connection, AsyncConnection or scoped_session "
        f"of SQLAlchemy, not {type(target).__name__}"
    )
