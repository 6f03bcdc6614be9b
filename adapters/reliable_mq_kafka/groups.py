"""What groups have committed, asked without joining them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq_kafka.completed import Runs, decode
from reliable_mq_kafka.config import Clients
from reliable_mq_kafka.errors import error_of, translate
from reliable_mq_kafka.health import PATIENCE, Health
from reliable_mq_kafka.partitions import Place

_FIRST_PATIENCE = 0.5
_PAUSE = 0.05
_KEPT = 60.0
"""Seconds after which a client that nobody uses is ended."""

_PASSING = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._WAIT_COORD,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
    }
)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a group has done of a partition: all before *offset*, and *beyond*."""

    offset: int
    beyond: Runs = ()

    def left(self, begin: int, end: int) -> int:
        """Return how many offsets from *begin* to before *end* are not done."""
        begin = max(begin, self.offset)
        done = sum(max(0, min(run.stop, end) - max(run.start, begin)) for run in self.beyond)
        return max(0, end - begin - done)


class Groups:
    """A consumer client a group, made when it is needed and kept for a while. Thread-safe.

    The client for administration can ask the same. In librdkafka 2.16 it crashes the process
    when the group's coordinator has moved or is not ready, as after the start of a broker.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._lock = threading.Lock()
        self._observers: dict[str, _Observer] = {}
        self._closed = False

    def committed(self, group: str, places: Iterable[Place]) -> dict[Place, Progress]:
        """Return what *group* has committed; a partition without a commit is left out."""
        partitions = [TopicPartition(*place) for place in places]
        return self._observer(group).committed(partitions) if partitions else {}

    def _observer(self, group: str) -> _Observer:
        with self._lock:
            if self._closed:
                raise TransportError("the adapter is closed")
            if group not in self._observers:
                self._observers[group] = _Observer(self._clients, group)
            return self._observers[group]

    def tend(self) -> None:
        """Serve idle clients: what they report would pile up otherwise."""
        with self._lock:
            observers = list(self._observers.values())
        for observer in observers:
            observer.tend()

    def close(self) -> None:
        """Release the clients."""
        with self._lock:
            self._closed = True
            self._observers.clear()


class _Observer:
    """Asks for one group, which it does not join."""

    def __init__(self, clients: Clients, group: str) -> None:
        self._clients = clients
        self._group = group
        self._doing = f"cannot look up what group {group!r} has acknowledged"
        self._needs = "READ the group and its topic"
        self._lock = threading.Lock()
        self._current: tuple[Consumer, Health] | None = None
        self._used_at = 0.0

    def committed(self, partitions: list[TopicPartition]) -> dict[Place, Progress]:
        """Return the commits that there are."""
        with self._lock:
            consumer, health = self._use()
            found = self._ask(consumer, health, partitions)
            health.recovered()
            self._used_at = time.monotonic()
        for one in found:
            if one.error is not None:
                raise translate(one.error, self._doing, self._needs)
        return {
            (one.topic, one.partition): Progress(one.offset, decode(one.metadata, one.offset))
            for one in found
            if one.offset >= 0
        }

    def _ask(
        self, consumer: Consumer, health: Health, partitions: list[TopicPartition]
    ) -> list[TopicPartition]:
        asked_at = time.monotonic()
        patience = _FIRST_PATIENCE
        while True:
            try:
                return consumer.committed(partitions, timeout=patience)
            except KafkaException as caught:
                error = error_of(caught)
                self._explain(consumer, health, caught)
                if error.code() not in _PASSING:
                    raise translate(error, self._doing, self._needs) from caught
                waited = time.monotonic() - asked_at
                if waited >= (PATIENCE if health.troubled else self._clients.timeout):
                    raise health.error(self._doing) from caught
                if error.code() == KafkaError._TIMED_OUT:
                    patience *= 2

    def _explain(self, consumer: Consumer, health: Health, caught: KafkaException) -> None:
        """Raise ``ConfigurationError`` where only a person can help.

        The reasons come with a poll, which also makes a pause between two questions.
        """
        record = consumer.poll(_PAUSE)
        reported = None if record is None else record.error()
        if reported is not None:
            error = translate(reported, self._doing, self._needs)
            if isinstance(error, ConfigurationError):
                raise error from caught
        if health.refused:
            # The next one knows nothing of it.
            self._current = None
            raise health.error(self._doing) from caught

    def _use(self) -> tuple[Consumer, Health]:
        if self._current is None:
            health = Health()
            self._current = self._clients.consumer(health, self._group), health
        return self._current

    def tend(self) -> None:
        """Serve the client, unless it is in use; end it when nobody has used it for long."""
        if self._lock.acquire(blocking=False):
            try:
                if time.monotonic() - self._used_at > _KEPT:
                    self._current = None
                if self._current is not None:
                    self._current[0].poll(0)
            finally:
                self._lock.release()
