"""An exactly-once handler at work: its acknowledgements are transactions of the broker."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import cast

from reliable_mq import events as ev
from reliable_mq.adapter import (
    Lost,
    Received,
    Refused,
    Subscription,
    TransactionalAdapter,
    TransactionalSubscription,
    Unroutable,
)
from reliable_mq.consumer.exactly_once import ExactlyOnceProcessor
from reliable_mq.consumer.group import MAX_HELD_BYTES, RECEIVE_TIMEOUT, GroupConsumer
from reliable_mq.consumer.items import make_items
from reliable_mq.consumer.ledger import Ledger, Ready, progress_of
from reliable_mq.crashpoints import crash_point
from reliable_mq.durations import QUIET
from reliable_mq.errors import ReliableMQError, StaleDeliveryError
from reliable_mq.settings import Settings

log = logging.getLogger("reliable_mq")

WHILE_BUSY = 0.01
"""Seconds between two looks at whether something has ended that can be committed."""

WHILE_CHANGING = 0.1
"""Seconds to wait while the group changes, which the broker is asked about meanwhile."""

MAX_BYTES = 4 * MAX_HELD_BYTES
"""What may be in hand with what is held back; without that it is MAX_HELD_BYTES."""

WITHOUT_TOPIC = 10.0
"""Seconds between two tries with an output that has no topic."""


class ExactlyOnceConsumer(GroupConsumer):
    """A :class:`GroupConsumer` over a :class:`TransactionalSubscription`.

    The transactions are made by the intake thread, so nothing changes hands during one; the
    workers go on meanwhile, and what they end goes into the next.
    """

    def __init__(
        self,
        processor: ExactlyOnceProcessor,
        *,
        adapter: TransactionalAdapter,
        settings: Settings,
        events: ev.Events,
        stop: threading.Event,
    ) -> None:
        super().__init__(processor, adapter=adapter, settings=settings, events=events, stop=stop)
        self._transactional = adapter
        self._ledger = Ledger()
        self._not_before = 0.0
        self._told_of_waiting = -QUIET
        # Of a partition that does not go on; its workers have enough to do even with half of it.
        self._enough = max(self._prefetch // 4, 4 * self.spec.concurrency)
        self._held_back: frozenset[str] = frozenset()

    @property
    def idle(self) -> bool:
        """Tell whether nothing is in hand, and everything that ended is committed."""
        return super().idle and not len(self._ledger)

    # --- intake ---------------------------------------------------------------------------------

    def _subscribe(self) -> Subscription:
        return self._transactional.subscribe_transactional(
            [self.spec.topic], self.spec.group, prefetch=self._prefetch
        )

    def _patience(self) -> float:
        return WHILE_BUSY if len(self._ledger) else RECEIVE_TIMEOUT

    def _room(self) -> int:
        count, size = self._ledger.moving()
        if size >= MAX_HELD_BYTES or self._ledger.bytes >= MAX_BYTES:
            return 0
        return max(0, self._prefetch - count)

    def _put(self, deliveries: Sequence[Received]) -> None:
        items = make_items(deliveries, self._limits)
        self._ledger.arrived(items, time.monotonic())
        self.scheduler.put(items)

    def _drop(self, lost: Sequence[Lost]) -> int:
        self._ledger.dropped(lost)
        return super()._drop(lost)

    # --- transactions ---------------------------------------------------------------------------

    def _acknowledge(self, subscription: Subscription) -> None:
        """Commit what can be: raises where the broker did not take it, and keeps it then."""
        self._ledger.ended(self.scheduler.take_finished())
        self._hold_back(cast(TransactionalSubscription, subscription))
        if time.monotonic() < self._not_before:
            return
        ready = self._ledger.ready(time.monotonic())
        if ready:
            self._commit(cast(TransactionalSubscription, subscription), ready)

    def _commit(self, subscription: TransactionalSubscription, ready: Sequence[Ready]) -> None:
        crash_point("exactly_once.ready")
        began = time.monotonic()
        try:
            homeless = subscription.commit([one.handled for one in ready])
        except StaleDeliveryError as error:
            log.debug("%s/%s: not committed: %s", self.spec.topic, self.spec.group, error)
            self._not_before = time.monotonic() + WHILE_CHANGING
            return
        except ReliableMQError:
            now = time.monotonic()
            self._ledger.failed(ready, now, now - began)
            raise
        if homeless:
            self._leave_out(ready, homeless)
            return
        crash_point("exactly_once.committed")
        self._ledger.committed(ready, time.monotonic())
        for one in ready:
            one.completion.tell()

    def _hold_back(self, subscription: TransactionalSubscription) -> None:
        """Let no partition that waits fill the room of all."""
        full = not self._room()
        wanted = self._ledger.hold_back(time.monotonic(), self._enough, full=full)
        if wanted != self._held_back:
            subscription.hold_back(wanted)
            self._held_back = wanted

    def _leave_out(
        self, ready: Sequence[Ready], homeless: Mapping[int, Refused | Unroutable]
    ) -> None:
        """See to deliveries whose outputs have no place; the next transaction is without them."""
        for index, outcome in homeless.items():
            if isinstance(outcome, Unroutable):
                self._wait_for_topic(ready[index], outcome.cause)
            else:
                self._reopen(ready[index], outcome.cause)

    def _reopen(self, one: Ready, cause: str) -> None:
        """Let a worker deal with outputs that the broker refuses for good."""
        self._ledger.reopened(one.item)
        progress_of(one.item).refused = cause
        self.scheduler.put([one.item])

    def _wait_for_topic(self, one: Ready, cause: str) -> None:
        """Keep outputs that have no topic, as the outbox would: it may only be late."""
        now = time.monotonic()
        self._ledger.postponed(one.item, now + WITHOUT_TOPIC)
        if now - self._told_of_waiting >= QUIET:
            self._told_of_waiting = now
            log.warning(
                "partition %s of group %s waits: an output of message %r has no place: %s",
                one.item.received.partition, self.spec.group, one.item.message.id, cause,
            )  # fmt: skip

    def _broker_is_up(self) -> None:
        # Where the transactions of one partition fail, those of another say nothing of it.
        if not self._ledger.has_failed:
            super()._broker_is_up()

    # --- the end --------------------------------------------------------------------------------

    def _serve_last(self, subscription: Subscription, deadline: float) -> None:
        self._serve(subscription)
        self._serve_until(lambda: not self._ledger.ready(time.monotonic()), subscription, deadline)

    def _left(self) -> int:
        return len(self._ledger)
