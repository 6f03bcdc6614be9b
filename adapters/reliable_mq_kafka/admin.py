"""Questions and orders to the brokers, each answered or an error in bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    ClusterMetadata,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
    TopicDescription,
)

from reliable_mq.beside import beside
from reliable_mq.errors import TransportError
from reliable_mq_kafka.config import Clients
from reliable_mq_kafka.errors import error_of, translate
from reliable_mq_kafka.groups import Groups, Progress
from reliable_mq_kafka.health import PATIENCE, Health
from reliable_mq_kafka.partitions import Place

K = TypeVar("K")
V = TypeVar("V")

_SLICE = 0.05
_UNANSWERED = frozenset(
    {KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN}
)
_NOT_THERE = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})


_PASSING = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_CONTROLLER,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError._PARTIAL,
    }
)
"""Something has just been created or has just moved, or a broker knows of no brokers yet."""


class _PassingError(Exception):
    def __init__(self, error: KafkaError) -> None:
        super().__init__(error)
        self.error = error


class Admin:
    """One client for administration, made at its first use. Thread-safe.

    Every method raises ``TransportError`` where no broker answered within the connection
    time-out, and ``ConfigurationError`` where only a person can help.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._groups = Groups(clients)
        self._timeout = clients.timeout
        self._lock = threading.Lock()
        # Kept: what a client still has to answer fails when the client is gone.
        self._current: tuple[AdminClient, Health] | None = None
        self._closed = False

    # --- topics ---

    def describe(self, topics: Iterable[str]) -> dict[str, TopicDescription]:
        """Return those of *topics* that exist."""
        names = sorted(set(topics))
        if not names:
            return {}
        return self._each(
            lambda client: client.describe_topics(
                TopicCollection(names), request_timeout=self._timeout
            ),
            "cannot look topics up",
            needs="DESCRIBE them",
            unless=_NOT_THERE,
        )

    def create(self, topics: Sequence[NewTopic]) -> None:
        """Create *topics*; one that somebody else has just created is left as it is."""
        self._each(
            lambda client: client.create_topics(
                list(topics), operation_timeout=self._timeout, request_timeout=self._timeout
            ),
            "cannot create topics",
            needs="CREATE them",
            unless=frozenset({KafkaError.TOPIC_ALREADY_EXISTS}),
        )

    def broker_ids(self, topic: str) -> list[int]:
        """Return the brokers that are there; *topic* is any that the user may know of."""
        return list(self._cluster(topic).brokers)

    def cluster_id(self, topic: str) -> str | None:
        """Return which cluster answers, None where it does not tell; *topic* as above."""
        return self._cluster(topic).cluster_id

    def _cluster(self, topic: str) -> ClusterMetadata:
        # Not describe_cluster: in librdkafka 2.16 it ends the process where a broker names none,
        # as one does whose controller has not heard from it for a while
        # (rd_kafka_DescribeClusterResponse_parse returns an error without an error code).
        def ask(client: AdminClient) -> ClusterMetadata:
            found = client.list_topics(topic, timeout=self._timeout)
            if not found.brokers:
                raise _PassingError(KafkaError(KafkaError._PARTIAL, "no broker is ready"))
            return found

        # Beside: it blocks, and what the client learns meanwhile comes with its poll.
        return self._one(
            lambda client: beside(lambda: ask(client), "reliable-mq-kafka-cluster"),
            "cannot look the brokers up",
        )

    # --- offsets ---

    def earliest(self, places: Iterable[Place]) -> dict[Place, int]:
        """Return the offset of the earliest retained message of each partition."""
        return self._offsets(places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    def ends(self, places: Iterable[Place]) -> dict[Place, int]:
        """Return the offset behind the last message of each partition that can be delivered."""
        return self._offsets(places, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    def _offsets(self, places: Iterable[Place], what: OffsetSpec) -> dict[Place, int]:
        asked = {TopicPartition(topic, number): what for topic, number in places}
        if not asked:
            return {}
        found = self._each(
            lambda client: client.list_offsets(
                asked,
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=self._timeout,
            ),
            "cannot look offsets up",
            needs="DESCRIBE the topic",
        )
        return {(place.topic, place.partition): info.offset for place, info in found.items()}

    def committed(self, group: str, places: Iterable[Place]) -> dict[Place, Progress]:
        """Return what *group* has committed; a partition without a commit is left out."""
        return self._groups.committed(group, places)

    def commit(self, group: str, offsets: Mapping[Place, int]) -> None:
        """Commit *offsets* for *group*, unless it has members: then that is theirs to do."""
        partitions = [
            TopicPartition(topic, number, offset) for (topic, number), offset in offsets.items()
        ]
        doing, needs = f"cannot create group {group!r}", "READ the group and its topic"
        found = self._each(
            lambda client: client.alter_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(group, partitions)], request_timeout=self._timeout
            ),
            doing,
            needs=needs,
            unless=_HAS_MEMBERS,
        )
        for result in found.values():
            for one in result.topic_partitions:
                if one.error is not None and one.error.code() not in _HAS_MEMBERS:
                    raise translate(one.error, doing, needs)

    # --- settings ---

    def topic_settings(self, topics: Iterable[str]) -> dict[str, dict[str, str | None]]:
        """Return the settings of each topic, defaults included."""
        return self._settings([ConfigResource(ResourceType.TOPIC, name) for name in topics])

    def broker_settings(self, broker: int) -> dict[str, str | None]:
        """Return the settings of a broker."""
        found = self._settings([ConfigResource(ResourceType.BROKER, str(broker))])
        return found[str(broker)]

    def _settings(self, resources: list[ConfigResource]) -> dict[str, dict[str, str | None]]:
        if not resources:
            return {}
        found = self._each(
            lambda client: client.describe_configs(resources, request_timeout=self._timeout),
            "cannot look settings up",
            needs="DESCRIBE_CONFIGS of " + ", ".join(map(_named, resources)),
        )
        return {
            resource.name: {name: entry.value for name, entry in entries.items()}
            for resource, entries in found.items()
        }

    # --- asking ---

    def tend(self) -> None:
        """Serve idle clients: what they report would pile up otherwise."""
        with self._lock:
            current = self._current
        if current is not None:
            current[0].poll(0)
        self._groups.tend()

    def close(self) -> None:
        """Release the clients; what others still ask fails."""
        self._groups.close()
        with self._lock:
            self._closed = True
            self._current = None

    def _each(
        self,
        ask: Callable[[AdminClient], Mapping[K, Future[V]]],
        doing: str,
        *,
        needs: str = "",
        unless: frozenset[int] = frozenset(),
    ) -> dict[K, V]:
        """Return the answers to *ask*; those that are errors of *unless* are left out."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return self._each_once(ask, doing, needs, unless)
            except _PassingError as error:
                if time.monotonic() >= deadline:
                    raise translate(error.error, doing) from error.__cause__
                time.sleep(_SLICE)

    def _each_once(
        self,
        ask: Callable[[AdminClient], Mapping[K, Future[V]]],
        doing: str,
        needs: str,
        unless: frozenset[int],
    ) -> dict[K, V]:
        client, health = self._use()
        found = {}
        for name, future in _asked(ask, client, doing).items():
            try:
                found[name] = self._wait(client, health, future, doing)
            except KafkaException as caught:
                error = error_of(caught)
                if error.code() in _PASSING:
                    raise _PassingError(error) from caught
                if error.code() not in unless:
                    raise self._explained(error, health, doing, needs) from caught
                health.recovered()
        return found

    def _one(self, ask: Callable[[AdminClient], Future[V]], doing: str) -> V:
        return self._each(lambda client: {"": ask(client)}, doing)[""]

    def _use(self) -> tuple[AdminClient, Health]:
        with self._lock:
            if self._closed:
                raise TransportError("the adapter is closed")
            if self._current is None:
                health = Health()
                self._current = self._clients.admin(health), health
            return self._current

    def _wait(self, client: AdminClient, health: Health, future: Future[V], doing: str) -> V:
        asked_at = time.monotonic()
        while True:
            try:
                value = future.result(_SLICE)
            except TimeoutError:
                client.poll(0)
                if health.refused:
                    self._forget(health)
                    raise health.error(doing) from None
                if health.troubled and time.monotonic() - asked_at >= PATIENCE:
                    raise health.error(doing) from None
            else:
                health.recovered()
                return value

    def _explained(self, error: KafkaError, health: Health, doing: str, needs: str) -> Exception:
        # That nobody answered is known better from what was seen on the connections.
        if error.code() in _UNANSWERED:
            # It may wait for a controller that is dead, for as long as its metadata are good.
            self._forget(health)
            return health.error(doing)
        return translate(error, doing, needs)

    def _forget(self, health: Health) -> None:
        """Use a new client next time, which knows nothing of what this one was told."""
        with self._lock:
            if self._current is not None and self._current[1] is health:
                self._current = None


_HAS_MEMBERS = frozenset(
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.NON_EMPTY_GROUP,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.ILLEGAL_GENERATION,
    }
)


def _named(resource: ConfigResource) -> str:
    if resource.restype is ResourceType.BROKER:
        return "the cluster"
    return f"topic {resource.name!r}"


def _asked(ask: Callable[[AdminClient], Any], client: AdminClient, doing: str) -> Any:
    try:
        return ask(client)
    except KafkaException as error:
        raise translate(error_of(error), doing) from error
