"""One owned partition in memory: what was read, what is done, what the database knows."""

from __future__ import annotations

from collections.abc import Iterable

from reliable_mq.adapter import Lost

_GENERATIONS = 1 << 20


class OwnedPartition:
    """A partition under one lease epoch.

    ``position`` is the next offset to read, ``watermark`` the first that is not acknowledged,
    ``committed`` what the database has of it, ``fenced`` that the database refused to go on. Each
    :meth:`rewind` starts a new generation, so that what was read before can be told from what is
    read after: ``epoch`` is made of both.
    """

    def __init__(self, topic: str, number: int, lease_epoch: int, committed: int) -> None:
        self.topic = topic
        self.number = number
        self.lease_epoch = lease_epoch
        self.committed = committed
        self.fenced = False
        self.position = committed
        self._generation = 0
        self._unacked: dict[int, None] = {}

    @property
    def name(self) -> str:
        """The partition as deliveries name it."""
        return f"{self.topic}/{self.number}"

    @property
    def epoch(self) -> int:
        """The epoch as deliveries name it."""
        return self.lease_epoch * _GENERATIONS + self._generation

    @property
    def held(self) -> int:
        """How many deliveries are not acknowledged."""
        return len(self._unacked)

    @property
    def watermark(self) -> int:
        """The offset up to which, not included, everything is acknowledged."""
        return next(iter(self._unacked), self.position)

    @property
    def is_behind(self) -> bool:
        """Tell whether the database lacks acknowledgements."""
        return self.watermark > self.committed

    def delivered(self, offsets: Iterable[int]) -> None:
        """Note what was read, in rising order."""
        for offset in offsets:
            self._unacked[offset] = None
            self.position = offset + 1

    def ack(self, offset: int) -> None:
        """Note an acknowledgement; a second one changes nothing."""
        self._unacked.pop(offset, None)

    def rewind(self) -> Lost:
        """Begin again at the first unacknowledged; return what that makes void."""
        lost = self.lost()
        self.position = self.watermark
        self._unacked.clear()
        self._generation += 1
        return lost

    def lost(self) -> Lost:
        """Return the report that this ownership is over."""
        return Lost(self.name, self.epoch)
