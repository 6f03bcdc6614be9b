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
        self._in_doubt = False

    def settle(self, subscription: Subscription) -> Sequence[Received]:
        """Acknowledge what was taken in, and return it: it is to be handled, whatever is lost now.

        Raises ``TransportError`` where not all of it is known to be acknowledged. What was not
        is reported lost then, or can be acknowledged again.
        """
        if not self._taken:
            return ()
        self._in_doubt = True
        subscription.ack(self._taken)
        subscription.flush()
        crash_point("ack_first.settled")
        settled, self._taken, self._in_doubt = self._taken, [], False
        return settled

    def take(self, deliveries: Sequence[Received], lost: Sequence[Lost]) -> None:
        """Take *deliveries* in, and forget what was *lost*: it comes again, here or elsewhere."""
        self._taken = [one for one in self._taken if not _is_lost(one, lost)]
        self._in_doubt = self._in_doubt and bool(self._taken)
        self._taken.extend(deliveries)

    @property
    def idle(self) -> bool:
        """Tell whether there is nothing on its way."""
        return not self._taken

    @property
    def in_doubt(self) -> int:
        """How many may be acknowledged, and are not known to be: no handler may see them."""
        return len(self._taken) if self._in_doubt else 0


def _is_lost(delivery: Received, lost: Sequence[Lost]) -> bool:
    return any(delivery.partition == one.partition and delivery.epoch <= one.epoch for one in lost)
