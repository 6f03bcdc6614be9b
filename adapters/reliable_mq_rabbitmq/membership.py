"""Sharing the partitions of a topic fairly among the members of an ordered group.

The broker gives a queue with a single active consumer to whoever came first, and leaves it there.
So each member also consumes a queue that never holds a message, for its consumers to be counted;
who is active on more partitions than a fair share gives one up a second, and the broker activates
the next member in line. Nothing but the balance depends on that queue.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pika import exceptions

from reliable_mq_rabbitmq import errors
from reliable_mq_rabbitmq.topology import Layout, members_arguments, members_queue

if TYPE_CHECKING:
    from reliable_mq_rabbitmq.consuming import ConsumingConnection

log = logging.getLogger("reliable_mq")

_EXPIRES = 60.0
_PERIOD = 1.0
_RETRY_DELAY = 5.0


class Membership:
    """This connection's membership of its group on one topic. For the I/O thread."""

    def __init__(self, connection: ConsumingConnection, layout: Layout) -> None:
        self._connection = connection
        self._layout = layout
        self._queue = members_queue(layout.topic, connection.plan.group)
        self._queues = layout.queues(connection.plan.group)
        self._channel: Any = None
        self._warned = False

    def join(self) -> None:
        """Become a member and keep the balance until the connection ends."""
        try:
            self._channel = self._connection.opened().channel(on_open_callback=self._on_open)
        except exceptions.AMQPError:
            self._connection.later(_RETRY_DELAY, self.join)
        else:
            self._channel.add_on_close_callback(self._on_close)

    def _on_open(self, channel: Any) -> None:
        channel.queue_declare(
            self._queue,
            durable=True,
            arguments=members_arguments(_EXPIRES),
            callback=self._on_declared,
        )

    def _on_declared(self, _: Any) -> None:
        self._channel.basic_consume(
            self._queue,
            _ignore,
            auto_ack=True,
            consumer_tag=self._connection.plan.instance,
            callback=self._on_joined,
        )

    def _on_joined(self, _: Any) -> None:
        self._warned = False
        self._connection.later(_PERIOD, self._count)

    def _count(self) -> None:
        if self._channel.is_open:
            self._channel.queue_declare(self._queue, passive=True, callback=self._on_counted)

    def _on_counted(self, frame: Any) -> None:
        self._give_up_one_too_many(max(1, frame.method.consumer_count))
        self._connection.later(_PERIOD, self._count)

    def _give_up_one_too_many(self, members: int) -> None:
        share = -(-self._layout.partitions // members)
        consumers = (self._connection.consumers.get(queue) for queue in self._queues)
        active = [consumer for consumer in consumers if consumer is not None and consumer.active]
        if len(active) > share:
            # What is unacknowledged is delivered again to the next owner: take the cheapest.
            min(active, key=lambda consumer: len(consumer.tags)).let_go()

    def _on_close(self, _: Any, reason: BaseException) -> None:
        if not self._connection.opened().is_open:
            return
        if not self._warned:
            log.warning(
                "RabbitMQ: the members of group %s on topic %s cannot be counted, so their shares "
                "are not balanced (tried again every %g s): %s",
                self._connection.plan.group,
                self._layout.topic,
                _RETRY_DELAY,
                errors.describe(reason),
            )
            self._warned = True
        self._connection.later(_RETRY_DELAY, self.join)


def _ignore(*_: Any) -> None:
    """Take no notice of a message that somebody sent to the members queue."""
