"""The adapter itself: one connection to publish, one to ask, one for each subscription."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta
from weakref import WeakSet

from reliable_mq.adapter import (
    AdapterContext,
    Capabilities,
    Finding,
    GroupSpec,
    Outcome,
    Subscription,
    TopicSpec,
)
from reliable_mq.errors import ConfigurationError
from reliable_mq.message import Message
from reliable_mq_rabbitmq.connection import Connection, Link
from reliable_mq_rabbitmq.consuming import Plan
from reliable_mq_rabbitmq.declare import Declaration
from reliable_mq_rabbitmq.inspection import Inspection
from reliable_mq_rabbitmq.lag import ready
from reliable_mq_rabbitmq.options import Options
from reliable_mq_rabbitmq.publisher import Publisher
from reliable_mq_rabbitmq.subscription import RabbitSubscription
from reliable_mq_rabbitmq.topology import Layout, layout_of

_CAPABILITIES = Capabilities(stable_position=False, retains=False)


class RabbitAdapter:
    """See :class:`reliable_mq.adapter.Adapter`, and the package for what is RabbitMQ's own."""

    def __init__(self, options: Options, context: AdapterContext) -> None:
        self._options = options
        self._context = context
        self._groups: dict[tuple[str, str], GroupSpec] = {}
        self._subscriptions: WeakSet[RabbitSubscription] = WeakSet()
        self._lock = threading.Lock()
        self._publisher = Publisher(options, context)
        name = f"reliable-mq control {context.instance}"
        self._control = Link(lambda: Connection(options, name))

    @property
    def name(self) -> str:
        """``rabbitmq``."""
        return "rabbitmq"

    @property
    def capabilities(self) -> Capabilities:
        """No lasting positions, and a queue gets only what is published after its declaration."""
        return _CAPABILITIES

    def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
        """Create exchanges, queues and bindings that are missing, alter none.

        The topics of *groups* are declared too. Blocks up to ``operation_timeout`` for each
        reply of the broker. Raises as :meth:`reliable_mq.adapter.Adapter.declare` says.
        """
        _check_names(topics, groups)
        specs = {spec.name: spec for spec in topics}
        for group in groups:
            specs.setdefault(group.topic, TopicSpec(name=group.topic))
        declaration = Declaration(self._asking(), self._options.operation_timeout)
        for spec in specs.values():
            declaration.topic(spec)
        for group in groups:
            spec = specs[group.topic]
            declaration.group(group, self._layout(spec), spec.replication_factor)
            self._groups[group.topic, group.group] = group

    def _layout(self, spec: TopicSpec) -> Layout:
        """Return the layout for the number of *spec*, else for the one the application named."""
        if spec.partitions is not None:
            return Layout(spec.name, spec.partitions)
        return layout_of(spec.name, self._context.topics)

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        """Send *messages*; see :meth:`reliable_mq.adapter.Adapter.publish`.

        ``Sent`` is a confirm of the broker without a return: a quorum of each queue has it.
        """
        return self._publisher.publish(messages, timeout)

    def subscribe(
        self, topics: Sequence[str], group: str, *, prefetch: int, ordered: bool
    ) -> Subscription:
        """Return a subscription with a connection and a thread of its own; no I/O yet.

        At most *prefetch* deliveries are handed out unacknowledged, of all queues together; the
        broker may send as many ahead of each queue, which wait in memory.
        """
        if not topics or prefetch < 1:
            raise ConfigurationError("a subscription needs a topic and a prefetch of 1 or more")
        plan = Plan(
            layouts=tuple(layout_of(topic, self._context.topics) for topic in topics),
            group=group,
            ordered=ordered,
            prefetch=prefetch,
            instance=self._context.instance,
        )
        for topic in topics:
            spec = GroupSpec(topic=topic, group=group, ordered=ordered)
            self._groups.setdefault((topic, group), spec)
        subscription = RabbitSubscription(self._options, plan)
        with self._lock:
            self._subscriptions.add(subscription)
        return subscription

    def lag(self, topic: str, group: str) -> int:
        """Return the ready messages of the group's queues plus what this adapter's hold.

        AMQP does not tell what other processes hold unacknowledged: that is not in it. A queue
        that has no leader just now looks empty to RabbitMQ, and so it does here. Where the
        application does not name the number of partitions, that of the existing queues counts.
        Raises ``ConfigurationError`` where the group was not declared.
        """
        timeout = self._options.operation_timeout
        waiting = ready(self._asking(), timeout, topic, group, self._context.topics)
        held = (each.unacked(topic, group, timeout) for each in self._open())
        return waiting + sum(held)

    def redelivery_bound(self, topics: Sequence[str]) -> timedelta | None:
        """Return None: the queues have no time to live."""
        return None

    def inspect(self) -> list[Finding]:
        """Look at the connection, and at the topics and groups that the application has.

        These are the context's, and those that were declared here or subscribed to. With
        ``management`` in the URL also at policies, bindings, replicas and alarms, and at the
        groups that other services declared; else a finding says that nobody did.
        """
        groups = {(spec.topic, spec.group): spec for spec in self._context.groups} | self._groups
        inspection = Inspection(self._asking(), self._options)
        return list(inspection.findings(self._context.topics, list(groups.values())))

    def close(self) -> None:
        """Close all connections and end their threads, within a few seconds. Idempotent.

        Subscriptions that are still open are closed too.
        """
        for subscription in self._open():
            subscription.close()
        self._publisher.close()
        self._control.close()

    def _open(self) -> list[RabbitSubscription]:
        with self._lock:
            return list(self._subscriptions)

    def _asking(self) -> Connection:
        hosts = len(self._options.hosts)
        return self._control.connection(self._options.connection_timeout * hosts + 1)


def _check_names(topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
    """Refuse a catch-all whose queue would be a group's queue as well."""
    queues = {f"{group.topic}.{group.group}": group for group in groups}
    for spec in topics:
        group = queues.get(spec.name)
        if spec.catch_all and group is not None:
            raise ConfigurationError(
                f"topic {spec.name!r} keeps its messages in a queue of its own name, which is "
                f"also the queue of group {group.group!r} of topic {group.topic!r}: rename one"
            )
