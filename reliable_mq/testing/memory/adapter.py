"""The adapter protocol over a memory broker."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

from reliable_mq.adapter import (
    AdapterContext,
    Batch,
    Capabilities,
    Finding,
    GroupSpec,
    Handled,
    Outcome,
    Received,
    Refused,
    TopicSpec,
    Unknown,
    Unroutable,
)
from reliable_mq.errors import ConfigurationError, StaleDeliveryError, TransportError
from reliable_mq.message import Message
from reliable_mq.testing.memory.broker import MemoryBroker
from reliable_mq.testing.memory.logs import Member

_SCHEME = "memory://"


def open_adapter(url: str, context: AdapterContext) -> MemoryAdapter:
    """Return an adapter for the broker named in *url*, which appears with its first use."""
    if context.client_options:
        raise ConfigurationError(
            f"memory:// has no client options, got {', '.join(sorted(context.client_options))}"
        )
    return MemoryAdapter(url, MemoryBroker.named(url.removeprefix(_SCHEME)), context)


class MemorySubscription:
    """One member of a group. What it owns is the broker's to change."""

    def __init__(self, broker: MemoryBroker, member: Member, limit: int) -> None:
        self._broker = broker
        self._member = member
        self._limit = limit
        self._closed = False

    def receive(self, limit: int, timeout: float) -> Batch:
        """See ``Subscription.receive``. After ``close`` it raises ``TransportError``."""
        if self._closed:
            raise TransportError("this subscription is closed")
        return self._broker.receive(self._member, limit, timeout)

    def ack(self, deliveries: Sequence[Received]) -> None:
        """Commit what is contiguous, at once."""
        if not self._closed:
            self._broker.ack(self._member, deliveries)

    def commit(self, handled: Sequence[Handled]) -> Mapping[int, Refused | Unroutable]:
        """See ``TransactionalSubscription.commit``."""
        if self._closed:
            raise StaleDeliveryError("this subscription is closed")
        return self._broker.commit(self._member, handled, self._limit)

    def hold_back(self, partitions: Collection[str]) -> None:
        """See ``TransactionalSubscription.hold_back``."""
        self._broker.hold_back(self._member, partitions)

    def flush(self) -> None:
        """Raise where a loss is to be reported; else what was acknowledged is applied already."""
        if self._broker.has_lost(self._member):
            raise TransportError("a partition was lost before it was acknowledged; it comes again")

    def release(self, deliveries: Sequence[Received]) -> None:
        """Give up the partitions of *deliveries* that are still owned under their epoch."""
        self._broker.release(self._member, deliveries)

    def keep_alive(self, deliveries: Sequence[Received]) -> None:
        """Nothing to do: nothing here is lost by waiting."""

    def hand_over(self, partition: str) -> None:
        """Give up *partition*; it may come back under a new epoch if nobody else takes it."""
        self._broker.hand_over(self._member, partition)

    def close(self) -> None:
        """Leave the group. Idempotent."""
        self._closed = True
        self._broker.leave(self._member)


class MemoryAdapter:
    """A connection to a :class:`MemoryBroker`, which is its attribute ``broker``."""

    name = "memory"
    capabilities = Capabilities(durable=False, log=True, transactions=True)

    def __init__(self, url: str, broker: MemoryBroker, context: AdapterContext) -> None:
        self.url = url
        self.broker = broker
        self._limit = context.max_message_bytes
        self._subscriptions: list[MemorySubscription] = []
        self._closed = False

    def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
        """See ``Adapter.declare``."""
        self.broker.declare(topics, groups)

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        """Store *messages* at once, in one step that no receiver sees half of."""
        if self._closed:
            return [Unknown("the adapter is closed")] * len(messages)
        return self.broker.publish(messages, self._limit)

    def subscribe(
        self, topics: Sequence[str], group: str, *, prefetch: int, ordered: bool
    ) -> MemorySubscription:
        """See ``Adapter.subscribe``; ordered or not, a partition has one owner."""
        member = Member(tuple(topics), group, prefetch)
        subscription = MemorySubscription(self.broker, member, self._limit)
        self._subscriptions.append(subscription)
        return subscription

    def subscribe_transactional(
        self, topics: Sequence[str], group: str, *, prefetch: int
    ) -> MemorySubscription:
        """See ``TransactionalAdapter``."""
        return self.subscribe(topics, group, prefetch=prefetch, ordered=True)

    def lag(self, topic: str, group: str) -> int:
        """See ``Adapter.lag``."""
        return self.broker.lag(topic, group)

    def redelivery_bound(self, topics: Sequence[str]) -> timedelta | None:
        """Return None: what is not acknowledged stays."""
        return None

    def inspect(self) -> list[Finding]:
        """Return nothing: there is nothing to set wrongly."""
        return []

    def close(self) -> None:
        """Close the subscriptions. The broker keeps its messages."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()
