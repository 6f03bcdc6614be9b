"""Messages of an ORM ``Session``: kept per transaction and savepoint, written by its commit.

The listeners are on the class ``Session``, so they see every session of the process from the
moment this module is imported, and cost one that never publishes next to nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, NestedTransaction, event
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util.concurrency import in_greenlet

from reliable_mq.errors import NoTransactionError
from reliable_mq.message import Message
from reliable_mq.store.outbox import connection_buffer
from reliable_mq.store.outbox.writing import Pending, refuse_autocommit

if TYPE_CHECKING:
    from reliable_mq.store.store import Store

log = logging.getLogger("reliable_mq")

_KEY = "reliable_mq_outbox"
"""Key in ``Session.info``."""


class _Frame:
    """What belongs to one ``SessionTransaction`` that is a root or a savepoint.

    ``joined`` has the connections it began on, each with the savepoint that was open there then.
    ``dropped`` are topics of savepoints that ended inside it without commit or rollback.
    ``commits`` counts the events that announced its commit, or that of a transaction around it.
    A ``sealed`` frame was written for its commit: whatever a later hook adds is written at once.
    """

    __slots__ = ("bound", "commits", "dropped", "joined", "pending", "sealed")

    def __init__(self) -> None:
        self.pending = Pending()
        self.joined: dict[Connection, NestedTransaction | None] = {}
        self.bound: dict[Store, Connection | Engine] = {}
        self.dropped: list[str] = []
        self.sealed = False
        self.commits = 0


class _State:
    """Everything about one session, while its root transaction lasts."""

    def __init__(self) -> None:
        self.frames: dict[SessionTransaction, _Frame] = {}
        self.appended: set[Store] = set()

    def __len__(self) -> int:
        return sum(len(frame.pending) for frame in self.frames.values())

    def frame(self, transaction: SessionTransaction) -> _Frame:
        frame = self.frames.get(transaction)
        if frame is None:
            frame = self.frames[transaction] = _Frame()
        return frame

    def around(self, transaction: SessionTransaction) -> list[_Frame]:
        """Return the frames that contain *transaction*, itself included, the root's first."""
        found: list[_Frame] = []
        step: SessionTransaction | None = transaction
        while step is not None:
            if step in self.frames:
                found.append(self.frames[step])
            step = step.parent
        found.reverse()
        return found


def add(session: Session, store: Store, message: Message) -> None:
    """Keep *message* until the session's innermost transaction commits, and those around it.

    Begins a transaction where the session would do so by itself. Raises ``NoTransactionError``
    where it would not, and SQLAlchemy's own error where the session waits for its rollback.
    """
    transaction = _transaction_of(session)
    state = _state_of(session)
    frame = state.frame(transaction)
    frames = state.around(transaction)
    _refuse_foreign_savepoint(frames)
    bind = frame.bound.get(store)
    if bind is None:
        bind = frame.bound[store] = _bind_of(session, state, store, frames)
    frame.pending.add(store, message)
    if frame.pending.is_large or any(each.sealed for each in frames):
        may_write = not bind.dialect.is_async or in_greenlet()
        # What an outer frame holds must not be written inside a savepoint that may roll back.
        if may_write and not any(outer.pending for outer in frames[:-1]):
            _write(session, state, frame)


def pending(session: Session) -> list[Message]:
    """Return the messages that the session's transaction, savepoints included, has yet to write."""
    state: _State | None = session.info.get(_KEY)
    transaction = session.get_nested_transaction() or session.get_transaction()
    if state is None or transaction is None:
        return []
    return [message for frame in state.around(transaction) for message in frame.pending]


def _transaction_of(session: Session) -> SessionTransaction:
    if not session.is_active:
        # Its own error, for example PendingRollbackError, says best what is wrong.
        session.connection()
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is not None:
        return transaction
    if not session.autobegin:
        raise NoTransactionError(
            "the Session has no transaction and autobegin=False: publish inside "
            "'with session.begin()'"
        )
    return session.begin()


def _state_of(session: Session) -> _State:
    state: _State | None = session.info.get(_KEY)
    if state is None:
        state = session.info[_KEY] = _State()
    return state


def _refuse_foreign_savepoint(frames: list[_Frame]) -> None:
    """Refuse where the connection has a savepoint that the session did not make.

    Its rollback would undo the business rows and leave the message.
    """
    for frame in reversed(frames):
        if frame.joined:
            for connection, known in frame.joined.items():
                if connection.get_nested_transaction() is not known:
                    raise NoTransactionError(
                        "the Session's connection is in a savepoint that the Session does not know "
                        "of: use session.begin_nested(), or publish with the Connection itself"
                    )
            return


def _bind_of(
    session: Session, state: _State, store: Store, frames: list[_Frame]
) -> Connection | Engine:
    bind = session.get_bind(**store.bind_arguments)
    joined = (c for frame in frames for c in frame.joined if bind in (c, c.engine))
    place = next(joined, bind)
    refuse_autocommit(place, getattr(session, "execution_options", {}))
    if isinstance(place, Connection):
        connection_buffer.expect(place, state)
    return bind


def _write(session: Session, state: _State, frame: _Frame) -> None:
    """Write what *frame* holds inside the session's current transaction.

    Rows are numbered as they are written. So where messages of the same transaction wait that
    were published with the connection, or with another session on it, these wait with them.
    """
    while frame.pending:
        store = frame.pending.store
        connection = session.connection(bind_arguments=store.bind_arguments)
        if connection_buffer.must_wait(connection, state):
            connection_buffer.take(connection, frame.pending, store)
        else:
            frame.pending.write(store, connection)
            state.appended.add(store)


# --- events -------------------------------------------------------------------------------------


def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    state = _state_of(session)
    state.frame(transaction).joined[connection] = connection.get_nested_transaction()
    if len(state):
        connection_buffer.expect(connection, state)


def _before_commit(session: Session) -> None:
    state = _state_of(session)
    nested = session.get_nested_transaction()
    if nested is not None:
        state.frame(nested).commits += 1
        return
    root = session.get_transaction()
    if root is None:
        return
    frame = state.frame(root)
    if frame.pending:
        # First what the application's own hooks still publish while they flush.
        session.flush()
        _write(session, state, frame)
    frame.sealed = True


def _after_commit(session: Session) -> None:
    state: _State | None = session.info.get(_KEY)
    if state is None:
        return
    nested = session.get_nested_transaction()
    if nested is not None:
        _merge(state, nested)
    elif state.appended:
        _signal(session, state)


def _merge(state: _State, nested: SessionTransaction) -> None:
    frame = state.frame(nested)
    outer = state.frame(_boundary(nested.parent))
    outer.pending.extend(frame.pending)
    outer.dropped.extend(frame.dropped)
    frame.dropped = []
    # One event was for this savepoint. More of them: "with session.begin()" ended and found it
    # open; the event for a transaction around it came while this one was innermost.
    outer.commits += max(0, frame.commits - 1)


def _boundary(transaction: SessionTransaction | None) -> SessionTransaction:
    """Return the savepoint or root that *transaction*, perhaps of a flush, is part of."""
    assert transaction is not None  # noqa: S101 - a savepoint has a parent
    while transaction.parent is not None and not transaction.nested:
        transaction = transaction.parent
    return transaction


def _signal(session: Session, state: _State) -> None:
    root = session.get_transaction()
    joined = state.frames[root].joined if root in state.frames else {}
    outer = next((c for c in joined if not c.closed and c.in_transaction()), None)
    for store in state.appended:
        if outer is None:
            store.after_append()
        else:
            # The session has joined a transaction of its connection, which is still to commit.
            connection_buffer.signal_after_commit(outer, store)
    state.appended.clear()


def _after_rollback(session: Session) -> None:
    state: _State | None = session.info.get(_KEY)
    transaction = session.get_nested_transaction() or session.get_transaction()
    if state is not None and transaction in state.frames:
        frame = state.frames[transaction]
        frame.pending = Pending()
        frame.dropped = []


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    state: _State | None = session.info.get(_KEY)
    if state is None or (transaction.parent is not None and not transaction.nested):
        return
    frame = state.frame(transaction)
    del state.frames[transaction]
    frame.dropped.extend(message.topic for message in frame.pending)
    if transaction.parent is None:
        del session.info[_KEY]
        _report_dropped(frame.dropped)
        return
    outer = _boundary(transaction.parent)
    state.frame(outer).dropped.extend(frame.dropped)
    if outer.parent is None and state.frame(outer).commits:
        # The root is committing, and its own event has come and gone: see _merge.
        _write(session, state, state.frame(outer))
        state.frame(outer).sealed = True


def _report_dropped(topics: list[str]) -> None:
    if topics:
        counted = ", ".join(f"{count} to {topic!r}" for topic, count in Counter(topics).items())
        log.warning(
            "a Session ended without commit or rollback; messages it published are not sent: %s",
            counted,
        )


event.listen(Session, "after_begin", _after_begin)
event.listen(Session, "before_commit", _before_commit)
event.listen(Session, "after_commit", _after_commit)
event.listen(Session, "after_rollback", _after_rollback)
event.listen(Session, "after_transaction_end", _after_transaction_end)
