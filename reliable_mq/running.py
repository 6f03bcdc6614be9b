"""How the parts of a process start and stop: by signal, or around a block."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from reliable_mq.beside import beside
from reliable_mq.errors import ConfigurationError
from reliable_mq.redaction import redact_url

if TYPE_CHECKING:
    from reliable_mq.app import ReliableMQ
    from reliable_mq.service import Service

log = logging.getLogger("reliable_mq")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NO_SIGNAL = 0


def refuse_on_event_loop(name: str, twin: str) -> None:
    """Raise ``RuntimeError`` where a blocking call would stop an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{name}() blocks, and an event loop runs on this thread: use {twin}()")


def check_main_thread() -> None:
    """Raise ``RuntimeError`` on any other thread: signals can be handled on the main one only."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("run() handles signals: call it on the main thread, or use running()")


class Signals:
    """SIGTERM and SIGINT, kept for the block, and given back to their handlers behind it.

    From the second one on they have their default effect. A first one that comes before
    :meth:`wait` is not lost: the wait returns at once.
    """

    def __init__(self) -> None:
        # Not an Event: its set() deadlocks where the signal interrupts its wait() inside its lock.
        self._came: SimpleQueue[int] = SimpleQueue()
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def __enter__(self) -> Signals:
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # None: not installed from Python, and out of our reach
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        self._came.put(number)

    def wait(self, unless: Callable[[], bool] = lambda: False) -> bool:
        """Return True once a signal has come, False as soon as *unless* is true before."""
        while not unless():
            # A signal that another thread gets does not interrupt a wait of this one, and the
            # handler runs on this one only: it must come back to Python by itself now and then.
            with suppress(Empty):
                number = self._came.get(timeout=0.2)
                if number != _NO_SIGNAL:
                    name = signal.Signals(number).name
                    log.info("%s: stopping; a second signal ends the process at once", name)
                    return True
        return False

    def look(self) -> None:
        """Have :meth:`wait` look at its condition now. May be called by any thread."""
        self._came.put(_NO_SIGNAL)


class Running:
    """The parts of one process at work inside a block; gives the :class:`Service`.

    Unless it is *patient*, a broker or database that cannot be reached is an error on entering.
    """

    def __init__(self, mq: ReliableMQ, *, relay: bool, consume: bool, patient: bool = True) -> None:
        self._mq = mq
        self._patient = patient
        self._relay = relay
        self._consume = consume
        self._service: Service | None = None

    def until(self, signals: Signals) -> None:
        """Run until one of *signals* comes, also during a start that hangs: that is given up."""
        service = self._new(None)
        try:
            # What it waits for may take minutes, and cannot be interrupted: a connection, a lock.
            started = beside(lambda: self._start(service), "reliable-mq-run")
            started.add_done_callback(lambda _: signals.look())
            came = signals.wait(unless=started.done)
            if started.done():
                started.result()
            if not came:
                signals.wait()
        finally:
            self._stop()

    def __enter__(self) -> Service:
        refuse_on_event_loop("running", "async with running")
        return self._start(self._new(None))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    async def __aenter__(self) -> Service:
        loop = asyncio.get_running_loop()
        starting = asyncio.ensure_future(asyncio.to_thread(self._start, self._new(loop)))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread goes on, and nobody would leave the block that it opens.
            await asyncio.wait([starting])
            await asyncio.to_thread(self._stop)
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The loop must go on: async handlers end on it.
        await asyncio.shield(asyncio.to_thread(self._stop))

    def _new(self, loop: asyncio.AbstractEventLoop | None) -> Service:
        mq = self._mq
        if mq._service is not None:
            raise ConfigurationError("this ReliableMQ is running already in this process")
        service = mq._new_service(self._relay, self._consume, loop)
        self._announce()
        self._service = mq._service = service
        return service

    def _start(self, service: Service) -> Service:
        try:
            service.start(self._mq._ensure_declared, patient=self._patient)
        except BaseException:
            # One that was given up may fail when another one has long begun.
            if self._service is service:
                self._service = self._mq._service = None
            raise
        return service

    def _announce(self) -> None:
        mq = self._mq
        log.info(
            "reliable-mq %s: broker %s, database %s, relay %s",
            version("reliable-mq"), redact_url(mq.settings.broker_url),
            mq._runtime.store.shown_url, "on" if self._relay else "off",
        )  # fmt: skip
        for spec in mq.handlers if self._consume else ():
            log.info(
                "handler %s: %s/%s, %s%s, concurrency %d",
                spec.call.name, spec.topic, spec.group, spec.guarantee.value,
                ", ordered" if spec.ordered else "", spec.concurrency,
            )  # fmt: skip

    def _stop(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            try:
                service.stop()
            finally:
                self._mq._service = None
            log.info("reliable-mq stopped")
