"""A member of a group, driven step by step from the test's own thread."""

from __future__ import annotations

from collections.abc import Sequence

from reliable_mq.adapter import Batch, Lost, Received, Subscription
from reliable_mq.errors import TransportError
from reliable_mq.testing.contract.waiting import DEADLINE, Deadline, wait_for


class Reader:
    """A subscription together with what it received and still holds.

    Each step also renews the hold on everything held and forgets what was reported lost, as the
    common layer does. ``received`` keeps every delivery ever made, ``held`` those neither
    acknowledged nor released nor lost.
    """

    def __init__(self, subscription: Subscription, *, quiet: float = 1.0) -> None:
        self.subscription = subscription
        self._quiet = quiet
        self.received: list[Received] = []
        self.held: list[Received] = []
        self.lost: list[Lost] = []

    def step(self, limit: int = 500, timeout: float = 0.2) -> list[Received]:
        """Receive once and return the new deliveries."""
        batch = self.subscription.receive(limit, timeout)
        self._apply(batch)
        if self.held:
            self.subscription.keep_alive(self.held)
        return list(batch.deliveries)

    def step_through_outage(self) -> list[Received]:
        """Receive once where the broker may be away; nothing is received while it is."""
        try:
            return self.step()
        except TransportError:
            return []

    def idle(self) -> None:
        """Serve the client and renew the holds without taking anything new."""
        self.step(limit=0, timeout=0.05)

    def take(
        self, count: int, *, through_outage: bool = False, seconds: float = DEADLINE
    ) -> list[Received]:
        """Return the next *count* deliveries that are not lost again by the time there are enough.

        Asks for no more than are missing.
        """
        deadline = Deadline(seconds)
        before = set(map(id, self.held))
        while True:
            taken = [delivery for delivery in self.held if id(delivery) not in before]
            if len(taken) >= count:
                return taken
            assert not deadline.passed, (
                f"received {len(taken)} of {count} deliveries in {seconds:g} s"
            )
            if through_outage:
                self.step_through_outage()
            else:
                self.step(limit=count - len(taken))

    def take_only(self, count: int) -> list[Received]:
        """Return the next *count* deliveries and check that no more come."""
        taken = self.take(count)
        self.assert_nothing_more()
        return taken

    def assert_nothing_more(self) -> None:
        """Check that nothing is delivered for a while."""
        deadline = Deadline(self._quiet)
        while not deadline.passed:
            surplus = self.step(timeout=min(0.2, self._quiet))
            assert not surplus, f"{len(surplus)} deliveries nobody expected"

    def ack(self, deliveries: Sequence[Received]) -> None:
        """Acknowledge."""
        self.subscription.ack(deliveries)
        self._forget(deliveries)

    def ack_and_flush(self, deliveries: Sequence[Received]) -> None:
        """Acknowledge, and return once the broker has it durably."""
        self.ack(deliveries)
        self.subscription.flush()

    def release(self, deliveries: Sequence[Received]) -> None:
        """Hand back; what else goes back with it is forgotten when it is reported lost."""
        self.subscription.release(deliveries)
        self._forget(deliveries)

    def wait_until_lost(self, delivery: Received) -> None:
        """Step until the ownership under which *delivery* was read is reported lost."""
        wait_for(
            lambda: self.has_lost(delivery),
            f"the loss of partition {delivery.partition!r} under epoch {delivery.epoch}",
            meanwhile=self.idle,
        )

    def has_lost(self, delivery: Received) -> bool:
        """Tell whether *delivery* was reported lost."""
        return any(_covers(lost, delivery) for lost in self.lost)

    def close(self) -> None:
        """Close the subscription."""
        self.subscription.close()
        self.held.clear()

    def _apply(self, batch: Batch) -> None:
        self.lost.extend(batch.lost)
        self.held = [d for d in self.held if not any(_covers(lost, d) for lost in batch.lost)]
        self.held.extend(batch.deliveries)
        self.received.extend(batch.deliveries)

    def _forget(self, deliveries: Sequence[Received]) -> None:
        gone = set(map(id, deliveries))
        self.held = [delivery for delivery in self.held if id(delivery) not in gone]


def _covers(lost: Lost, delivery: Received) -> bool:
    return lost.partition == delivery.partition and delivery.epoch <= lost.epoch
