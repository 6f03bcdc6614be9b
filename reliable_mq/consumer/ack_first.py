"""At-most-once: a delivery is acknowledged, durably, before its handler may see it."""

from __future__ import annotations

from collections.abc import Sequence

from reliable_mq.adapter import Lost, Received, Subscription
from reliable_mq.crashpoints import crash_point

AHEAD = 16
"""Deliveries taken in for each worker: what a crash loses, and what a stop waits for."""


class AckFirst:
    """Deliveries on their way through acknowledgement to the handler. For the intake thread."""

    def __init__(self) -> None:
        self._taken: list[Received] = []
        self._settled: list[Received] = []

    def settle(self, subscription: Subscription) -> None:
        """Acknowledge what was taken in; raise ``TransportError`` where that is not known."""
        if self._taken:
            subscription.ack(self._taken)
            subscription.flush()
            crash_point("ack_first.settled")
            self._settled, self._taken = self._taken, []

    def settled(self, lost: Sequence[Lost]) -> Sequence[Received]:
        """Return what was settled before *lost* was reported: to be handled now.

        The acknowledgement of an ownership that was lost meanwhile did nothing; what belongs to
        it comes again, here or elsewhere.
        """
        self._settled = [one for one in self._settled if not _is_lost(one, lost)]
        self._taken = [one for one in self._taken if not _is_lost(one, lost)]
        return self._settled

    def take(self, deliveries: Sequence[Received]) -> None:
        """Take *deliveries* in; what was settled has been handed on."""
        self._taken.extend(deliveries)
        self._settled = []

    @property
    def ready(self) -> bool:
        """Tell whether something is settled: a look at what was lost, and it can be handled."""
        return bool(self._settled)

    @property
    def idle(self) -> bool:
        """Tell whether there is nothing on its way."""
        return not (self._taken or self._settled)


def _is_lost(delivery: Received, lost: Sequence[Lost]) -> bool:
    return any(delivery.partition == one.partition and delivery.epoch <= one.epoch for one in lost)
