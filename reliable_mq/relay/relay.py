"""The loop that publishes what committed transactions left in the outbox."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from reliable_mq.adapter import Adapter
from reliable_mq.clock import Clock
from reliable_mq.crashpoints import crash_point
from reliable_mq.durations import QUIET, seconds
from reliable_mq.events import BrokerDown, BrokerUp, Events
from reliable_mq.message import Message
from reliable_mq.relay.sender import Sender
from reliable_mq.relay.settler import Settler
from reliable_mq.relay.supply import Supply
from reliable_mq.relay.verdict import Verdict, judge
from reliable_mq.relay.waiting import Waiting
from reliable_mq.settings import Settings
from reliable_mq.store import Store
from reliable_mq.store.dialects import Trouble
from reliable_mq.store.leases import LeaseSet
from reliable_mq.store.outbox.in_flight import InFlight
from reliable_mq.store.outbox.outgoing import Outgoing, RowKey, UnreadableRowError
from reliable_mq.store.outbox.sending import sendable
from reliable_mq.store.tables import OUTBOX_SLOTS
from reliable_mq.store.texts import cause_of
from reliable_mq.wakeup import Listener, channel_of

log = logging.getLogger("reliable_mq")

LEASE_KIND = "relay"
_PART = "relay"

_BATCHES = 4
"""Batches in one read. A read is one snapshot, in order as a whole, so it need not be repeated for
each batch; and walking past rows that wait then costs less for each row that is sent."""

_AHEAD = 2
"""Batches before the end of a read at which the next begins: it takes about as long as they do."""

_SLICE = 0.2
_DEAR = 0.05
"""Seconds of a look at the outbox from which on looks are spaced out."""

_FIRST_PAUSE, _MAX_PAUSE = 0.1, 5.0
_LAST_TRIES = 5
_CAUSE_BYTES = 500
_NEVER = threading.Event()


class RelayCounts(NamedTuple):
    """What one round did; ``later`` messages were tried and have to be tried again."""

    sent: int = 0
    held: int = 0
    later: int = 0

    @property
    def moved(self) -> bool:
        """Tell whether any row left the outbox."""
        return self.sent > 0 or self.held > 0


_NOTHING = RelayCounts()


class Relay:
    """Sends the outbox rows of this process's share of the slots, as long as it runs.

    What it promises: a row leaves the outbox only when the broker confirmed its message, or, if
    refused for good, for the table of held rows. The messages of one key on one topic go out in
    the order in which their transactions committed, where those did not overlap; of several
    relays each has other slots, and so other keys. After a crash, a lost lease or an unknown
    outcome messages are sent again, with the same ids and in the same order.

    No transaction waits for the broker. Its memory does not grow with the outbox.

    :meth:`run`, :meth:`step` and :meth:`close` exclude each other; the rest may be called by any
    thread.
    """

    def __init__(
        self,
        store: Store,
        adapter: Adapter,
        *,
        settings: Settings,
        events: Events,
        clock: Clock,
        instance: str,
    ) -> None:
        relay = settings.relay
        self._store = store
        self._events = events
        self._clock = clock
        self._batch_size = relay.batch_size
        self._poll = seconds(relay.poll_interval)
        self._lease = seconds(relay.lease)
        self._publish_timeout = seconds(relay.publish_timeout)
        self._leases = LeaseSet(
            store,
            LEASE_KIND,
            [str(slot) for slot in range(OUTBOX_SLOTS)],
            owner=instance,
            duration=self._lease,
            clock=clock,
            events=events,
        )
        self._supply = Supply(store, rows=self._batch_size * _BATCHES)
        self._sender = Sender(adapter, clock)
        self._settler = Settler(store, self._leases, events)
        self._waiting = Waiting(clock)
        self._renew_at = float("-inf")
        self._outages = 0
        self._failures = 0
        self._quiet_until: dict[str, float] = {}
        self._wake = threading.Event()
        self._busy = threading.Lock()

    # --- for others ------------------------------------------------------------------------------

    @property
    def sent(self) -> int:
        """How many messages were confirmed and deleted since this object was made."""
        return self._settler.sent

    @property
    def unsettled(self) -> int:
        """How many messages are confirmed, and not yet counted by :attr:`sent`."""
        return self._settler.unsettled

    @property
    def healthy(self) -> bool:
        """Tell whether database and broker answered when they were last asked."""
        return self._failures == 0 and self._outages == 0

    def wake(self) -> None:
        """Look now: there may be new rows, or the end has come."""
        self._wake.set()

    def sendable(self) -> int:
        """Return how many rows can be sent now, of all relays, counting up to a thousand.

        Held rows and those behind them are not counted, nor is what waits for a topic, a queue or
        a permission. Rows being sent are. Raises the database's error.
        """
        return sendable(self._store)

    def run(self, stop: threading.Event) -> None:
        """Send until *stop* is set; blocks. Then finish the batch in flight and give up the slots.

        An error never ends it: it is logged, and tried again with a growing pause. Returns within
        ``publish_timeout`` and a few seconds of *stop*, at once when idle and woken.
        """
        channel = channel_of(self._store.tables.outbox)
        listener = Listener(self._store, channel, lambda hint: self.wake())
        self._store.on_appended.append(self.wake)
        try:
            with self._alone(), self._settler.writing_beside(), self._supply.going_ahead():
                listener.start()
                try:
                    while not stop.is_set():
                        self._wake.clear()
                        self._attempt(stop)
                finally:
                    self._wind_up()
        finally:
            self._store.on_appended.remove(self.wake)
            listener.close()

    def step(self) -> RelayCounts:
        """Read once, send and settle what was read, on this thread; no waiting for anything.

        What had no confirmation before is tried again at once; what had no route when it is due.
        Raises the database's error; what was confirmed is then settled by the next step.
        """
        with self._alone():
            self._waiting.forget_unconfirmed()
            return self._round(_NEVER)

    def close(self) -> None:
        """Give up the slots, so that another relay need not wait for the leases' end. Idempotent.

        :meth:`run` does so by itself. Does not raise: what cannot be given up expires.
        """
        with self._alone():
            self._wind_up()

    # --- the loop --------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("this relay runs on another thread already")
        try:
            yield
        finally:
            self._busy.release()

    def _attempt(self, stop: threading.Event) -> None:
        started = self._clock.monotonic()
        try:
            counts = self._round(stop)
        except Exception as error:  # noqa: BLE001 - the loop outlives whatever one round meets
            self._failures += 1
            self._complain(error)
            stop.wait(_pause_after(self._failures))
            return
        self._failures = 0
        if self._outages:
            stop.wait(_pause_after(self._outages))
        elif counts == _NOTHING:
            self._rest(stop, cost=self._clock.monotonic() - started)

    def _rest(self, stop: threading.Event, *, cost: float) -> None:
        """Wait until there may be something to do."""
        # Hints must not make a relay look all the time where looking is dear: where many rows
        # wait for a route, each look walks past them.
        stop.wait(min(cost if cost < _DEAR else 4 * cost, self._poll))
        due = self._waiting.next_end()
        renewal = self._renew_at - self._clock.monotonic()
        left = min(self._poll, renewal, self._poll if due is None else due)
        while left > 0 and not stop.is_set() and not self._wake.wait(min(left, _SLICE)):
            left -= _SLICE

    def _wind_up(self) -> None:
        try:
            self._settle_at_last()
            crash_point("relay.winding_up")
            self._leases.release_all()
        except Exception as error:  # noqa: BLE001 - the end must come; leases expire by themselves
            log.warning(
                "the relay ends without the database: %d confirmed messages will be sent again: %s",
                self.unsettled,
                cause_of(error, _CAUSE_BYTES),
            )
        self._renew_at = float("-inf")

    def _settle_at_last(self) -> None:
        for tried in range(1, _LAST_TRIES):
            try:
                return self._settler.settle()
            except Exception as error:  # noqa: BLE001 - the last try below raises
                log.debug("settling at the end failed: %r", error)
                _NEVER.wait(_pause_after(tried))
        return self._settler.settle()

    # --- one round -------------------------------------------------------------------------------

    def _round(self, stop: threading.Event) -> RelayCounts:
        """Send what a read brings and, as long as all goes well, what was read ahead."""
        before = (self._settler.sent, self._settler.held)
        self._settler.settle()
        if self._renewal_is_due():
            # First, or the waiting for it would be done with the new leases.
            if not self._supply.drop(stop):
                return _NOTHING
            self._renew()
        rows = self._supply.read(self._slots(), self._waiting.excluded(), stop)
        later = 0
        while rows:
            crash_point("relay.claimed")
            sent, tried = self._pass(rows, stop)
            later += tried
            if sent < len(rows) or stop.is_set() or self._renewal_is_due():
                break
            self._failures = 0
            rows = self._supply.take(stop)
        self._settler.finish()
        return RelayCounts(self._settler.sent - before[0], self._settler.held - before[1], later)

    def _slots(self) -> list[int]:
        return [int(name) for name in self._leases.held]

    def _pass(self, rows: Sequence[Outgoing], stop: threading.Event) -> tuple[int, int]:
        """Send *rows* batch by batch; return how many were sent, and how many are to be again.

        Only settling and reading overlap with publishing.
        """
        size = self._batch_size
        stopped: set[RowKey] = set()
        sent = later = 0
        for first in range(0, len(rows), size):
            if stop.is_set() or not self._may_publish():
                break
            if sent == first >= len(rows) - _AHEAD * size:
                self._go_ahead(rows[first:])
            verdict = self._send(rows[first : first + size], stopped)
            sent += len(verdict.sent)
            later += len(verdict.later)
            self._settler.begin(verdict)
            if verdict.outage is not None:
                break
        return sent, later

    def _go_ahead(self, rows: Sequence[Outgoing]) -> None:
        """Read what is there besides *rows* and the unsettled ones, if that will be of use."""
        if not self._supply.can_go_ahead or self._renewal_is_due():
            return
        in_flight = InFlight.of([*self._settler.unsettled_rows(), *rows])
        self._supply.go_ahead(self._slots(), self._waiting.excluded(), in_flight)

    def _send(self, batch: Sequence[Outgoing], stopped: set[RowKey]) -> Verdict:
        """Publish *batch* but for what waits, and for keys *stopped*, earlier in this read too."""
        verdict = Verdict(stopped=stopped)
        readable, unreadable = self._open(batch, verdict)
        if readable:
            left = self._leases.until - self._clock.monotonic()
            messages = [message for _, message in readable]
            crash_point("relay.before_publish")
            outcomes = self._sender.publish(messages, min(self._publish_timeout, left))
            crash_point("relay.confirmed")
            self._learn(judge([row for row, _ in readable], outcomes, verdict))
        for row, cause in unreadable:
            # Behind one that was not sent it has to wait for its turn to be held.
            if not verdict.is_stopped(row):
                verdict.refuse(row, cause)
        return verdict

    def _open(
        self, batch: Sequence[Outgoing], verdict: Verdict
    ) -> tuple[list[tuple[Outgoing, Message]], list[tuple[Outgoing, str]]]:
        """Return the messages to publish, and the rows without one; of a key nothing behind it."""
        readable: list[tuple[Outgoing, Message]] = []
        unreadable: list[tuple[Outgoing, str]] = []
        broken: set[RowKey | None] = set()
        for row in batch:
            if verdict.is_stopped(row):
                continue
            if self._waiting.blocks(row):
                # Behind it nothing of its key is sent either, though it may wait no more by then.
                verdict.stop(row)
                continue
            if row.key is not None and row.key in broken:
                continue
            try:
                readable.append((row, row.message()))
            except UnreadableRowError as error:
                unreadable.append((row, str(error)))
                broken.add(row.key)
        return readable, unreadable

    # --- leases ----------------------------------------------------------------------------------

    def _renewal_is_due(self) -> bool:
        now = self._clock.monotonic()
        return now >= self._renew_at or self._leases.until - now < self._publish_timeout

    def _renew(self) -> None:
        now = self._clock.monotonic()
        with self._store.reading() as connection:
            self._store.verify(connection)
        self._leases.renew()
        every = self._lease / 3
        self._renew_at = now + (min(self._poll, every) if self._leases.wanting else every)

    def _may_publish(self) -> bool:
        """Tell whether a batch would end while the slots are ours beyond doubt."""
        left = self._leases.until - self._clock.monotonic()
        return left >= self._publish_timeout / 2

    # --- what a batch teaches --------------------------------------------------------------------

    def _learn(self, verdict: Verdict) -> None:
        if verdict.outage is not None:
            self._broker_is_down(verdict.outage, [item.row for item in verdict.later])
            return
        if self._outages:
            self._broker_is_up()
        for topic, delay in verdict.without_route.items():
            self._waiting.add_topic(topic, delay)
        for item in verdict.later:
            if item.delay and item.row.topic not in verdict.without_route:
                self._waiting.add_row(item.row, item.delay, no_route=item.no_route)
            self._log_once(item.row.topic, "%s: a message waits, %s", item.row.topic, item.cause)

    def _broker_is_down(self, cause: str, rows: Sequence[Outgoing]) -> None:
        self._outages += 1
        # It may be these messages and not the broker.
        self._waiting.set_aside(rows)
        if self._outages == 1:
            log.warning("the relay cannot reach the broker: %s", cause)
            self._events.emit(BrokerDown(_PART, cause))

    def _broker_is_up(self) -> None:
        self._outages = 0
        self._waiting.forget_unconfirmed()
        log.info("the relay reaches the broker again")
        self._events.emit(BrokerUp(_PART))

    # --- complaints ------------------------------------------------------------------------------

    def _complain(self, error: Exception) -> None:
        if self._store.dialect.classify(error) is Trouble.BUSY:
            log.debug("the relay tries again, the database was busy: %r", error)
            return
        self._log_once(type(error).__name__, "the relay waits: %s", cause_of(error, _CAUSE_BYTES))

    def _log_once(self, about: str, text: str, *values: object) -> None:
        """Log a warning, but not again about the same for a while."""
        now = self._clock.monotonic()
        if now < self._quiet_until.get(about, now):
            return
        self._quiet_until = {k: end for k, end in self._quiet_until.items() if end > now}
        self._quiet_until[about] = now + QUIET
        log.warning(text, *values)


def _pause_after(failures: int) -> float:
    return min(_MAX_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 16))
