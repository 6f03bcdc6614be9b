"""The one transaction that holds an inbox row and the effects of its handler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction

from reliable_mq.consumer.guard import Guard, TransactionLostError, unwatch, watch
from reliable_mq.consumer.lanes import Lane
from reliable_mq.consumer.sharing import SharedSessions, synchronous
from reliable_mq.handlers import Injection
from reliable_mq.store import current, outbox

if TYPE_CHECKING:
    from reliable_mq.store import Store


_KEY = "reliable_mq_handler"
"""Key in ``Session.info`` of a session that a handler was given: its transaction."""


class HandlerTransaction:
    """An open transaction of ours that handlers may take part in.

    ``committing`` is True from the COMMIT on: an error after that leaves its outcome unknown.

    Where several handlers are to run in it (*shared*) they have one session, and what they add
    is written together: see :class:`~reliable_mq.consumer.sharing.SharedSessions`.
    """

    def __init__(
        self, store: Store, lane: Lane, connection: Connection, *, shared: bool = False
    ) -> None:
        self.connection = connection
        self.committing = False
        self.guard = Guard(store.dialect)
        self._store = store
        self._lane = lane
        self._sessions: list[Any] = []
        self._pool: SharedSessions | None = None
        if shared:
            self._pool = SharedSessions()
            self.guard.before_statement = self._pool.before_statement

    def provide(self, injection: Injection) -> Any:
        """Return the session or connection of *injection*, joined to this transaction."""
        known = None if self._pool is None else self._pool.get(injection)
        if known is not None:
            return known
        made = self._lane.open_session(injection, self.connection)
        if made is not self.connection and hasattr(made, "commit") and hasattr(made, "close"):
            self._sessions.append(made)
            session = synchronous(made)
            if isinstance(session, Session):
                session.info[_KEY] = self
            if self._pool is not None:
                self._pool.add(injection, made)
        return made

    def open_savepoint(self, session: Session) -> None:
        """Emit the SAVEPOINT that *session* has begun, which it would do at its next statement.

        Until then nobody can tell that what is published on the connection belongs to it.
        """
        session.connection(bind_arguments=self._store.bind_arguments)

    def rolled_back(self) -> None:
        """Note that a session was rolled back, perhaps before it had used the connection."""
        self.guard.ended = self.guard.ended or "by a rollback"

    def handled(self) -> None:
        """See to what a handler left in its sessions: it has returned. Raises its errors."""
        if self._pool is None:
            self.flush()
        else:
            self._pool.handled()
        self.guard.check()

    def flush(self) -> None:
        """Write what the handlers' sessions hold back, and close them."""
        sessions, self._sessions = self._sessions, []
        if self._pool is not None:
            self._pool.close()
        for session in sessions:
            inner = synchronous(session)
            if inner is None:
                continue  # an AsyncConnection holds nothing back
            inner.commit()
            inner.close()

    def commit(self) -> None:
        """Commit, unless the transaction is lost: then raise ``TransactionLostError``."""
        self.flush()
        # Messages published on the connection itself. An error here is not one of the COMMIT.
        outbox.flush(self.connection)
        self.guard.check()
        if not self._store.dialect.can_commit(self.connection):
            raise TransactionLostError("the database has ended the transaction by itself")
        self.guard.finishing = True
        self.committing = True
        self.connection.commit()

    def rollback(self) -> None:
        """Undo everything; the connection may be broken already."""
        self.guard.finishing = True
        if self._pool is not None:
            self._pool.close()
        for session in self._sessions:
            inner = getattr(session, "sync_session", session)
            inner.close()
        self._sessions = []
        if self.connection.in_transaction() and not self.connection.invalidated:
            self.connection.rollback()


@contextmanager
def handler_transaction(
    store: Store, lane: Lane, *, idle_timeout: float, shared: bool
) -> Iterator[HandlerTransaction]:
    """Open a transaction in the block; what it does not commit is rolled back."""
    with lane.writing(), lane.engine().connect() as connection:
        store.dialect.begin(connection, idle_timeout=idle_timeout)
        transaction = HandlerTransaction(store, lane, connection, shared=shared)
        watch(connection, transaction.guard)
        try:
            with current.entered(store, connection) as entry:
                try:
                    yield transaction
                finally:
                    entry.end()
                    if not transaction.committing:
                        _roll_back(transaction)
        finally:
            _leave(store, connection, transaction.guard)


def _roll_back(transaction: HandlerTransaction) -> None:
    try:
        transaction.rollback()
    except Exception:  # noqa: BLE001 - drivers raise anything on a broken socket
        # The database or the network ended it; the server has rolled back or will.
        transaction.connection.invalidate()


def _leave(store: Store, connection: Connection, guard: Guard) -> None:
    unwatch(connection)
    if connection.invalidated:
        return
    if connection.in_transaction() or guard.ended is not None:
        # A COMMIT of unknown outcome, or a handler that interfered: SQLAlchemy and the database
        # may not agree on what is open, so nobody may use this connection again.
        connection.invalidate()
        return
    store.dialect.finish(connection)


# --- events -------------------------------------------------------------------------------------

# On the class, as for each session of each handler they would cost more than all else it does.


def _after_transaction_create(session: Session, transaction: SessionTransaction) -> None:
    if transaction.nested and (ours := session.info.get(_KEY)) is not None:
        ours.open_savepoint(session)


def _after_soft_rollback(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None and (ours := session.info.get(_KEY)) is not None:
        ours.rolled_back()


event.listen(Session, "after_transaction_create", _after_transaction_create)
event.listen(Session, "after_soft_rollback", _after_soft_rollback)
