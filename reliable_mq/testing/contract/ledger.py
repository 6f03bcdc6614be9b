"""The rule of ordered streams, checked over all that the members of a group saw.

From the moment a member owns a partition it sees an in-order stream without a gap that begins
at or before the first message not yet acknowledged. Messages carry a number that counts up per
key, so the rule can be checked key by key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reliable_mq.adapter import Received
from reliable_mq.errors import TransportError
from reliable_mq.testing.contract.messages import key_of, number_of
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import wait_for

Stream = tuple[int, str, int, str | None]


class Ledger:
    """What was delivered to and acknowledged by the readers that share it, in one thread.

    Raises ``AssertionError`` at the first delivery that breaks the rule.
    """

    def __init__(self) -> None:
        self.effects: dict[str | None, list[int]] = {}
        self._expected: dict[Stream, int] = {}
        self._acked: dict[str | None, set[int]] = {}

    def deliver(self, reader: Reader, deliveries: Iterable[Received]) -> None:
        """Note *deliveries* as they came to *reader*."""
        for delivery in deliveries:
            self._deliver(reader, delivery)

    def _deliver(self, reader: Reader, delivery: Received) -> None:
        key, number = key_of(delivery), number_of(delivery)
        stream = (id(reader), delivery.partition, delivery.epoch, key)
        expected = self._expected.get(stream)
        where = f"partition {delivery.partition!r}, epoch {delivery.epoch}, key {key!r}"
        if expected is None:
            first = self.first_unacked(key)
            assert number <= first, f"{where} begins at {number}, {first} is unacknowledged"
        else:
            assert number == expected, f"{where}: {number} came where {expected} was due"
        self._expected[stream] = number + 1
        self._note_effect(key, number)

    def _note_effect(self, key: str | None, number: int) -> None:
        seen = self.effects.setdefault(key, [])
        if number > (seen[-1] if seen else -1):
            seen.append(number)

    def ack(self, deliveries: Iterable[Received]) -> None:
        """Note that *deliveries* are acknowledged."""
        for delivery in deliveries:
            self._acked.setdefault(key_of(delivery), set()).add(number_of(delivery))

    def ack_elsewhere(self, key: str | None, numbers: Iterable[int]) -> None:
        """Note what another process acknowledged; whether the broker knows may be open."""
        self._acked.setdefault(key, set()).update(numbers)

    def first_unacked(self, key: str | None) -> int:
        """Return the smallest number of *key* that nobody acknowledged."""
        acked = self._acked.get(key, set())
        number = 0
        while number in acked:
            number += 1
        return number

    def acked_count(self) -> int:
        """Return how many different messages were acknowledged."""
        return sum(map(len, self._acked.values()))

    def drain(self, readers: Sequence[Reader], total: int, *, through_outage: bool = False) -> None:
        """Let *readers* take turns until *total* messages are acknowledged, and each key is whole.

        The numbers of a key count from 0.
        """
        wait_for(
            lambda: self.acked_count() >= total,
            f"{total} acknowledged messages",
            meanwhile=lambda: self._take_turns(readers, through_outage),
        )
        for key, acked in self._acked.items():
            assert acked == set(range(len(acked))), f"key {key!r} has holes"

    def _take_turns(self, readers: Sequence[Reader], through_outage: bool) -> None:
        for reader in readers:
            taken = reader.step_through_outage() if through_outage else reader.step(timeout=0.1)
            self.deliver(reader, taken)
            # What was held since before is done now as well.
            done = list(reader.held)
            try:
                reader.ack(done)
            except TransportError:
                # Whether the broker took it is open: it may come again, and need not.
                if not through_outage:
                    raise
            self.ack(done)
