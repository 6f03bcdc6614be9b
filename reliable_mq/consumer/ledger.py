"""What an exactly-once consumer has in hand, in the order of each partition. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from reliable_mq.adapter import Handled, Lost, Received
from reliable_mq.consumer.failures import Failure
from reliable_mq.consumer.items import OVERHEAD, Item
from reliable_mq.message import Message

MAX_DELIVERIES = 500
MAX_OUTPUTS = 5_000
MAX_BYTES = 16 * 1024 * 1024
"""What goes into one transaction, where one delivery alone does not have more: it must be over
within its time-out."""

STUCK = 1.0
"""Seconds after which a partition whose first delivery is still the same does not go on."""


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
    """What is in hand of a partition. Its first has been the first since ``since``."""

    since: float
    lines: deque[_Line] = field(default_factory=deque)


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
        self._queues: dict[tuple[str, int], _Queue] = {}
        self._lines: dict[int, _Line] = {}
        self._bytes = 0
        self._held_back: frozenset[str] = frozenset()

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
        self._bytes -= line.size - item.size
        line.size = item.size

    def postponed(self, item: Item, until: float) -> None:
        """Keep how a delivery ended for later, and with it what follows in its partition."""
        self._lines[id(item.received)].not_before = until

    def dropped(self, lost: Iterable[Lost]) -> None:
        """Forget what belongs to ownerships that are over."""
        for one in lost:
            for place in [p for p in self._queues if p[0] == one.partition]:
                if place[1] <= one.epoch:
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

    def ready(self, now: float) -> list[Ready]:
        """Return what can be committed: of each partition what ended before its first that did
        not, or is postponed, within the limits of a transaction.
        """
        found: list[Ready] = []
        outputs = size = 0
        for line in self._ended_first(now):
            assert line.completion is not None  # noqa: S101 - it ended
            outputs += len(line.completion.outputs)
            size += line.completion.size
            full = outputs > MAX_OUTPUTS or size > MAX_BYTES or len(found) >= MAX_DELIVERIES
            if found and full:
                break
            found.append(Ready(line.item, line.completion))
        return found

    def _ended_first(self, now: float) -> Iterator[_Line]:
        for queue in self._queues.values():
            for line in queue.lines:
                if line.completion is None or line.not_before > now:
                    break
                yield line

    def committed(self, ready: Iterable[Ready], now: float) -> None:
        """Forget what was committed."""
        for one in ready:
            place = _place(one.item)
            queue = self._queues[place]
            queue.since = now
            self._forget([queue.lines.popleft()])
            if not queue.lines:
                del self._queues[place]

    def _forget(self, lines: Iterable[_Line]) -> None:
        for line in lines:
            del self._lines[id(line.item.received)]
            self._bytes -= line.size


def _place(item: Item) -> tuple[str, int]:
    return item.received.partition, item.received.epoch
