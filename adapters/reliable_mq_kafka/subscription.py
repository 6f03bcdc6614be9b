"""A group's stream of deliveries from Kafka."""

from __future__ import annotations

import time
from collections.abc import Sequence

from reliable_mq.adapter import Batch, Lost, Received
from reliable_mq.errors import ReliableMQError, TransportError
from reliable_mq_kafka.config import Clients
from reliable_mq_kafka.identities import Identities
from reliable_mq_kafka.intake import Intake

_SLICE = 0.1
_FLUSH_SLICE = 0.005
_FLUSH_WITHIN = 10.0
_CLOSE_WITHIN = 3.0
_TOO_LATE = "a partition was lost before its acknowledgements were committed; they come again"


class KafkaSubscription:
    """See :class:`reliable_mq.adapter.Subscription` for what it promises.

    A partition belongs to one member of the group at a time, whether the group is ordered or
    not; the members share them by the cooperative protocol, so that a rebalance takes only what
    moves. Acknowledgements are committed every ``commit_interval``. After a kill the partitions
    move on once the session has expired.
    """

    def __init__(
        self,
        clients: Clients,
        identities: Identities,
        topics: Sequence[str],
        group: str,
        prefetch: int,
    ) -> None:
        self._clients = clients
        self._identities = identities
        self._topics = tuple(topics)
        self._group = group
        self._prefetch = prefetch
        self._intake: Intake | None = None
        self._lost: list[Lost] = []
        self._closed = False

    # --- receiving ---

    def receive(self, limit: int, timeout: float) -> Batch:
        """See ``Subscription.receive``; after ``close`` it raises ``TransportError``."""
        if self._closed:
            raise TransportError("this subscription is closed")
        end = time.monotonic() + timeout
        intake = self._open()
        if intake.barred is not None:
            return self._barred(intake, intake.barred)
        room = max(0, min(limit, self._prefetch - intake.held))
        intake.pull(room, 0.0)
        while not (intake.has_news or (room and intake.is_ready)):
            left = end - time.monotonic()
            if left <= 0:
                break
            intake.pull(room, min(left, _SLICE))
        deliveries = intake.take(room)
        lost, self._lost = self._lost + intake.lost(), []
        if not (deliveries or lost):
            intake.raise_trouble()
        return Batch(deliveries, lost)

    def _open(self) -> Intake:
        """Return the group's member of this process; a client that has failed is replaced."""
        intake = self._intake
        if intake is not None and intake.broken and intake.barred is None:
            self._lost += intake.abandon()
            self._intake = None
        if self._intake is None:
            self._intake = self._join()
        return self._intake

    def _join(self) -> Intake:
        """Make a new member."""
        return Intake(self._clients, self._identities, self._topics, self._group)

    def _barred(self, intake: Intake, why: ReliableMQError) -> Batch:
        """Report the loss of everything, once; then say why there will be no more."""
        lost, self._lost = self._lost + intake.forsake(), []
        if not lost:
            raise why
        return Batch((), lost)

    # --- acknowledging ---

    def ack(self, deliveries: Sequence[Received]) -> None:
        """See ``Subscription.ack``; committed by a later call, within ``commit_interval``."""
        intake = self._intake
        if intake is None or self._closed:
            return
        for delivery in deliveries:
            one = intake.under(delivery.partition, delivery.epoch)
            if one is not None:
                one.ack(delivery.receipt)

    def flush(self) -> None:
        """See ``Subscription.flush``; waits up to 10 s.

        Raises ``TransportError`` also where a partition went to another member before its
        acknowledgements were committed.
        """
        intake = self._intake
        if self._closed:
            return
        if self._has_news():
            raise TransportError(_TOO_LATE)
        if intake is None:
            return
        end = time.monotonic() + _FLUSH_WITHIN
        intake.commits.forfeited = False
        while not intake.commits.settled:
            if time.monotonic() >= end:
                raise intake.unanswered("cannot commit")
            intake.commit_now()
            intake.pull(0, _FLUSH_SLICE)
        # What was committed when its partition was revoked meanwhile is done, and not lost.
        if intake.commits.forfeited:
            raise TransportError(_TOO_LATE)

    def _has_news(self) -> bool:
        """Tell whether a loss is to be reported."""
        return bool(self._lost) or (self._intake is not None and self._intake.has_news)

    # --- handing back ---

    def release(self, deliveries: Sequence[Received]) -> None:
        """See ``Subscription.release``. This member reads on by itself."""
        intake = self._intake
        if intake is None or self._closed:
            return
        for delivery in deliveries:
            # The first delivery of a partition ends its epoch: the others find none.
            one = intake.under(delivery.partition, delivery.epoch)
            if one is not None:
                intake.begin_again(one)

    def keep_alive(self, deliveries: Sequence[Received]) -> None:
        """Nothing to do: the client tells the brokers that it lives while a handler runs."""

    def hand_over(self, partition: str) -> None:
        """See ``Subscription.hand_over``.

        Kafka's groups share partitions by themselves; which member one goes to is not for a
        member to say. It is read again from its first unacknowledged, by this one or another.
        """
        one = None if self._intake is None or self._closed else self._intake.named(partition)
        if one is not None and self._intake is not None:
            self._intake.begin_again(one)

    def close(self) -> None:
        """See ``Subscription.close``: it takes 6 s at most."""
        if self._closed:
            return
        self._closed = True
        if self._intake is not None:
            self._intake.leave(_CLOSE_WITHIN)
