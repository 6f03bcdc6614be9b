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
    Subscription,
    TransactionalAdapter,
    TransactionalSubscription,
)
from reliable_mq.consumer.exactly_once import ExactlyOnceProcessor
from reliable_mq.consumer.group import MAX_HELD_BYTES, RECEIVE_TIMEOUT, GroupConsumer
from reliable_mq.consumer.items import Item, make_items
from reliable_mq.consumer.ledger import Ledger, progress_of
from reliable_mq.crashpoints import crash_point
from reliable_mq.errors import StaleDeliveryError
from reliable_mq.settings import Settings

log = logging.getLogger("reliable_mq")

WHILE_BUSY = 0.01
"""Seconds between two looks at whether something has ended that can be committed."""

WHILE_CHANGING = 0.1
"""Seconds to wait while the group changes, which the broker is asked about meanwhile."""


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
        if self._ledger.bytes >= MAX_HELD_BYTES:
            return 0
        return max(0, self._prefetch - len(self._ledger))

    def _put(self, deliveries: Sequence[Received]) -> None:
        items = make_items(deliveries, self._limits)
        self._ledger.arrived(items)
        self.scheduler.put(items)

    def _drop(self, lost: Sequence[Lost]) -> int:
        self._ledger.dropped(lost)
        return super()._drop(lost)

    # --- transactions ---------------------------------------------------------------------------

    def _acknowledge(self, subscription: Subscription) -> None:
        """Commit what can be: raises where the broker did not take it, and keeps it then."""
        self._ledger.ended(self.scheduler.take_finished())
        if time.monotonic() < self._not_before:
            return
        ready = self._ledger.ready()
        if not ready:
            return
        handled = [one.handled for one in ready]
        crash_point("exactly_once.ready")
        try:
            refused = cast(TransactionalSubscription, subscription).commit(handled)
        except StaleDeliveryError as error:
            log.debug("%s/%s: not committed: %s", self.spec.topic, self.spec.group, error)
            self._not_before = time.monotonic() + WHILE_CHANGING
            return
        if refused:
            self._reopen({index: ready[index].item for index in refused}, refused)
            return
        crash_point("exactly_once.committed")
        self._ledger.committed(ready)
        for one in ready:
            one.completion.tell()

    def _reopen(self, items: Mapping[int, Item], refused: Mapping[int, str]) -> None:
        """Let workers deal with deliveries whose outputs the broker refuses for good."""
        for index, item in items.items():
            self._ledger.reopened(item)
            progress_of(item).refused = refused[index]
        self.scheduler.put(items.values())

    # --- the end --------------------------------------------------------------------------------

    def _serve_last(self, subscription: Subscription, deadline: float) -> None:
        self._serve(subscription)
        self._serve_until(lambda: not self._ledger.ready(), subscription, deadline)

    def _left(self) -> int:
        return len(self._ledger)
