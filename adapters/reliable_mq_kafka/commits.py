"""Commits on their way to the brokers."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from reliable_mq.errors import ConfigurationError, ReliableMQError
from reliable_mq_kafka.completed import ROOM
from reliable_mq_kafka.errors import error_of, text_of, translate
from reliable_mq_kafka.partitions import OwnedPartition, Share

log = logging.getLogger("reliable_mq.kafka")


class Commits:
    """Sends watermarks without waiting, one request at a time, and notes what becomes of them.

    What is done behind a watermark goes along as metadata: whoever reads next skips it.

    The brokers take a commit only from a member of the present generation of the group: what a
    member sends that was replaced changes nothing. One that fails is sent again with the next,
    as long as the partition is owned.
    """

    def __init__(self, share: Share, every: float) -> None:
        self._share = share
        self._every = every
        self._under_way = 0
        self._last = 0.0
        self._room = ROOM
        self.forfeited = False
        """Whether a partition was lost with acknowledgements that the brokers did not take."""
        self.failure: KafkaError | None = None
        """Why the latest commit failed, if it did."""

    @property
    def under_way(self) -> bool:
        """Tell whether the outcome of a commit is open."""
        return self._under_way > 0

    @property
    def settled(self) -> bool:
        """Tell whether the brokers know everything that is done, as far as it can be committed."""
        return not self._under_way and not self._share.dirty()

    def send_if_due(self, consumer: Consumer) -> None:
        """Send what is to be committed, unless it is too soon."""
        if time.monotonic() - self._last >= self._every:
            self.send_now(consumer)

    def send_now(self, consumer: Consumer) -> None:
        """Send what is to be committed, unless a commit is under way."""
        if self._under_way:
            return
        self._last = time.monotonic()
        self._send(consumer, self._share.dirty())

    def send_last(self, consumer: Consumer, leaving: Iterable[OwnedPartition]) -> None:
        """Send the commits of partitions that are revoked.

        The client completes them before it joins the next generation of the group, so whoever
        gets the partitions reads them.
        """
        self._send(consumer, [one for one in leaving if one.dirty])

    def _send(self, consumer: Consumer, partitions: list[OwnedPartition]) -> None:
        if not partitions:
            return
        offsets = [one.commit(self._room) for one in partitions]
        try:
            consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._failed(error_of(error), offsets)
        else:
            self._under_way += 1
            for one in partitions:
                one.was_offered()

    def on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """Note the outcome of a commit. The client calls it from its poll."""
        self._under_way -= 1
        failed = [one for one in partitions if error is not None or one.error is not None]
        if failed:
            self._failed(error or failed[0].error, failed)
        else:
            self.failure = None
        for one in partitions:
            owned = self._share.at(one.topic, one.partition)
            if owned is not None and one not in failed:
                owned.was_committed(one.offset)

    def trouble(self, doing: str) -> ReliableMQError | None:
        """Return the error where commits fail for a reason that only a person can mend."""
        error = None if self.failure is None else translate(self.failure, doing)
        return error if isinstance(error, ConfigurationError) else None

    def _failed(self, error: KafkaError | None, partitions: Iterable[TopicPartition]) -> None:
        self.failure = error
        if error is not None and error.code() == KafkaError.OFFSET_METADATA_TOO_LARGE:
            # These brokers take less than usual (offset.metadata.max.bytes). What is done behind
            # the offset may go untold: it comes again after a crash.
            self._room //= 4
        if error is not None:
            log.debug("a commit failed and is tried again: %s", text_of(error))
        if any(self._share.at(one.topic, one.partition) is None for one in partitions):
            self.forfeited = True
