"""``mq.transaction()``: a session in a transaction on the configured database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from types import TracebackType
from typing import TYPE_CHECKING

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from reliable_mq.store import current

if TYPE_CHECKING:
    from reliable_mq.store.store import Store

_JOINED = {"join_transaction_mode": "create_savepoint"}


class Transaction:
    """A transaction on the database of *store*; enter it once, by ``with`` or ``async with``.

    Gives a ``Session`` or an ``AsyncSession``. Commits at the end of the block and rolls back on
    an exception, which passes through, as do the database's own errors. Inside a current
    transaction on that database, a handler's included, it is a savepoint of it. On SQLite it has
    the write lock from its start, in the fair queue of this process.

    *prepare* is called before, on this thread or (``async with``) on another one.
    """

    def __init__(self, store: Store, *, prepare: Callable[[], None] | None = None) -> None:
        self._store = store
        self._prepare = prepare
        self._sync: AbstractContextManager[Session] | None = None
        self._async: AbstractAsyncContextManager[AsyncSession] | None = None

    def __enter__(self) -> Session:
        _refuse_on_event_loop()
        self._refuse_second_use()
        self._sync = self._open()
        return self._sync.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._sync is not None  # noqa: S101 - entered before
        self._sync.__exit__(kind, error, trace)

    async def __aenter__(self) -> AsyncSession:
        self._refuse_second_use()
        self._async = self._open_async()
        return await self._async.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._async is not None  # noqa: S101 - entered before
        await self._async.__aexit__(kind, error, trace)

    def _refuse_second_use(self) -> None:
        if self._sync is not None or self._async is not None:
            raise RuntimeError("this transaction was entered before: call transaction() again")

    def _outer(self) -> current.Target | None:
        entry = current.innermost(self._store)
        # Code that outlived its transaction begins one of its own.
        return None if entry is None or entry.ended else entry.target

    # --- with -----------------------------------------------------------------------------------

    def _open(self) -> AbstractContextManager[Session]:
        outer = self._outer()
        if outer is None:
            return self._begin()
        if isinstance(outer, Session):
            return _savepoint(outer)
        if isinstance(outer, Connection) and not outer.dialect.is_async:
            return self._join(outer)
        raise RuntimeError(
            "the current transaction is asynchronous and cannot be continued here: use "
            "'async with', or work in a fresh context (contextvars.Context().run)"
        )

    @contextmanager
    def _begin(self) -> Iterator[Session]:
        if self._prepare is not None:
            self._prepare()
        store = self._store
        with (
            store.dialect.writing(store.engine),
            store.new_session() as session,
            current.entered(store, session),
            session.begin(),
        ):
            store.dialect.join(session.connection(bind_arguments=store.bind_arguments))
            yield session

    @contextmanager
    def _join(self, connection: Connection) -> Iterator[Session]:
        store = self._store
        with (
            store.new_session(bind=connection, **_JOINED) as session,
            current.entered(store, session),
            session.begin(),
        ):
            yield session

    # --- async with -----------------------------------------------------------------------------

    def _open_async(self) -> AbstractAsyncContextManager[AsyncSession]:
        outer = self._outer()
        if outer is None:
            return self._begin_async()
        if isinstance(outer, AsyncSession):
            return _async_savepoint(outer)
        if isinstance(outer, Connection) and outer.dialect.is_async:
            outer = AsyncConnection(self._store.async_engine, sync_connection=outer)
        if isinstance(outer, AsyncConnection):
            return self._join_async(outer)
        raise RuntimeError(
            "the current transaction is synchronous and cannot be continued here: use 'with', "
            "or work in a fresh context (contextvars.Context().run)"
        )

    @asynccontextmanager
    async def _begin_async(self) -> AsyncIterator[AsyncSession]:
        if self._prepare is not None:
            await asyncio.to_thread(self._prepare)
        store = self._store
        async with AsyncExitStack() as stack:
            writing = store.dialect.writing(store.async_engine.sync_engine)
            await greenlet_spawn(stack.enter_context, writing)
            session = await stack.enter_async_context(store.new_async_session())
            stack.enter_context(current.entered(store, session))
            await stack.enter_async_context(session.begin())
            connection = await session.connection(bind_arguments=store.bind_arguments)
            await connection.run_sync(store.dialect.join)
            yield session

    @asynccontextmanager
    async def _join_async(self, connection: AsyncConnection) -> AsyncIterator[AsyncSession]:
        store = self._store
        async with store.new_async_session(bind=connection, **_JOINED) as session:
            with current.entered(store, session):
                async with session.begin():
                    yield session


@contextmanager
def _savepoint(session: Session) -> Iterator[Session]:
    with session.begin_nested():
        yield session


@asynccontextmanager
async def _async_savepoint(session: AsyncSession) -> AsyncIterator[AsyncSession]:
    async with session.begin_nested():
        yield session


def _refuse_on_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "'with mq.transaction()' would block the event loop of this thread: use 'async with'"
    )
