"""Records that were read and that nobody has asked for yet."""

from __future__ import annotations

import time
from collections import deque

from reliable_mq.adapter import Received
from reliable_mq_kafka.partitions import OwnedPartition
from reliable_mq_kafka.records import KafkaRecord, to_raw

SPARE = 256
"""Records kept ahead where few are asked for at a time."""

_SPARE_BYTES = 16 * 1024 * 1024


class Ahead:
    """A queue of records of owned partitions, in the order of reading."""

    def __init__(self) -> None:
        self._records: deque[tuple[OwnedPartition, KafkaRecord]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def room(self, asked: int) -> int:
        """Return how many records to read so that *asked* can be handed out now or later."""
        if self._bytes >= _SPARE_BYTES:
            return 0
        return max(asked, SPARE) - len(self._records)

    def put(self, one: OwnedPartition, record: KafkaRecord) -> None:
        """Add a record."""
        self._records.append((one, record))
        self._bytes += len(record)

    def take(self, limit: int) -> list[Received]:
        """Remove and return up to *limit* records as deliveries."""
        return [self._take_one() for _ in range(min(limit, len(self._records)))]

    def _take_one(self) -> Received:
        one, record = self._records.popleft()
        self._bytes -= len(record)
        one.handed_out()
        return Received(
            raw=to_raw(record, one.topic, one.number),
            partition=one.name,
            epoch=one.epoch,
            receipt=record.offset(),
        )

    def drop(self, one: OwnedPartition) -> None:
        """Throw away what was read of a partition."""
        self._records = deque(entry for entry in self._records if entry[0] is not one)
        self._bytes = sum(len(record) for _, record in self._records)


class Window:
    """Tells when the client's queue must be emptied to see what waits in it besides records.

    Rebalances and errors come through the same queue, behind the records; where the application
    takes few, they would wait for minutes. So the partitions are paused then, which throws away
    what is queued, until what is kept ahead has been used up. What was thrown away is fetched
    again, megabytes of it and up to half a second later: it is worth that where a rebalance is
    known to wait (asked for at each *look*), else once in a while (*overdue*).
    """

    _LOOK = 0.25
    _SECONDS = 5.0
    _QUEUE = 6000
    """More than the client queues: behind so many records everything older was seen."""

    def __init__(self) -> None:
        self._began = self._looked = time.monotonic()
        self._taken = 0

    def note(self, taken: int, asked: int) -> None:
        """Note that *taken* records came where *asked* were wanted."""
        self._taken += taken
        if taken < asked or self._taken >= self._QUEUE:
            self.restart()

    def restart(self) -> None:
        """Begin anew: everything that was in the queue has been seen."""
        self._began = self._looked = time.monotonic()
        self._taken = 0

    def look(self) -> bool:
        """Tell whether it is time to ask if something waits in the queue; True once at a time."""
        now = time.monotonic()
        if now - self._looked < self._LOOK:
            return False
        self._looked = now
        return True

    @property
    def overdue(self) -> bool:
        """Tell whether the queue has not been looked through for too long."""
        return time.monotonic() - self._began >= self._SECONDS
