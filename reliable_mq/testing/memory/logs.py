"""Topics, cursors and who owns them. No locks here: the broker holds one around every call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from reliable_mq import wire
from reliable_mq.adapter import Batch, GroupSpec, Lost, Received, TopicSpec
from reliable_mq.errors import ConfigurationError
from reliable_mq.partitioning import partition_for


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored message."""

    body: bytes
    headers: wire.RawHeaders
    key: bytes | None


@dataclass(slots=True, eq=False)
class Member:
    """One subscription as the broker sees it: what it wants, owns, holds and is yet to be told."""

    topics: tuple[str, ...]
    group: str
    prefetch: int
    owned: dict[str, Cursor] = field(default_factory=dict)
    held: set[tuple[str, int]] = field(default_factory=set)
    held_back: frozenset[str] = frozenset()
    lost: list[Lost] = field(default_factory=list)
    turn: int = 0

    def settle(self) -> None:
        """Note as lost what it believes to own and does not."""
        for partition, cursor in list(self.owned.items()):
            if cursor.owner is not self:
                del self.owned[partition]
                self.lost.append(Lost(partition, cursor.epoch))
                self.held -= {place for place in self.held if place[0] == partition}

    @property
    def room(self) -> int:
        """How many more it may hold."""
        return self.prefetch - sum(place[0] not in self.held_back for place in self.held)

    def in_turn(self) -> list[tuple[str, Cursor]]:
        """Return what it owns and does not hold back, beginning with another each time."""
        partitions = [one for one in self.owned.items() if one[0] not in self.held_back]
        self.turn += 1
        start = self.turn % len(partitions) if partitions else 0
        return partitions[start:] + partitions[:start]


@dataclass(slots=True, eq=False)
class Cursor:
    """Where one group is in one partition. ``position`` is what its owner gets next."""

    log: list[Entry]
    committed: int = 0
    position: int = 0
    epoch: int = 0
    acked: set[int] = field(default_factory=set)
    owner: Member | None = None

    @property
    def lag(self) -> int:
        """How many messages are not acknowledged."""
        return len(self.log) - self.committed - len(self.acked)

    def give(self, owner: Member) -> None:
        """Let *owner* begin at the first message that is not acknowledged."""
        self.owner = owner
        self.epoch += 1
        self.position = self.committed
        self.acked.clear()

    def ack(self, offset: int) -> None:
        """Commit the contiguous prefix of what was acknowledged."""
        if offset < self.committed:
            return
        self.acked.add(offset)
        while self.committed in self.acked:
            self.acked.remove(self.committed)
            self.committed += 1

    def read(self, limit: int) -> range:
        """Return the offsets of the next entries, *limit* at most, and move on."""
        offsets = range(self.position, min(self.position + limit, len(self.log)))
        self.position = offsets.stop
        return offsets


@dataclass(slots=True)
class Topic:
    """Its partitions, and a cursor for each of them and each group."""

    name: str
    logs: list[list[Entry]]
    groups: dict[str, list[Cursor]] = field(default_factory=dict)
    without_key: int = 0

    def append(self, entry: Entry) -> None:
        """Store *entry* in the partition of its key, or in the next one in turn."""
        if entry.key is not None:
            partition = partition_for(entry.key, len(self.logs))
        else:
            partition = self.without_key % len(self.logs)
            self.without_key += 1
        self.logs[partition].append(entry)

    def cursors(self, group: str) -> list[Cursor]:
        """Return the cursors of *group*, one a partition."""
        try:
            return self.groups[group]
        except KeyError:
            raise ConfigurationError(
                f"group {group!r} of topic {self.name!r} does not exist: declare it first"
            ) from None


class Logs:
    """All topics, and the members that share their partitions."""

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}
        self._members: list[Member] = []

    def __contains__(self, topic: str) -> bool:
        return topic in self._topics

    def topic(self, name: str) -> Topic:
        """Return a topic that was declared."""
        try:
            return self._topics[name]
        except KeyError:
            raise ConfigurationError(f"topic {name!r} does not exist: declare it first") from None

    def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
        """Make what is missing."""
        for spec in topics:
            self._declare_topic(spec)
        for group in groups:
            topic = self.topic(group.topic)
            topic.groups.setdefault(group.group, [Cursor(log) for log in topic.logs])

    def _declare_topic(self, spec: TopicSpec) -> None:
        known = self._topics.get(spec.name)
        if known is None:
            self._topics[spec.name] = Topic(spec.name, [[] for _ in range(spec.partitions or 1)])
        elif spec.partitions not in (None, len(known.logs)):
            raise ConfigurationError(
                f"topic {spec.name!r} has {len(known.logs)} partitions, asked for are "
                f"{spec.partitions}: drain it and declare it under another name"
            )

    def lag(self, topic: str, group: str) -> int:
        """Return how many messages *group* has not acknowledged."""
        return sum(cursor.lag for cursor in self.topic(topic).cursors(group))

    # --- members ---

    def join(self, member: Member) -> None:
        """Give *member* its share, unless it has joined already."""
        if member in self._members:
            return
        for name in member.topics:
            self.topic(name).cursors(member.group)
        self._members.append(member)
        self.balance()

    def leave(self, member: Member) -> None:
        """Take everything from *member*; nobody gets it before the next :meth:`balance`."""
        if member in self._members:
            self._members.remove(member)
            self._disown(member.owned.values())
            member.settle()

    def disconnect_all(self) -> None:
        """Let every member leave."""
        for member in list(self._members):
            self.leave(member)

    def revoke_all(self) -> None:
        """Take every partition from its owner and share them out anew."""
        for member in self._members:
            self._disown(member.owned.values())
        self.balance()

    def give_up(self, member: Member, partitions: Iterable[str]) -> None:
        """Take *partitions* from *member* and share them out anew."""
        self._disown(member.owned[name] for name in partitions if name in member.owned)
        self.balance()

    @staticmethod
    def _disown(cursors: Iterable[Cursor]) -> None:
        for cursor in cursors:
            cursor.owner = None

    def balance(self) -> None:
        """Take what is above a fair share, tell the losers, give away what nobody owns."""
        shared = {(name, member.group) for member in self._members for name in member.topics}
        for name, group in sorted(shared):
            self._cut(self._topics[name].groups[group], len(self._interested(name, group)))
        for member in self._members:
            member.settle()
        for name, group in sorted(shared):
            self._hand_out(name, group)

    def _interested(self, topic: str, group: str) -> list[Member]:
        return [m for m in self._members if m.group == group and topic in m.topics]

    @staticmethod
    def _cut(cursors: list[Cursor], members: int) -> None:
        share = -(-len(cursors) // members)
        count: Counter[Member] = Counter()
        for cursor in cursors:
            if cursor.owner is not None:
                count[cursor.owner] += 1
                if count[cursor.owner] > share:
                    cursor.owner = None

    def _hand_out(self, topic: str, group: str) -> None:
        members = self._interested(topic, group)
        for index, cursor in enumerate(self._topics[topic].groups[group]):
            if cursor.owner is None:
                member = min(members, key=lambda m: len(m.owned))
                cursor.give(member)
                member.owned[f"{topic}/{index}"] = cursor

    # --- deliveries ---

    def take(self, member: Member, limit: int) -> Batch:
        """Return what *member* may have now."""
        lost, member.lost = member.lost, []
        room = min(limit, member.room)
        deliveries: list[Received] = []
        for partition, cursor in member.in_turn():
            for offset in cursor.read(max(0, room - len(deliveries))):
                member.held.add((partition, offset))
                deliveries.append(_received(partition, cursor, offset))
        return Batch(deliveries, lost)

    @staticmethod
    def ack(member: Member, delivery: Received) -> None:
        """Acknowledge, unless the delivery belongs to an ownership that is over."""
        cursor = member.owned.get(delivery.partition)
        if cursor is not None and cursor.epoch == delivery.epoch:
            cursor.ack(delivery.receipt)
            member.held.discard((delivery.partition, delivery.receipt))


def _received(partition: str, cursor: Cursor, offset: int) -> Received:
    entry = cursor.log[offset]
    raw = wire.RawMessage(
        topic=partition.rpartition("/")[0],
        body=entry.body,
        headers=entry.headers,
        key=entry.key,
        position=f"{partition}/{offset}",
    )
    return Received(raw=raw, partition=partition, epoch=cursor.epoch, receipt=offset)
