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


class HandlerStoppedError(ReliableMQError):
    """A handler was cancelled, or tried to end the process: not a success, and not our end."""


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
        """Run the handler to its end; whatever stops it short leaves as an ``Exception``."""
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
        try:
            handler.invoke(payload, arguments)
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            raise HandlerStoppedError(f"the handler raised {type(error).__name__}") from error

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
        await_(_to_its_end(handler.invoke(payload, arguments), timeout))

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
            self._loop.call_soon_threadsafe(self._spawn, scheduler, run, f"{name}-{number}")

    def _spawn(self, scheduler: Scheduler, run: Run, name: str) -> None:
        task = self._loop.create_task(self._work(scheduler, run), name=name)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def _work(self, scheduler: Scheduler, run: Run) -> None:
        ready = asyncio.Event()
        scheduler.add_waker(lambda: self._wake(ready))
        while not scheduler.stopped:
            ready.clear()
            work, wait = scheduler.try_take()
            if work is not None:
                await greenlet_spawn(run, work)
                continue
            try:
                await asyncio.wait_for(ready.wait(), wait)
            except TimeoutError:
                continue

    def _wake(self, ready: asyncio.Event) -> None:
        try:
            self._loop.call_soon_threadsafe(ready.set)
        except RuntimeError:
            # The loop was closed under us: there is nobody left to wake.
            log.debug("the event loop of the handlers is closed")


async def _to_its_end(handler: Awaitable[Any], timeout: float | None) -> None:
    try:
        async with asyncio.timeout(timeout):
            await handler
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # it is we who are being stopped
        raise HandlerStoppedError("the handler was cancelled") from error
    except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        raise HandlerStoppedError(f"the handler raised {type(error).__name__}") from error
