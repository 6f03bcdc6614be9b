"""One handler at work: its intake thread, its workers, and the acknowledgements between them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from reliable_mq import events as ev
from reliable_mq.adapter import Adapter, Batch, Lost, Received, Subscription
from reliable_mq.consumer.ack_first import AHEAD, AckFirst
from reliable_mq.consumer.batches import BatchProcessor
from reliable_mq.consumer.items import Again, Ended, Item, Result, Work, make_items
from reliable_mq.consumer.lanes import Lane
from reliable_mq.consumer.processor import Processor
from reliable_mq.consumer.reports import Reporter
from reliable_mq.consumer.scheduler import Scheduler
from reliable_mq.crashpoints import crash_point
from reliable_mq.durations import QUIET, seconds
from reliable_mq.errors import ReliableMQError
from reliable_mq.handlers import Guarantee, HandlerSpec
from reliable_mq.redaction import redact_url
from reliable_mq.settings import Settings
from reliable_mq.store.retries import Waiting
from reliable_mq.wire import Limits

log = logging.getLogger("reliable_mq")

RECEIVE_TIMEOUT = 0.1
MAX_HELD_BYTES = 64 * 1024 * 1024
_WAITS = (Ended.RETRIED, Ended.PARKED)
SLICE = 0.05
"""Seconds after which a worker hands back what it has not begun, so that a stop is prompt."""


class DeliveryProcessor(Protocol):
    """Brings deliveries to their ends: how, is the handler's guarantee."""

    spec: HandlerSpec
    lane: Lane
    reporter: Reporter

    def process(self, item: Item) -> Result:
        """Bring a delivery to an end, or say when to start it again. Never raises."""
        ...

    def process_waiting(self, waiting: Waiting) -> Result:
        """Bring a retry row one hand-over further. Never raises."""
        ...

    def next_of_key(self, waiting: Waiting) -> Waiting | None:
        """Return the row to go on with after *waiting* ended, if there is one."""
        ...


class GroupConsumer:
    """Everything one process does for one (topic, group) with deliveries from the broker."""

    def __init__(
        self,
        processor: DeliveryProcessor,
        *,
        adapter: Adapter,
        settings: Settings,
        events: ev.Events,
        stop: threading.Event,
    ) -> None:
        spec = processor.spec
        self.spec: HandlerSpec = spec
        self.processor = processor
        self.scheduler = Scheduler(
            ordered=spec.ordered,
            concurrency=spec.concurrency,
            transaction_size=spec.transaction_size,
        )
        self._batches: BatchProcessor | None = None
        if isinstance(processor, Processor) and spec.transaction_size > 1:
            self._batches = BatchProcessor(processor, stopped=lambda: self.scheduler.stopped)
        self._adapter = adapter
        self._events = events
        self._stop = stop
        self._prefetch = settings.consumer.prefetch
        self._ack_first: AckFirst | None = None
        if spec.guarantee is Guarantee.AT_MOST_ONCE:
            self._ack_first = AckFirst()
            self._prefetch = min(self._prefetch, AHEAD * spec.concurrency)
        self._renew_every = seconds(settings.consumer.lease) / 3
        self._grace = seconds(settings.consumer.shutdown_timeout)
        self._limits = Limits(
            settings.max_message_bytes, settings.max_header_count, settings.max_header_bytes
        )
        self._renewed = time.monotonic()
        self._unacknowledged: list[Received] = []
        self._store_down = False
        self._broker_down = False
        self._complained = 0.0
        self.paused = False
        """Set by the retry loop while too many deliveries wait for a retry."""
        self.on_waiting: Callable[[], None] = lambda: None
        """Called when a delivery of this group began to wait in the store."""
        self.left = 0
        """How many deliveries a stop left to be delivered again."""
        self.lost = 0
        """How many a stop left that were acknowledged before their handler (at-most-once)."""
        self._thread = threading.Thread(
            target=self._intake, name=f"reliable-mq-{spec.topic}-{spec.group}", daemon=True
        )

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start intake and workers."""
        name = f"reliable-mq-worker-{self.spec.topic}-{self.spec.group}"
        self.processor.lane.start(self.scheduler, self._work, name, self.spec.concurrency)
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the intake has ended after the stop; False after *timeout* seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def healthy(self) -> bool:
        """Tell whether it takes messages in."""
        return self._thread.is_alive() and not (
            self._store_down or self._broker_down or self.paused
        )

    @property
    def idle(self) -> bool:
        """Tell whether nothing is in hand."""
        return self.scheduler.idle and (self._ack_first is None or self._ack_first.idle)

    def store_answered(self) -> None:
        """Take messages in again if nothing is held that would find out by itself.

        What failed because of the store may be gone: lost to another member, or done elsewhere.
        """
        if not self.scheduler.held_count:
            self._store_down = False

    # --- workers --------------------------------------------------------------------------------

    def _work(self, work: Work) -> None:
        """Do *work* and hand in the results; runs on a worker."""
        results: list[tuple[Item, Result]] = []
        try:
            if work.waiting is not None:
                self._work_on_waiting(work, work.waiting)
            elif self._batches is not None:
                results = self._batches.process(work.items)
            else:
                self._work_on_items(work, results)
        except Exception:
            # Ours, not the handler's: nothing was decided, and it must not spin.
            log.exception("%s/%s: a worker failed", self.spec.topic, self.spec.group)
            known = {id(item) for item, _ in results}
            results += [(item, Again(1.0)) for item in work.items if id(item) not in known]
        finally:
            if any(result in _WAITS for _, result in results):
                self.on_waiting()
            if results:
                self._store_down = any(isinstance(r, Again) and r.store_down for _, r in results)
            self.scheduler.finish(work, results)

    def _work_on_items(self, work: Work, results: list[tuple[Item, Result]]) -> None:
        until = time.monotonic() + SLICE
        stopped_keys: dict[str, Again] = {}
        while not results or time.monotonic() <= until:
            item = self.scheduler.begin(work)
            if item is None:
                return
            key = item.message.key if self.spec.ordered else None
            if key is not None and key in stopped_keys:
                results.append((item, stopped_keys[key]))
                continue
            result = self.processor.process(item)
            results.append((item, result))
            if isinstance(result, Again) and key is not None:
                stopped_keys[key] = result

    def _work_on_waiting(self, work: Work, waiting: Waiting) -> None:
        while not self.scheduler.stopped:
            result = self.processor.process_waiting(waiting)
            if result in _WAITS:
                self.on_waiting()
            self._store_down = isinstance(result, Again) and result.store_down
            if isinstance(result, Again) or result is Ended.STALE:
                return  # somebody else has the row, or nobody can: the loop looks again
            following = self.processor.next_of_key(waiting)
            if following is None or not self.scheduler.go_on(work, following):
                return
            waiting = following

    # --- intake ---------------------------------------------------------------------------------

    def _intake(self) -> None:
        subscription: Subscription | None = None
        try:
            while not self._stop.is_set():
                try:
                    if subscription is None:
                        subscription = self._subscribe()
                    self._turn(subscription)
                    self._broker_is_up()
                except Exception as error:  # noqa: BLE001 - the intake must go on
                    self._broker_is_down(error)
        finally:
            self._drain(subscription)

    def _subscribe(self) -> Subscription:
        return self._adapter.subscribe(
            [self.spec.topic],
            self.spec.group,
            prefetch=self._prefetch,
            ordered=self.spec.ordered,
        )

    def _turn(self, subscription: Subscription) -> None:
        trouble = self._try_to_acknowledge(subscription)
        room = self._room()
        # Also after an acknowledgement failed: it is here that the client connects again.
        batch = subscription.receive(room, self._patience() if room else 0.0)
        self._accept(batch)
        self._keep_alive(subscription)
        if trouble is not None:
            raise trouble
        if not room:
            # What ends makes room; the broker is served again soon in any case.
            self.scheduler.finished_event.wait(RECEIVE_TIMEOUT)

    def _patience(self) -> float:
        """Return how long to wait for deliveries, in seconds."""
        return RECEIVE_TIMEOUT

    def _room(self) -> int:
        if self._store_down or self.paused:
            return 0
        if self._ack_first is not None and not self._ack_first.idle:
            # Their acknowledgement has failed: more would only be more to lose.
            return 0
        if self.scheduler.held_bytes >= MAX_HELD_BYTES:
            return 0
        return max(0, self._prefetch - self.scheduler.held_count)

    def _accept(self, batch: Batch) -> None:
        if batch.deliveries:
            crash_point("consumer.received")
        if self._ack_first is not None:
            # What is with the scheduler was acknowledged: nobody else will get it.
            self._ack_first.take(batch.deliveries, batch.lost)
            return
        if batch.lost:
            dropped = self._drop(batch.lost)
            log.debug("%s/%s: lost %s, %d dropped", self.spec.topic, self.spec.group,
                      [lost.partition for lost in batch.lost], dropped)  # fmt: skip
        self._put(batch.deliveries)

    def _drop(self, lost: Sequence[Lost]) -> int:
        """Forget what is lost; return how much of it waited."""
        if lost:
            crash_point("consumer.lost")
        return self.scheduler.drop(lost)

    def _put(self, deliveries: Sequence[Received]) -> None:
        if deliveries:
            self.scheduler.put(make_items(deliveries, self._limits))

    def _try_to_acknowledge(self, subscription: Subscription) -> ReliableMQError | None:
        try:
            self._acknowledge(subscription)
        except ReliableMQError as error:
            return error
        return None

    def _acknowledge(self, subscription: Subscription) -> None:
        finished = self.scheduler.take_finished()
        if self._ack_first is not None:
            self._put(self._ack_first.settle(subscription))
            return
        # Kept until the adapter took them: an acknowledgement that failed is made again.
        self._unacknowledged.extend(finished)
        if self._unacknowledged:
            crash_point("consumer.before_ack")
            subscription.ack(self._unacknowledged)
            crash_point("consumer.acked")
            self._unacknowledged = []

    def _keep_alive(self, subscription: Subscription) -> None:
        now = time.monotonic()
        if now - self._renewed >= self._renew_every:
            self._renewed = now
            held = self.scheduler.held()
            if held:
                subscription.keep_alive(held)

    # --- trouble --------------------------------------------------------------------------------

    def _broker_is_down(self, error: Exception) -> None:
        cause = f"{type(error).__name__}: {redact_url(str(error))}"
        if not self._broker_down:
            self._broker_down = True
            self._events.emit(ev.BrokerDown("consumer", cause))
        now = time.monotonic()
        if now >= self._complained:
            self._complained = now + QUIET
            log.warning(
                "%s/%s cannot receive: %s", self.spec.topic, self.spec.group, cause,
                exc_info=None if isinstance(error, ReliableMQError) else error,
            )  # fmt: skip
        self._stop.wait(0.5)

    def _broker_is_up(self) -> None:
        if self._broker_down:
            self._broker_down = False
            log.info("%s/%s receives again", self.spec.topic, self.spec.group)
            self._events.emit(ev.BrokerUp("consumer"))

    # --- the end --------------------------------------------------------------------------------

    def _drain(self, subscription: Subscription | None) -> None:
        """Let what runs end, acknowledge it, hand everything else back."""
        crash_point("consumer.draining")
        deadline = time.monotonic() + self._grace
        if self._ack_first is not None:
            self._serve_until(lambda: not self.scheduler.held_count, subscription, deadline)
        self.scheduler.stop()
        self._serve_until(lambda: not self.scheduler.working, subscription, deadline)
        if subscription is not None:
            self._serve_last(subscription, deadline)
        if self._ack_first is None:
            self.left = self._left()
        else:
            self.lost = self._left() + self._ack_first.in_doubt
        crash_point("consumer.closing")
        if subscription is not None:
            subscription.close()

    def _serve_last(self, subscription: Subscription, deadline: float) -> None:
        """Acknowledge what ended, for the last time."""
        self._serve(subscription)

    def _left(self) -> int:
        return self.scheduler.left

    def _serve_until(
        self, done: Callable[[], bool], subscription: Subscription | None, deadline: float
    ) -> None:
        while not self.scheduler.wait_for(done, RECEIVE_TIMEOUT):
            if time.monotonic() >= deadline:
                return
            if subscription is not None:
                self._serve(subscription)

    def _serve(self, subscription: Subscription) -> None:
        try:
            if self._ack_first is None:
                self._acknowledge(subscription)
            batch = subscription.receive(0, 0.0)
            if self._ack_first is None:
                self._drop(batch.lost)
            else:
                self._ack_first.take((), batch.lost)
            self._keep_alive(subscription)
        except ReliableMQError as error:
            log.debug("while stopping: %r", error)
