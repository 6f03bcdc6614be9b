"""What a subscription knows of a partition it owns. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator
from itertools import count

from confluent_kafka import OFFSET_INVALID, TopicPartition

from reliable_mq.adapter import Lost
from reliable_mq_kafka.completed import ROOM, Runs, between, encode, join

Place = tuple[str, int]
"""Topic and partition."""


class OwnedPartition:
    """A partition under one epoch: what was read of it, and what of that is done.

    Offsets need not be contiguous: compaction and transactions leave gaps. What was done before,
    behind something that was not, is skipped when it is read again.
    """

    __slots__ = (
        "_acks",
        "_committed",
        "_committed_acks",
        "_done",
        "_ended_at",
        "_ended_early",
        "_held",
        "_late",
        "_next",
        "_offered_acks",
        "_open",
        "_read_to",
        "_since",
        "begun",
        "epoch",
        "held_back",
        "log",
        "name",
        "number",
        "parked",
        "paused",
        "restless_since",
        "rewinding",
        "signed",
        "start",
        "topic",
    )

    def __init__(self, topic: str, number: int, epoch: int, now: float) -> None:
        self.topic = topic
        self.number = number
        self.name = f"{topic}/{number}"
        self.epoch = epoch
        self.paused = False
        self.held_back = False
        """Whether the application wants no more of it for now."""
        self.rewinding = False
        """Whether the client has yet to be told to read from :attr:`position` again."""
        self.begun = False
        """Whether the client has shown that it reads it, since the assignment or a rewind."""
        self.restless_since = now
        self.log: str | None = None
        """The id of the topic whose log is read, where it is known."""
        self.signed: str | None = None
        """The id that the commit had with which this ownership began."""
        self._since = self._ended_at = now
        self._ended_early: int | None = None
        self.parked = False
        """Whether the client reads it at its end, until it is known where to begin."""
        self.start: int | None = None
        """The offset to begin with, where that is known."""
        self._next: int | None = None
        # Behind the last record: the end of a transaction may lie further behind.
        self._read_to = 0
        self._committed = -1
        self._done: deque[range] = deque()
        # How often something was done: in all, at the commit under way, at the last commit.
        self._acks = self._offered_acks = self._committed_acks = 0
        # In the order of reading. A dict, for removal from the middle.
        self._open: dict[int, None] = {}
        self._held = 0
        # Whether a commit that is under way is one of another log.
        self._late = False

    @property
    def place(self) -> Place:
        """Return topic and number."""
        return self.topic, self.number

    @property
    def held(self) -> int:
        """Return how many of its deliveries are with the application."""
        return self._held

    # --- reading ---

    def read(self, offset: int) -> bool:
        """Note that the record at *offset* was read; False where it is to be thrown away."""
        if self.rewinding or (self._next is not None and offset < self._next):
            return False
        if self._next is None:
            self._committed = offset
            self._begun_at(offset)
        self.begun = True
        self._next = self._read_to = offset + 1
        if self._was_done(offset):
            return False
        self._open[offset] = None
        return True

    def skip(self, done: Runs) -> None:
        """Throw these away when they are read: another ownership has done them."""
        self._done = deque(done)

    def _was_done(self, offset: int) -> bool:
        while self._done and self._done[0].stop <= offset:
            self._done.popleft()
        return bool(self._done) and offset in self._done[0]

    def _begun_at(self, offset: int) -> None:
        if self.start is not None and offset < self.start:
            # There is no such start in this log: what was done behind it is not of this log either.
            self._done.clear()

    def reached_end(self, offset: int, now: float) -> None:
        """Note that there is nothing to deliver before *offset* that was not read."""
        if self.rewinding:
            return
        self.begun = True
        if self._next is None:
            self._begun_at(offset)
        elif offset < self._read_to:
            self._ended_early, self._ended_at = offset, now
        self._next = max(offset, self._next or 0)

    def foreign_from(self, log: str | None, former: Container[str], asked_at: float) -> int | None:
        """Return the offset from which on the log is not the one that was read; None for the same.

        *log* is what the topic's id was after *asked_at*, *former* what it was before. A topic
        that has taken the place of the one that was read is foreign from its beginning. Another
        id by itself says nothing: commits are copied to other clusters, ids and all. A log that
        ends before what was read has lost that, by the election of a leader that did not have it.
        """
        known = self.log
        if asked_at > self._since:
            self.log = log or known
        if known in former and log != self.signed:
            self.log = log
            return 0
        if self._ended_early is None or asked_at <= self._ended_at:
            return None
        return self._ended_early

    def handed_out(self) -> None:
        """Note that a record that was read is with the application now."""
        self._held += 1

    # --- acknowledging ---

    def ack(self, offset: int) -> bool:
        """Note that the delivery of *offset* is done; False where it was before."""
        if offset not in self._open:
            return False
        del self._open[offset]
        self._held -= 1
        self._acks += 1
        return True

    @property
    def watermark(self) -> int | None:
        """Return the offset of the first record that is not done; None where none is known."""
        return next(iter(self._open), self._next)

    def watermark_after(self, done: Container[int]) -> int | None:
        """Return what the watermark will be once *done* is acknowledged too."""
        return next((offset for offset in self._open if offset not in done), self._next)

    @property
    def dirty(self) -> bool:
        """Tell whether more is done than the brokers know."""
        watermark = self.watermark
        if watermark is None:
            return False
        return watermark > self._committed or (
            self._acks > self._committed_acks and bool(self._done_runs())
        )

    def was_offered(self) -> None:
        """Note that :meth:`commit` is on its way to the brokers."""
        self._offered_acks = self._acks
        self._late = False

    def was_committed(self, offset: int) -> None:
        """Note that the brokers have the commit that was offered last."""
        if self._late:
            return
        self._committed = max(offset, self._committed)
        self._committed_acks = max(self._offered_acks, self._committed_acks)

    # --- losing ---

    def lost(self) -> Lost:
        """Return what tells of the end of its epoch."""
        return Lost(self.name, self.epoch)

    def begin_again(self, epoch: int, last: int | None = None) -> Lost:
        """Forget what was read and is not done: it will be read again, under *epoch*.

        With *last*, also whatever was done at that offset and behind it.
        """
        ended = self.lost()
        self._done = deque(self._done_runs())
        self._next = self.watermark
        self._read_to = self._next or 0
        self._open.clear()
        self._held = 0
        self.epoch = epoch
        self.rewinding = True
        if last is not None:
            self._forget_from(last)
        return ended

    def _forget_from(self, last: int) -> None:
        before = (range(run.start, min(run.stop, last)) for run in self._done)
        self._done = deque(run for run in before if run)
        self._next = last if self._next is None else min(self._next, last)
        self._ended_early = None
        # The brokers are told where the group is now, whatever was committed before.
        self._committed = -1
        self._late = True
        self.signed = None

    # --- for the client ---

    @property
    def position(self) -> TopicPartition:
        """Return where to read from, which must be known: the start where nothing was read yet."""
        offset = self.start if self._next is None else self._next
        if offset is None:
            raise ValueError(f"{self.name}: where to begin is not known")
        return TopicPartition(self.topic, self.number, offset)

    @property
    def has_position(self) -> bool:
        """Tell whether it is known where to read from."""
        return self._next is not None or self.start is not None

    def commit_of(self, offset: int) -> TopicPartition:
        """Return what to commit for *offset*, with nothing that is done behind it."""
        return TopicPartition(self.topic, self.number, offset, encode((), offset, log=self.log))

    def commit(self, room: int = ROOM) -> TopicPartition:
        """Return what to commit, with up to *room* characters of what is done behind it."""
        watermark = self.watermark
        if watermark is None:
            return TopicPartition(self.topic, self.number, OFFSET_INVALID)
        metadata = encode(self._done_runs(), watermark, room, self.log)
        return TopicPartition(self.topic, self.number, watermark, metadata)

    def _done_runs(self) -> list[range]:
        """Return what is done behind the watermark, and what was and is not read again yet."""
        if self._next is None:
            return []
        read = between(self._open, self._next)
        rest = [range(max(run.start, self._next), run.stop) for run in self._done]
        return join(read, [run for run in rest if run])


class Share:
    """The partitions that a subscription owns, each with the epoch of its ownership."""

    def __init__(self) -> None:
        self._epochs = count(1)
        self._by_place: dict[Place, OwnedPartition] = {}
        self._by_name: dict[str, OwnedPartition] = {}

    def add(self, place: Place, now: float) -> OwnedPartition:
        """Own *place* from now on."""
        one = OwnedPartition(*place, next(self._epochs), now)
        self._by_place[place] = self._by_name[one.name] = one
        return one

    def remove(self, place: Place) -> OwnedPartition | None:
        """Own *place* no more."""
        one = self._by_place.pop(place, None)
        if one is not None:
            del self._by_name[one.name]
        return one

    def at(self, topic: str | None, number: int | None) -> OwnedPartition | None:
        """Return a partition that is owned."""
        return self._by_place.get((topic, number))  # type: ignore[arg-type]

    def under(self, name: str, epoch: int) -> OwnedPartition | None:
        """Return the partition *name* where it is owned under *epoch* still."""
        one = self._by_name.get(name)
        return one if one is not None and one.epoch == epoch else None

    def named(self, name: str) -> OwnedPartition | None:
        """Return a partition that is owned."""
        return self._by_name.get(name)

    def begin_again(self, one: OwnedPartition, last: int | None = None) -> Lost:
        """End the epoch of *one* and begin the next."""
        return one.begin_again(next(self._epochs), last)

    def dirty(self) -> list[OwnedPartition]:
        """Return those of which more is done than the brokers know."""
        return [one for one in self if one.dirty]

    def __iter__(self) -> Iterator[OwnedPartition]:
        return iter(self._by_place.values())

    @property
    def held(self) -> int:
        """Return how many deliveries are with the application, but for what is held back."""
        return sum(one.held for one in self if not one.held_back)


def places_of(partitions: Iterable[TopicPartition]) -> list[Place]:
    """Return topic and number of each."""
    return [(one.topic, one.partition) for one in partitions]
