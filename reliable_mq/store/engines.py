"""The engines of a store: the application's own, or ones made here, lazily."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any
from weakref import WeakSet

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from reliable_mq.errors import ConfigurationError
from reliable_mq.redaction import redact_url
from reliable_mq.store.dialects.base import OURS
from reliable_mq.store.urls import (
    Identity,
    async_url,
    family_of,
    identity_of,
    is_memory,
    parse_url,
    require_driver,
    sync_url,
)
from reliable_mq.store.walking import walk_for_good

log = logging.getLogger("reliable_mq")

_POOL_SIZE = 16
"""Connections kept; what more is used at a time is opened and closed. Threads are the limit."""

_IDLE_CHECK = 5.0
"""Seconds after which a pooled connection is asked whether it still lives."""

_SEEN = "reliable_mq_seen"


class Engines:
    """One database, by a sync and an async engine. Thread-safe; no I/O but in the engines' use.

    Given engines stay the application's. What is missing is made at its first use and belongs
    to this object.
    """

    def __init__(
        self,
        *,
        database_url: str | None = None,
        engine: Engine | None = None,
        async_engine: AsyncEngine | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._given = engine
        self._given_async = async_engine
        self._sync = engine
        self._async = async_engine
        self._walking: Engine | None = None
        self.url = _url_of(database_url, engine, async_engine)
        self._in_memory = is_memory(self.url)
        self._memory_thread: int | None = None
        self._check()
        hidden = engine or (async_engine.sync_engine if async_engine is not None else None)
        self.identity: Identity = identity_of(self.url, hidden)
        _forked.add(self)

    def _check(self) -> None:
        if self._given is None:
            if self._in_memory:
                raise ConfigurationError(
                    f"{redact_url(str(self.url))!r} is SQLite in memory, which each connection "
                    "has for itself: name a file, for example sqlite:///reliable_mq.db"
                )
            require_driver(sync_url(self.url))
        if self._given is not None and self._given_async is not None:
            one = identity_of(self._given.url, self._given)
            other = identity_of(self._given_async.url, self._given_async.sync_engine)
            if one != other:
                raise ConfigurationError(
                    "engine and async_engine are on different databases: "
                    f"{redact_url(str(self._given.url))!r} and "
                    f"{redact_url(str(self._given_async.url))!r}"
                )

    @property
    def sync(self) -> Engine:
        """The sync engine; derived from the async one's URL where only that was given."""
        engine = self._sync
        if engine is None:
            with self._lock:
                if self._sync is None:
                    self._sync = _create(sync_url(self.url))
                engine = self._sync
        elif self._in_memory:
            self._keep_to_one_thread()
        return engine

    def _keep_to_one_thread(self) -> None:
        me = threading.get_ident()
        if self._memory_thread is None:
            self._memory_thread = me
        elif self._memory_thread != me:
            raise ConfigurationError(
                "the engine is SQLite in memory, whose one connection threads cannot share: a "
                "thread's rollback would undo another's work. Name a file, for example "
                "sqlite:///reliable_mq.db"
            )

    @property
    def walking(self) -> Engine:
        """The engine for statements that walk along indexes, on connections of its own.

        :attr:`sync` where the database needs none, or the application made that: behind its
        pooler the settings would be another session's.
        """
        if self._given is not None or family_of(self.url) != "postgresql":
            return self.sync
        engine = self._walking
        if engine is None:
            with self._lock:
                if self._walking is None:
                    self._walking = _create_walking(sync_url(self.url))
                engine = self._walking
        return engine

    @property
    def asynchronous(self) -> AsyncEngine:
        """The async engine; derived from the sync one's URL where only that was given."""
        engine = self._async
        if engine is None:
            self.require_async()
            with self._lock:
                if self._async is None:
                    self._async = _create_async(async_url(self.url))
                engine = self._async
        return engine

    def require_async(self) -> None:
        """Raise ``ConfigurationError`` where an async engine is not given and cannot be made.

        Imports the driver, opens nothing.
        """
        if self._given_async is not None:
            return
        if self._in_memory:
            raise ConfigurationError(
                "the engine is SQLite in memory, which an async engine cannot reach: name a file"
            )
        require_driver(async_url(self.url), asynchronous=True)

    def dispose(self) -> None:
        """Close the pooled connections of the engines made here. They may be used again.

        Of an async engine only what needs no event loop is released; prefer :meth:`adispose`.
        """
        with self._lock:
            sync, asynchronous, walking = self._sync, self._async, self._walking
        if sync is not None and sync is not self._given:
            sync.dispose()
        if walking is not None:
            walking.dispose()
        if asynchronous is not None and asynchronous is not self._given_async:
            asynchronous.sync_engine.dispose(close=False)

    async def adispose(self) -> None:
        """Close the pooled connections of the engines made here, from the async one's loop."""
        with self._lock:
            asynchronous = self._async
        if asynchronous is not None and asynchronous is not self._given_async:
            await asynchronous.dispose()
        self.dispose()

    def forget_connections(self) -> None:
        """Leave the pooled connections of the engines made here to the process we came from.

        To be called in a forked child: two processes on one socket would read each other's rows.
        """
        self._lock = threading.Lock()
        self._memory_thread = None
        if self._sync is not None and self._sync is not self._given:
            self._sync.dispose(close=False)
        if self._walking is not None:
            self._walking.dispose(close=False)
        if self._async is not None and self._async is not self._given_async:
            self._async.sync_engine.dispose(close=False)


_forked: WeakSet[Engines] = WeakSet()


def _after_fork() -> None:
    for engines in list(_forked):
        engines.forget_connections()


os.register_at_fork(after_in_child=_after_fork)


def _url_of(text: str | None, engine: Engine | None, async_engine: AsyncEngine | None) -> URL:
    if engine is not None:
        url = engine.url
    elif async_engine is not None:
        url = async_engine.url
    elif text is not None:
        return parse_url(text)
    else:
        raise ConfigurationError("a store needs database_url, engine or async_engine")
    family_of(url)
    return url


def _create(url: URL) -> Engine:
    engine = create_engine(url, **_options(url))
    _prepare(engine)
    return engine


def _create_walking(url: URL) -> Engine:
    # A reader and a settler at a time; more is for those that were left behind.
    engine = create_engine(url, pool_size=2, max_overflow=-1, isolation_level="AUTOCOMMIT")
    _prepare(engine)
    event.listen(engine, "connect", walk_for_good)
    return engine


def _create_async(url: URL) -> AsyncEngine:
    engine = create_async_engine(url, **_options(url))
    _prepare(engine.sync_engine)
    return engine


def _options(url: URL) -> dict[str, Any]:
    options: dict[str, Any] = {
        "pool_size": _POOL_SIZE,
        "max_overflow": -1,
        # What one connection has prepared, another one has not: few of them do most of the work.
        "pool_use_lifo": True,
    }
    if family_of(url) != "sqlite":
        # Once per connection: a statement per transaction would cost each handler a round trip.
        options["isolation_level"] = "READ COMMITTED"
    return options


def _prepare(engine: Engine) -> None:
    event.listen(engine, "connect", _mark)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _use_wal)
    else:
        _check_idle_connections(engine)


def _mark(connection: Any, record: Any) -> None:
    record.info[OURS] = True


def _check_idle_connections(engine: Engine) -> None:
    """Ask a connection that lay in the pool for a while whether it still lives.

    A server that restarted, or a firewall that forgot the connection, would fail the next
    transaction. Asking each time, SQLAlchemy's ``pool_pre_ping``, costs each a round trip.
    """

    def stamp(connection: Any, record: Any) -> None:
        record.info[_SEEN] = time.monotonic()

    def check(connection: Any, record: Any, proxy: Any) -> None:
        seen = record.info.get(_SEEN)
        if seen is None or time.monotonic() - seen < _IDLE_CHECK:
            return
        cause: Exception | None = None
        try:
            if engine.dialect.do_ping(connection):
                return
        except engine.dialect.loaded_dbapi.Error as error:
            cause = error
        raise InvalidatePoolError("the database closed an idle connection") from cause

    event.listen(engine, "checkin", stamp)
    event.listen(engine, "checkout", check)


def _use_wal(connection: Any, record: Any) -> None:
    # Lasting, so this changes a file once. Where the file system cannot do it, SQLite stays with
    # its rollback journal: slower beside readers, and just as safe.
    import sqlite3  # loaded already, by the driver; not where there is another database

    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.fetchall()
    except sqlite3.OperationalError as error:
        # Somebody is writing in the old mode right now; the next connection tries again.
        log.debug("the SQLite database stays in its journal mode for now: %s", error)
    finally:
        cursor.close()
