"""Hints from a process that committed rows to the processes that wait for them.

From the outbox to relays, and from the topics of ``sql://`` to consumers. PostgreSQL only, by
NOTIFY. A hint may be lost: whoever waits looks by itself as well, only later. It goes out on a
connection of its own after the commit, because a NOTIFY inside a business transaction makes all
committing transactions of the database queue up at one lock.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar
from weakref import WeakSet

from sqlalchemy import Engine, Table
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError

from reliable_mq.store import Store

log = logging.getLogger("reliable_mq")

_SHORTEST_GAP = 0.001
_LONGEST_GAP = 0.02
_STREAM = 250.0
"""Seconds between two hints. While so many commits a second go on it grows to the longest: who
waits is busy then, and looks again by itself. Of fewer each waits for next to nothing."""

_KEPT = 1.0
"""Seconds without a hint after which its connection is closed."""

_SLICE = 0.1
"""Seconds after which a listener sees that it was closed. psycopg looks up as often by itself."""

_RECONNECT = 5.0
_CHECK_EVERY = 300


def digest(text: str) -> str:
    """Return hexadecimal digits that stand for *text* in channels and hints."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def channel_of(table: Table) -> str:
    """Return the channel of hints about *table*: another for each table prefix and schema."""
    return "reliable_mq_" + digest(table.fullname)


def next_gap(gap: float, commits: int) -> float:
    """Return the seconds between the next two hints, after *commits* within a *gap*."""
    is_stream = commits >= max(1.0, _STREAM * gap)
    return min(2 * gap, _LONGEST_GAP) if is_stream else _SHORTEST_GAP


class Notifier:
    """Tells the relays of other processes, soon after each commit, that there are rows to send.

    To be started in every process that appends. Does nothing but on PostgreSQL. See
    :class:`Hints` for what it costs the commits: nothing.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hints = Hints(store, channel_of(store.tables.outbox))

    def start(self) -> None:
        """Listen for commits. Idempotent."""
        if self._store.dialect.name != "postgresql":
            return
        self._hints.open()
        if self._appended not in self._store.on_appended:
            self._store.on_appended.append(self._appended)

    def close(self) -> None:
        """Stop; a hint that is due goes out before, unless that takes 5 seconds. Idempotent."""
        if self._appended in self._store.on_appended:
            self._store.on_appended.remove(self._appended)
        self._hints.close()

    def _appended(self) -> None:
        self._hints.send("")


class _Forked(ABC):
    """What has locks and a thread of its own, and new ones in a forked process.

    A lock that another thread held at the fork would never be released there.
    """

    _all: ClassVar[WeakSet[_Forked]] = WeakSet()

    def __init__(self) -> None:
        self._closed = threading.Event()
        self._begin_anew()
        _Forked._all.add(self)

    @abstractmethod
    def _begin_anew(self) -> None:
        """Make locks and events anew, and forget the thread."""

    @classmethod
    def after_fork(cls) -> None:
        """Put right what is there, in the new process."""
        for each in list(cls._all):
            was_closed = each._closed.is_set()
            each._closed = threading.Event()
            if was_closed:
                each._closed.set()
            each._begin_anew()


os.register_at_fork(after_in_child=_Forked.after_fork)


class Hints(_Forked):
    """Sends hints on one channel. Thread-safe. Does nothing but on PostgreSQL.

    Equal hints within some milliseconds become one, and the last of them is always followed by
    one. Never blocks or fails its caller: it works on a thread of its own, which the first hint
    starts (also the first one in a forked process).
    """

    def __init__(self, store: Store, channel: str) -> None:
        self._store = store
        self._channel = channel
        super().__init__()

    def _begin_anew(self) -> None:
        self._waiting: dict[str, None] = {}
        self._commits = 0
        self._due = threading.Event()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Be open again after :meth:`close`."""
        self._closed.clear()

    def send(self, hint: str) -> None:
        """Send *hint* soon: hexadecimal digits, spaces, or nothing. To be called after a commit."""
        if self._store.dialect.name != "postgresql":
            return
        self._waiting[hint] = None
        self._commits += 1  # without a lock: to lose one of many does not matter
        self._due.set()
        if self._thread is None or not self._thread.is_alive():
            self._launch()

    def close(self) -> None:
        """Stop; a hint that is due goes out before, unless that takes 5 seconds. Idempotent."""
        self.stop()
        if self._thread is not None:
            self._thread.join(5.0)

    def stop(self) -> None:
        """Begin to :meth:`close`, without waiting for the end."""
        self._closed.set()
        self._due.set()

    def _launch(self) -> None:
        with self._guard:
            if self._thread is None or not self._thread.is_alive():
                self._thread = _started(self._run, "reliable-mq-notify")

    def _run(self) -> None:
        # The thread's own: a forked process must not send on its parent's connection.
        line = _Line(self._store, self._channel)
        gap = _SHORTEST_GAP
        while True:
            if not self._due.wait(_KEPT if line.is_open else None):
                line.close()
                continue
            # Cleared before it is sent: a commit from here on makes another hint.
            self._due.clear()
            if hints := self._take():
                line.send(hints)
            if self._closed.is_set():
                line.close()
                return
            self._commits = 0
            self._closed.wait(gap)
            gap = next_gap(gap, self._commits)

    def _take(self) -> list[str]:
        taken = list(self._waiting)
        for hint in taken:
            # One that is put in again until here is of a commit that the hint comes after.
            del self._waiting[hint]
        return taken


def _started(run: Callable[[], None], name: str) -> threading.Thread | None:
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # Too many threads, or the interpreter is ending.
        log.debug("no hints for now: %r", error)
        return None
    return thread


def _connected(engine: Engine) -> DBAPIConnection:
    """Return a connection that is the caller's own, by the engine's way to log in.

    To be closed by the driver: SQLAlchemy would roll back first, and log that as failed on a
    dead one.
    """
    pooled = engine.raw_connection()
    connection = pooled.dbapi_connection
    assert connection is not None  # noqa: S101 - just connected
    pooled.detach()
    try:
        engine.dialect.set_isolation_level(connection, "AUTOCOMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_pooler(connection: Any) -> None:
    """Raise ``ConnectionError`` where the server's session is not this connection's own.

    PgBouncer in ``transaction`` mode would leave our LISTEN on a session that others get, whose
    clients would be sent our hints and keep them. The process number that it names at the login
    is not that of a server.
    """
    (own,) = connection.execute("SELECT pg_backend_pid()").fetchone()
    if own != connection.info.backend_pid:
        raise ConnectionError("a pooler is between us and PostgreSQL: there are no hints")


class _Line:
    """The connection on which hints go out, kept as long as they follow each other.

    Not the pool's: while the application commits without a pause, there would be as much work in
    getting a connection and giving it back, a hundred times a second, as in the hints.
    """

    def __init__(self, store: Store, channel: str) -> None:
        self._engine = store.engine
        self._channel = channel
        self._connection: DBAPIConnection | None = None

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def send(self, hints: Iterable[str]) -> None:
        kept = self.is_open
        try:
            if self._connection is None:
                self._connection = _connected(self._engine)
            self._connection.cursor().execute(self._statement(hints))
        except (SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error) as error:
            self.close()
            if kept:  # It may have died long ago.
                self.send(hints)
            else:
                log.debug("no hint was sent, the rows will be found all the same: %r", error)

    def _statement(self, hints: Iterable[str]) -> str:
        # A hint has a COMMIT, which need not wait for the disk. For this one transaction alone:
        # behind a pooler the session is another client's next, and its commits must wait.
        # Written out, because drivers differ in their parameters: there is nothing to quote.
        listed = ", ".join(f"'{hint}'" for hint in hints)
        return (
            "SELECT set_config('synchronous_commit', 'off', true), "  # noqa: S608
            f"pg_notify('{self._channel}', hint) FROM unnest(ARRAY[{listed}]) AS hint"
        )

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Listener(_Forked):
    """Calls *heard* with each hint on *channel*, on a thread of its own. Connects again by itself.

    Also with an empty hint whenever it begins to listen: something may have come before. Works
    with psycopg on PostgreSQL; with anything else, and behind PgBouncer, it hears nothing.
    """

    def __init__(self, store: Store, channel: str, heard: Callable[[str], None]) -> None:
        self._store = store
        self._channel = channel
        self._heard = heard
        super().__init__()

    def _begin_anew(self) -> None:
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, where there is something to listen to.

        Idempotent, also in a forked process, which listens on a connection of its own. Without
        effect after :meth:`close`.
        """
        if self._thread is not None and self._thread.is_alive():
            return
        dialect = self._store.engine.dialect
        if (dialect.name, dialect.driver) == ("postgresql", "psycopg"):
            self._launch()

    def _launch(self) -> None:
        with self._guard:
            running = self._thread is not None and self._thread.is_alive()
            if not running and not self._closed.is_set():
                self._thread = _started(self._run, "reliable-mq-listen")

    def close(self) -> None:
        """End the thread; blocks for 0.1 seconds or so, 5 where the database hangs. Idempotent."""
        self.stop()
        with self._guard:
            thread = self._thread
        if thread is not None:
            thread.join(5.0)

    def stop(self) -> None:
        """Begin to :meth:`close`, without waiting for the end."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._listen()
            except Exception as error:  # noqa: BLE001 - a hint is a comfort, polling goes on
                log.debug("no hints about new rows for now: %r", error)
                self._closed.wait(_RECONNECT)

    def _listen(self) -> None:
        # No pool's: LISTEN must not be left on a connection that goes back to one.
        connection: Any = _connected(self._store.engine)
        try:
            _refuse_pooler(connection)
            connection.execute(f"LISTEN {self._channel}")
            self._heard("")
            while not self._closed.is_set():
                self._receive(connection)
        finally:
            connection.close()

    def _receive(self, connection: Any) -> None:
        for _ in range(_CHECK_EVERY):
            for hint in connection.notifies(timeout=_SLICE):
                self._heard(hint.payload)
            if self._closed.is_set():
                return
        # A connection that died silently would look like one on which nothing happens.
        connection.execute("SELECT 1")
