"""Keeping streams short and free of dead consumers: in passing, by whoever has the turn."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence

from reliable_mq_redis import keys, scripts
from reliable_mq_redis.link import Command, Reply

MOST = 50_000
"""Entries deleted by one call: a millisecond or so of the server's time."""

_ROUNDS = 10
_SILENT_MS = 600_000
"""A consumer that holds nothing is removed after this long; one that comes back is made anew."""

Call = Callable[[Sequence[Command]], list[Reply]]


class Tidier:
    """Trims the streams of the topics a member reads, every so often.

    All members of all groups of a topic share one turn an *interval* (seconds, 0: never). What
    goes is what the topic's retention says, else only what every group has acknowledged.
    """

    def __init__(self, interval: float, member: str, group: str, lease_ms: int) -> None:
        self._interval = interval
        self._member = member
        self._group = group
        self._silent_ms = max(_SILENT_MS, 10 * lease_ms)
        self._next = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time to work."""
        return self._interval > 0 and time.monotonic() >= self._next

    def work(self, call: Call, streams: Mapping[str, Sequence[str]]) -> None:
        """Tidy *streams*, given by topic. Bounded: a long backlog takes several turns."""
        self._next = time.monotonic() + self._interval * random.uniform(0.9, 1.1)  # noqa: S311
        for topic, names in streams.items():
            mine, retention = call(
                [
                    scripts.TURN.call([keys.turn(topic)], self._member, self._turn_ms),
                    ("HGET", keys.meta(topic), "retention"),
                ]
            )
            if mine:
                self._trim(call, names, retention or b"")
                call([self._forget(name) for name in names])

    @property
    def _turn_ms(self) -> int:
        # Shorter than every member's interval, or each second turn would find the first one's.
        return max(1, round(self._interval * 800))

    def _trim(self, call: Call, names: Sequence[str], retention: bytes) -> None:
        for _ in range(_ROUNDS):
            deleted = call([scripts.TRIM.call([name], retention, MOST) for name in names])
            names = [name for name, count in zip(names, deleted, strict=True) if count >= MOST]
            if not names:
                return

    def _forget(self, name: str) -> Command:
        return scripts.FORGET.call([name], self._group, keys.CONSUMER_PREFIX, self._silent_ms, "")
