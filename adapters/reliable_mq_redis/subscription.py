"""What both kinds of subscription do alike: connect, wait, tidy up, say what was lost."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from redis.exceptions import ConnectionError as ClientConnectionError

from reliable_mq.adapter import AdapterContext, Batch, Lost, Received, Subscription
from reliable_mq.errors import ReliableMQError, TransportError
from reliable_mq_redis import copies, keys
from reliable_mq_redis.declare import check_reading, not_declared
from reliable_mq_redis.entries import Appetite, Held, received
from reliable_mq_redis.errors import FAILURES, translated
from reliable_mq_redis.link import Command, Link, Reply
from reliable_mq_redis.options import Options
from reliable_mq_redis.servers import Servers
from reliable_mq_redis.tidy import Tidier

SLICE = 0.2
"""Seconds of one wait at most: what does not end it (a release elsewhere) is seen after it."""

CLOSING = 2.0
"""Seconds that close() takes at most."""

_SHARED_SLICE = 0.02
"""Seconds of one wait where several topics, on several nodes, are waited for in turn."""


@dataclass(slots=True)
class Stream:
    """One partition as this member sees it. ``epoch`` 0: not ours, or not connected."""

    topic: str
    partition: int
    name: str
    epoch: int = 0
    cursor: str = "0"


@dataclass(slots=True)
class Lane:
    """Topics whose keys one command may use together, on one connection."""

    topics: list[str]
    tidier: Tidier
    link: Link | None = None
    unflushed: bool = False
    """Something was acknowledged on this connection since it was flushed."""
    streams: dict[str, list[Stream]] = field(default_factory=dict)

    def all_streams(self) -> list[Stream]:
        """Return the streams of all topics of the lane."""
        return [stream for streams in self.streams.values() for stream in streams]


class StreamSubscription(Subscription, ABC):
    """Base of the two kinds. One thread owns it, as the protocol says."""

    reads: str
    """How the group must have been declared."""

    def __init__(
        self,
        servers: Servers,
        context: AdapterContext,
        options: Options,
        *,
        topics: Sequence[str],
        group: str,
        prefetch: int,
        member: str,
    ) -> None:
        self.servers = servers
        self.group = group
        self.me = member
        self.lease_ms = max(1, round(context.lease * 1000))
        self.held = Held()
        self._prefetch = prefetch
        self._options = options
        self._appetite = Appetite()
        self._lanes = [
            Lane(share, Tidier(options.trim, member, group, self.lease_ms))
            for share in servers.locator.share(list(dict.fromkeys(topics)))
        ]
        self._lost: list[Lost] = []
        self._slice = min(SLICE, context.lease / 4)
        self._turn = 0
        self._closed = False

    # --- the protocol ---

    def receive(self, limit: int, timeout: float) -> Batch:
        """See :class:`reliable_mq.adapter.Subscription`."""
        if self._closed:
            raise ReliableMQError("the subscription is closed")
        deadline = time.monotonic() + timeout
        with self._unbroken(f"receiving as group {self.group!r}"):
            found = self._step(limit)
            while not found and not self._lost and time.monotonic() < deadline:
                found = self._wait(limit, deadline) or self._step(limit)
        lost, self._lost = self._lost, []
        return Batch(deliveries=found, lost=lost)

    def flush(self) -> None:
        """Wait for the copies of acknowledgements that ``wait`` and ``wait_aof`` ask for.

        Without these there is nothing to wait for: ``ack`` returns when the server has done it.
        Raises ``TransportError`` where the copies are not there within ``wait_timeout``, also at
        the next call, until they are; and after a loss until that is reported.
        """
        if self._lost:
            raise TransportError(
                f"acknowledging as group {self.group!r}: some was lost before, and comes again"
            )
        if not copies.asked_for(self._options):
            return
        for lane in self._lanes:
            if lane.unflushed:
                lacking = self._lacking_copies(lane)
                if lacking is not None:
                    raise TransportError(f"acknowledging as group {self.group!r}: {lacking}")
                lane.unflushed = False

    def _lacking_copies(self, lane: Lane) -> str | None:
        seconds = self._options.wait_timeout
        with self._unbroken(f"acknowledging as group {self.group!r}"):
            command = copies.command(self._options, seconds)
            (reply,) = self.call(lane, [command], blocking=seconds)
        return copies.lacking(self._options, reply)

    def close(self) -> None:
        """See :class:`reliable_mq.adapter.Subscription`."""
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + CLOSING
        for lane in self._lanes:
            if lane.link is not None:
                self._leave(lane, lane.link, deadline)
        for stream in (one for lane in self._lanes for one in lane.all_streams()):
            self.lose(stream)
        self._lost.clear()

    # --- what the kinds differ in ---

    @abstractmethod
    def _connected(self, lane: Lane) -> None:
        """Begin anew on a fresh connection."""

    @abstractmethod
    def _serve(self, lane: Lane) -> None:
        """Do what is due besides receiving."""

    @abstractmethod
    def _fetch(self, lane: Lane, topic: str, count: int) -> list[Received]:
        """Take up to *count* entries that are there now."""

    @abstractmethod
    def _block(self, lane: Lane, room: int, milliseconds: int) -> list[Received]:
        """Wait for entries on the lane's connection; may return some of them."""

    @abstractmethod
    def _farewell(self, lane: Lane) -> list[Command]:
        """Return the commands that hand everything over."""

    # --- receiving ---

    def _step(self, limit: int) -> list[Received]:
        for lane in self._lanes:
            if lane.link is None:
                self._connect(lane)
            self.idle(lane, 0.0)
            self._serve(lane)
            if lane.tidier.due:
                self._tidy(lane)
        found: list[Received] = []
        for lane, topic in self._rotation():
            room = self._room(limit - len(found))
            if room > 0:
                found += self._fetch(lane, topic, self._appetite.count(room))
        self._appetite.note(found)
        return found

    def _tidy(self, lane: Lane) -> None:
        names = {topic: [one.name for one in there] for topic, there in lane.streams.items()}
        lane.tidier.work(lambda commands: self.call(lane, commands), names)

    def _room(self, limit: int) -> int:
        return min(limit, self._prefetch - len(self.held))

    def _rotation(self) -> Iterator[tuple[Lane, str]]:
        """Give the topics, beginning with another one each time, so that none starves."""
        topics = [(lane, topic) for lane in self._lanes for topic in lane.topics]
        self._turn += 1
        first = self._turn % len(topics)
        yield from topics[first:] + topics[:first]

    def rotated(self, streams: Sequence[Stream]) -> list[Stream]:
        """Return the streams of a topic, beginning with another one each time."""
        first = self._turn % max(len(streams), 1)
        return [*streams[first:], *streams[:first]]

    def _wait(self, limit: int, deadline: float) -> list[Received]:
        """Wait a moment, for entries where there is room for some."""
        room = self._room(limit)
        shared = len(self._lanes) > 1
        for lane in self._lanes:
            left = min(deadline - time.monotonic(), _SHARED_SLICE if shared else self._slice)
            if left <= 0:
                break
            milliseconds = max(1, int(left * 1000))
            if room <= 0:
                self.idle(lane, left)
            elif found := self._block(lane, room, milliseconds):
                self._appetite.note(found)
                return found
        return []

    @staticmethod
    def idle(lane: Lane, seconds: float) -> None:
        """Wait without asking for anything; raises at once where the server closes."""
        if lane.link is None or not lane.link.quiet(seconds):
            raise ClientConnectionError("the server closed the connection")

    def deliver(
        self, stream: Stream, entries: Sequence[Reply], *, redelivered: bool
    ) -> list[Received]:
        """Return the deliveries of *entries*, and hold them; not what we hold already."""
        made = [
            received(stream.topic, stream.name, stream.epoch, entry, redelivered=redelivered)
            for entry in entries
        ]
        return [delivery for delivery in made if self.held.add(delivery)]

    # --- connections ---

    @contextmanager
    def _unbroken(self, doing: str) -> Iterator[None]:
        """Whatever fails in the block breaks the connections and is raised in our own words."""
        try:
            with translated(doing):
                yield
        except BaseException:
            self._break()
            raise

    def _break(self) -> None:
        """Give up all connections: what came over them is lost, and comes again over new ones."""
        for lane in self._lanes:
            if lane.link is not None:
                self.servers.give_up(lane.link)
                lane.link = None
            lane.unflushed = False  # What it acknowledged is reported lost with the rest.
            for stream in lane.all_streams():
                self.lose(stream)

    def lose(self, stream: Stream) -> None:
        """Report everything of *stream* as lost."""
        if stream.epoch:
            self._lost.append(Lost(stream.name, stream.epoch))
        stream.epoch = 0
        stream.cursor = "0"
        self.held.drop_stream(stream.name)

    def _connect(self, lane: Lane) -> None:
        deadline = time.monotonic() + self.servers.dialer.connect_timeout
        address = self.servers.locator.locate(lane.topics[0], deadline)
        lane.link = self.servers.dial(address, deadline)
        known = {stream.name: stream for stream in lane.all_streams()}
        for topic in lane.topics:
            lane.streams[topic] = [
                known.get(name) or Stream(topic, number, name)
                for number, name in enumerate(keys.streams(topic, self._partitions(lane, topic)))
            ]
        self._connected(lane)

    def _partitions(self, lane: Lane, topic: str) -> int:
        command = ("HMGET", keys.meta(topic), "partitions", f"group:{self.group}")
        ((partitions, reads),) = self.call(lane, [command])
        if partitions is None:
            raise not_declared(topic)
        if reads is not None:
            check_reading(topic, self.group, self.reads, reads.decode())
        return int(partitions)

    def call(
        self, lane: Lane, commands: Sequence[Command], *, blocking: float = 0.0
    ) -> list[Reply]:
        """Run *commands* on the lane's connection; raises the client's errors."""
        if lane.link is None:
            raise ClientConnectionError("the connection was lost")
        deadline = time.monotonic() + self.servers.dialer.socket_timeout + blocking
        return self.servers.checked(lane.link.exchange(commands, deadline))

    def by_lane(
        self, deliveries: Iterable[Received]
    ) -> list[tuple[Lane, list[tuple[Stream, list[Received]]]]]:
        """Return those of *deliveries* that are out, by lane and stream, 1000 at most each."""
        groups = list(self.held.grouped(deliveries))
        found = []
        for lane in self._lanes:
            streams = {stream.name: stream for stream in lane.all_streams()}
            there = [(streams[name], group) for name, group in groups if name in streams]
            if there:
                found.append((lane, there))
        return found

    def _leave(self, lane: Lane, link: Link, deadline: float) -> None:
        """Hand everything over and disconnect; with the server gone others take over in time."""
        lane.link = None
        try:
            link.exchange(self._farewell(lane), deadline)
        except FAILURES:
            self.servers.give_up(link)
        else:
            link.close()
