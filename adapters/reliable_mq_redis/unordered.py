"""Competing consumers: every member reads all partitions, each entry goes to one of them.

The server's pending list is the truth: an entry belongs to the consumer it is pending for. Reads
go to a consumer of our own name; what is held is renewed by ``keep_alive``; what nobody renewed
for a lease is anybody's. Renewing, acknowledging and handing back are scripts that first look
whether the entry is still ours, so that a process that was stopped for long changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from reliable_mq.adapter import Received
from reliable_mq_redis import keys, scripts
from reliable_mq_redis.declare import UNORDERED
from reliable_mq_redis.link import Command
from reliable_mq_redis.subscription import Lane, Stream, StreamSubscription

_LOOKS_A_LEASE = 4
"""How often abandoned entries are looked for: so taken over within 1.25 leases."""


class UnorderedSubscription(StreamSubscription):
    """A member of an unordered group; see :class:`reliable_mq.adapter.Subscription`."""

    reads = UNORDERED

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._epoch = 0
        self._next_look: dict[str, float] = {}
        self._late: dict[str, Stream] = {}

    # --- the protocol ---

    def ack(self, deliveries: Sequence[Received]) -> None:
        """Acknowledge at once: when this returns, the server has done it.

        Of what is another's by now, nothing: the next ``flush`` says so.
        """
        with self._unbroken(f"acknowledging as group {self.group!r}"):
            late = _anothers(self._on_mine(scripts.ACK, deliveries))
            self._late.update((stream.name, stream) for stream in late)
            self.held.drop(deliveries)

    def flush(self) -> None:
        """See the base; where something was another's its whole stream is reported lost."""
        late, self._late = self._late, {}
        self._lose(late.values())
        super().flush()

    def release(self, deliveries: Sequence[Received]) -> None:
        """Hand back: whichever member looks next takes them, the others go on undisturbed."""
        with self._unbroken(f"handing back as group {self.group!r}"):
            self._on_mine(scripts.RELEASE, deliveries, keys.RELEASED)
            self.held.drop(deliveries)

    def keep_alive(self, deliveries: Sequence[Received]) -> None:
        """Renew the hold.

        Where some are another's by now the whole stream is reported lost: the rest of it, still
        ours, comes again.
        """
        with self._unbroken(f"renewing as group {self.group!r}"):
            self._lose(_anothers(self._on_mine(scripts.KEEP, deliveries)))

    def hand_over(self, partition: str) -> None:
        """Nothing is owned in an unordered group."""

    # --- the kind ---

    def _on_mine(
        self, script: scripts.Script, deliveries: Iterable[Received], *args: str
    ) -> list[tuple[Stream, int, int]]:
        """Run *script* on those that are out; return how many were still ours, of how many."""
        done = []
        for lane, groups in self.by_lane(deliveries):
            lane.unflushed |= script is scripts.ACK
            commands = [
                script.call(
                    [stream.name], self.group, self.me, *args, *(one.receipt for one in group)
                )
                for stream, group in groups
            ]
            for (stream, group), count in zip(groups, self.call(lane, commands), strict=True):
                done.append((stream, count, len(group)))
        return done

    def _lose(self, streams: Iterable[Stream]) -> None:
        for stream in streams:
            self.lose(stream)
            self._begin(stream)

    def _begin(self, stream: Stream) -> None:
        self._epoch += 1
        stream.epoch = self._epoch
        stream.cursor = "0"

    def _connected(self, lane: Lane) -> None:
        self._late.clear()  # reported lost with the connection
        for stream in lane.all_streams():
            self._begin(stream)
        self._next_look.clear()

    def _serve(self, lane: Lane) -> None:
        """Nothing but receiving: holds are renewed by ``keep_alive``."""

    def _fetch(self, lane: Lane, topic: str, count: int) -> list[Received]:
        streams = self.rotated(lane.streams[topic])
        command = scripts.FETCH.call(
            [stream.name for stream in streams],
            self.group,
            self.me,
            keys.RELEASED,
            count,
            self._abandoned_after(topic),
            *(stream.cursor for stream in streams),
        )
        (reply,) = self.call(lane, [command])
        found = []
        for stream, (cursor, again, new) in zip(streams, reply, strict=True):
            stream.cursor = cursor.decode()
            found += self.deliver(stream, again, redelivered=True)
            found += self.deliver(stream, new, redelivered=False)
        return found

    def _abandoned_after(self, topic: str) -> int:
        """Return after how many ms an entry is abandoned, 0 when it is not yet time to look."""
        now = time.monotonic()
        if now < self._next_look.get(topic, 0.0):
            return 0
        self._next_look[topic] = now + self.lease_ms / 1000 / _LOOKS_A_LEASE
        return self.lease_ms

    def _block(self, lane: Lane, room: int, milliseconds: int) -> list[Received]:
        # COUNT is for each stream, so as many streams as there is room for.
        streams = {stream.name: stream for stream in self.rotated(lane.all_streams())[:room]}
        count = max(1, self._appetite.count(room) // len(streams))
        words: list[str | int] = ["XREADGROUP", "GROUP", self.group, self.me, "COUNT", count]
        words += ["BLOCK", milliseconds, "STREAMS", *streams, *(">" for _ in streams)]
        (reply,) = self.call(lane, [tuple(words)], blocking=milliseconds / 1000)
        return [
            delivery
            for name, entries in reply or ()
            for delivery in self.deliver(streams[name.decode()], entries, redelivered=False)
        ]

    def _farewell(self, lane: Lane) -> list[Command]:
        names = [stream.name for stream in lane.all_streams()]
        held = [delivery for name in names for delivery in self.held.of(name)]
        releases: list[Command] = [
            scripts.RELEASE.call(
                [name], self.group, self.me, keys.RELEASED, *(one.receipt for one in group)
            )
            for name, group in self.held.grouped(held)
        ]
        return releases + [
            scripts.FORGET.call([name], self.group, keys.CONSUMER_PREFIX, 0, self.me)
            for name in names
        ]


def _anothers(done: Iterable[tuple[Stream, int, int]]) -> list[Stream]:
    """Return the streams of which not everything that was asked for was still ours."""
    return [stream for stream, ours, asked in done if ours < asked]
