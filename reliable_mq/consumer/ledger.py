"""What an exactly-once consumer has in hand, in the order of each partition. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from reliable_mq.adapter import Handled, Lost, Received
from reliable_mq.consumer.failures import Failure
from reliable_mq.consumer.items import OVERHEAD, Item
from reliable_mq.message import Message

MAX_DELIVERIES = 500
MAX_OUTPUTS = 5_000
MAX_BYTES = 16 * 1024 * 1024
"""What goes into one transaction, where one delivery alone does not have more: it must be over
within its time-out."""


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
        self._partitions: dict[tuple[str, int], deque[_Line]] = {}
        self._lines: dict[int, _Line] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def bytes(self) -> int:
        """Roughly the memory that deliveries and outputs take."""
        return self._bytes

    def arrived(self, items: Iterable[Item]) -> None:
        """Take *items* in, in their partition's order."""
        for item in items:
            received = item.received
            line = _Line(item, item.size)
            self._lines[id(received)] = line
            self._partitions.setdefault((received.partition, received.epoch), deque()).append(line)
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
            for place in [p for p in self._partitions if p[0] == one.partition]:
                if place[1] <= one.epoch:
                    self._forget(self._partitions.pop(place))

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
        for lines in self._partitions.values():
            for line in lines:
                if line.completion is None or line.not_before > now:
                    break
                yield line

    def committed(self, ready: Iterable[Ready]) -> None:
        """Forget what was committed."""
        for one in ready:
            received = one.item.received
            place = (received.partition, received.epoch)
            lines = self._partitions[place]
            self._forget([lines.popleft()])
            if not lines:
                del self._partitions[place]

    def _forget(self, lines: Iterable[_Line]) -> None:
        for line in lines:
            del self._lines[id(line.item.received)]
            self._bytes -= line.size
