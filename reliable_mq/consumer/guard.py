"""Watching a handler's transaction: a database error it swallowed must not be committed.

PostgreSQL turns the COMMIT of a failed transaction into a ROLLBACK without a word, MariaDB
undoes a deadlocked transaction and goes on in a new one, SQLite may roll back under us. In each
case the message would be acknowledged and its effects be gone. The same follows where a handler
ends the transaction by SQL of its own, or by DDL on a database where that commits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from reliable_mq.errors import ReliableMQError
from reliable_mq.store.dialects import StoreDialect, Trouble

_OF_ONE_STATEMENT = (Trouble.FULL, Trouble.OTHER)


class TransactionLostError(ReliableMQError):
    """The handler returned, but its transaction had failed or ended before; nothing is kept."""


class Guard:
    """What the events of one connection told about the transaction we opened on it."""

    def __init__(self, dialect: StoreDialect) -> None:
        self._dialect = dialect
        self.error: BaseException | None = None
        self.trouble: Trouble | None = None
        self.ended: str | None = None
        self.finishing = False
        self.before_statement: Callable[[], None] | None = None
        """Called before each statement on the connection."""

    def saw(self, connection: Connection, error: BaseException) -> None:
        """A statement failed on the connection."""
        if isinstance(error, TransactionLostError):
            return  # our own refusal: nothing ran
        trouble = self._dialect.classify(error, connection)
        if trouble in _OF_ONE_STATEMENT and connection.in_nested_transaction():
            return  # the savepoint's ROLLBACK undoes it, or its RELEASE fails in turn
        if self.error is None:
            self.error = error
            self.trouble = trouble

    def refuse(self, statement: str) -> None:
        """Raise where *statement*, not run yet, would end the transaction."""
        ending = self._dialect.ending.match(statement)
        if ending is not None:
            word = ending["what"].upper()
            self.ended = f"by the statement {word}"
            raise TransactionLostError(
                f"a handler's transaction would be ended by {word}, and with it what keeps its "
                "effects and its message together: return to commit, raise to roll back, and "
                "change the schema elsewhere"
            )

    def check(self) -> None:
        """Raise :class:`TransactionLostError` where there is nothing left to commit."""
        if self.error is not None:
            raise TransactionLostError(
                "the handler swallowed a database error that ended its transaction "
                f"({type(self.error).__name__}); catch errors outside a savepoint "
                "(session.begin_nested()) only to raise them again"
            ) from self.error
        if self.ended is not None:
            raise TransactionLostError(
                f"the handler ended the transaction it was given ({self.ended}); "
                "raise an exception to undo it, return to commit it"
            )


_guards: WeakKeyDictionary[Connection, Guard] = WeakKeyDictionary()
_watched: WeakSet[Engine] = WeakSet()
_lock = threading.Lock()


def watch(connection: Connection, guard: Guard) -> None:
    """Report to *guard* what happens on *connection* until :func:`unwatch`."""
    engine = connection.engine
    with _lock:
        if engine not in _watched:
            _listen(engine)
            _watched.add(engine)
        _guards[connection] = guard


def unwatch(connection: Connection) -> None:
    """Stop watching *connection*."""
    with _lock:
        _guards.pop(connection, None)


def _listen(engine: Engine) -> None:
    event.listen(engine, "handle_error", _on_error)
    event.listen(engine, "before_cursor_execute", _on_execute)
    event.listen(engine, "begin", _on_begin)
    event.listen(engine, "commit", _on_commit)
    event.listen(engine, "rollback", _on_rollback)


def _on_error(context: ExceptionContext) -> None:
    guard = _guards.get(context.connection) if context.connection is not None else None
    if guard is not None and context.connection is not None:
        error = context.sqlalchemy_exception or context.original_exception
        guard.saw(context.connection, error)


def _on_execute(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
    guard = _guards.get(connection)
    if guard is not None and not guard.finishing:
        guard.refuse(statement)
        if guard.before_statement is not None:
            guard.before_statement()


def _on_begin(connection: Connection, *_: Any) -> None:
    guard = _guards.get(connection)
    if guard is not None and not guard.finishing:
        guard.ended = guard.ended or "by beginning another one"
        raise TransactionLostError(
            "the transaction of this handler has ended and no other one can begin on its "
            "connection; use an engine of your own for work outside it"
        )


def _on_commit(connection: Connection) -> None:
    guard = _guards.get(connection)
    if guard is not None and not guard.finishing:
        guard.ended = "by a commit on its connection"
        raise TransactionLostError(
            "a handler cannot commit the transaction it was given: it is committed together "
            "with the inbox row when the handler returns"
        )


def _on_rollback(connection: Connection) -> None:
    guard = _guards.get(connection)
    if guard is not None and not guard.finishing and guard.ended is None:
        guard.ended = "by a rollback"
