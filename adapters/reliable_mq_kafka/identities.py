"""Whether there is still the same log behind a topic's name."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from confluent_kafka import Uuid

from reliable_mq.errors import ReliableMQError
from reliable_mq_kafka.admin import Admin
from reliable_mq_kafka.keeper import Keeper

log = logging.getLogger("reliable_mq.kafka")

LOOK_EVERY = 5.0
"""Seconds between two looks."""

LOOK_AGAIN = 1.0
"""The same while a topic has not been told of, or its new id has been told only once. For both
together a topic that was made anew may be taken for the old one."""

_NONE = str(Uuid(0, 0))


class Identity(NamedTuple):
    """The id of a topic; None where the brokers give none."""

    log: str | None
    former: frozenset[str]
    """The ids that it had before, each of which was seen to be replaced."""
    asked_at: float


class Sightings:
    """What the brokers tell of one topic, answer by answer. No I/O.

    Ids have no order, so only what was seen tells which one is the newer: one that was replaced
    does not come back, and a change counts once it is told twice in a row. A broker that is late
    with its news may tell of a topic that is gone, also to somebody who knows only the new one:
    that it is the older one cannot be told where it says so twice.
    """

    def __init__(self) -> None:
        self.log: str | None = None
        self.former: set[str] = set()
        self._cluster: str | None = None
        self._other: str | None = None

    def told(self, cluster: str | None, log: str | None) -> bool:
        """Take an answer; return whether it leaves no doubt."""
        if cluster and self._cluster and cluster != self._cluster:
            # Another cluster at the same addresses, such as the copy of one that failed. Nothing
            # was deleted: it has other ids for the same topics.
            self.log = self._other = None
            self.former.clear()
        self._cluster = cluster or self._cluster
        before, self._other = self._other, None
        if log in self.former:
            return False
        if self.log is None or log is None or log == self.log:
            self.log = self.log or log
            return True
        if log != before:
            self._other = log
            return False
        self.former.add(self.log)
        self.log = log
        return True


class Identities:
    """The ids of topics, asked for now and then on a thread of their own. Thread-safe.

    The client does not tell that a topic was deleted and made anew: it reads on where it was, or
    from the beginning where the new log is shorter (``rd_kafka_topic_metadata_update`` in
    rdkafka_topic.c has a FIXME for it, as of 2.16). By its id the brokers tell (Kafka 2.8).
    """

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._lock = threading.Lock()
        self._sightings: dict[str, Sightings] = {}
        self._found: dict[str, Identity] = {}
        self._due = 0.0
        self.looks = 0
        """How often the brokers have answered without leaving a doubt."""
        self._keeper = Keeper([self._look_if_due], every=LOOK_AGAIN)

    def watch(self, topics: Iterable[str]) -> None:
        """Ask for *topics* from now on, the first time at once."""
        with self._lock:
            for topic in topics:
                self._sightings.setdefault(topic, Sightings())
            self._due = 0.0
        self._keeper.start()

    def of(self, topic: str) -> Identity | None:
        """Return what is known of *topic*; None while the brokers have not answered."""
        with self._lock:
            return self._found.get(topic)

    def _look_if_due(self) -> None:
        if time.monotonic() >= self._due:
            self.look()

    def look(self) -> None:
        """Ask the brokers now; without an answer everything stays as it is."""
        with self._lock:
            topics = list(self._sightings)
            self._due = time.monotonic() + LOOK_EVERY
        if not self._look_at(topics):
            with self._lock:
                self._due = 0.0

    def _look_at(self, topics: Sequence[str]) -> bool:
        """Ask for *topics*; return whether there is nothing to be asked again soon."""
        if not topics:
            return True
        try:
            # Before the topics: the ids of another cluster must not be taken for this one's.
            cluster = self._admin.cluster_id(topics[0])
        except ReliableMQError as error:
            log.debug("the ids of topics are not known: %s", error)
            return False
        told = [self._look_at_one(topic, cluster) for topic in topics]
        return all(told)

    def _look_at_one(self, topic: str, cluster: str | None) -> bool:
        asked_at = time.monotonic()
        try:
            found = self._admin.describe([topic]).get(topic)
        except ReliableMQError as error:
            log.debug("the id of topic %s is not known: %s", topic, error)
            found = None
        if found is None:
            return self.of(topic) is not None
        name = str(found.topic_id)
        return self._note(topic, cluster, None if name == _NONE else name, asked_at)

    def _note(self, topic: str, cluster: str | None, name: str | None, asked_at: float) -> bool:
        with self._lock:
            one = self._sightings[topic]
            if not one.told(cluster, name):
                return False
            self._found[topic] = Identity(one.log, frozenset(one.former), asked_at)
            self.looks += 1
            return True

    def stop(self) -> None:
        """Ask no more; a question that is under way is not waited for."""
        self._keeper.stop(wait=False)
