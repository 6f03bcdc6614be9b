"""What an exactly-once consumer has in hand, in the order of each partition. No I/O."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from reliable_mq.adapter import Handled, Lost, Received
from reliable_mq.consumer.failures import Failure
from reliable_mq.consumer.items import OVERHEAD, Item
from reliable_mq.message import Message

MAX_DELIVERIES = 500
MAX_OUTPUTS = 5_000
MAX_BYTES = 16 * 1024 * 1024
"""What goes into one transaction, where one delivery alone does not have more: it must be over
within its time-out."""

PENALTY = 5.0
"""Seconds that a partition leaves to others after a transaction of it alone failed."""

STUCK = 1.0
"""Seconds after which a partition whose first delivery is still the same does not go on."""


_Place: TypeAlias = tuple[str, int]
"""A partition and the epoch of its ownership."""


@dataclass(frozen=True, slots=True)
class Completion:
    """How a delivery ended: what is to be stored with its offset, and whom to tell then."""

    outputs: Sequence[Message]
    tell: Callable[[], None]

    @property
    def size(self) -> int:
        """Roughly the memory that the outputs take."""
        return sum(len(message.body) + OVERHEAD for message in self.outputs)


@dataclass(slots=True)
class Progress:
    """How far an exactly-once delivery is. ``attempts`` are those of this hand-over."""

    attempts: int = 0
    completion: Completion | None = None
    given_up: Failure | None = None
    refused: str | None = None
    """Why a broker refused what it gave out, until a worker has dealt with it."""


def progress_of(item: Item) -> Progress:
    """Return the progress of *item*."""
    if item.progress is None:
        item.progress = Progress()
    return item.progress


@dataclass(eq=False, slots=True)
class _Line:
    item: Item
    size: int
    completion: Completion | None = None
    not_before: float = 0.0
    """Until then it does not go into a transaction, nor does what follows in its partition."""


@dataclass(eq=False, slots=True)
class _Queue:
    """What is in hand of a partition. Its first has been the first since ``since``.

    ``failed_at``: how many transactions were committed before one of this partition alone failed,
    if the latest one did.
    """

    since: float
    lines: deque[_Line] = field(default_factory=deque)
    failed_at: int | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A delivery to be committed."""

    item: Item
    completion: Completion

    @property
    def handled(self) -> Handled:
        """As the adapter wants it."""
        return Handled(self.item.received, self.completion.outputs)


class Ledger:
    """Deliveries from their arrival to their commit. For the intake thread alone."""

    def __init__(self) -> None:
        self._queues: dict[_Place, _Queue] = {}
        self._lines: dict[int, _Line] = {}
        self._bytes = 0
        self._held_back: frozenset[str] = frozenset()
        # By partition, whoever owned it: how many deliveries of it may go into a transaction. One
        # that has a limit has its transactions for itself. No more than the topic has partitions.
        self._limits: dict[str, int] = {}
        self._failed: set[_Place] = set()
        self._commits = 0

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def bytes(self) -> int:
        """Roughly the memory that deliveries and outputs take."""
        return self._bytes

    def moving(self) -> tuple[int, int]:
        """Return the number and the bytes of deliveries whose partitions are not held back."""
        queues = [q.lines for place, q in self._queues.items() if place[0] not in self._held_back]
        return sum(map(len, queues)), sum(line.size for lines in queues for line in lines)

    def arrived(self, items: Iterable[Item], now: float) -> None:
        """Take *items* in, in their partition's order."""
        for item in items:
            line = _Line(item, item.size)
            self._lines[id(item.received)] = line
            self._queues.setdefault(_place(item), _Queue(now)).lines.append(line)
            self._bytes += line.size

    def ended(self, received: Iterable[Received]) -> None:
        """Note the ends of deliveries; those that were lost meanwhile are passed over."""
        for one in received:
            line = self._lines.get(id(one))
            if line is not None:
                line.completion = progress_of(line.item).completion
                grown = 0 if line.completion is None else line.completion.size
                line.size += grown
                self._bytes += grown

    def reopened(self, item: Item) -> None:
        """Note that a delivery has not ended after all."""
        line = self._lines[id(item.received)]
        line.completion = progress_of(item).completion = None
        self._failed.discard(_place(item))
        self._bytes -= line.size - item.size
        line.size = item.size

    def postponed(self, item: Item, until: float) -> None:
        """Keep how a delivery ended for later, and with it what follows in its partition."""
        self._lines[id(item.received)].not_before = until
        self._failed.discard(_place(item))

    def dropped(self, lost: Iterable[Lost]) -> None:
        """Forget what belongs to ownerships that are over."""
        for one in lost:
            for place in [p for p in self._queues if p[0] == one.partition]:
                if place[1] <= one.epoch:
                    self._failed.discard(place)
                    self._forget(self._queues.pop(place).lines)

    def hold_back(self, now: float, enough: int, *, full: bool) -> frozenset[str]:
        """Return the partitions of which no more is to be read: what came of them would only wait.

        That is where one does not go on and has *enough* in hand, or anything while there is no
        room for others (*full*), until it goes on and is almost used up.
        """
        self._held_back = frozenset(
            place[0]
            for place, queue in self._queues.items()
            if self._must_wait(place[0], queue, now, 1 if full else enough, enough // 2)
        )
        return self._held_back

    def _must_wait(self, name: str, queue: _Queue, now: float, most: int, few: int) -> bool:
        is_stuck, count = now - queue.since >= STUCK, len(queue.lines)
        if name in self._held_back:
            return is_stuck or count > few
        return is_stuck and count >= most

    # --- transactions ---

    @property
    def has_failed(self) -> bool:
        """Tell whether the latest transaction of a partition has failed."""
        return bool(self._failed)

    def ready(self, now: float) -> list[Ready]:
        """Return what can be committed: of each partition what ended before its first that did
        not, or is postponed, within the limits of a transaction.

        After a failure each partition of it comes alone, with less, until it has grown again:
        whatever cannot be stored, or not in time, keeps nothing else from it.
        """
        chosen = [place for place in self._queues if self._is_ready(place, now)]
        if not chosen:
            return []
        if (limit := self._limits.get(chosen[0][0])) is not None:
            return self._filled(chosen[:1], now, limit)
        return self._filled([one for one in chosen if one[0] not in self._limits], now)

    def _is_ready(self, place: _Place, now: float) -> bool:
        return next(self._ended_first(place, now), None) is not None

    def _filled(
        self, places: Iterable[_Place], now: float, limit: int = MAX_DELIVERIES
    ) -> list[Ready]:
        found: list[Ready] = []
        outputs = size = 0
        for line in (line for place in places for line in self._ended_first(place, now)):
            assert line.completion is not None  # noqa: S101 - it ended
            outputs += len(line.completion.outputs)
            size += line.completion.size
            full = outputs > MAX_OUTPUTS or size > MAX_BYTES or len(found) >= limit
            if found and full:
                break
            found.append(Ready(line.item, line.completion))
        return found

    def _ended_first(self, place: _Place, now: float) -> Iterator[_Line]:
        for line in self._queues[place].lines:
            if line.completion is None or line.not_before > now:
                return
            yield line

    def committed(self, ready: Sequence[Ready], now: float) -> None:
        """Forget what was committed; its partitions may have more the next time."""
        self._commits += 1
        for one in ready:
            queue = self._queues[_place(one.item)]
            queue.since, queue.failed_at = now, None
            self._forget([queue.lines.popleft()])
        for place in {_place(one.item) for one in ready}:
            self._failed.discard(place)
            self._grow(place[0])
            self._to_the_end(place)

    def _grow(self, name: str) -> None:
        limit = self._limits.pop(name, MAX_DELIVERIES)
        limit += 1 + limit // 8
        if limit < MAX_DELIVERIES:
            self._limits[name] = limit

    def failed(self, ready: Sequence[Ready], now: float, took: float) -> None:
        """Note that a transaction was not committed, for whatever reason, and *took* so long."""
        counts = Counter(_place(one.item) for one in ready)
        for place, count in counts.items():
            self._failed.add(place)
            self._limits[place[0]] = max(1, count // 2)
            self._to_the_end(place)
        if len(counts) == 1 and len(self._queues) > 1:
            wait = self._penalty(self._queues[_place(ready[0].item)], took)
            self._lines[id(ready[0].item.received)].not_before = now + wait

    def _penalty(self, queue: _Queue, took: float) -> float:
        """Return how long a partition waits whose transaction failed, and *took* so long.

        As long as it took where it fails again while those of others are committed: they get half
        of the time at least, though each of its transactions runs into the time-out. After an
        outage, in which all fail, no partition waits long.
        """
        before, queue.failed_at = queue.failed_at, self._commits
        is_its_own_fault = before is not None and before < self._commits
        return max(took, PENALTY) if is_its_own_fault else PENALTY

    def _to_the_end(self, place: _Place) -> None:
        """Let the others come first the next time."""
        queue = self._queues.pop(place)
        if queue.lines:
            self._queues[place] = queue

    def _forget(self, lines: Iterable[_Line]) -> None:
        for line in lines:
            del self._lines[id(line.item.received)]
            self._bytes -= line.size


def _place(item: Item) -> _Place:
    return item.received.partition, item.received.epoch
