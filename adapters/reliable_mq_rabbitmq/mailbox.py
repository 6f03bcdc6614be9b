"""What passes from a subscription's I/O thread to the thread that receives."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from reliable_mq.adapter import Lost
from reliable_mq.errors import ReliableMQError


@dataclass(slots=True, eq=False)
class Arrival:
    """A delivery as it came. ``consumer`` and ``tag`` say where to acknowledge it."""

    consumer: Any
    partition: str
    epoch: int
    tag: int
    redelivered: bool
    properties: bytes
    body: bytes


class Mailbox:
    """Deliveries in the order of their arrival, and the ownerships that ended. Thread-safe.

    Each partition has at most one live epoch; nothing of another one is handed out.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrivals: deque[Arrival] = deque()
        self._lost: list[Lost] = []
        self._live: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._complaint: ReliableMQError | None = None

    def begin(self, partition: str) -> int:
        """Begin a new epoch of *partition* and return it; a live one is lost by that."""
        with self._changed:
            self._lose(partition, self._live.get(partition))
            epoch = self._last.get(partition, 0) + 1
            self._last[partition] = self._live[partition] = epoch
            return epoch

    def put(self, arrivals: Iterable[Arrival]) -> None:
        """Add deliveries, but for those whose epoch is over."""
        live = self._live
        with self._changed:
            self._arrivals.extend(a for a in arrivals if live.get(a.partition) == a.epoch)
            self._changed.notify()

    def lose(self, partition: str, epoch: int) -> bool:
        """End *epoch* of *partition*: report it lost, drop what was not handed out of it.

        Returns False where it is over already.
        """
        with self._changed:
            return self._lose(partition, epoch)

    def _lose(self, partition: str, epoch: int | None) -> bool:
        if epoch is None or self._live.get(partition) != epoch:
            return False
        del self._live[partition]
        self._lost.append(Lost(partition, epoch))
        self._arrivals = deque(a for a in self._arrivals if a.partition != partition)
        self._changed.notify()
        return True

    def live_epoch(self, partition: str) -> int | None:
        """Return the epoch under which *partition* is read now."""
        with self._changed:
            return self._live.get(partition)

    def complain(self, error: ReliableMQError) -> None:
        """Have the receiving thread raise *error* when it finds nothing else."""
        with self._changed:
            self._complaint = error
            self._changed.notify()

    def take(self, limit: int, timeout: float) -> tuple[list[Lost], list[Arrival]]:
        """Return what was lost and up to *limit* deliveries; wait *timeout* seconds for any.

        Raises a complaint where there is neither.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._lost and not (limit > 0 and self._arrivals):
                self._raise_complaint()
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            lost, self._lost = self._lost, []
            count = max(0, min(limit, len(self._arrivals)))
            return lost, [self._arrivals.popleft() for _ in range(count)]

    def _raise_complaint(self) -> None:
        complaint, self._complaint = self._complaint, None
        if complaint is not None:
            raise complaint
