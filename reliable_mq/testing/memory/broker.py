"""The memory broker: one lock around the logs, and the faults."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import ClassVar

from reliable_mq import wire
from reliable_mq.adapter import (
    SENT,
    Batch,
    GroupSpec,
    Handled,
    Outcome,
    Received,
    Refused,
    TopicSpec,
    Unknown,
    Unroutable,
)
from reliable_mq.errors import StaleDeliveryError, TransportError
from reliable_mq.message import Message
from reliable_mq.testing.memory.logs import Cursor, Entry, Logs, Member

_NATIVE = (wire.MESSAGE_KEY,)


class MemoryBroker:
    """The messages and the faults. Thread-safe; every method may be called at any time."""

    _brokers: ClassVar[dict[str, MemoryBroker]] = {}
    _brokers_guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._logs = Logs()
        self._published: list[Message] = []
        self._is_down = False
        self._refused: set[str] = set()
        self._copies = 1
        self._unknown: list[bool] = []
        self._lost_acks: list[bool] = []

    @classmethod
    def named(cls, name: str) -> MemoryBroker:
        """Return the broker of this name; a new one where there was none."""
        with cls._brokers_guard:
            return cls._brokers.setdefault(name, cls())

    @classmethod
    def forget(cls, name: str) -> None:
        """Let the name stand for a new, empty broker from now on."""
        with cls._brokers_guard:
            cls._brokers.pop(name, None)

    # --- faults ---

    def down(self) -> None:
        """Be unreachable: publishes are ``Unknown`` and not stored, all else fails.

        Whoever owned a partition has lost it.
        """
        with self._changed:
            self._is_down = True
            self._logs.disconnect_all()
            self._changed.notify_all()

    def up(self) -> None:
        """Be reachable again, with everything that was stored."""
        with self._changed:
            self._is_down = False
            self._changed.notify_all()

    def refuse(self, topic: str) -> None:
        """Refuse for good what is published to *topic*, until :meth:`accept`."""
        with self._changed:
            self._refused.add(topic)

    def accept(self, topic: str) -> None:
        """End :meth:`refuse`."""
        with self._changed:
            self._refused.discard(topic)

    def duplicate(self, times: int) -> None:
        """Deliver each message published from now on *times* times more; 0 ends it."""
        with self._changed:
            self._copies = 1 + times

    def unknown(self, times: int = 1, *, stored: bool) -> None:
        """Let the outcome of the next *times* messages be ``Unknown``.

        With *stored* only the reply is lost: the message is there.
        """
        with self._changed:
            self._unknown += [stored] * times

    def lose_acks(self, times: int = 1, *, applied: bool) -> None:
        """Let the next *times* calls of ``ack`` fail; with *applied* only the reply is lost."""
        with self._changed:
            self._lost_acks += [applied] * times

    def revoke(self) -> None:
        """Take every partition from its owner, as a rebalance does, and share them out anew."""
        with self._changed:
            self._logs.revoke_all()
            self._changed.notify_all()

    # --- what a test looks at ---

    def published(self, topic: str | None = None) -> list[Message]:
        """Return what was stored (of *topic*), in the order of storing, without extra copies."""
        with self._changed:
            return [one for one in self._published if topic in (None, one.topic)]

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until *condition* holds, looked at on every change of the broker.

        Returns False when *timeout* seconds passed without it.
        """
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def inject(
        self,
        topic: str,
        body: bytes,
        headers: Iterable[tuple[str, bytes]] = (),
        key: bytes | None = None,
    ) -> None:
        """Store a message as a foreign producer would: nothing of it is checked or added."""
        with self._changed:
            self._logs.topic(topic).append(Entry(body, list(headers), key))
            self._changed.notify_all()

    def lag(self, topic: str, group: str) -> int:
        """Return how many messages (extra copies included) *group* has not acknowledged."""
        with self._changed:
            self._check_up()
            return self._logs.lag(topic, group)

    # --- for the adapter ---

    def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
        """See ``Adapter.declare``."""
        with self._changed:
            self._check_up()
            self._logs.declare(topics, groups)

    def publish(self, messages: Sequence[Message], limit: int) -> list[Outcome]:
        """See ``Adapter.publish``; *limit* is the largest body in bytes."""
        with self._changed:
            blocked: set[tuple[str, str]] = set()
            outcomes = [self._publish_one(message, limit, blocked) for message in messages]
            self._changed.notify_all()
            return outcomes

    def receive(self, member: Member, limit: int, timeout: float) -> Batch:
        """See ``Subscription.receive``."""
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                self._check_up()
                self._logs.join(member)
                batch = self._logs.take(member, limit)
                left = end - time.monotonic()
                if batch.deliveries or batch.lost or left <= 0:
                    return batch
                self._changed.wait(left)

    def ack(self, member: Member, deliveries: Sequence[Received]) -> None:
        """See ``Subscription.ack``."""
        with self._changed:
            self._check_up()
            applied = self._lost_acks.pop(0) if self._lost_acks else None
            if applied is not False:
                for delivery in deliveries:
                    self._logs.ack(member, delivery)
            self._changed.notify_all()
        if applied is not None:
            raise TransportError("the memory broker lost an acknowledgement, as told")

    def has_lost(self, member: Member) -> bool:
        """Tell whether *member* has yet to hear of a loss."""
        with self._changed:
            return bool(member.lost)

    def commit(
        self, member: Member, handled: Sequence[Handled], limit: int
    ) -> Mapping[int, Refused | Unroutable]:
        """See ``TransactionalSubscription.commit``. Told faults of publishes do not apply."""
        with self._changed:
            self._check_up()
            for one in handled:
                if _epoch(member.owned, one.delivery.partition) != one.delivery.epoch:
                    raise StaleDeliveryError(f"{one.delivery.partition} is not owned any more")
            homeless = self._homeless_outputs(handled, limit)
            if not homeless:
                for message in (message for one in handled for message in one.outputs):
                    self._store(message)
                for one in handled:
                    self._logs.ack(member, one.delivery)
                self._changed.notify_all()
            return homeless

    def hold_back(self, member: Member, partitions: Collection[str]) -> None:
        """Give *member* nothing more of *partitions*."""
        with self._changed:
            member.held_back = frozenset(partitions)

    def release(self, member: Member, deliveries: Sequence[Received]) -> None:
        """Take the partitions of *deliveries* from *member*, where it owns them under the epoch."""
        with self._changed:
            self._check_up()
            owned = member.owned
            self._logs.give_up(
                member,
                {d.partition for d in deliveries if _epoch(owned, d.partition) == d.epoch},
            )
            self._changed.notify_all()

    def hand_over(self, member: Member, partition: str) -> None:
        """Take *partition* from *member* and share it out anew."""
        with self._changed:
            self._check_up()
            self._logs.give_up(member, [partition])
            self._changed.notify_all()

    def leave(self, member: Member) -> None:
        """Share out what *member* owns among those that stay. Harmless when repeated."""
        with self._changed:
            self._logs.leave(member)
            self._logs.balance()
            self._changed.notify_all()

    # --- inside, under the lock ---

    def _check_up(self) -> None:
        if self._is_down:
            raise TransportError("the memory broker is down")

    def _publish_one(self, message: Message, limit: int, blocked: set[tuple[str, str]]) -> Outcome:
        place = (message.topic, message.key or "")
        outcome, stored = self._decide(message, limit, place in blocked)
        if stored:
            self._store(message)
        elif message.key is not None:
            blocked.add(place)
        return outcome

    def _decide(self, message: Message, limit: int, blocked: bool) -> tuple[Outcome, bool]:
        if self._is_down:
            return Unknown("the memory broker is down"), False
        obstacle = self._obstacle(message, limit)
        if obstacle is not None:
            return obstacle, False
        if blocked:
            return Unknown("an earlier message of this key was not stored"), False
        if self._unknown:
            return Unknown("the memory broker lost the reply, as told"), self._unknown.pop(0)
        return SENT, True

    def _obstacle(self, message: Message, limit: int) -> Refused | Unroutable | None:
        if len(message.body) > limit:
            return Refused(f"the body has {len(message.body)} bytes, the limit is {limit}")
        if message.topic in self._refused:
            return Refused(f"topic {message.topic!r} refuses messages, as told")
        if message.topic not in self._logs:
            return Unroutable(f"topic {message.topic!r} does not exist")
        return None

    def _homeless_outputs(
        self, handled: Sequence[Handled], limit: int
    ) -> dict[int, Refused | Unroutable]:
        found: dict[int, Refused | Unroutable] = {}
        for index, message in ((i, m) for i, one in enumerate(handled) for m in one.outputs):
            outcome = self._obstacle(message, limit)
            if outcome is not None:
                found[index] = outcome
        return found

    def _store(self, message: Message) -> None:
        self._published.append(message)
        headers = wire.encode_headers(message, native=_NATIVE)
        key = None if message.key is None else message.key.encode()
        for _ in range(self._copies):
            self._logs.topic(message.topic).append(Entry(message.body, headers, key))


def _epoch(owned: Mapping[str, Cursor], partition: str) -> int | None:
    return owned[partition].epoch if partition in owned else None
