"""Taking turns on SQLite, where one transaction of one process writes at a time.

SQLite's own waiting is a lottery with ever longer sleeps, which back-to-back writers win against
everybody else. Here the threads and tasks of a process queue up in the order in which they came,
and between two of their transactions the process steps back now and then, so that others, who ask
every millisecond, get their turn.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import OperationalError
from sqlalchemy.util import await_

PAUSE = 0.002
"""Seconds in which this process leaves the database to others, who get their turn then."""

STRETCH = 0.02
"""Seconds of back-to-back transactions after which such a pause is due.

A pause after each of them would cost most of the throughput; measured, this costs a tenth, and
others who poll wait hardly longer.
"""

POLL = 0.001
"""Seconds between two attempts to begin while another process writes."""

_LONGEST_WAIT = 60.0
"""Seconds after which waiting for this process's own writers is given up."""

_BUSY = 5  # SQLITE_BUSY, the primary code
_TIMEOUT = "reliable_mq_busy_timeout"


class FairLock:
    """A lock that is given in the order in which it was asked for."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._held = False
        self._released_at = 0.0
        self._busy_since = 0.0

    def ask(self) -> threading.Event:
        """Queue up; the returned event is set once the lock is the caller's."""
        turn = threading.Event()
        with self._guard:
            if self._held:
                self._waiting.append(turn)
            else:
                self._held = True
                turn.set()
        return turn

    def give_up(self, turn: threading.Event) -> None:
        """Leave the queue, or the lock if it has just been granted."""
        with self._guard:
            if not turn.is_set():
                self._waiting.remove(turn)
                return
        self.release()

    def release(self) -> None:
        """Hand the lock to the one who waits longest."""
        with self._guard:
            self._released_at = time.monotonic()
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._held = False

    def pause_left(self) -> float:
        """Return how many seconds the new owner, who calls this once, is to let others go first."""
        now = time.monotonic()
        rested = now - self._released_at
        if rested >= PAUSE:
            self._busy_since = now
        if now - self._busy_since < STRETCH:
            return 0.0
        left = PAUSE - rested
        self._busy_since = now + left
        return left


@contextmanager
def hold(lock: FairLock, *, awaiting: bool) -> Iterator[None]:
    """Hold *lock* in the block. With *awaiting*, inside the greenlet bridge, without blocking.

    Raises the ``OperationalError`` of a locked database where the turn does not come.
    """
    turn = lock.ask()
    try:
        if awaiting:
            _await_turn(turn)
        elif not turn.wait(_LONGEST_WAIT):
            raise _locked()
        pause(lock.pause_left(), awaiting=awaiting)
    except BaseException:
        lock.give_up(turn)
        raise
    try:
        yield
    finally:
        lock.release()


def _await_turn(turn: threading.Event) -> None:
    deadline = time.monotonic() + _LONGEST_WAIT
    while not turn.is_set():
        if time.monotonic() > deadline:
            raise _locked()
        await_(asyncio.sleep(POLL))


def _locked() -> OperationalError:
    text = f"database is locked: by transactions of this process, for {_LONGEST_WAIT:g} s"
    return OperationalError("BEGIN IMMEDIATE", None, sqlite3.OperationalError(text))


def pause(seconds: float, *, awaiting: bool) -> None:
    """Sleep; with *awaiting*, inside the greenlet bridge, without blocking."""
    if seconds <= 0:
        return
    if awaiting:
        await_(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


def begin_immediate(connection: Connection) -> None:
    """Take SQLite's write lock, asking every millisecond for as long as its busy time-out says.

    Left to itself, SQLite would sleep up to 100 ms between two attempts and miss every gap.
    """
    cursor = connection.connection.cursor()
    try:
        limit = connection.info.get(_TIMEOUT)
        if limit is None:
            cursor.execute("PRAGMA busy_timeout")
            limit = connection.info[_TIMEOUT] = int(cursor.fetchall()[0][0])
        cursor.execute("PRAGMA busy_timeout=0")
        try:
            begun = _poll(connection, cursor, time.monotonic() + limit / 1000)
        finally:
            cursor.execute(f"PRAGMA busy_timeout={limit:d}")
    finally:
        cursor.close()
    if not begun:
        # Once more with SQLAlchemy, which reports the error as it reports all others.
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _poll(connection: Connection, cursor: DBAPICursor, deadline: float) -> bool:
    awaiting = connection.dialect.is_async
    while True:
        try:
            cursor.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != _BUSY or time.monotonic() > deadline:
                return False
        else:
            return True
        pause(POLL, awaiting=awaiting)
