"""The adapter: publishing, subscribing and looking at topics that are rows."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta

from reliable_mq.adapter import (
    SENT,
    AdapterContext,
    Capabilities,
    Finding,
    GroupSpec,
    Outcome,
    TopicSpec,
    Unknown,
)
from reliable_mq.errors import ConfigurationError, ReliableMQError
from reliable_mq.message import Message
from reliable_mq.store.inspection import Expected, inspect_store
from reliable_mq_sql.cleaner import Cleaner
from reliable_mq_sql.database import Database
from reliable_mq_sql.hints import LogHints
from reliable_mq_sql.ownership import TopicShare
from reliable_mq_sql.publisher import Publisher
from reliable_mq_sql.subscription import SqlSubscription
from reliable_mq_sql.topology import Topology

log = logging.getLogger("reliable_mq")

_LONGEST_INSTANCE = 48
"""Of the 63 bytes an owner's name may have; the rest tells an adapter's subscriptions apart."""

_EXPIRE_EVERY = 10.0


def open_adapter(url: str, context: AdapterContext) -> SqlAdapter:
    """Return the adapter on the context's store. No I/O.

    Raises ``ConfigurationError`` for a URL with anything after ``sql://``, for client options
    and without a store.
    """
    if url.lower() not in {"sql:", "sql://"}:
        raise ConfigurationError(
            "write just sql:// as broker_url: its topics live in database_url, set that instead"
        )
    if context.client_options:
        raise ConfigurationError(
            f"sql:// has no client options, got {', '.join(sorted(context.client_options))}: "
            "options of the database belong to database_url or the engine"
        )
    if context.store is None:
        raise ConfigurationError("sql:// keeps its topics in a store, and the context has none")
    return SqlAdapter(url, context)


class SqlAdapter:
    """Topics in the application's database. See ``reliable_mq.adapter.Adapter``.

    Uses the store's sync engine and none of its own. A publish holds one connection for one
    transaction; a subscription holds one only while it looks. On PostgreSQL a process that
    publishes has one more while it does, and one that receives, for hints (``LogHints``).
    """

    name = "sql"
    capabilities = Capabilities(log=True)

    def __init__(self, url: str, context: AdapterContext) -> None:
        self.url = url
        self._context = context
        self._database = Database(context.store)
        self._topology = Topology(self._database)
        self._publisher = Publisher(self._database, self._topology, context.max_message_bytes)
        self._hints = LogHints(context.store, context.instance, wake=self._wake)
        self._lock = threading.Lock()
        self._subscriptions: list[SqlSubscription] = []
        self._numbers = itertools.count(1)
        self._expiring = threading.Lock()
        self._expirer = Cleaner(self._database, every=_EXPIRE_EVERY)
        self._closed = False

    def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
        """See ``Adapter.declare``. A topic without a number of partitions gets 1.

        Option: ``retention``, seconds (or ``timedelta``) after which an entry goes, acknowledged
        or not; without it an entry goes once every group of the topic has acknowledged it, and a
        topic without groups keeps everything. ``replication_factor`` is the database's affair.
        """
        self._topology.declare(topics, groups)

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        """See ``Adapter.publish``: all that can be stored is stored in one transaction.

        On SQLite *timeout* bounds the waits for the lock, not the disk.
        """
        if self._closed:
            return [Unknown("the adapter is closed")] * len(messages)
        outcomes = self._publisher.publish(messages, timeout)
        sent = {m.topic for m, outcome in zip(messages, outcomes, strict=True) if outcome == SENT}
        if sent:
            self._wake(sent.__contains__)
            self._hints.send(sent)
            self._expire(sent)
        return outcomes

    def _wake(self, has_news: Callable[[str], bool]) -> None:
        with self._lock:
            subscriptions = tuple(self._subscriptions)
        for subscription in subscriptions:
            if any(map(has_news, subscription.topics)):
                subscription.wake()

    def _expire(self, topics: set[str]) -> None:
        """Remove what is too old: a topic that nobody consumes has no other cleaner."""
        if not self._expiring.acquire(blocking=False):
            return
        try:
            for name, row in self._topology.find(topics).items():
                if row.retention is not None:
                    self._expirer.clean(name, range(row.partitions))
        except ReliableMQError as error:
            # What was published is stored all the same; the next round removes what is old.
            log.info("could not remove old entries: %s", error)
        finally:
            self._expiring.release()

    def subscribe(
        self, topics: Sequence[str], group: str, *, prefetch: int, ordered: bool
    ) -> SqlSubscription:
        """See ``Adapter.subscribe``. Ordered or not, a partition belongs to one member."""
        # A forked process has its parent's instance, and the counter as it was.
        instance = f"{self._context.instance}.{os.getpid()}"
        owner = f"{_short(instance)}.{next(self._numbers)}"
        lease = self._context.lease
        subscription = SqlSubscription(
            self._database,
            [
                TopicShare(self._database, t, group, owner=owner, lease=lease)
                for t in dict.fromkeys(topics)
            ],
            Cleaner(self._database),
            prefetch=prefetch,
            listen=self._hints.listen,
            forget=self._forget,
        )
        with self._lock:
            self._subscriptions.append(subscription)
        return subscription

    def _forget(self, subscription: SqlSubscription) -> None:
        with self._lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)

    def lag(self, topic: str, group: str) -> int:
        """See ``Adapter.lag``: what lies behind the committed acknowledgements."""
        return self._topology.lag(topic, group)

    def redelivery_bound(self, topics: Sequence[str]) -> timedelta | None:
        """Return the longest retention of *topics*; None where one of them keeps its entries."""
        found = self._topology.find(topics)
        retentions = [found[name].retention if name in found else None for name in topics]
        known = [one for one in retentions if one is not None]
        if not known or len(known) < len(retentions):
            return None
        return timedelta(microseconds=max(known))

    def inspect(self) -> list[Finding]:
        """Return what the store's own inspection finds: its database is the broker here."""
        store = self._database.store
        expected = Expected(max_message_bytes=self._context.max_message_bytes, embedded=True)
        # First, because there it is a finding that the database cannot be reached, and here an
        # error.
        self._database.read(lambda _: None)
        return self._database.run(lambda: inspect_store(store, expected)).findings

    def close(self) -> None:
        """Close the subscriptions. The store and its engine stay open: they are not ours."""
        self._closed = True
        with self._lock:
            subscriptions = tuple(self._subscriptions)
        for subscription in subscriptions:
            subscription.close()
        self._hints.close()


def _short(instance: str) -> str:
    if len(instance.encode()) <= _LONGEST_INSTANCE:
        return instance
    return hashlib.blake2b(instance.encode(), digest_size=20).hexdigest()
