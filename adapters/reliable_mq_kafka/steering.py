"""Telling the client which partitions to read, and from where."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition

from reliable_mq_kafka.partitions import OwnedPartition, Place, Share

log = logging.getLogger("reliable_mq.kafka")

_WATCH_EVERY = 1.0
_RESTLESS = 15.0
"""Seconds after which a partition that shows no sign of being read is positioned anew."""


class Steering:
    """Pauses, resumes and positions what is owned; the client's own memory of it is not relied on.

    Used by the thread that polls the client.
    """

    def __init__(self, share: Share, doing: str) -> None:
        self._share = share
        self._doing = doing
        self._left_paused: set[Place] = set()
        self._astray: set[OwnedPartition] = set()
        self._watch_at = 0.0
        self.halted = False
        """Whether everything is paused that was read at least once."""

    # --- back-pressure ---

    def halt(self, consumer: Consumer) -> None:
        """Read no more for now. What the client has queued is thrown away and read again later."""
        if not self.halted:
            self.halted = True
            self._pause_begun(consumer, self._share)

    def go_on(self, consumer: Consumer) -> None:
        """Read everything again that is not held back."""
        self.halted = False
        self._resume(consumer, [one for one in self._share if not one.held_back])

    def hold_back(self, consumer: Consumer, names: Collection[str]) -> None:
        """Read no more of the partitions *names*; go on with all others unless all are halted."""
        for one in self._share:
            one.held_back = one.name in names
        self._pause_begun(consumer, [one for one in self._share if one.held_back])
        if not self.halted:
            self.go_on(consumer)

    def _pause_begun(self, consumer: Consumer, partitions: Iterable[OwnedPartition]) -> None:
        # One that is not read yet could lose its position by it (librdkafka #2190).
        self.pause(consumer, [one for one in partitions if one.begun and not one.paused])

    def is_unwanted(self, one: OwnedPartition) -> bool:
        """Tell whether *one* is to be paused now that it is read."""
        return (self.halted or one.held_back) and not one.paused

    def pause(self, consumer: Consumer, partitions: Sequence[OwnedPartition]) -> None:
        """Read no more of *partitions*."""
        if partitions:
            consumer.pause([TopicPartition(*one.place) for one in partitions])
        for one in partitions:
            one.paused = True

    def _resume(self, consumer: Consumer, partitions: Iterable[OwnedPartition]) -> None:
        paused = [one for one in partitions if one.paused]
        if paused:
            consumer.resume([TopicPartition(*one.place) for one in paused])
        for one in paused:
            one.paused = False

    # --- ownership ---

    def begin(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Read *partitions*, which were just assigned, from the offsets in them."""
        # The client keeps a pause beyond the ownership (librdkafka #1849); to resume after the
        # assignment could make it forget where to begin (#2190).
        paused = [one for one in partitions if (one.topic, one.partition) in self._left_paused]
        if paused:
            consumer.resume(paused)
        consumer.incremental_assign(partitions)
        self._left_paused -= {(one.topic, one.partition) for one in paused}

    def forget(self, one: OwnedPartition) -> None:
        """Note that *one* is not owned any more."""
        self._astray.discard(one)
        if one.paused:
            self._left_paused.add(one.place)

    # --- positions ---

    def lead_back(self, one: OwnedPartition) -> None:
        """Have *one* read again from its position, by the next :meth:`position`."""
        one.rewinding = True
        self._astray.add(one)

    def position(self, consumer: Consumer) -> None:
        """Tell the client where to read from; what is not known, or it cannot do, comes later."""
        for one in [one for one in self._astray if one.has_position]:
            try:
                self._place(consumer, one)
            except KafkaException as error:
                log.debug("%s: cannot be positioned yet: %s", one.name, error)
            else:
                one.rewinding = one.begun = one.parked = False
                one.restless_since = time.monotonic()
                self._astray.remove(one)

    def _place(self, consumer: Consumer, one: OwnedPartition) -> None:
        # By a seek where that can do: to unassign could be taken for the answer to a rebalance.
        self._resume(consumer, [one])
        if one.begun or one.parked:
            consumer.seek(one.position)
        else:
            # It cannot seek in a partition that it does not read.
            consumer.incremental_unassign([TopicPartition(*one.place)])
            consumer.incremental_assign([one.position])

    def watch(self, *, troubled: bool) -> None:
        """Lead back to partitions that the client seems to have forgotten (librdkafka #5591).

        *troubled*: it cannot read anything at the moment, so nothing follows from its silence.
        """
        now = time.monotonic()
        if now < self._watch_at:
            return
        self._watch_at = now + _WATCH_EVERY
        for one in self._share:
            if one.begun or one.paused or now - one.restless_since < _RESTLESS:
                continue
            one.restless_since = now
            if troubled:
                continue
            if one.has_position:
                log.warning("%s: %s is not read; positioning it anew", self._doing, one.name)
                one.parked = False
                self.lead_back(one)
            else:
                log.warning(
                    "%s: %s is not read: the brokers do not say where to begin while a "
                    "transaction of its group is open", self._doing, one.name,
                )  # fmt: skip
