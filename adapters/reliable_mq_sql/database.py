"""Running the adapter's statements: short transactions, errors translated, waits bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import ColumnElement, Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from reliable_mq.errors import TransportError
from reliable_mq.store import Store
from reliable_mq.store.dialects import Trouble
from reliable_mq_sql.errors import translate

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds for which what met a deadlock or a locked database is run again."""

_IDLE = 10.0
"""Seconds after which the database ends a transaction of a process that was stopped inside it.

Until then it may hold the row that every publish to a partition has to change.
"""


class Abandoned(Exception):
    """Raised inside a call that nobody waits for any more, to roll it back."""


class Database:
    """The store's database as the adapter uses it. Thread-safe.

    What SQLAlchemy raises leaves it as ``TransportError`` or ``ConfigurationError``.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._left_behind: set[threading.Thread] = set()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Return what *work* reads: see ``Store.reading``."""

        def run() -> T:
            with self.store.reading() as connection:
                return work(connection)

        return self._patiently(run, PATIENCE)

    def write(
        self,
        work: Callable[[Connection], T],
        *,
        patience: float = PATIENCE,
        limits_itself: bool = False,
    ) -> T:
        """Return what *work* did in a transaction that is committed by then.

        *limits_itself*: what it locks with first has :attr:`idle_limit` in it.
        """

        def run() -> T:
            opened = self.store.transaction(idle_timeout=_IDLE, limits_itself=limits_itself)
            with opened as connection:
                return work(connection)

        return self._patiently(run, patience)

    @property
    def idle_limit(self) -> ColumnElement[Any] | None:
        """What limits a transaction as :meth:`write` does, where the database has such a thing."""
        return self.store.dialect.idle_limit(_IDLE)

    def run(self, call: Callable[[], T]) -> T:
        """Return what *call* returns, which opens its own transactions on the store."""
        return self._patiently(call, PATIENCE)

    def _patiently(self, call: Callable[[], T], patience: float) -> T:
        end = time.monotonic() + patience
        while True:
            try:
                return call()
            except (DBAPIError, PoolTimeout) as error:
                if not self._is_busy(error) or time.monotonic() >= end:
                    raise translate(error, self.store) from error

    def _is_busy(self, error: DBAPIError | PoolTimeout) -> bool:
        return self.store.dialect.classify(error) is Trouble.BUSY

    # --- calls that must return in time ---

    def within(self, seconds: float, call: Callable[[Callable[[], None]], T]) -> T:
        """Return what *call* returns, or raise ``TransportError`` after *seconds*.

        *call* is given a function to call right before each commit: it raises when nobody waits
        any more. A server that is stopped answers nothing for ever, and a driver waits as long;
        so the call runs on a thread that can be left behind. SQLite has no server to wait for.
        """
        if self.store.dialect.name == "sqlite":
            return call(_do_nothing)
        end = time.monotonic() + seconds
        self._await_those_left_behind(end)
        job: _Job[T] = _Job(call)
        thread = threading.Thread(target=job.run, name="reliable-mq-sql", daemon=True)
        thread.start()
        if job.done.wait(max(0.0, end - time.monotonic())):
            thread.join()
            return job.result()
        job.abandoned.set()
        self._left_behind.add(thread)
        raise TransportError(f"{self.store.shown_url} did not answer within {seconds:g} s")

    def _await_those_left_behind(self, end: float) -> None:
        # Else each further try would leave one more thread and connection behind.
        for thread in tuple(self._left_behind):
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                raise TransportError(f"{self.store.shown_url} still does not answer")
            self._left_behind.discard(thread)


class _Job(Generic[T]):
    def __init__(self, call: Callable[[Callable[[], None]], T]) -> None:
        self._call = call
        self._value: T | None = None
        self._error: BaseException | None = None
        self.done = threading.Event()
        self.abandoned = threading.Event()

    def run(self) -> None:
        try:
            self._value = self._call(self._check)
        except BaseException as error:  # noqa: BLE001 - raised again by the one who waits
            self._error = error
        finally:
            self.done.set()

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return cast(T, self._value)

    def _check(self) -> None:
        if self.abandoned.is_set():
            raise Abandoned


def _do_nothing() -> None:
    return
