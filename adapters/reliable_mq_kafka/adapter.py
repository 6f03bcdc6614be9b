"""The adapter itself: one object that the parts hang together in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

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
from reliable_mq_kafka.admin import Admin
from reliable_mq_kafka.config import Clients
from reliable_mq_kafka.declare import declare
from reliable_mq_kafka.identities import Identities
from reliable_mq_kafka.inspection import Inspection
from reliable_mq_kafka.keeper import Keeper
from reliable_mq_kafka.lag import lag, redelivery_bound
from reliable_mq_kafka.location import parse_url
from reliable_mq_kafka.options import parse_options
from reliable_mq_kafka.publisher import Publisher
from reliable_mq_kafka.subscription import KafkaSubscription
from reliable_mq_kafka.transactional import TransactionalSubscription


class KafkaAdapter:
    """Kafka; see :class:`reliable_mq.adapter.Adapter` and the package's docstring."""

    def __init__(self, clients: Clients, context: AdapterContext) -> None:
        self._clients = clients
        self._context = context
        self._groups: dict[GroupSpec, None] = dict.fromkeys(context.groups)
        self._admin = Admin(clients)
        self._publisher = Publisher(clients)
        self._keeper = Keeper([self._admin.tend, self._publisher.tend])
        self._identities = Identities(self._admin)

    @property
    def name(self) -> str:
        """``kafka``."""
        return "kafka"

    @property
    def capabilities(self) -> Capabilities:
        """A log that does everything."""
        return Capabilities(log=True, transactions=True)

    def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
        """See the protocol."""
        self._keeper.start()
        declare(self._admin, topics, groups, message_bytes=self._clients.message_bytes)
        self._groups.update(dict.fromkeys(groups))

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        """See the protocol."""
        self._keeper.start()
        return self._publisher.publish(messages, timeout)

    def subscribe(
        self, topics: Sequence[str], group: str, *, prefetch: int, ordered: bool
    ) -> Subscription:
        """See the protocol. An unordered group owns partitions in the same way."""
        if not topics or prefetch < 1:
            raise ConfigurationError("a subscription needs a topic and a prefetch of 1 or more")
        return KafkaSubscription(self._clients, self._watched(topics), topics, group, prefetch)

    def subscribe_transactional(
        self, topics: Sequence[str], group: str, *, prefetch: int
    ) -> TransactionalSubscription:
        """See ``TransactionalAdapter``. Its outputs have a producer of their own."""
        if not topics or prefetch < 1:
            raise ConfigurationError("a subscription needs a topic and a prefetch of 1 or more")
        return TransactionalSubscription(
            self._clients, self._watched(topics), topics, group, prefetch
        )

    def _watched(self, topics: Sequence[str]) -> Identities:
        self._keeper.start()
        self._identities.watch(topics)
        return self._identities

    def lag(self, topic: str, group: str) -> int:
        """See the protocol."""
        self._keeper.start()
        return lag(self._admin, topic, group)

    def redelivery_bound(self, topics: Sequence[str]) -> timedelta | None:
        """See the protocol: the longest ``retention.ms`` and ``segment.ms`` of the topics."""
        self._keeper.start()
        return redelivery_bound(self._admin, topics)

    def inspect(self) -> list[Finding]:
        """See the protocol: the brokers, and the topics and groups declared so far."""
        self._keeper.start()
        inspection = Inspection(self._admin, self._clients.options, self._clients.message_bytes)
        return inspection.findings(self._context.topics, list(self._groups))

    def close(self) -> None:
        """See the protocol. Subscriptions have clients of their own and are closed apart."""
        self._publisher.close()
        self._admin.close()
        self._identities.stop()
        self._keeper.stop()


def open_adapter(url: str, context: AdapterContext) -> KafkaAdapter:
    """Return the adapter for *url*, not connected yet.

    Raises ``ConfigurationError`` for a URL, an option or a client option that cannot be.
    """
    location = parse_url(url)
    return KafkaAdapter(Clients(location, parse_options(location.query), context), context)
