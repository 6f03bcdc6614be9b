"""Rows on their way: what a read leaves out that is made while they are sent and settled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from reliable_mq.store.outbox.outgoing import Outgoing


@dataclass(frozen=True, slots=True)
class InFlight:
    """Which rows these are, how many in each slot, and each slot's last."""

    ids: frozenset[int] = frozenset()
    counts: Mapping[int, int] = field(default_factory=dict)
    last: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[Outgoing]) -> InFlight:
        """Return *rows* as what is in flight."""
        places = [(row.slot, row.id) for row in rows]
        return cls(
            frozenset(id_ for _, id_ in places),
            Counter(slot for slot, _ in places),
            dict(sorted(places)),
        )


NOTHING_IN_FLIGHT = InFlight()
