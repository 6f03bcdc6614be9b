"""Whether there is still the same log behind a topic's name."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

from confluent_kafka import Uuid

from reliable_mq.errors import ReliableMQError
from reliable_mq_kafka.admin import Admin
from reliable_mq_kafka.keeper import Keeper

log = logging.getLogger("reliable_mq.kafka")

LOOK_EVERY = 5.0
"""Seconds between two looks: so long may a topic that was made anew be taken for the old one."""

_NONE = str(Uuid(0, 0))


class Identity(NamedTuple):
    """The id that a topic had after ``asked_at``; None where the brokers give none."""

    log: str | None
    asked_at: float


class Identities:
    """The ids of topics, asked for now and then on a thread of their own. Thread-safe.

    The client does not tell that a topic was deleted and made anew: it reads on where it was, or
    from the beginning where the new log is shorter (``rd_kafka_topic_metadata_update`` in
    rdkafka_topic.c has a FIXME for it, as of 2.16). By its id the brokers tell (Kafka 2.8).
    """

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._lock = threading.Lock()
        self._found: dict[str, Identity | None] = {}
        self._former: set[str] = set()
        self.looks = 0
        """How often the brokers have answered."""
        self._keeper = Keeper([self.look], every=LOOK_EVERY)

    def watch(self, topics: Iterable[str]) -> None:
        """Ask for *topics* from now on."""
        with self._lock:
            for topic in topics:
                self._found.setdefault(topic, None)
        self._keeper.start()

    def of(self, topic: str) -> Identity | None:
        """Return what is known of *topic*."""
        with self._lock:
            return self._found.get(topic)

    def look(self) -> None:
        """Ask the brokers now; without an answer everything stays as it is."""
        with self._lock:
            topics = list(self._found)
        for topic in topics:
            self._look_at(topic)

    def _look_at(self, topic: str) -> None:
        asked_at = time.monotonic()
        try:
            found = self._admin.describe([topic])
        except ReliableMQError as error:
            log.debug("the id of topic %s is not known: %s", topic, error)
            return
        if topic in found:
            name = str(found[topic].topic_id)
            self._note(topic, Identity(None if name == _NONE else name, asked_at))

    def _note(self, topic: str, now: Identity) -> None:
        with self._lock:
            # A broker that is late with its news tells of the one that is gone.
            if now.log in self._former:
                return
            before = self._found[topic]
            if before is not None and before.log and now.log and before.log != now.log:
                self._former.add(before.log)
            self._found[topic] = now
            self.looks += 1

    def stop(self) -> None:
        """Ask no more; a question that is under way is not waited for."""
        self._keeper.stop(wait=False)
