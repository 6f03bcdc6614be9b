"""The thread that finds what is due: retry rows, and inbox rows that may be forgotten."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from reliable_mq import events as ev
from reliable_mq.clock import Clock
from reliable_mq.consumer.group import GroupConsumer
from reliable_mq.durations import QUIET, seconds
from reliable_mq.redaction import redact_url
from reliable_mq.settings import Settings
from reliable_mq.store import Store
from reliable_mq.store.inbox import CLEAN_CHUNK, Inbox
from reliable_mq.store.leases import LeaseSet
from reliable_mq.store.retries import SLOT_NAMES, Retries, lease_kind

log = logging.getLogger("reliable_mq")

POLL = 1.0
CLEAN_EVERY = 60.0
BATCH = 100


class _Group:
    """What the loop keeps for one handler."""

    def __init__(self, consumer: GroupConsumer, leases: LeaseSet) -> None:
        self.consumer = consumer
        self.leases = leases
        self.topic = consumer.spec.topic
        self.group = consumer.spec.group
        self.waiting = 0
        self.next_due: float | None = None
        self.renew_at = 0.0


class RetryLoop:
    """Hands due retry rows of this process's groups to their workers.

    The slots of a group are shared among the processes that have its handler. Runs on a thread
    of its own; an error is logged and the loop goes on.
    """

    def __init__(
        self,
        consumers: Sequence[GroupConsumer],
        *,
        store: Store,
        settings: Settings,
        events: ev.Events,
        clock: Clock,
        instance: str,
        stop: threading.Event,
    ) -> None:
        self._store = store
        self._settings = settings
        self._stop = stop
        self._retries = Retries(store)
        self._inbox = Inbox(store)
        self._lease = seconds(settings.consumer.lease)
        self._retention = seconds(settings.inbox.retention)
        self._groups = [
            _Group(
                consumer,
                LeaseSet(
                    store,
                    lease_kind(consumer.spec.topic, consumer.spec.group),
                    SLOT_NAMES,
                    owner=instance,
                    duration=self._lease,
                    clock=clock,
                    events=events,
                ),
            )
            for consumer in consumers
        ]
        self._clean_at = time.monotonic() + CLEAN_EVERY
        self._complained = 0.0
        self.healthy = True
        self._wake = threading.Event()
        self._rounds = 0
        self._thread = threading.Thread(target=self._run, name="reliable-mq-retries", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Look now: a row may have become due."""
        self._wake.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread after the stop; the leases are given back by it."""
        self._wake.set()
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Tell whether the thread runs."""
        return self._thread.is_alive()

    @property
    def rounds(self) -> int:
        """Return how many rounds were made without an error."""
        return self._rounds

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                wait = self._round()
                self.healthy = True
            except Exception as error:  # noqa: BLE001 - the loop must go on
                self.healthy = False
                self._complain(error)
                wait = POLL
            self._wake.wait(wait)
        self._give_back()

    def _round(self) -> float:
        """Look once; return the seconds until the next look."""
        now = time.monotonic()
        for group in self._groups:
            if now >= group.renew_at:
                group.leases.renew()
                # Less than a fair share: another process is about to give some up.
                group.renew_at = now + (POLL if group.leases.wanting else self._lease / 3)
            self._look(group)
        if now >= self._clean_at:
            self._clean()
        self._rounds += 1
        due = [group.next_due for group in self._groups if group.next_due is not None]
        return min([POLL, *(max(0.005, seconds_left) for seconds_left in due)])

    def _look(self, group: _Group) -> None:
        slots = [int(name) for name in group.leases.held]
        ordered = group.consumer.spec.ordered
        group.consumer.scheduler.begin_look()
        with self._store.reading() as connection:
            group.waiting = self._retries.count(connection, group.group, group.topic)
            group.consumer.store_answered()
            group.consumer.paused = group.waiting >= self._settings.consumer.max_waiting_retries
            if not group.waiting:
                group.next_due = None
                return
            due = self._retries.due(
                connection, group.group, group.topic, slots, limit=BATCH, heads_only=ordered
            )
            left = self._retries.next_due_in(
                connection, group.group, group.topic, heads_only=ordered
            )
        queued = sum(group.consumer.scheduler.put_retry(waiting) for waiting in due)
        # Rows that are due but not queued are worked on already, here or elsewhere.
        group.next_due = left if left is not None and left > 0 else (0.05 if queued else POLL)

    def _clean(self) -> None:
        """Forget what was done before the retention began, a chunk in each transaction."""
        while not self._stop.is_set():
            with self._store.transaction() as connection:
                removed = self._inbox.clean(connection, self._retention)
            if removed < CLEAN_CHUNK:
                break
        self._clean_at = time.monotonic() + CLEAN_EVERY

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._complained:
            self._complained = now + QUIET
            text = redact_url(str(error)).split("\n")[0]
            log.warning("retries wait, the database failed: %s: %s", type(error).__name__, text)

    def _give_back(self) -> None:
        for group in self._groups:
            try:
                group.leases.release_all()
            except Exception as error:  # noqa: BLE001 - nothing hangs on it
                # They expire by themselves.
                log.debug("the leases of %s/%s expire: %r", group.topic, group.group, error)
