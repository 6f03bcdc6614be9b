"""Hints from a process that appended to the outbox to the relays of other processes.

PostgreSQL only, by NOTIFY. A hint may be lost: a relay looks by itself every ``poll_interval``.
It goes out on a connection of its own after the commit, because a NOTIFY inside a business
transaction makes all committing transactions of the database queue up at one lock.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError

from reliable_mq.store import Store

log = logging.getLogger("reliable_mq")

_SHORTEST_GAP = 0.001
_LONGEST_GAP = 0.02
"""Seconds between two hints. While commits follow each other without a pause it is the longest:
relays are busy then, and look again by themselves. A commit after a pause waits for nothing."""

_KEPT = 1.0
"""Seconds without a hint after which its connection is closed."""

_SLICE = 0.5
_RECONNECT = 5.0
_CHECK_EVERY = 60


def channel_of(store: Store) -> str:
    """Return the channel of this store's outbox: one for each table prefix and schema."""
    name = store.tables.outbox.fullname
    return "reliable_mq_" + hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


class Notifier:
    """Tells other processes, soon after each commit, that there are rows to send.

    To be started in every process that appends. Does nothing but on PostgreSQL. Many commits
    within some milliseconds make one hint, and the last of them is always followed by one.
    Never blocks or fails a commit: it works on a thread of its own, which the first commit starts
    (also the first one in a forked process).
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows = False
        self._due = threading.Event()
        self._closed = threading.Event()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen for commits. Idempotent."""
        if self._store.dialect.name != "postgresql":
            return
        self._closed.clear()
        if self._appended not in self._store.on_appended:
            self._store.on_appended.append(self._appended)

    def close(self) -> None:
        """Stop; a hint that is due goes out before, unless that takes seconds. Idempotent."""
        if self._appended in self._store.on_appended:
            self._store.on_appended.remove(self._appended)
        self._closed.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def _appended(self) -> None:
        self._rows = True
        self._due.set()
        if self._thread is None or not self._thread.is_alive():
            self._launch()

    def _launch(self) -> None:
        with self._guard:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="reliable-mq-notify", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        # The thread's own: a forked process must not send on its parent's connection.
        line = _Line(self._store)
        gap = _SHORTEST_GAP
        while True:
            if not self._due.wait(_KEPT if line.is_open else None):
                line.close()
                continue
            # Cleared before it is sent: a commit from here on makes another hint.
            self._due.clear()
            if self._rows:
                self._rows = False
                line.send()
            if self._closed.is_set():
                line.close()
                return
            self._closed.wait(gap)
            gap = min(2 * gap, _LONGEST_GAP) if self._due.is_set() else _SHORTEST_GAP


class _Line:
    """The connection on which hints go out, kept as long as they follow each other.

    Not the pool's: while the application commits without a pause, there would be as much work in
    getting a connection and giving it back, a hundred times a second, as in the hints.
    """

    def __init__(self, store: Store) -> None:
        self._engine = store.engine
        # A hint has a COMMIT, which need not wait for the disk. For this one transaction alone:
        # behind a pooler the session is another client's next, and its commits must wait.
        self._notify = (
            "SELECT set_config('synchronous_commit', 'off', true), "
            f"pg_notify('{channel_of(store)}', '')"
        )
        self._connection: DBAPIConnection | None = None

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def send(self) -> None:
        kept = self.is_open
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.cursor().execute(self._notify)
        except (SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error) as error:
            self.close()
            if kept:  # It may have died long ago.
                self.send()
            else:
                log.debug("no hint was sent, the relays find the rows by themselves: %r", error)

    def _connect(self) -> DBAPIConnection:
        pooled = self._engine.raw_connection()
        connection = pooled.dbapi_connection
        assert connection is not None  # noqa: S101 - just connected
        pooled.detach()
        self._engine.dialect.set_isolation_level(connection, "AUTOCOMMIT")
        return connection

    def close(self) -> None:
        # By the driver: SQLAlchemy would roll back first, and log that as failed on a dead one.
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Listener:
    """Calls *woken* for each hint, on a thread of its own. Connects again by itself.

    Works with psycopg on PostgreSQL; with anything else it does nothing.
    """

    def __init__(self, store: Store, woken: Callable[[], None]) -> None:
        self._store = store
        self._woken = woken
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, where there is something to listen to."""
        dialect = self._store.engine.dialect
        if (dialect.name, dialect.driver) == ("postgresql", "psycopg"):
            self._thread = threading.Thread(
                target=self._run, name="reliable-mq-listen", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """End the thread; blocks up to a second or so. Idempotent."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._listen()
            except Exception as error:  # noqa: BLE001 - a hint is a comfort, polling goes on
                log.debug("no hints about new outbox rows for now: %r", error)
                self._closed.wait(_RECONNECT)

    def _listen(self) -> None:
        # Through the engine, for its way to log in; detached, because LISTEN must not be left
        # on a connection that goes back to the pool.
        pooled = self._store.engine.raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()
        try:
            connection.autocommit = True
            connection.execute(f"LISTEN {channel_of(self._store)}")
            self._woken()
            while not self._closed.is_set():
                self._receive(connection)
        finally:
            pooled.close()

    def _receive(self, connection: Any) -> None:
        for _ in range(_CHECK_EVERY):
            for _hint in connection.notifies(timeout=_SLICE):
                self._woken()
            if self._closed.is_set():
                return
        # A connection that died silently would look like one on which nothing happens.
        connection.execute("SELECT 1")
