"""The store: one database, its tables, and how our own transactions on it run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

from sqlalchemy import ColumnElement, Connection, Engine, MetaData, Pool
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from reliable_mq.errors import ConfigurationError
from reliable_mq.redaction import redact_url
from reliable_mq.store import current
from reliable_mq.store.dialects import StoreDialect, Trouble, dialect_of
from reliable_mq.store.direct import invalidated_by_errors
from reliable_mq.store.engines import Engines
from reliable_mq.store.outbox.writing import OutboxInsert
from reliable_mq.store.schema import as_sql, create_missing, differences
from reliable_mq.store.tables import Tables, build_tables
from reliable_mq.store.urls import Identity
from reliable_mq.store.version import (
    check_adapter,
    check_schema_version,
    read_version,
    settle_version,
)

log = logging.getLogger("reliable_mq")

_BUSY_TRIES = 5

T = TypeVar("T")


class Store:
    """One database with our tables in it. Thread-safe. No I/O in the constructor.

    Needs one of *database_url*, *engine* and *async_engine*; a missing side is derived from the
    other and made at its first use. *now* replaces the database's clock (tests).
    """

    def __init__(
        self,
        *,
        database_url: str | None = None,
        engine: Engine | None = None,
        async_engine: AsyncEngine | None = None,
        session_factory: Callable[..., Session] | None = None,
        async_session_factory: Callable[..., AsyncSession] | None = None,
        table_prefix: str = "reliable_mq_",
        db_schema: str | None = None,
        adapter: str = "sql",
        now: ColumnElement[int] | None = None,
    ) -> None:
        self._engines = Engines(database_url=database_url, engine=engine, async_engine=async_engine)
        self.dialect: StoreDialect = dialect_of(self._engines.url.get_backend_name())
        self._prefix = table_prefix
        self._schema = db_schema
        self.tables: Tables = self.include_tables(MetaData())
        self.adapter = adapter
        self.session_factory = session_factory
        self.async_session_factory = async_session_factory
        self._now = now
        self.outbox_insert = OutboxInsert(self.tables.outbox, self.now())
        self._verified: WeakSet[Pool] = WeakSet()
        self._store_id: str | None = None
        self.on_appended: list[Callable[[], None]] = []

    # --- the database ----------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The sync engine. One made here is closed by :meth:`dispose`."""
        return self._engines.sync

    @property
    def walking_engine(self) -> Engine:
        """The engine for :mod:`reliable_mq.store.walking`."""
        return self._engines.walking

    @property
    def async_engine(self) -> AsyncEngine:
        """The async engine. One made here is closed by :meth:`adispose`."""
        return self._engines.asynchronous

    @property
    def identity(self) -> Identity:
        """What is equal for two stores and engines on the same database."""
        return self._engines.identity

    @property
    def shown_url(self) -> str:
        """The database's URL without its secrets."""
        return redact_url(self._engines.url.render_as_string(hide_password=True))

    def require_async(self) -> None:
        """Raise where :attr:`async_engine` could not be made, by import only: no I/O."""
        self._engines.require_async()

    def dispose(self) -> None:
        """Close the engines made here, not those that were given. The store can be used again."""
        self._engines.dispose()

    async def adispose(self) -> None:
        """Like :meth:`dispose`; to be awaited on the loop that used the async engine."""
        await self._engines.adispose()

    def now(self) -> ColumnElement[int]:
        """Return the expression that everything due is compared with: microseconds since 1970.

        The database's clock, or what was injected in its place.
        """
        return self.dialect.now() if self._now is None else self._now

    # --- the tables ------------------------------------------------------------------------------

    def include_tables(self, metadata: MetaData) -> Tables:
        """Add the tables to *metadata*, as this store's database wants them."""
        return build_tables(
            metadata, dialect=self.dialect.name, prefix=self._prefix, schema=self._schema
        )

    def create(self, *, instance: str | None = None) -> None:
        """Create what is missing; idempotent, and safe when several processes do it at once.

        Alters nothing that exists. Raises ``ConfigurationError`` where what exists does not fit:
        other columns, another schema version, another broker's outbox that is not empty or still
        in use by a process other than *instance*.
        """
        with self.dialect.writing(self.engine), self.dialect.changing_schema(self.engine) as own:
            create_missing(own, self.tables)
            found = settle_version(
                own, self.tables, adapter=self.adapter, now=self.now(), instance=instance
            )
        if self._store_id != found.store_id:
            # Tables made anew are another store, also for what was verified before.
            self._verified = WeakSet()
            self._store_id = None
        self._remember(found.store_id, self.engine.pool)

    def check(self) -> list[str]:
        """Return how the database differs from what :meth:`create` makes; empty: not at all."""
        with self.reading() as connection:
            found = [one.text for one in differences(connection, self.tables)]
            if any(self.tables.version.fullname in text for text in found):
                return found
            version = read_version(connection, self.tables.version)
        if version is None:
            return [*found, "the version row is missing: run declare()"]
        try:
            check_schema_version(version)
            check_adapter(version, self.adapter)
        except ConfigurationError as error:
            found.append(str(error))
        return found

    def ddl(self) -> str:
        """Return the statements that create all tables; ``declare()`` adds the version row."""
        return as_sql(self.tables, self.engine.dialect)

    @property
    def store_id(self) -> str:
        """The random id in the version row; read by :meth:`create` or :meth:`verify`."""
        if self._store_id is None:
            with self.reading() as connection:
                self.verify(connection)
        assert self._store_id is not None  # noqa: S101 - verify sets it or raises
        return self._store_id

    def verify(self, connection: Connection) -> None:
        """Make sure that what *connection* writes is relayed: our tables, our broker, one store.

        One SELECT per engine, later calls cost nothing. Raises ``ConfigurationError`` with the
        remedy; the transaction on the connection may be aborted then.
        """
        pool = connection.engine.pool
        if pool in self._verified:
            return
        if dialect_of(connection.dialect.name).name != self.dialect.name:
            raise self._not_declared(connection, "is another kind of database and has no")
        try:
            found = read_version(connection, self.tables.version)
        except DBAPIError as error:
            if self.dialect.is_missing_table(error):
                raise self._not_declared(connection, "has no table") from error
            raise
        if found is None:
            raise self._not_declared(connection, "has no row in")
        check_schema_version(found)
        check_adapter(found, self.adapter)
        self._remember(found.store_id, pool)

    def _not_declared(self, connection: Connection, lack: str) -> ConfigurationError:
        where = redact_url(connection.engine.url.render_as_string(hide_password=True))
        return ConfigurationError(
            f"{where!r} {lack} {self.tables.version.fullname}: run declare() once, or use a "
            f"session on the configured database, {self.shown_url!r}"
        )

    def _remember(self, store_id: str, pool: Pool) -> None:
        if self._store_id is None:
            self._store_id = store_id
        elif self._store_id != store_id:
            raise ConfigurationError(
                f"this connection leads to another store (id {store_id}) than before "
                f"({self._store_id}): all sessions and {self.shown_url!r} must be one database"
            )
        self._verified.add(pool)

    # --- sessions ---------------------------------------------------------------------------------

    def new_session(self, **options: Any) -> Session:
        """Return a session of the application's factory, or one on :attr:`engine`."""
        if self.session_factory is not None:
            return self.session_factory(**options)
        return Session(**{"bind": self.engine, "expire_on_commit": False, **options})

    def new_async_session(self, **options: Any) -> AsyncSession:
        """Return a session of the application's factory, or one on :attr:`async_engine`."""
        if self.async_session_factory is not None:
            return self.async_session_factory(**options)
        return AsyncSession(**{"bind": self.async_engine, "expire_on_commit": False, **options})

    @property
    def bind_arguments(self) -> dict[str, Any]:
        """What a session with several engines finds that of the outbox by."""
        return {"clause": self.outbox_insert.statement}

    # --- transactions ----------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give the block a connection of the pool to read on.

        On PostgreSQL each statement is a transaction by itself, which spares two round trips;
        elsewhere they share one, on MariaDB with one snapshot where the engine says so. A
        connection that dies meanwhile may be noticed by its next user only.
        """
        with self.engine.connect() as connection:
            if self.dialect.name == "postgresql":
                connection.execution_options(isolation_level="AUTOCOMMIT")
                with invalidated_by_errors(connection):
                    yield connection
            else:
                yield connection
            # Not a ROLLBACK: after one psycopg forgets whatever was prepared on the connection.
            connection.commit()

    @contextmanager
    def transaction(
        self, *, idle_timeout: float | None = None, limits_itself: bool = False
    ) -> Iterator[Connection]:
        """Run the block in a short writing transaction of our own; commit it, or roll it back.

        READ COMMITTED; on SQLite with the write lock from the start, queued behind our other
        writers of this process. PostgreSQL and MariaDB end it after *idle_timeout* seconds of
        silence, at least 30 by default: what a process has locked that is stopped in the middle,
        or whose machine is gone, is free again then. *limits_itself*: where the dialect has an
        ``idle_limit``, the first statement that locks something has that of *idle_timeout* in it,
        which spares a round trip. Database errors pass through.
        """
        self._refuse_waiting_for_itself()
        engine = self.engine
        with self.dialect.writing(engine), engine.connect() as connection:
            try:
                if idle_timeout is None:
                    self.dialect.begin_briefly(connection)
                elif limits_itself:
                    self.dialect.begin_unlimited(connection, idle_timeout=idle_timeout)
                else:
                    self.dialect.begin(connection, idle_timeout=idle_timeout)
                yield connection
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            finally:
                self.dialect.finish(connection)

    def patiently(self, write: Callable[[], T]) -> T:
        """Return what *write* does, repeated where the database undid it for another transaction.

        It is to be a whole :meth:`transaction`. A deadlock, say, says nothing about it but that it
        met another one; the last of some tries raises.
        """
        for _ in range(_BUSY_TRIES - 1):
            try:
                return write()
            except DBAPIError as error:
                if self.dialect.classify(error) is not Trouble.BUSY:
                    raise
        return write()

    def _refuse_waiting_for_itself(self) -> None:
        entry = current.innermost(self) if self.dialect.name == "sqlite" else None
        if entry is not None and not entry.ended:
            raise ConfigurationError(
                "this would wait for itself: it needs a transaction of its own on the SQLite "
                "database that the current transaction is writing to; do it after that one"
            )

    def after_append(self) -> None:
        """Tell those in :attr:`on_appended` that rows of ours were committed to the outbox.

        Called after each such commit in this process, on its thread; the callbacks must be quick.
        """
        for callback in tuple(self.on_appended):
            try:
                callback()
            except Exception:
                log.exception("a listener for new outbox rows failed")
