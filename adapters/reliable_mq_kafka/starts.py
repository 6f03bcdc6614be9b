"""Where to begin with a partition: the brokers are asked here, and the client is told.

By itself librdkafka would begin with the whole partition anew where the group changes while an
offset of its is in an open transaction: it asks the brokers, is told to ask again, and does not
(``rd_kafka_assignment_apply_offsets`` in rdkafka_assignment.c, as of 2.16). Only exactly-once
handlers have transactions, but a group may have been theirs before.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaException, TopicPartition

from reliable_mq_kafka.completed import decode, log_of
from reliable_mq_kafka.identities import Identities
from reliable_mq_kafka.partitions import OwnedPartition, Share, places_of
from reliable_mq_kafka.steering import Steering

log = logging.getLogger("reliable_mq.kafka")

_PATIENCE = 2.0
"""Seconds to wait for the brokers' answer, during which nothing else is done."""
_AT_FIRST = 0.25
"""The same where they have not known it, or not answered, before."""
_UNTOLD = 10.0
"""Seconds after which a topic of which the brokers tell no id is read without it."""


class Starts:
    """Owns what is assigned, and has each partition read from where the group is.

    Where that is not known it is asked again; nothing of the partition is taken in before. Used by
    the thread that polls the client.
    """

    def __init__(
        self, share: Share, steering: Steering, identities: Identities, doing: str
    ) -> None:
        self._share = share
        self._identities = identities
        self._steering = steering
        self._doing = doing
        self._nowhere: deque[OwnedPartition] = deque()
        self._patience = _AT_FIRST
        self._look_at = 0.0
        self._untold_until = 0.0

    def begin(self, consumer: Consumer, partitions: Iterable[TopicPartition]) -> None:
        """Own *partitions*, which were just assigned, and read those whose start is known."""
        self._untold_until = time.monotonic() + _UNTOLD
        places = places_of(partitions)
        committed = self._committed(consumer, [TopicPartition(*place) for place in places])
        starts = {(one.topic, one.partition): _start(one) for one in committed}
        # One that begins nowhere yet is at its end meanwhile: what is read is thrown away.
        positions = [TopicPartition(*place, starts.get(place, OFFSET_END)) for place in places]
        self._steering.begin(consumer, positions)
        now = time.monotonic()
        for place in places:
            one = self._share.add(place, now)
            one.start = starts.get(place)
            if one.start is None:
                one.parked = True
                self._steering.lead_back(one)
                self._nowhere.append(one)
        self._skip(committed)
        self._patience, self._look_at = _AT_FIRST, 0.0

    def find(self, consumer: Consumer) -> None:
        """Ask again for what is not known, if it is time; more patiently each time.

        One partition a request: one with an open transaction keeps the answer for all back. The
        first without an answer ends it for now, and is the last the next time.
        """
        if not self._nowhere or time.monotonic() < self._look_at:
            return
        while self._nowhere and self._find_one(consumer, self._nowhere[0]):
            self._nowhere.popleft()
        self._nowhere.rotate(-1)
        self._look_at = time.monotonic() + self._patience
        self._patience = min(2 * self._patience, _PATIENCE)

    def _find_one(self, consumer: Consumer, one: OwnedPartition) -> bool:
        """Return whether *one* needs no further look."""
        if self._share.at(*one.place) is not one:
            return True
        committed = self._committed(consumer, [TopicPartition(*one.place)], self._patience)
        for found in committed:
            one.start = _start(found)
        self._skip(committed)
        return bool(committed)

    def _committed(
        self, consumer: Consumer, places: list[TopicPartition], patience: float = _PATIENCE
    ) -> list[TopicPartition]:
        """Return what the group has committed, of those of which that is known in time."""
        try:
            found = consumer.committed(places, timeout=patience) if places else []
        except KafkaException as error:
            log.debug("%s: where to begin is not known: %s", self._doing, error)
            return []
        return [one for one in found if one.error is None and not self._is_early(one)]

    def _is_early(self, committed: TopicPartition) -> bool:
        """Tell whether it must be waited for what the topic is, to judge what was done of it."""
        return (
            log_of(committed.metadata) is not None
            and bool(decode(committed.metadata, committed.offset))
            and self._identities.of(committed.topic) is None
            and time.monotonic() < self._untold_until
        )

    def _skip(self, committed: Iterable[TopicPartition]) -> None:
        """Do not hand out what former owners have done behind the offsets that they committed.

        Of another topic of the name that is not known, while the offset counts all the same: the
        brokers delete offsets with their topic, so it was copied here from another cluster, whose
        offsets were translated.
        """
        for one in committed:
            owned = self._share.at(one.topic, one.partition)
            if owned is None:
                continue
            identity, signed = self._identities.of(one.topic), log_of(one.metadata)
            now = None if identity is None else identity.log
            owned.signed = owned.log = signed
            done = decode(one.metadata, one.offset)
            if signed in (None, now):
                owned.skip(done)
            elif done:
                log.warning(
                    "%s: what was done behind offset %d was told of the topic with the id %s, and "
                    "the brokers tell %s: it comes again",
                    owned.name, one.offset, signed, now or "none",
                )  # fmt: skip


def _start(committed: TopicPartition) -> int:
    """Return where to begin: a group that has committed nothing begins with the first record."""
    return committed.offset if committed.offset >= 0 else OFFSET_BEGINNING
