"""The adapter itself: one object that the parts hang together in."""

from __future__ import annotations

import itertools
import os
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
from reliable_mq_redis import keys
from reliable_mq_redis.client import Dialer
from reliable_mq_redis.declare import declare, require
from reliable_mq_redis.inspect import inspect
from reliable_mq_redis.lag import lag, redelivery_bound
from reliable_mq_redis.locate import locator
from reliable_mq_redis.location import Kind, Location, parse_url
from reliable_mq_redis.options import Options, parse_options
from reliable_mq_redis.ordered import OrderedSubscription
from reliable_mq_redis.publisher import Publisher
from reliable_mq_redis.servers import Servers
from reliable_mq_redis.unordered import UnorderedSubscription


class RedisAdapter:
    """Redis Streams; see :class:`reliable_mq.adapter.Adapter` and the package's docstring."""

    def __init__(self, location: Location, options: Options, context: AdapterContext) -> None:
        dialer = Dialer(location, context.client_options, tls=location.tls or options.tls)
        self._servers = Servers(dialer, locator(location, dialer))
        self._options = options
        self._context = context
        self._publisher = Publisher(self._servers, context, options)
        self._members = itertools.count(1)

    @property
    def name(self) -> str:
        """``redis``."""
        return "redis"

    @property
    def capabilities(self) -> Capabilities:
        """Everything but a log: members of an unordered group compete for single entries."""
        return Capabilities()

    def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
        """See the protocol."""
        if self._options.wait_aof and topics:
            require(self._servers, topics[0].name, "WAITAOF", "wait_aof=1")
        declare(self._servers, self._context.topics, topics, groups)

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        """See the protocol."""
        return self._publisher.publish(messages, timeout)

    def subscribe(
        self, topics: Sequence[str], group: str, *, prefetch: int, ordered: bool
    ) -> Subscription:
        """See the protocol."""
        if not topics or prefetch < 1:
            raise ConfigurationError("a subscription needs a topic and a prefetch of 1 or more")
        kind = OrderedSubscription if ordered else UnorderedSubscription
        return kind(
            self._servers,
            self._context,
            self._options,
            topics=topics,
            group=group,
            prefetch=prefetch,
            member=self._member(),
        )

    def _member(self) -> str:
        # A forked process has its parent's instance, and the counter as it was.
        instance = f"{self._context.instance}-{os.getpid()}"
        return f"{keys.CONSUMER_PREFIX}{instance}-{next(self._members)}"

    def lag(self, topic: str, group: str) -> int:
        """See the protocol."""
        return lag(self._servers, topic, group)

    def redelivery_bound(self, topics: Sequence[str]) -> timedelta | None:
        """See the protocol: the topics' retention, where each has one."""
        if not self._options.trim:
            return None
        # Members trim before they read, so an entry outlives its time by an interval at most.
        return redelivery_bound(self._servers, topics, late=2 * self._options.trim)

    def inspect(self) -> list[Finding]:
        """See the protocol."""
        return inspect(self._servers, self._options)

    def close(self) -> None:
        """See the protocol. Subscriptions have connections of their own and are closed apart."""
        self._servers.close()


def open_adapter(url: str, context: AdapterContext) -> RedisAdapter:
    """Return the adapter for *url*, not connected yet.

    Raises ``ConfigurationError`` for a URL, an option or a client option that cannot be.
    """
    location = parse_url(url)
    options = parse_options(location.query)
    if options.tls and location.kind is Kind.SERVER:
        raise ConfigurationError("broker_url has tls=1: write rediss:// instead of redis://")
    return RedisAdapter(location, options, context)
