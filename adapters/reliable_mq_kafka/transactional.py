"""A group's stream of deliveries whose offsets are committed together with their outputs.

What keeps two members from storing the outputs of one delivery:

- Nothing of a delivery goes to a broker before its handler has ended; a transaction is short.
- Offsets go to the group's coordinator with the member's id and generation. Whoever was
  replaced is refused, and its transaction is undone, outputs included.
- The partition's next owner begins behind what is committed, and waits for offsets that are
  still in an open transaction: its client asks for stable offsets only (``read_committed``).
- No offset is committed in any other way, so none can come late and lead back.
- A transaction of unknown outcome ends this membership: the next one begins where the brokers
  say, after the open transaction has been undone.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence

from confluent_kafka import Consumer, TopicPartition

from reliable_mq.adapter import Batch, Handled
from reliable_mq.errors import ReliableMQError, StaleDeliveryError, TransportError
from reliable_mq_kafka.commits import Commits
from reliable_mq_kafka.config import Clients
from reliable_mq_kafka.errors import translated
from reliable_mq_kafka.identities import Identities
from reliable_mq_kafka.intake import Intake
from reliable_mq_kafka.membership import Membership, membership
from reliable_mq_kafka.outputs import Homeless
from reliable_mq_kafka.partitions import OwnedPartition, Place
from reliable_mq_kafka.subscription import KafkaSubscription
from reliable_mq_kafka.transactions import FencedError, InDoubtError, Transactions

log = logging.getLogger("reliable_mq.kafka")

_PATIENCE = 2.0
"""Seconds for one try to make the producer ready; the next goes on with it."""


class NoCommits(Commits):
    """Stands where plain commits are made: offsets go with transactions only."""

    @property
    def settled(self) -> bool:
        """True: nothing is ever under way."""
        return True

    def send_if_due(self, consumer: Consumer) -> None:
        """Do nothing."""

    def send_now(self, consumer: Consumer) -> None:
        """Do nothing."""

    def send_last(self, consumer: Consumer, leaving: Iterable[OwnedPartition]) -> None:
        """Do nothing: what was done is committed, and the rest comes again."""


class TransactionalIntake(Intake):
    """A member that knows under which name each of its partitions was assigned."""

    def __init__(
        self, clients: Clients, identities: Identities, topics: Sequence[str], group: str
    ) -> None:
        self._members: dict[Place, str] = {}
        super().__init__(clients, identities, topics, group)
        self.commits = NoCommits(self._share, clients.options.commit_interval)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        super()._on_assign(consumer, partitions)
        member = consumer.memberid()
        for one in partitions:
            self._members[one.topic, one.partition] = member

    def dirty(self) -> list[OwnedPartition]:
        """Return the partitions of which more is done than the brokers know."""
        return self._share.dirty()

    def membership(self, partitions: Iterable[OwnedPartition]) -> Membership:
        """Return who this is for the group, as the owner of *partitions*.

        Raises ``StaleDeliveryError`` while that is not sure: the next poll will tell.
        """
        with translated(self._doing):
            found = membership(self._consumer.consumer_group_metadata())
        if not found.is_valid:
            raise StaleDeliveryError("this process is no member of the group at the moment")
        if any(self._members.get(one.place) != found.member for one in partitions):
            # It has left the group and come back, and its partitions may have been with others.
            self.broken = True
            raise StaleDeliveryError("this process was out of the group for a while")
        return found


class TransactionalSubscription(KafkaSubscription):
    """See :class:`reliable_mq.adapter.TransactionalSubscription` for what it promises."""

    def __init__(
        self,
        clients: Clients,
        identities: Identities,
        topics: Sequence[str],
        group: str,
        prefetch: int,
    ) -> None:
        super().__init__(clients, identities, topics, group, prefetch)
        # A group's name has no dot: a permission for the prefix `{group}.` fits no other group.
        self._transactions = Transactions(clients, f"{group}.{topics[0]}.{uuid.uuid4().hex}")
        self._settle_at = 0.0

    # --- receiving ---

    def receive(self, limit: int, timeout: float) -> Batch:
        """See ``Subscription.receive``."""
        if not self._closed:
            self._settle()
        return super().receive(limit, timeout)

    def _join(self) -> Intake:
        """As before; what an earlier transaction has left open is undone first."""
        self._transactions.prepare(_PATIENCE)
        return TransactionalIntake(self._clients, self._identities, self._topics, self._group)

    def _settle(self) -> None:
        """Commit progress that has no outputs: markers of transactions at a partition's end."""
        intake = self._member()
        self._transactions.serve()
        if intake is None or time.monotonic() < self._settle_at:
            return
        self._settle_at = time.monotonic() + self._clients.options.commit_interval
        dirty = intake.dirty()
        if not dirty:
            return
        offsets = {one: one.watermark or 0 for one in dirty}
        try:
            self._run(intake, [], offsets)
            for one, offset in offsets.items():
                one.was_offered()
                one.was_committed(offset)
        except ReliableMQError as error:
            # Nothing waits for it, and it is tried again; what lasts is told by the next commit.
            log.debug("offsets without outputs are not committed yet: %s", error)

    # --- committing ---

    def commit(self, handled: Sequence[Handled]) -> Homeless:
        """See ``TransactionalSubscription.commit``."""
        intake = self._member()
        if intake is None:
            raise StaleDeliveryError("this subscription owns nothing")
        done = _by_partition(intake, handled)
        offsets = {one: _watermark(one, numbers) for one, numbers in done.items()}
        homeless = self._run(intake, handled, offsets)
        if not homeless:
            for one, numbers in done.items():
                for number in numbers:
                    one.ack(number)
                one.was_offered()
                one.was_committed(offsets[one])
        return homeless

    def hold_back(self, partitions: Collection[str]) -> None:
        """See ``TransactionalSubscription.hold_back``."""
        intake = self._member()
        if intake is not None:
            intake.hold_back(partitions)

    def _run(
        self,
        intake: TransactionalIntake,
        handled: Sequence[Handled],
        offsets: Mapping[OwnedPartition, int],
    ) -> Homeless:
        member = intake.membership(offsets)
        places = [one.commit_of(offset) for one, offset in offsets.items()]
        messages = [message for one in handled for message in one.outputs]
        origins = [index for index, one in enumerate(handled) for _ in one.outputs]
        try:
            homeless = self._transactions.run(messages, places, member)
        except FencedError as error:
            raise StaleDeliveryError(f"the group refused the offsets: {error}") from error
        except InDoubtError as error:
            intake.broken = True
            raise TransportError(
                f"whether a transaction was committed is not known: {error}; the brokers are asked"
            ) from error
        return {origins[index]: outcome for index, outcome in homeless.items()}

    def _member(self) -> TransactionalIntake | None:
        intake = self._intake
        usable = isinstance(intake, TransactionalIntake) and not intake.broken
        return intake if usable and not self._closed else None  # type: ignore[return-value]

    def close(self) -> None:
        """See ``Subscription.close``."""
        super().close()
        self._transactions.close()


def _by_partition(
    intake: TransactionalIntake, handled: Sequence[Handled]
) -> dict[OwnedPartition, list[int]]:
    done: dict[OwnedPartition, list[int]] = {}
    for one in handled:
        delivery = one.delivery
        owned = intake.under(delivery.partition, delivery.epoch)
        if owned is None:
            raise StaleDeliveryError(f"{delivery.partition} is not owned any more")
        done.setdefault(owned, []).append(delivery.receipt)
    return done


def _watermark(one: OwnedPartition, done: Sequence[int]) -> int:
    watermark = one.watermark_after(frozenset(done))
    if watermark is None or watermark <= max(done):
        raise ValueError(f"{one.name}: a delivery before the last one of {done} is not done")
    return watermark
