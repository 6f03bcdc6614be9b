"""One topic's part of a publish call: the keys, the window, the outcomes. On the I/O thread."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pika import exceptions

from reliable_mq.adapter import SENT, Outcome, Refused, Unknown, Unroutable
from reliable_mq_rabbitmq import errors

NOT_SENT = Unknown("not sent: an earlier message of its key was not stored")

_WINDOW_BYTES = 8 * 1024 * 1024
_TOO_LARGE = re.compile(r"larger than configured max size (\d+)")
_NO_ROUTE = frozenset({errors.NOT_FOUND, errors.ACCESS_REFUSED})


@dataclass(slots=True, eq=False)
class Item:
    """One message on its way. ``follower`` waits until this one is stored: it has the same key."""

    index: int
    message_id: str
    routing_key: str
    method: bytes
    properties: bytes
    body: bytes
    follower: Item | None = None
    returned: str | None = None


class Carrier(Protocol):
    """A channel in confirm mode, as a run sees it."""

    @property
    def blocked(self) -> bool:
        """Tell whether the broker takes no publishes now."""
        ...

    @property
    def properties_max(self) -> int:
        """Return how many bytes of properties the broker takes."""
        ...

    def write(self, items: list[Item]) -> range:
        """Publish *items* in few writes; return the numbers their confirms will have."""
        ...


class Run:
    """The messages of one call to one topic.

    At most one message of a key is unconfirmed, and it must be stored before the next is sent.
    ``settle(index, outcome)`` is called once for each message and then ``finished()`` once.
    """

    def __init__(
        self,
        heads: list[Item],
        *,
        window: int,
        settle: Callable[[int, Outcome], None],
    ) -> None:
        self._ready = deque(heads)
        self._window = window
        self._settle = settle
        self._pending: dict[int, Item] = {}
        self._bytes = 0
        self._answered = False
        self.finished: Callable[[], None] = _nobody_waits
        """Called when all outcomes are known; set by whoever sends the run."""
        self.over = False

    def pump(self, carrier: Carrier) -> None:
        """Send what the window allows; finish when there is nothing left."""
        if not carrier.blocked:
            batch = self._next_batch(carrier.properties_max)
            if batch:
                self._pending.update(zip(carrier.write(batch), batch, strict=True))
        if not self._ready and not self._pending:
            self._finish()

    def _next_batch(self, properties_max: int) -> list[Item]:
        # The first one goes alone: where its exchange is missing or forbidden, nothing else is
        # on its way of which nobody could tell whether it was stored.
        room = (self._window if self._answered else 1) - len(self._pending)
        batch: list[Item] = []
        while self._ready and len(batch) < room and self._bytes < _WINDOW_BYTES:
            item = self._ready.popleft()
            if len(item.properties) > properties_max:
                self._end(item, _too_large(item, properties_max))
                continue
            self._bytes += len(item.body)
            batch.append(item)
        return batch

    def confirmed(self, tag: int, multiple: bool, outcome: Outcome) -> None:
        """Take the broker's answer for the publish *tag*, or for all up to it."""
        self._answered = True
        for number in self._up_to(tag) if multiple else (tag,):
            item = self._pending.pop(number)
            self._bytes -= len(item.body)
            self._end(item, outcome if item.returned is None else Unroutable(item.returned))

    def _up_to(self, tag: int) -> list[int]:
        numbers = []
        for number in self._pending:
            if number > tag:
                break
            numbers.append(number)
        return numbers

    def returned(self, message_id: str, routing_key: str, reason: str) -> None:
        """Note that the broker found no queue for a message; its confirm follows.

        Messages of one id and one routing key share their fate, so the first one is as good.
        """
        wanted = (message_id, routing_key, None)
        for item in self._pending.values():
            if (item.message_id, item.routing_key, item.returned) == wanted:
                item.returned = reason
                return

    def _end(self, item: Item, outcome: Outcome) -> None:
        self._settle(item.index, outcome)
        if item.follower is None:
            return
        if outcome == SENT:
            self._ready.append(item.follower)
        else:
            self._drop(item.follower, outcome if isinstance(outcome, Unroutable) else NOT_SENT)

    def _drop(self, item: Item | None, outcome: Outcome) -> None:
        while item is not None:
            self._settle(item.index, outcome)
            item = item.follower

    def fail(self, cause: BaseException) -> None:
        """Settle everything that has no outcome: the channel is gone, or there never was one."""
        if self.over:
            return
        unsent = _verdict_on_unsent(cause)
        for item in self._pending.values():
            self._settle(item.index, self._verdict_on_sent(item, cause))
            self._drop(item.follower, unsent)
        for item in self._ready:
            self._drop(item, unsent)
        self._finish()

    def _verdict_on_sent(self, item: Item, cause: BaseException) -> Outcome:
        text = f"RabbitMQ: {errors.describe(cause)}"
        if isinstance(cause, exceptions.ChannelClosedByBroker):
            if cause.reply_code in _NO_ROUTE and not self._answered:
                return Unroutable(text)
            limit = _TOO_LARGE.search(text)
            if limit is not None and len(item.body) > int(limit[1]):
                return Refused(text)
        return Unknown(text)

    def _finish(self) -> None:
        self._pending.clear()
        self._ready.clear()
        self.over = True
        self.finished()


def _too_large(item: Item, limit: int) -> Refused:
    return Refused(f"the headers have {len(item.properties)} bytes, the broker takes {limit}")


def _nobody_waits() -> None:
    """Stand in for ``Run.finished`` until the run is sent."""


def _verdict_on_unsent(cause: BaseException) -> Outcome:
    text = f"not sent: RabbitMQ: {errors.describe(cause)}"
    if isinstance(cause, exceptions.ChannelClosedByBroker) and cause.reply_code in _NO_ROUTE:
        return Unroutable(text)
    return Unknown(text)
