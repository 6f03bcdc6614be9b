"""Where attempts run: handlers that are ``def`` on threads, ``async def`` ones on an event loop.

There is one implementation of everything that happens around a handler, and it is synchronous.
On a loop it runs inside SQLAlchemy's greenlet bridge (``greenlet_spawn`` and ``await_``, what
``AsyncSession.run_sync`` is made of), so that its database calls await instead of blocking.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_, greenlet_spawn

from reliable_mq.consumer.scheduler import Scheduler
from reliable_mq.errors import ReliableMQError
from reliable_mq.handlers import HandlerCall, Injection, Source

if TYPE_CHECKING:
    from reliable_mq.consumer.items import Work
    from reliable_mq.store import Store

log = logging.getLogger("reliable_mq")

_CANCELLING = 10.0
"""Seconds that a cancelled handler has to end."""


class HandlerStoppedError(ReliableMQError):
    """A handler was cancelled or raised no ``Exception``: it failed, and its worker goes on."""


AnyContext = AbstractContextManager[Any] | AbstractAsyncContextManager[Any]
Run = Callable[["Work"], None]


class Lane(Protocol):
    """The world as one kind of handler sees it. Its methods are called where attempts run."""

    def engine(self) -> Engine:
        """Return the engine whose connections this lane may use."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """Return what to hold around a writing transaction (SQLite's queue)."""
        ...

    def call(
        self,
        handler: HandlerCall,
        payload: Any,
        arguments: Mapping[str, Any],
        timeout: float | None,
    ) -> None:
        """Run the handler to its end. It may raise anything, ``BaseException`` included."""
        ...

    def ends_with(self, error: BaseException) -> bool:
        """Tell whether *error*, which is no ``Exception``, is the end of the worker itself."""
        ...

    def entered(self, context: AnyContext) -> AbstractContextManager[None]:
        """Enter a context manager of either kind around the block."""
        ...

    def open_session(self, injection: Injection, connection: Connection) -> Any:
        """Return the object of *injection*, joined to the transaction on *connection*."""
        ...

    def pause(self, seconds: float) -> None:
        """Wait, less if the consumer stops."""
        ...

    def start(self, scheduler: Scheduler, run: Run, name: str, workers: int) -> None:
        """Let *workers* workers take work from *scheduler* and *run* it, until it is stopped."""
        ...

    def close(self) -> None:
        """Cancel what still runs after the stop, where that is possible."""
        ...


class SyncLane:
    """Threads."""

    def __init__(self, store: Store, stop: threading.Event) -> None:
        self._store = store
        self._stop = stop

    def engine(self) -> Engine:
        """Return the synchronous engine."""
        return self._store.engine

    def writing(self) -> AbstractContextManager[None]:
        """Hold the process's place in SQLite's queue; nothing elsewhere."""
        return self._store.dialect.writing(self._store.engine)

    def call(
        self,
        handler: HandlerCall,
        payload: Any,
        arguments: Mapping[str, Any],
        timeout: float | None,
    ) -> None:
        """Call the handler on this thread."""
        handler.invoke(payload, arguments)

    def ends_with(self, error: BaseException) -> bool:
        """Return False: nobody can stop a thread from outside."""
        return False

    @contextmanager
    def entered(self, context: AnyContext) -> Iterator[None]:
        """Enter a synchronous context manager."""
        if not isinstance(context, AbstractContextManager):
            raise TypeError("around() gave an asynchronous context manager to a 'def' handler")
        with context:
            yield

    def open_session(self, injection: Injection, connection: Connection) -> Any:
        """Return the Connection, or a Session that commits into it without committing it."""
        if injection.source is Source.CONNECTION:
            return connection
        factory: Any = injection.type
        if injection.type is Session and self._store.session_factory is not None:
            factory = self._store.session_factory
        return factory(bind=connection, join_transaction_mode="rollback_only")

    def pause(self, seconds: float) -> None:
        """Wait on the stop event."""
        self._stop.wait(seconds)

    def start(self, scheduler: Scheduler, run: Run, name: str, workers: int) -> None:
        """Start daemon threads: a handler that never returns must not keep the process."""
        for number in range(workers):
            threading.Thread(
                target=_work, args=(scheduler, run), name=f"{name}-{number}", daemon=True
            ).start()

    def close(self) -> None:
        """Do nothing: a thread cannot be cancelled."""


def _work(scheduler: Scheduler, run: Run) -> None:
    while (work := scheduler.take()) is not None:
        run(work)


class AsyncLane:
    """Tasks of one event loop."""

    def __init__(
        self, store: Store, stop: threading.Event, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._store = store
        self._stop = stop
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def engine(self) -> Engine:
        """Return the asynchronous engine's inner face, usable inside the greenlet bridge."""
        return self._store.async_engine.sync_engine

    def writing(self) -> AbstractContextManager[None]:
        """As on a thread, but without blocking the loop."""
        return self._store.dialect.writing(self.engine())

    def call(
        self,
        handler: HandlerCall,
        payload: Any,
        arguments: Mapping[str, Any],
        timeout: float | None,
    ) -> None:
        """Await the handler, cancelled after *timeout* seconds."""
        await_(_within(timeout, handler.invoke(payload, arguments)))

    def ends_with(self, error: BaseException) -> bool:
        """Tell a handler that cancels itself from us, who cancel its task at the end."""
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            return self._stop.is_set() and task is not None and task.cancelling() > 0
        return isinstance(error, GeneratorExit)  # the loop is gone, with everything on it

    @contextmanager
    def entered(self, context: AnyContext) -> Iterator[None]:
        """Enter a context manager of either kind."""
        if isinstance(context, AbstractContextManager):
            with context:
                yield
            return
        await_(context.__aenter__())
        try:
            yield
        except BaseException as error:
            if not await_(context.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            await_(context.__aexit__(None, None, None))

    def open_session(self, injection: Injection, connection: Connection) -> Any:
        """Return the AsyncConnection, or an AsyncSession on it."""
        joined = AsyncConnection(self._store.async_engine, sync_connection=connection)
        if injection.source is Source.ASYNC_CONNECTION:
            return joined
        factory: Any = injection.type
        if injection.type is AsyncSession and self._store.async_session_factory is not None:
            factory = self._store.async_session_factory
        return factory(bind=joined, join_transaction_mode="rollback_only")

    def pause(self, seconds: float) -> None:
        """Sleep on the loop."""
        if not self._stop.is_set():
            await_(asyncio.sleep(seconds))

    def start(self, scheduler: Scheduler, run: Run, name: str, workers: int) -> None:
        """Start tasks on the loop, from any thread."""
        for number in range(workers):
            self._loop.call_soon_threadsafe(self._begin, scheduler, run, f"{name}-{number}")

    def _begin(self, scheduler: Scheduler, run: Run, name: str) -> None:
        ready = asyncio.Event()
        scheduler.add_waker(lambda: self._wake(ready))
        self._spawn(scheduler, run, name, ready)

    def _spawn(self, scheduler: Scheduler, run: Run, name: str, ready: asyncio.Event) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not scheduler.stopped:
                # A handler has cancelled the task it ran in: others must not wait for ever.
                self._spawn(scheduler, run, name, ready)

        task = self._loop.create_task(self._work(scheduler, run, ready), name=name)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(ended)

    async def _work(self, scheduler: Scheduler, run: Run, ready: asyncio.Event) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is one
        while not scheduler.stopped and not task.cancelling():
            ready.clear()
            work, wait = scheduler.try_take()
            if work is not None:
                await greenlet_spawn(run, work)
                continue
            try:
                await asyncio.wait_for(ready.wait(), wait)
            except TimeoutError:
                continue

    def close(self) -> None:
        """Cancel what still runs on the loop, and wait some seconds for its end."""
        if not self._tasks or self._loop.is_closed():
            return
        ended = asyncio.run_coroutine_threadsafe(self._cancel(), self._loop)
        try:
            ended.result(_CANCELLING)
        except TimeoutError:
            log.warning("a handler does not end when it is cancelled")

    async def _cancel(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self, ready: asyncio.Event) -> None:
        try:
            self._loop.call_soon_threadsafe(ready.set)
        except RuntimeError:
            # The loop was closed under us: there is nobody left to wake.
            log.debug("the event loop of the handlers is closed")


async def _within(timeout: float | None, handler: Awaitable[Any]) -> None:
    async with asyncio.timeout(timeout):
        await handler
