"""One session for the handlers of a batch, so that what they add is written in one go."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from reliable_mq.consumer.guard import TransactionLostError
from reliable_mq.handlers import Injection


class SharedSessions:
    """The sessions of one batch, by the class that handlers ask for.

    Only new objects wait, and only as long as nobody can tell:

    - Whatever statement a later handler runs, they are written before it. Where that handler has
      added something of its own by then, which its statement is not to see, the batch ends.
    - Changed and deleted objects are written when their handler returns: a later one could undo
      them by ``expire_all()``.
    - New objects that leave the session unwritten, because somebody closed, emptied or rolled
      back, may be an earlier handler's: the batch ends.

    A batch that ends is undone, and each message is handled by itself.
    """

    def __init__(self) -> None:
        self._by_type: dict[type, Any] = {}
        self._waiting: dict[Session, int] = {}
        """How many new objects of handlers that have returned each session holds back."""
        self._broken: str | None = None

    def get(self, injection: Injection) -> Any:
        """Return the session that fills *injection*, if there is one."""
        return self._by_type.get(injection.type)

    def add(self, injection: Injection, made: Any) -> None:
        """Share *made* from now on, if it is a session."""
        session = synchronous(made)
        if isinstance(session, Session):
            self._by_type[injection.type] = made
            self._waiting[session] = 0
            event.listen(session, "pending_to_transient", self._left)
            event.listen(session, "after_flush", self._flushed)

    def handled(self) -> None:
        """Note that a handler has returned; raise its errors."""
        for session in self._waiting:
            if session.dirty or session.deleted:
                session.flush()
            self._waiting[session] = _new_in(session)
        self._check()

    def before_statement(self) -> None:
        """Write what earlier handlers have added: a statement is about to run."""
        for session, waiting in self._waiting.items():
            # A flush runs statements too. There is no public way to ask for one.
            if not waiting or session._flushing:
                continue
            if _new_in(session) != waiting:
                self._broken = "a statement ran between new objects of two handlers"
                self._check()
            session.flush()

    def close(self) -> None:
        """Share nothing any more."""
        for session in self._waiting:
            event.remove(session, "pending_to_transient", self._left)
            event.remove(session, "after_flush", self._flushed)
        self._waiting = {}
        self._by_type = {}

    def _left(self, session: Session, instance: object) -> None:
        self._broken = "new objects were taken out of a session that handlers share"

    def _flushed(self, session: Session, context: object) -> None:
        self._waiting[session] = 0

    def _check(self) -> None:
        if self._broken is not None:
            raise TransactionLostError(self._broken)


def _new_in(session: Session) -> int:
    # Not "session.new": that is made anew, of all of them, each time it is asked for.
    return len(session._new)


def synchronous(session: Any) -> Any:
    """Return the session that does the work of *session*; None for what holds nothing back."""
    inner = getattr(session, "sync_session", session)
    return inner if inner is not session or hasattr(session, "flush") else None
