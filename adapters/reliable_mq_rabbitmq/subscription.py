"""One group's stream of deliveries, for the one thread that receives."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

from reliable_mq.adapter import Batch, Lost, Received
from reliable_mq.errors import TransportError
from reliable_mq_rabbitmq import messages
from reliable_mq_rabbitmq.connection import Link
from reliable_mq_rabbitmq.consuming import ConsumingConnection, Plan, QueueConsumer
from reliable_mq_rabbitmq.mailbox import Arrival, Mailbox
from reliable_mq_rabbitmq.options import Options

_LEAVE_TIMEOUT = 2.0


class RabbitSubscription:
    """Deliveries of one or more topics to one group, on a connection of its own.

    Partitions are named like their queues; an epoch is the life of one channel on one of them.
    The broker holds what is delivered to us as long as the connection lives, which its own
    thread looks after, and takes it back at the latest after its ``consumer_timeout`` (30
    minutes by default); that is reported as lost.
    """

    def __init__(self, options: Options, plan: Plan) -> None:
        self._connection_timeout = options.connection_timeout
        self._operation_timeout = options.operation_timeout
        self._plan = plan
        self._mailbox = Mailbox()
        self._topics = plan.queues()
        self._held: dict[QueueConsumer, set[int]] = defaultdict(set)
        self._unflushed: set[QueueConsumer] = set()
        name = f"reliable-mq {plan.group} {plan.instance}"
        self._link = Link(lambda: ConsumingConnection(options, name, plan, self._mailbox))

    def receive(self, limit: int, timeout: float) -> Batch:
        """See :meth:`reliable_mq.adapter.Subscription.receive`."""
        deadline = time.monotonic() + timeout
        if self._link.live() is None:
            # What was lost with the connection comes before the attempt to make a new one.
            lost, _ = self._mailbox.take(0, 0)
            if lost:
                return self._batch(lost, [])
        self._link.connection(timeout + self._connection_timeout)
        room = self._plan.prefetch - sum(map(len, self._held.values()))
        left = max(0.0, deadline - time.monotonic())
        return self._batch(*self._mailbox.take(min(limit, room), left))

    def _batch(self, lost: list[Lost], arrivals: list[Arrival]) -> Batch:
        for loss in lost:
            self._forget(loss)
        for arrival in arrivals:
            self._held[arrival.consumer].add(arrival.tag)
        return Batch(deliveries=[self._received(arrival) for arrival in arrivals], lost=lost)

    def _received(self, arrival: Arrival) -> Received:
        topic = self._topics[arrival.partition]
        return Received(
            raw=messages.decode(topic, arrival.properties, arrival.body),
            partition=arrival.partition,
            epoch=arrival.epoch,
            receipt=arrival,
            redelivered=arrival.redelivered,
        )

    def _forget(self, loss: Lost) -> None:
        for consumer in {*self._held, *self._unflushed}:
            if consumer.queue == loss.partition and consumer.epoch <= loss.epoch:
                self._held.pop(consumer, None)
                self._unflushed.discard(consumer)

    def ack(self, deliveries: Sequence[Received]) -> None:
        """Send the acknowledgements; see :meth:`reliable_mq.adapter.Subscription.ack`.

        AMQP has no reply to them: what the connection did not carry any more is redelivered.
        """
        for consumer, tags in self._held_of(deliveries).items():
            consumer.connection.submit(partial(consumer.ack, tags))
            self._unflushed.add(consumer)

    def flush(self) -> None:
        """Wait until a majority of each queue's nodes has every acknowledgement.

        Of an ordered group, whose handlers never wait for this, its leader is enough. Raises
        ``TransportError`` where that is not known: the broker did not answer within
        ``operation_timeout``, or a channel or the connection ended before. So does the next call
        then, until it is known, or the loss was reported.
        """
        self._await_acks(self._operation_timeout)

    def _await_acks(self, timeout: float) -> None:
        """Wait for every queue's; only then raise what failed first.

        A queue whose channel is gone must not cost the others their acknowledgements.
        """
        replies = {one: one.connection.request(one.barrier) for one in self._unflushed}
        deadline = time.monotonic() + timeout
        failure: TransportError | None = None
        for consumer, reply in replies.items():
            try:
                reply.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                failure = failure or TransportError("RabbitMQ did not answer: acks may be lost")
            except TransportError as error:
                failure = failure or error
            else:
                self._unflushed.discard(consumer)
        if failure is not None:
            raise failure

    def release(self, deliveries: Sequence[Received]) -> None:
        """See :meth:`reliable_mq.adapter.Subscription.release`."""
        for consumer, tags in self._held_of(deliveries).items():
            if self._plan.ordered:
                self._give_up(consumer.queue, consumer.epoch)
            else:
                consumer.connection.submit(partial(consumer.release, tags))

    def _held_of(self, deliveries: Iterable[Received]) -> dict[QueueConsumer, list[int]]:
        """Return what of *deliveries* is still held, by consumer, and hold it no longer."""
        found: dict[QueueConsumer, list[int]] = defaultdict(list)
        for delivery in deliveries:
            arrival: Arrival = delivery.receipt
            held = self._held.get(arrival.consumer)
            if held is not None and arrival.tag in held:
                held.remove(arrival.tag)
                found[arrival.consumer].append(arrival.tag)
        return found

    def keep_alive(self, deliveries: Sequence[Received]) -> None:
        """Do nothing: the connection's heartbeats hold them, on the I/O thread."""

    def hand_over(self, partition: str) -> None:
        """See :meth:`reliable_mq.adapter.Subscription.hand_over`."""
        epoch = self._mailbox.live_epoch(partition)
        if epoch is not None:
            self._give_up(partition, epoch)

    def _give_up(self, partition: str, epoch: int) -> None:
        # Lost at once: what arrives until the I/O thread has let go is not handed out any more.
        connection = self._link.live()
        if self._mailbox.lose(partition, epoch) and connection is not None:
            connection.submit(lambda: connection.hand_over(partition, epoch))

    def unacked(self, topic: str, group: str, timeout: float) -> int:
        """Return how many deliveries of *topic* to *group* are unacknowledged here; any thread."""
        connection = self._link.live()
        if connection is None or group != self._plan.group:
            return 0
        queues = [queue for queue, of in self._topics.items() if of == topic]
        try:
            return connection.unacked(queues, timeout)
        except TransportError:
            if not connection.ended:
                raise
            return 0  # What it held is ready for others again.

    def close(self) -> None:
        """See :meth:`reliable_mq.adapter.Subscription.close`."""
        connection = self._link.live()
        if connection is not None:
            if not self._plan.ordered:
                # A channel holds acknowledgements back while many others are being written, and
                # forgets them when it is closed.
                with suppress(TransportError):
                    self._await_acks(_LEAVE_TIMEOUT)
            connection.leave(_LEAVE_TIMEOUT)
        self._link.close()
