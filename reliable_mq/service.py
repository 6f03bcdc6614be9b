"""The running parts of one process: relay, consumers, retry loop, and their common end."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from sqlalchemy.exc import DBAPIError

from reliable_mq import events as ev
from reliable_mq.adapter import TransactionalAdapter
from reliable_mq.consumer.exactly_once import ExactlyOnceProcessor
from reliable_mq.consumer.exactly_once_group import ExactlyOnceConsumer
from reliable_mq.consumer.group import GroupConsumer
from reliable_mq.consumer.lanes import AnyContext, AsyncLane, Lane, SyncLane
from reliable_mq.consumer.processor import Processor
from reliable_mq.consumer.retry_loop import RetryLoop
from reliable_mq.durations import QUIET, seconds
from reliable_mq.errors import ReliableMQError, TransportError
from reliable_mq.handlers import Guarantee, HandlerSpec
from reliable_mq.message import Delivery
from reliable_mq.relay import Relay
from reliable_mq.runtime import Runtime
from reliable_mq.settings import Settings
from reliable_mq.status import Counts
from reliable_mq.store.dialects import Trouble
from reliable_mq.store.retries import Retries
from reliable_mq.store.texts import cause_of

log = logging.getLogger("reliable_mq")

_START_EVERY = 1.0
"""Seconds between two tries to start where broker or database was away."""

# What psycopg says without a SQLSTATE: that will not change by waiting.
_LOGIN_REFUSED = re.compile(
    r"FATAL: .*(authentication failed|does not exist|no pg_hba\.conf entry)"
)

_CHECK = 0.02
"""Seconds between two looks at whether everything is idle."""


class Service:
    """Starts the parts and stops them in order. Used once."""

    def __init__(
        self,
        runtime: Runtime,
        settings: Settings,
        events: ev.Events,
        specs: Sequence[HandlerSpec],
        *,
        relay: bool,
        around: Callable[[Delivery], AnyContext] | None,
        application: object,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._runtime = runtime
        self._settings = settings
        self._events = events
        self._stop = threading.Event()
        self._loop = loop
        self._own_loop: _LoopThread | None = None
        self._around = around
        self._application = application
        self.relay = self._make_relay() if relay else None
        self._relay_thread: threading.Thread | None = None
        self.consumers = [self._make_consumer(spec) for spec in specs]
        self.retries = self._make_retries()
        self._looker = Retries(runtime.store)
        self._starting = threading.Lock()
        self._started = False
        self._stopping = threading.Lock()
        self._stopped = False
        self._starter: threading.Thread | None = None
        self._complained_of: type[Exception] | None = None
        self._quiet_until = 0.0

    # --- parts ----------------------------------------------------------------------------------

    def _make_relay(self) -> Relay:
        runtime = self._runtime
        return Relay(
            runtime.store,
            runtime.adapter,
            settings=self._settings,
            events=self._events,
            clock=runtime.clock,
            instance=runtime.owner,
        )

    def _make_consumer(self, spec: HandlerSpec) -> GroupConsumer:
        if spec.guarantee is Guarantee.EXACTLY_ONCE:
            return self._make_exactly_once(spec)
        processor = Processor(
            spec,
            store=self._runtime.store,
            settings=self._settings,
            events=self._events,
            lane=self._lane(spec),
            around=self._around,
            application=self._application,
            clock=self._runtime.clock,
        )
        return GroupConsumer(
            processor,
            adapter=self._runtime.adapter,
            settings=self._settings,
            events=self._events,
            stop=self._stop,
        )

    def _make_exactly_once(self, spec: HandlerSpec) -> GroupConsumer:
        runtime = self._runtime
        processor = ExactlyOnceProcessor(
            spec,
            store=runtime.store,
            settings=self._settings,
            events=self._events,
            lane=self._lane(spec),
            around=self._around,
            application=self._application,
            instance=runtime.instance,
            clock=runtime.clock,
        )
        return ExactlyOnceConsumer(
            processor,
            adapter=cast(TransactionalAdapter, runtime.adapter),
            settings=self._settings,
            events=self._events,
            stop=self._stop,
        )

    def _lane(self, spec: HandlerSpec) -> Lane:
        if not spec.call.is_async:
            return SyncLane(self._runtime.store, self._stop)
        if self._loop is None:
            # Its pooled connections belong to the loop and must be closed on it.
            self._own_loop = _LoopThread(self._runtime.store.adispose)
            self._loop = self._own_loop.loop
        return AsyncLane(self._runtime.store, self._stop, self._loop)

    def _make_retries(self) -> RetryLoop | None:
        consumers = [c for c in self.consumers if c.spec.guarantee is not Guarantee.EXACTLY_ONCE]
        if not consumers:
            return None
        loop = RetryLoop(
            consumers,
            store=self._runtime.store,
            settings=self._settings,
            events=self._events,
            clock=self._runtime.clock,
            instance=self._runtime.owner,
            stop=self._stop,
        )
        for consumer in consumers:
            consumer.on_waiting = loop.wake
        return loop

    # --- life -----------------------------------------------------------------------------------

    def start(self, declare: Callable[[], None], *, patient: bool) -> None:
        """Start every part on threads of its own, after *declare*, whose errors pass through.

        Where broker or database cannot be reached, a *patient* service returns all the same, and
        starts as soon as it can.
        """
        try:
            declare()
        except Exception as error:
            if self._stop.is_set() or not patient or not self._may_come_back(error):
                self.stop()
                raise
            self._complain(error)
            self._starter = threading.Thread(
                target=self._start_later, args=(declare,), name="reliable-mq-start", daemon=True
            )
            self._starter.start()
        else:
            self._start_parts()

    def _may_come_back(self, error: Exception) -> bool:
        if isinstance(error, TransportError):
            return True
        if not isinstance(error, DBAPIError) or _LOGIN_REFUSED.search(str(error.orig)):
            return False
        return self._runtime.store.dialect.classify(error) is not Trouble.OTHER

    def _start_later(self, declare: Callable[[], None]) -> None:
        while not self._stop.wait(_START_EVERY):
            try:
                declare()
            except Exception as error:  # noqa: BLE001 - it is said, and tried again
                self._complain(error)
            else:
                log.info("broker and database are there: relay and handlers start")
                self._start_parts()
                return

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if type(error) is not self._complained_of or now >= self._quiet_until:
            self._complained_of, self._quiet_until = type(error), now + QUIET
            log.warning("relay and handlers wait for their start: %s", cause_of(error, 1000))

    def _start_parts(self) -> None:
        with self._starting:
            if self._stop.is_set():
                return
            self._started = True
            self._start_threads()

    def _start_threads(self) -> None:
        if self._own_loop is not None:
            self._own_loop.start()
        if self.relay is not None:
            self._relay_thread = threading.Thread(
                target=self.relay.run, args=(self._stop,), name="reliable-mq-relay", daemon=True
            )
            self._relay_thread.start()
        for consumer in self.consumers:
            consumer.start()
        if self.retries is not None:
            self.retries.start()

    def stop(self) -> None:
        """Stop intake, let what runs end within ``shutdown_timeout``, hand the rest back.

        Blocks. What was not finished is unacknowledged: it comes again, and no attempt is counted.
        A second call waits for the end of the first.
        """
        self._stop.set()
        with self._stopping:
            if not self._stopped:
                self._stopped = True
                self._stop_parts()

    def _stop_parts(self) -> None:
        with self._starting:
            started = self._started
        if started:
            self._stop_threads()
        elif self._own_loop is not None:
            self._own_loop.discard()

    def _stop_threads(self) -> None:
        if self.relay is not None:
            self.relay.wake()
        if self.retries is not None:
            self.retries.wake()
        # The parts bound themselves; the margins are for their last words with broker and database.
        now = time.monotonic()
        deadline = now + seconds(self._settings.consumer.shutdown_timeout) + 10.0
        for consumer in self.consumers:
            consumer.join(max(0.0, deadline - time.monotonic()))
        if self.retries is not None:
            self.retries.join(max(0.0, deadline - time.monotonic()))
        if self._relay_thread is not None:
            deadline = max(deadline, now + seconds(self._settings.relay.publish_timeout) + 5.0)
            self._relay_thread.join(max(0.0, deadline - time.monotonic()))
        for consumer in self.consumers:
            consumer.processor.lane.close()
        if self._own_loop is not None:
            self._own_loop.stop()
        left = sum(consumer.left for consumer in self.consumers)
        if left:
            log.warning("stopped with %d deliveries unfinished; they will be delivered again", left)
        lost = sum(consumer.lost for consumer in self.consumers)
        if lost:
            log.warning("stopped with %d deliveries of at-most-once handlers unhandled: lost", lost)

    def parts(self) -> dict[str, str]:
        """Return the state of relay, consumer and retries."""
        if not self._started:
            here = {"relay": self.relay, "consumer": self.consumers, "retries": self.retries}
            return {name: "stalled" if part else "off" for name, part in here.items()}
        relay = consumer = retries = "off"
        if self._relay_thread is not None and self.relay is not None:
            relay = _state(self._relay_thread.is_alive(), self.relay.healthy)
        if self.consumers:
            alive = all(not one.join(0) for one in self.consumers)
            consumer = _state(alive, all(one.healthy for one in self.consumers))
        if self.retries is not None:
            retries = _state(self.retries.alive, self.retries.healthy)
        return {"relay": relay, "consumer": consumer, "retries": retries}

    # --- idleness -------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """Return what this service did since its start."""
        counts = [consumer.processor.reporter.counts for consumer in self.consumers]
        return Counts(
            sent=self.relay.sent if self.relay is not None else 0,
            handled=sum(one.handled for one in counts),
            duplicates=sum(one.duplicates for one in counts),
            retried=sum(one.retried for one in counts),
            dead_lettered=sum(one.dead_lettered for one in counts),
        )

    def wait_idle(self, timeout: float) -> Counts:
        """Wait until nothing can move; ``TimeoutError`` says what is left."""
        deadline = time.monotonic() + timeout
        pause = threading.Event()
        while True:
            before = self.counts()
            left = self._left()
            if not left and before == self.counts():
                return before
            if time.monotonic() >= deadline:
                what = "; ".join(left) or "work is still being done"
                raise TimeoutError(f"not idle after {timeout:g} s: {what}")
            pause.wait(_CHECK)

    def _left(self) -> list[str]:
        left = self._left_in_outbox()
        for consumer in self.consumers:
            left.extend(self._left_of(consumer))
        return left or self._left_in_outbox()  # a handler may have published meanwhile

    def _left_in_outbox(self) -> list[str]:
        if self.relay is None:
            return []
        # In this order: what is committed between the two is not counted by the relay yet.
        if count := self.relay.sendable() or self.relay.unsettled:
            return [f"{count} messages in the outbox"]
        return []

    def _left_of(self, consumer: GroupConsumer) -> list[str]:
        topic, group = consumer.spec.topic, consumer.spec.group
        name = f"{topic}/{group}"
        try:
            lag = self._runtime.adapter.lag(topic, group)
        except ReliableMQError as error:
            return [f"{name}: lag unknown ({error})"]
        if lag:
            return [f"{name}: {lag} messages not acknowledged"]
        with self._runtime.store.reading() as connection:
            due_in = self._looker.next_due_in(
                connection, group, topic, heads_only=consumer.spec.ordered
            )
        if due_in is not None and due_in <= 0:
            return [f"{name}: a retry is due"]
        if not consumer.idle:
            return [f"{name}: a handler is running"]
        return []


def _state(alive: bool, healthy: bool) -> str:
    if not alive:
        return "off"
    return "running" if healthy else "stalled"


class _LoopThread:
    """An event loop on a thread of its own, for ``async def`` handlers of ``run()``."""

    def __init__(self, last: Callable[[], Awaitable[None]]) -> None:
        self.loop = asyncio.new_event_loop()
        self._last = last
        self._thread = threading.Thread(target=self._run, name="reliable-mq-loop", daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def start(self) -> None:
        self._thread.start()

    def discard(self) -> None:
        """End the loop that never ran."""
        self.loop.close()

    def stop(self) -> None:
        """Cancel what still runs and end the loop."""
        wound_up = asyncio.run_coroutine_threadsafe(self._wind_up(), self.loop)
        try:
            wound_up.result(10.0)
        except TimeoutError:
            log.warning("a handler does not end when it is cancelled; its loop is left behind")
        except Exception as error:  # noqa: BLE001 - drivers raise anything on a broken socket
            log.warning("connections of async handlers did not close: %s", cause_of(error, 1000))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10.0)

    async def _wind_up(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._last()
