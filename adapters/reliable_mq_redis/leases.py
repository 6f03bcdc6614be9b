"""Who owns which partition of an ordered group: leases, fair shares, take-over.

A lease lies in a hash on the server: owner, epoch, end by the server's clock. Each member beats
often, in one script a topic: it renews what it owns and takes what is free, up to
ceil(partitions / members). A member that is killed or stopped stops beating; its leases run out
and others take them under a higher epoch. Reads and acknowledgements compare owner and epoch on
the server, so nothing here depends on when a stopped process learns of its loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from reliable_mq_redis import keys, scripts
from reliable_mq_redis.link import Command, Reply

_BALANCE_EVERY = 1.0
"""Seconds between two partitions given up for balance: members join and leave in bursts."""

_AWAY = 1.0
"""Seconds for which a member leaves a partition it handed over to the others."""

Call = Callable[[Sequence[Command]], list[Reply]]


@dataclass(slots=True)
class Lease:
    """What a member knows of the ownership of one partition. ``epoch`` 0: not ours."""

    epoch: int = 0
    highest: int = 0
    not_before: float = 0.0
    ends: str = ""
    unchanged_since: float = 0.0

    def own(self, epoch: int) -> None:
        """Note that it is ours under *epoch*."""
        self.epoch = epoch
        self.highest = max(self.highest, epoch)

    def lose(self) -> None:
        """Note that it is not ours."""
        self.epoch = 0
        self.ends = ""

    def watch(self, ends: str, now: float) -> None:
        """Note the end of another member's lease."""
        if ends != self.ends:
            self.ends, self.unchanged_since = ends, now


@dataclass(slots=True)
class Beat:
    """What a beat changed, by partition. ``surplus``: we own too many and are to give one up."""

    gained: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    surplus: bool = False


class Leases:
    """The leases of one topic as one member of one group sees them."""

    def __init__(
        self, topic: str, group: str, member: str, *, lease_ms: int, partitions: int
    ) -> None:
        self.of = [Lease() for _ in range(partitions)]
        self.interval = min(lease_ms / 4000, 0.5)
        self._member = member
        self._lease_ms = lease_ms
        self._members = keys.members(topic, group)
        self._own = [keys.own(topic, group, number) for number in range(partitions)]
        self._next = 0.0
        self._next_balance = 0.0
        self._first = 0

    @property
    def due(self) -> bool:
        """Whether it is time for a beat."""
        return time.monotonic() >= self._next

    def beat(self, call: Call) -> Beat:
        """Renew, take what is free, and return what changed."""
        now = time.monotonic()
        self._next = now + self.interval
        self._first += 1
        words = [word for lease in self.of for word in self._words(lease, now)]
        command = scripts.TEND.call(
            [self._members, *self._own], self._member, self._lease_ms, self._first, *words
        )
        ((share, answers),) = call([command])
        beat = Beat()
        for number, (epoch, ends) in enumerate(answers):
            self._note(beat, number, epoch, ends.decode(), now)
        if now >= self._next_balance and sum(lease.epoch > 0 for lease in self.of) > share:
            self._next_balance = now + _BALANCE_EVERY
            beat.surplus = True
        return beat

    def _words(self, lease: Lease, now: float) -> tuple[int, int, str]:
        if now < lease.not_before:
            return lease.epoch, lease.highest, "skip"
        # The server's clock may have been set back: then an end far ahead means nothing, and
        # what a living owner would have renewed since is abandoned by the clock of this machine.
        dead = lease.ends and now - lease.unchanged_since > 2 * self._lease_ms / 1000
        return lease.epoch, lease.highest, lease.ends if dead else ""

    def _note(self, beat: Beat, number: int, epoch: int, ends: str, now: float) -> None:
        lease = self.of[number]
        if lease.epoch and lease.epoch != epoch:
            lease.lose()
            beat.lost.append(number)
        if epoch and not lease.epoch:
            lease.own(epoch)
            beat.gained.append(number)
        if not epoch:
            lease.watch(ends, now)

    def restart(self, number: int, call: Call) -> bool:
        """Begin a partition of ours again under a new epoch; False where it was ours no more."""
        lease = self.of[number]
        command = scripts.RESTART.call(
            [self._members, self._own[number]], self._member, lease.epoch
        )
        (epoch,) = call([command])
        lease.lose()
        if epoch:
            lease.own(epoch)
        return bool(epoch)

    def hand_over(self, number: int, call: Call) -> None:
        """Give a partition up, and leave it to the others for a moment."""
        call([self._giving([number], leave=False)])
        self.of[number].lose()
        self.of[number].not_before = time.monotonic() + _AWAY

    def farewell(self) -> Command:
        """Return the command that gives everything up and leaves the group."""
        owned = [number for number, lease in enumerate(self.of) if lease.epoch]
        return self._giving(owned, leave=True)

    def _giving(self, numbers: Sequence[int], *, leave: bool) -> Command:
        return scripts.HAND_OVER.call(
            [self._members, *(self._own[number] for number in numbers)],
            self._member,
            int(leave),
            *(self.of[number].epoch for number in numbers),
        )

    def fence(self, number: int) -> tuple[str, int]:
        """Return the key and the epoch that a read or an acknowledgement is checked against."""
        return self._own[number], self.of[number].epoch

    def disconnected(self) -> None:
        """Forget what is ours: on the next connection it is taken anew, under new epochs."""
        for lease in self.of:
            lease.lose()
        self._next = 0.0
