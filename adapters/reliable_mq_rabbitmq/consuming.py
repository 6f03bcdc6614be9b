"""Consuming on the I/O thread: one channel a queue, and what ends it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from pika import exceptions

from reliable_mq.errors import ConfigurationError, ReliableMQError, TransportError
from reliable_mq_rabbitmq import errors
from reliable_mq_rabbitmq.connection import Connection
from reliable_mq_rabbitmq.deliveries import Delivery
from reliable_mq_rabbitmq.mailbox import Arrival, Mailbox
from reliable_mq_rabbitmq.membership import Membership
from reliable_mq_rabbitmq.options import Options
from reliable_mq_rabbitmq.replication import replicated
from reliable_mq_rabbitmq.tags import CompetingTags, OrderedTags
from reliable_mq_rabbitmq.topology import Layout

log = logging.getLogger("reliable_mq")

RETRY_DELAY = 1.0
_MAX_PREFETCH = 65535

_NO_SUCH_QUEUE = "reliable-mq:this-queue-never-exists:asking-for-it-hands-messages-back-in-order"
"""The name stands in the broker's log at each hand-over, so it says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a subscription consumes, and as whom."""

    layouts: tuple[Layout, ...]
    group: str
    ordered: bool
    prefetch: int
    instance: str

    def queues(self) -> dict[str, str]:
        """Return every queue with its topic."""
        return {
            queue: layout.topic for layout in self.layouts for queue in layout.queues(self.group)
        }

    @property
    def prefetch_each(self) -> int:
        """How many unacknowledged messages the broker sends ahead of one queue.

        All of them, so that one busy partition is as fast as many; that no more than the
        prefetch are handed out of all queues together is the subscription's business.
        """
        return min(_MAX_PREFETCH, self.prefetch)


class ConsumingConnection(Connection):
    """A connection that consumes all queues of a plan, again after a queue's channel was closed.

    It belongs to one subscription, for which it fills the mailbox.
    """

    def __init__(self, options: Options, name: str, plan: Plan, mailbox: Mailbox) -> None:
        super().__init__(options, name)
        self.plan = plan
        self.mailbox = mailbox
        self.consumers: dict[str, QueueConsumer] = {}
        self.by_channel: dict[int, QueueConsumer] = {}
        """The same as far as their channels are open: whose deliveries are read without pika."""
        self._arrived: list[Arrival] = []
        self._failing: set[str] = set()
        self._leaving: set[QueueConsumer] = set()
        self._left: Future[Any] | None = None

    # --- for any thread ---

    def leave(self, timeout: float) -> None:
        """Have the broker take everything unacknowledged back, in order; then close.

        Bounded: where the broker does not answer, the TCP connection is cut, with the same
        effect as soon as the broker notices.
        """
        if self.plan.ordered:
            try:
                self.request(self._leave).result(timeout)
            except (TransportError, TimeoutError):
                self.cut("the broker did not answer in time")
        self.close()

    def unacked(self, queues: Iterable[str], timeout: float) -> int:
        """Return how many deliveries of *queues* are unacknowledged on this connection."""

        def count(reply: Future[Any]) -> None:
            found = (self.consumers.get(queue) for queue in queues)
            reply.set_result(sum(len(consumer.tags) for consumer in found if consumer))

        return int(self.ask(count, timeout))

    # --- for the I/O thread ---

    def _on_open(self) -> None:
        self.opened().deliver(self.by_channel, self._take)
        for queue in self.plan.queues():
            self.consume(queue)
        if self.plan.ordered:
            for layout in self.plan.layouts:
                if layout.partitions > 1:
                    Membership(self, layout).join()

    def _take(self, deliveries: Iterable[Delivery]) -> None:
        self.arrive([self.by_channel[one[0]].arrival(*one[1:]) for one in deliveries])

    def arrive(self, arrivals: Iterable[Arrival]) -> None:
        """Pass deliveries on, together with all others that can be read now.

        The receiving thread is woken once for all of them.
        """
        if not self._arrived:
            self.later(0, self._pass_on)
        self._arrived.extend(arrivals)

    def _pass_on(self) -> None:
        arrived, self._arrived = self._arrived, []
        self.mailbox.put(arrived)

    def consume(self, queue: str) -> None:
        """Consume *queue* under a new epoch."""
        if self._left is None and queue not in self.consumers:
            self.consumers[queue] = QueueConsumer(self, queue)

    def gone(self, consumer: QueueConsumer, error: ReliableMQError | None) -> None:
        """Take note that a consumer's channel is closed, and consume the queue again.

        Where *error* says that it failed, the receiving thread is told, and the next attempt
        waits a little.
        """
        if self.consumers.get(consumer.queue) is consumer:
            del self.consumers[consumer.queue]
        self._leaving.discard(consumer)
        if self._left is not None:
            self._check_left()
        elif not self.opened().is_open:
            return  # With its connection; the receiving thread makes a new one.
        elif error is None:
            self.consume(consumer.queue)
        else:
            self._fail(consumer.queue, error)

    def _fail(self, queue: str, error: ReliableMQError) -> None:
        if queue not in self._failing:
            # Raised only when nothing else is received, which may never be, so said here too.
            log.warning("%s (tried again every %g s)", error, RETRY_DELAY)
            self._failing.add(queue)
        self.mailbox.complain(error)
        self.later(RETRY_DELAY, lambda: self.consume(queue))

    def works(self, queue: str) -> None:
        """Take note that *queue* is consumed."""
        self._failing.discard(queue)

    def hand_over(self, queue: str, epoch: int) -> None:
        """Let go of *queue*, unless it is consumed under another epoch already."""
        consumer = self.consumers.get(queue)
        if consumer is not None and consumer.epoch == epoch:
            consumer.let_go()

    def _leave(self, left: Future[Any]) -> None:
        self._left = left
        self._leaving = set(self.consumers.values())
        for consumer in list(self._leaving):
            consumer.let_go()
        self._check_left()

    def _check_left(self) -> None:
        if not self._leaving and self._left is not None and not self._left.done():
            self._left.set_result(None)

    def _on_end(self) -> None:
        for consumer in self.consumers.values():
            self.mailbox.lose(consumer.queue, consumer.epoch)


class QueueConsumer:
    """One queue, consumed on a channel of its own, from the opening to the end of the channel.

    The channel is never cancelled, nor closed by pika while it consumes, and in order nothing is
    rejected: then the broker would put the messages it gets back behind later ones. Instead the
    broker is made to close the channel; then they go back to the front.
    """

    def __init__(self, connection: ConsumingConnection, queue: str) -> None:
        self.connection = connection
        self.queue = queue
        self.tags = OrderedTags() if connection.plan.ordered else CompetingTags()
        self.epoch = connection.mailbox.begin(queue)
        self._barriers: set[Future[Any]] = set()
        self.active = False
        """The queue gave us something: in order, we are the one who gets its messages."""
        self._letting_go = False
        self._cancelled = False
        self._channel: Any = None
        self._open()

    def _open(self) -> None:
        try:
            self._channel = self.connection.opened().channel(on_open_callback=self._on_open)
        except exceptions.AMQPError as error:
            self.connection.later(0, partial(self._gone, error))
        else:
            self._channel.add_on_close_callback(lambda _, reason: self._gone(reason))

    def _on_open(self, channel: Any) -> None:
        if self._letting_go:
            channel.close()  # It has no consumer yet, so there is nothing to cancel.
            return
        channel.add_on_cancel_callback(self._on_cancel)
        self.connection.by_channel[channel.channel_number] = self
        plan = self.connection.plan
        channel.basic_qos(
            prefetch_count=plan.prefetch_each,
            callback=lambda _: channel.basic_consume(
                self.queue,
                self._on_message,
                consumer_tag=plan.instance,
                callback=lambda _: self.connection.works(self.queue),
            ),
        )

    def _on_message(self, _: Any, method: Any, properties: bytes, body: bytes) -> None:
        redelivered = bool(method.redelivered)
        self.connection.arrive([self.arrival(method.delivery_tag, redelivered, properties, body)])

    def arrival(self, tag: int, redelivered: bool, properties: bytes, body: bytes) -> Arrival:
        """Take a delivery."""
        self.active = True
        self.tags.deliver(tag)
        return Arrival(self, self.queue, self.epoch, tag, redelivered, properties, body)

    def _on_cancel(self, _: Any) -> None:
        """The broker ended the consumer, because the queue was deleted."""
        self._cancelled = True
        self._lose()
        if self._channel.is_open:
            self._channel.close()  # It has no consumer any more, so there is nothing to cancel.

    def ack(self, tags: Iterable[int]) -> None:
        """Acknowledge; what is not outstanding is ignored."""
        if self._usable():
            for tag, multiple in self.tags.ack(tags):
                self._channel.basic_ack(tag, multiple)

    def release(self, tags: Iterable[int]) -> None:
        """Give single messages back to their queue. For competing consumers only."""
        if self._usable():
            for tag in self.tags.release(tags):
                self._channel.basic_nack(tag, requeue=True)

    def barrier(self, passed: Future[Any]) -> None:
        """Set *passed* when a majority has every acknowledgement sent before.

        Of an ordered queue when its leader has them: a single active consumer may not do more.
        """
        if not self._usable():
            passed.set_exception(TransportError("RabbitMQ closed the channel of the delivery"))
            return
        self._barriers.add(passed)
        passed.add_done_callback(self._barriers.discard)
        # A channel works off its methods one by one, and answers this one when the leader has
        # them; it does not wait until they are replicated.
        self._channel.queue_declare(
            self.queue, passive=True, callback=lambda _: self._replicated(passed)
        )

    def _replicated(self, passed: Future[Any]) -> None:
        if passed.done():
            return
        if self.connection.plan.ordered:
            passed.set_result(None)
        else:
            replicated(self.connection.opened(), self.queue, passed)

    def let_go(self) -> None:
        """Give everything unacknowledged back, in order, and end this consumer."""
        if self._letting_go:
            return
        self._letting_go = True
        self.active = False
        self._lose()
        if self._channel is not None and self._channel.is_open:
            self._channel.queue_declare(
                _NO_SUCH_QUEUE,
                passive=True,
                callback=lambda _: self.connection.cut(f"the queue {_NO_SUCH_QUEUE!r} exists"),
            )

    def _usable(self) -> bool:
        return not self._letting_go and self._channel is not None and bool(self._channel.is_open)

    def _lose(self) -> None:
        self.connection.mailbox.lose(self.queue, self.epoch)

    def _gone(self, reason: BaseException) -> None:
        if self._channel is not None:
            self.connection.by_channel.pop(self._channel.channel_number, None)
        self._lose()
        for passed in list(self._barriers):
            passed.set_exception(TransportError(f"RabbitMQ: {errors.describe(reason)}"))
        self.connection.gone(self, None if self._letting_go else self._error(reason))

    def _error(self, reason: BaseException) -> ReliableMQError:
        if self._cancelled:
            return TransportError(f"queue {self.queue!r} was deleted: declare its group again")
        text = f"RabbitMQ ended the delivery from {self.queue!r}: {errors.describe(reason)}"
        if isinstance(reason, exceptions.ChannelClosedByBroker):
            if reason.reply_code == errors.ACCESS_REFUSED:
                return ConfigurationError(f"{text}; grant the user the permission to read it")
            if reason.reply_code == errors.NOT_FOUND:
                return TransportError(f"{text}; declare the topic and the group")
        return TransportError(text)
