"""Sharing the partitions of a topic fairly among the members of an ordered group.

The broker gives a queue with a single active consumer to whoever came first, and leaves it there.
So each member also consumes a queue that never holds a message, for its consumers to be counted;
who is active on more partitions than a fair share gives one up a second, and the broker activates
the next member in line. Nothing but the balance depends on that queue.

It is on one node of a cluster. While that node is down another queue stands in for it, and each
member looks every few seconds whether the first one works again. Members that count in different
queues meanwhile know of fewer members than there are, and keep what they have.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from pika import exceptions

from reliable_mq_rabbitmq import errors
from reliable_mq_rabbitmq.topology import Layout, members_arguments, members_queues

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
        self._names = members_queues(layout.topic, connection.plan.group)
        self._place = 0
        self._queues = layout.queues(connection.plan.group)
        self._channel: Any = None
        self._joined = False
        self._warned = False

    def join(self) -> None:
        """Become a member and keep the balance until the connection ends."""
        self._joined = False
        try:
            self._channel = self._connection.opened().channel(on_open_callback=self._on_open)
        except exceptions.AMQPError as error:
            self._retry(error)
        else:
            self._channel.add_on_close_callback(self._on_close)

    # --- from joining to counting ---

    def _on_open(self, channel: Any) -> None:
        channel.add_on_cancel_callback(lambda _: self._leave(channel))
        channel.queue_declare(
            self._names[self._place],
            durable=True,
            arguments=members_arguments(_EXPIRES),
            callback=self._on_declared,
        )

    def _on_declared(self, _: Any) -> None:
        self._channel.basic_consume(
            self._names[self._place],
            _ignore,
            auto_ack=True,
            consumer_tag=self._connection.plan.instance,
            callback=self._on_joined,
        )

    def _on_joined(self, _: Any) -> None:
        self._joined = True
        self._warned = False
        channel = self._channel
        self._connection.later(_PERIOD, partial(self._count, channel))
        if self._place > 0:
            self._connection.later(_RETRY_DELAY, partial(self._leave, channel))

    def _count(self, channel: Any) -> None:
        if channel.is_open:
            name = self._names[self._place]
            channel.queue_declare(name, passive=True, callback=partial(self._on_counted, channel))

    def _on_counted(self, channel: Any, frame: Any) -> None:
        self._give_up_one_too_many(max(1, frame.method.consumer_count))
        self._connection.later(_PERIOD, partial(self._count, channel))

    def _give_up_one_too_many(self, members: int) -> None:
        share = -(-self._layout.partitions // members)
        consumers = (self._connection.consumers.get(queue) for queue in self._queues)
        active = [consumer for consumer in consumers if consumer is not None and consumer.active]
        if len(active) > share:
            # What is unacknowledged is delivered again to the next owner: take the cheapest.
            min(active, key=lambda consumer: len(consumer.tags)).let_go()

    # --- joining again ---

    def _leave(self, channel: Any) -> None:
        """Begin again with the first queue: this one is gone, or only stands in for it."""
        if channel.is_open:
            channel.close()  # Nothing is unacknowledged on it, so that pika's close is harmless.

    def _on_close(self, _: Any, reason: BaseException) -> None:
        stood_in, self._place = self._place, 0
        gone = _is_missing(reason)
        if isinstance(reason, exceptions.ChannelClosedByClient) or (gone and self._joined):
            self._connection.later(0, self.join)
        elif gone and stood_in + 1 < len(self._names):
            self._place = stood_in + 1
            self.join()
        else:
            self._retry(reason)

    def _retry(self, reason: BaseException) -> None:
        if not self._connection.opened().is_open:
            return  # The next connection has a membership of its own.
        self._warn(reason)
        self._connection.later(_RETRY_DELAY, self.join)

    def _warn(self, reason: BaseException) -> None:
        if self._warned:
            return
        self._warned = True
        log.warning(
            "RabbitMQ: the members of group %s on topic %s cannot be counted, so their shares "
            "are not balanced (tried again every %g s): %s",
            self._connection.plan.group,
            self._layout.topic,
            _RETRY_DELAY,
            errors.describe(reason),
        )


def _is_missing(reason: BaseException) -> bool:
    """Tell whether there is no such queue; where it was to be declared, its node is down."""
    return (
        isinstance(reason, exceptions.ChannelClosedByBroker)
        and reason.reply_code == errors.NOT_FOUND
    )


def _ignore(*_: Any) -> None:
    """Take no notice of a message that somebody sent to the members queue."""
