"""Ordered groups: a partition has one owner, who reads it in order and without a gap.

From an owner's first read on it sees every entry left pending by anybody before it, in order of
ids, and only then new ones. Reads and acknowledgements are scripts that check owner and epoch, so
that a process that was stopped neither takes an entry away from its successor nor settles one.
Waiting is a plain XREAD, which takes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reliable_mq.adapter import Received
from reliable_mq_redis import scripts
from reliable_mq_redis.declare import ORDERED
from reliable_mq_redis.leases import Call, Leases
from reliable_mq_redis.link import Command
from reliable_mq_redis.subscription import Lane, Stream, StreamSubscription


class OrderedSubscription(StreamSubscription):
    """A member of an ordered group; see :class:`reliable_mq.adapter.Subscription`."""

    reads = ORDERED

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leases: dict[str, Leases] = {}
        self._delivered: dict[str, str] = {}

    # --- the protocol ---

    def ack(self, deliveries: Sequence[Received]) -> None:
        """Acknowledge at once: when this returns, the server has done it."""
        with self._unbroken(f"acknowledging as group {self.group!r}"):
            for lane, groups in self.by_lane(deliveries):
                lane.unflushed = True
                commands = [self._ack(stream, group) for stream, group in groups]
                for (stream, _), count in zip(groups, self.call(lane, commands), strict=True):
                    if count < 0:
                        self._lose_lease(stream)
            self.held.drop(deliveries)

    def release(self, deliveries: Sequence[Received]) -> None:
        """Hand back: each partition begins again at its first unacknowledged, still ours."""
        with self._unbroken(f"handing back as group {self.group!r}"):
            for lane, groups in self.by_lane(deliveries):
                for stream in {stream.name: stream for stream, _ in groups}.values():
                    self._restart(lane, stream)

    def keep_alive(self, deliveries: Sequence[Received]) -> None:
        """Renew the leases of everything owned, where that is due."""
        with self._unbroken(f"renewing as group {self.group!r}"):
            for lane in self._lanes:
                if lane.link is not None:
                    self._serve(lane)

    def hand_over(self, partition: str) -> None:
        """Give *partition* up; others take it within half a second."""
        with self._unbroken(f"handing over {partition!r} as group {self.group!r}"):
            for lane in self._lanes:
                for stream in lane.all_streams():
                    if stream.name == partition and stream.epoch:
                        self._give_up(lane, stream)

    # --- ownership ---

    def lose(self, stream: Stream) -> None:
        """Report the loss; the lease is told by whoever knows why."""
        super().lose(stream)
        self._delivered.pop(stream.name, None)

    def _lose_lease(self, stream: Stream) -> None:
        self._leases[stream.topic].of[stream.partition].lose()
        self.lose(stream)

    def _ack(self, stream: Stream, group: Sequence[Received]) -> Command:
        own, epoch = self._fence(stream)
        ids = [delivery.receipt for delivery in group]
        return scripts.ACK_OWNED.call([own, stream.name], self.group, self.me, epoch, *ids)

    def _restart(self, lane: Lane, stream: Stream) -> None:
        leases = self._leases[stream.topic]
        kept = leases.restart(stream.partition, self._call(lane))
        self.lose(stream)
        if kept:
            stream.epoch = leases.of[stream.partition].epoch

    def _fence(self, stream: Stream) -> tuple[str, int]:
        return self._leases[stream.topic].fence(stream.partition)

    def _call(self, lane: Lane) -> Call:
        return lambda commands: self.call(lane, commands)

    def _connected(self, lane: Lane) -> None:
        for topic in lane.topics:
            partitions = len(lane.streams[topic])
            leases = self._leases.get(topic)
            if leases is not None and len(leases.of) == partitions:
                leases.disconnected()
            else:
                self._leases[topic] = Leases(
                    topic, self.group, self.me, lease_ms=self.lease_ms, partitions=partitions
                )

    def _serve(self, lane: Lane) -> None:
        for topic, streams in lane.streams.items():
            leases = self._leases[topic]
            if leases.due:
                beat = leases.beat(self._call(lane))
                for number in beat.lost:
                    self.lose(streams[number])
                for number in beat.gained:
                    streams[number].epoch = leases.of[number].epoch
                if beat.surplus:
                    owned = [stream for stream in streams if stream.epoch]
                    self._give_up(lane, min(owned, key=self._in_flight))

    def _in_flight(self, stream: Stream) -> int:
        return len(self.held.of(stream.name))

    def _give_up(self, lane: Lane, stream: Stream) -> None:
        self._leases[stream.topic].hand_over(stream.partition, self._call(lane))
        self.lose(stream)

    # --- receiving ---

    def _fetch(self, lane: Lane, topic: str, count: int) -> list[Received]:
        streams = [stream for stream in self.rotated(lane.streams[topic]) if stream.epoch]
        if not streams:
            return []
        names: list[str] = []
        words: list[str | int] = [self.group, self.me, count]
        for stream in streams:
            own, epoch = self._fence(stream)
            names += (own, stream.name)
            words += (epoch, stream.cursor, self._delivered.get(stream.name, ""))
        (reply,) = self.call(lane, [scripts.FETCH_OWNED.call(names, *words)])
        found = []
        for stream, (still_mine, *read) in zip(streams, reply, strict=True):
            if still_mine:
                found += self._take(stream, *read)
            else:
                self._lose_lease(stream)
        return found

    def _take(
        self, stream: Stream, cursor: bytes, again: Any, new: Any, last: bytes
    ) -> list[Received]:
        stream.cursor = cursor.decode()
        if new or last:
            self._delivered[stream.name] = (new[-1][0] if new else last).decode()
        return self.deliver(stream, again, redelivered=True) + self.deliver(
            stream, new, redelivered=False
        )

    def _block(self, lane: Lane, room: int, milliseconds: int) -> list[Received]:
        owned = [stream.name for stream in lane.all_streams() if stream.epoch]
        places = [self._delivered.get(name, "") for name in owned]
        if not owned:
            self.idle(lane, milliseconds / 1000)
        elif all(places):
            # Entries after the last delivered one wake it, those that came since then as well.
            words: list[str | int] = ["XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS"]
            self.call(lane, [(*words, *owned, *places)], blocking=milliseconds / 1000)
        return []

    def _farewell(self, lane: Lane) -> list[Command]:
        return [self._leases[topic].farewell() for topic in lane.streams]
