"""Several deliveries in one transaction: all of them, or each by itself.

The fast path assumes that every delivery is new and every handler succeeds. Whatever does not
fit leaves it: an error undoes the whole transaction, which is not an attempt, and then each
delivery goes the ordinary way, in order.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from reliable_mq.consumer.items import Again, Ended, Item, Result
from reliable_mq.consumer.processor import Processor
from reliable_mq.consumer.subjects import LOCK_TIMEOUT
from reliable_mq.consumer.transaction import HandlerTransaction
from reliable_mq.crashpoints import crash_point
from reliable_mq.message import Delivery, fingerprint

log = logging.getLogger("reliable_mq")

Pairs = list[tuple[Item, Result]]


class BatchProcessor:
    """Runs a handler with ``transaction_size`` > 1 on deliveries. Thread-safe."""

    def __init__(self, processor: Processor, *, stopped: Callable[[], bool]) -> None:
        self._processor = processor
        self._stopped = stopped
        self._spec = processor.spec
        self._books = processor.books

    def process(self, items: Sequence[Item]) -> Pairs:
        """Bring *items*, in order, to an end each, or say when to start them again.

        Those it did not begin, because of a stop or a database that is down, it leaves out.
        """
        together, apart = _split(items)
        if len(together) < 2 or any(item.attempts for item in items):
            return self._one_by_one(items)
        try:
            done = self._together(together)
        except BaseException as error:
            if not isinstance(error, Exception) and self._processor.lane.ends_with(error):
                raise
            log.debug("a batch of %d failed, each by itself now: %r", len(together), error)
            done = None
        if done is None:
            # Not where that error is handled: each is judged by its own, which should not tell of
            # the other.
            return self._one_by_one(items)
        return [*done, *self._one_by_one(apart)]

    def _together(self, items: Sequence[Item]) -> Pairs | None:
        """Handle *items* in one transaction; None where some of them need the ordinary way."""
        processor = self._processor
        payloads = [processor.spec.call.payload(item.message) for item in items]
        started = time.monotonic()
        with processor.transaction(len(items)) as transaction:
            new = self._claim(transaction, items)
            crash_point("batch.claimed")
            duplicates = self._duplicates(
                transaction, [i for i in items if i.message.id not in new]
            )
            if duplicates is None or (
                self._spec.ordered and self._some_key_waits(transaction, items)
            ):
                return None
            fresh = [
                (item, payload)
                for item, payload in zip(items, payloads, strict=True)
                if item.message.id in new
            ]
            for item, payload in fresh:
                self._handle(item, payload, transaction)
            crash_point("batch.before_commit")
            transaction.commit()
        crash_point("batch.committed")
        return self._report(fresh, duplicates, (time.monotonic() - started) / len(items))

    def _claim(self, transaction: HandlerTransaction, items: Sequence[Item]) -> set[str]:
        return self._books.inbox.claim(
            transaction.connection,
            self._spec.group,
            [item.message for item in items],
            lock_timeout=LOCK_TIMEOUT,
        )

    def _duplicates(
        self, transaction: HandlerTransaction, known: Sequence[Item]
    ) -> list[Item] | None:
        """Return *known* if all of them are true duplicates, else None."""
        if not known:
            return []
        seen = self._books.inbox.seen_many(
            transaction.connection,
            self._spec.group,
            self._spec.topic,
            [item.message.id for item in known],
        )
        same = all(seen.get(i.message.id) == fingerprint(i.message.body) for i in known)
        return list(known) if same else None

    def _some_key_waits(self, transaction: HandlerTransaction, items: Sequence[Item]) -> bool:
        keys = {item.message.key for item in items if item.message.key is not None}
        return self._books.retries.any_key_waits(
            transaction.connection, self._spec.group, self._spec.topic, sorted(keys)
        )

    def _handle(self, item: Item, payload: Any, transaction: HandlerTransaction) -> None:
        def delivery() -> Delivery:
            return item.delivery(self._spec.group, 1)

        with self._processor.entered(delivery):
            self._processor.call(payload, delivery, transaction)

    def _report(
        self, fresh: Sequence[tuple[Item, Any]], duplicates: Sequence[Item], each: float
    ) -> Pairs:
        reporter = self._processor.reporter
        pairs: Pairs = []
        for item, _ in fresh:
            item.collisions = 0
            reporter.handled(item.message, 1, each)
            pairs.append((item, Ended.HANDLED))
        for item in duplicates:
            reporter.ended(item.message, Ended.DUPLICATE)
            pairs.append((item, Ended.DUPLICATE))
        return pairs

    def _one_by_one(self, items: Sequence[Item]) -> Pairs:
        pairs: Pairs = []
        stopped_keys: dict[str, Again] = {}
        for item in items:
            key = item.message.key if self._spec.ordered else None
            if key is not None and key in stopped_keys:
                pairs.append((item, stopped_keys[key]))
                continue
            if self._stopped():
                break
            result = self._processor.process(item)
            pairs.append((item, result))
            if isinstance(result, Again) and result.store_down:
                break
            if isinstance(result, Again) and key is not None:
                # Nothing of this key may run before it.
                stopped_keys[key] = result
        return pairs


def _split(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Return the first of each message id, and what cannot go with them."""
    together: dict[str, Item] = {}
    apart: list[Item] = []
    for item in items:
        if item.fault is not None or item.message.id in together:
            apart.append(item)
        else:
            together[item.message.id] = item
    return list(together.values()), apart
