"""Messages of a plain ``Connection``: kept per root transaction, written by its commit event."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, Transaction, event
from sqlalchemy.pool import ConnectionPoolEntry

from reliable_mq.errors import NoTransactionError
from reliable_mq.message import Message
from reliable_mq.store.outbox.writing import Pending, refuse_autocommit

if TYPE_CHECKING:
    from reliable_mq.store.store import Store


class _Buffer:
    """What one root transaction has published and not written yet."""

    def __init__(self) -> None:
        self.pending = Pending()
        self.appended: set[Store] = set()

    def write(self, connection: Connection) -> None:
        while self.pending:
            store = self.pending.store
            self.pending.write(store, connection)
            self.appended.add(store)


_COMMITTED = "reliable_mq_committed"
"""Key in ``Connection.info``: the stores that its last commit wrote to."""

_buffers: WeakKeyDictionary[Transaction, _Buffer] = WeakKeyDictionary()
_sessions: WeakKeyDictionary[Connection, WeakSet[Sized]] = WeakKeyDictionary()
"""The ORM sessions on a connection that publish, each as what it holds back itself."""

_listening: WeakSet[Engine] = WeakSet()
_lock = threading.Lock()


def add(connection: Connection, store: Store, message: Message) -> None:
    """Keep *message* until the transaction on *connection* commits.

    Raises ``NoTransactionError`` without one.
    """
    if not connection.in_transaction():
        raise NoTransactionError(
            "the Connection is in no transaction: publish inside 'with connection.begin()' or "
            "'with engine.begin()'"
        )
    refuse_autocommit(connection)
    buffer = _buffer_of(connection)
    buffer.pending.add(store, message, savepoint=_savepoint_of(connection))
    may_write = not connection.dialect.is_async
    # Rows are numbered as they are written, and a session may hold earlier messages.
    if buffer.pending.is_large and may_write and not any(_sessions.get(connection, ())):
        _write_in_savepoint(connection, buffer)


def expect(connection: Connection, session: Sized) -> None:
    """Know that what *session* holds back will be written on *connection*."""
    _sessions.setdefault(connection, WeakSet()).add(session)


def must_wait(connection: Connection, session: Sized) -> bool:
    """Tell whether others than *session* hold messages back that may come before its own."""
    buffer = _open_buffer(connection)
    if buffer is not None and buffer.pending:
        return True
    return any(other for other in _sessions.get(connection, ()) if other is not session)


def take(connection: Connection, messages: Pending, store: Store) -> None:
    """Keep those *messages* that are for *store*, of a session on *connection*, among our own.

    They belong to the innermost savepoint on *connection*.
    """
    part = messages.part(store, savepoint=_savepoint_of(connection))
    _buffer_of(connection).pending.extend(part)


def pending(connection: Connection) -> list[Message]:
    """Return the messages that the transaction on *connection* has yet to write."""
    buffer = _open_buffer(connection)
    return [] if buffer is None else list(buffer.pending)


def flush(connection: Connection) -> None:
    """Write what the transaction on *connection* holds back, inside it, and now."""
    buffer = _open_buffer(connection)
    if buffer is not None:
        _write_in_savepoint(connection, buffer)


def signal_after_commit(connection: Connection, store: Store) -> None:
    """Have *store* told once the transaction open on *connection*, which holds rows, commits."""
    _buffer_of(connection).appended.add(store)


def _buffer_of(connection: Connection) -> _Buffer:
    _listen(connection.engine)
    transaction = connection.get_transaction()
    assert transaction is not None  # noqa: S101 - the callers have seen it
    buffer = _buffers.get(transaction)
    if buffer is None:
        buffer = _buffers[transaction] = _Buffer()
    return buffer


def _write_in_savepoint(connection: Connection, buffer: _Buffer) -> None:
    """Write what *buffer* holds, unless a savepoint that may be rolled back would take too much."""
    if buffer.pending.lies_in(_savepoint_of(connection)):
        buffer.write(connection)


def _savepoint_of(connection: Connection) -> int:
    nested = connection.get_nested_transaction()
    return 0 if nested is None else _number_of(nested._savepoint)


def _number_of(savepoint: str) -> int:
    # SQLAlchemy names them sa_savepoint_1, sa_savepoint_2, ... per connection.
    return int(savepoint.rpartition("_")[2])


# --- events -------------------------------------------------------------------------------------


def _listen(engine: Engine) -> None:
    """Listen on engines that are used in this way, and on no other."""
    if engine in _listening:
        return
    with _lock:
        if engine not in _listening:
            event.listen(engine, "begin", _on_begin)
            event.listen(engine, "begin_twophase", _on_begin)
            event.listen(engine, "checkin", _on_checkin)
            event.listen(engine, "commit", _on_commit)
            event.listen(engine, "rollback", _on_rollback)
            event.listen(engine, "rollback_savepoint", _on_rollback_savepoint)
            event.listen(engine, "prepare_twophase", _on_prepare)
            event.listen(engine, "commit_twophase", _on_commit_twophase)
            event.listen(engine, "rollback_twophase", _on_rollback)
            _listening.add(engine)


def _open_buffer(connection: Connection) -> _Buffer | None:
    transaction = connection.get_transaction()
    return None if transaction is None else _buffers.get(transaction)


def _on_commit(connection: Connection) -> None:
    buffer = _open_buffer(connection)
    if buffer is not None:
        dialect = connection.dialect
        _write_or(buffer, connection, lambda: dialect.do_rollback(connection.connection))
        _signal_when_over(connection, buffer)


def _on_prepare(connection: Connection, xid: object) -> None:
    buffer = _open_buffer(connection)
    if buffer is not None:
        buffer.write(connection)


def _on_commit_twophase(connection: Connection, xid: Any, is_prepared: bool) -> None:
    buffer = _open_buffer(connection)
    if buffer is not None:
        if not is_prepared:
            dialect = connection.dialect
            _write_or(
                buffer,
                connection,
                lambda: dialect.do_rollback_twophase(connection, xid, is_prepared=False),
            )
        _signal_when_over(connection, buffer)


def _write_or(buffer: _Buffer, connection: Connection, roll_back: Callable[[], None]) -> None:
    try:
        buffer.write(connection)
    except BaseException:
        # SQLAlchemy takes a transaction for over whose commit failed, but the driver still has
        # this one open: the next COMMIT would store its business rows without the messages.
        # A connection that is lost took everything with it, and an error of ours would hide that.
        if not connection.invalidated:
            roll_back()
        raise


def _on_rollback(connection: Connection, *details: Any) -> None:
    transaction = connection.get_transaction()
    if transaction is not None:
        _buffers.pop(transaction, None)


def _on_rollback_savepoint(connection: Connection, name: str, context: object) -> None:
    buffer = _open_buffer(connection)
    if buffer is not None:
        buffer.pending.roll_back_to(_number_of(name))


def _signal_when_over(connection: Connection, buffer: _Buffer) -> None:
    """Tell the stores once the COMMIT, which is still to come, is over.

    There is no event for that. What always follows it, mostly at once, is the connection's way
    back to its pool or its next transaction.
    """
    if buffer.appended:
        connection.info.setdefault(_COMMITTED, set()).update(buffer.appended)


def _on_begin(connection: Connection, *details: Any) -> None:
    _signal(connection.info)


def _on_checkin(driver_connection: object, record: ConnectionPoolEntry) -> None:
    _signal(record.info)


def _signal(info: dict[Any, Any]) -> None:
    for store in info.pop(_COMMITTED, ()):
        store.after_append()
