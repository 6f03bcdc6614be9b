"""What the relay leaves alone for a while, because trying it again at once could not help."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from reliable_mq.store.outbox.outgoing import Outgoing, RowKey
from reliable_mq.store.outbox.reading import Excluded

FIRST_DELAY = 0.5
MAX_DELAY = 10.0
"""Seconds. A consumer that is deployed at last gets its messages within this time."""

_MAX_TOPICS = 250
_MAX_KEYS = 60
_MAX_ROWS = 60
"""They become parameters of the reading statement, once per slot, and SQLite takes 32766."""

T = TypeVar("T")


def delay_after(attempts: int) -> float:
    """Return the seconds until the next try of what has failed *attempts* times before."""
    return min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(attempts, 32))


@dataclass(frozen=True, slots=True)
class _Wait:
    until: float
    no_route: bool


class _Waits(Generic[T]):
    """Things that wait; of too many the one that is due first is tried early."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waits: dict[T, _Wait] = {}

    def add(self, thing: T, wait: _Wait) -> None:
        self._waits[thing] = wait
        if len(self._waits) > self._limit:
            del self._waits[min(self._waits, key=lambda one: self._waits[one].until)]

    def end(self, now: float) -> None:
        self._waits = {thing: wait for thing, wait in self._waits.items() if wait.until > now}

    def forget_unconfirmed(self) -> None:
        self._waits = {thing: wait for thing, wait in self._waits.items() if wait.no_route}

    def things(self) -> list[T]:
        return list(self._waits)

    def ends(self) -> Iterable[float]:
        return (wait.until for wait in self._waits.values())

    def __contains__(self, thing: T) -> bool:
        return thing in self._waits

    def __len__(self) -> int:
        return len(self._waits)


class Waiting:
    """Topics, keys and single rows without a key that are not to be tried before some time.

    Times are of one monotonic clock. Bounded: of many keys their whole topics wait instead. In
    memory only, for another relay may well try at once. Used by one thread at a time.
    """

    def __init__(self) -> None:
        self._topics: _Waits[str] = _Waits(_MAX_TOPICS)
        self._keys: _Waits[RowKey] = _Waits(_MAX_KEYS)
        self._rows: _Waits[int] = _Waits(_MAX_ROWS)

    def add_topic(self, topic: str, until: float) -> None:
        """Leave out a topic that has no route."""
        self._topics.add(topic, _Wait(until, no_route=True))

    def add_row(self, row: Outgoing, until: float, *, no_route: bool) -> None:
        """Leave out a row, and with it all others of its key."""
        wait = _Wait(until, no_route)
        if row.key is None:
            self._rows.add(row.id, wait)
        elif len(self._keys) < _MAX_KEYS or row.key in self._keys:
            self._keys.add(row.key, wait)
        else:
            self._topics.add(row.topic, wait)

    def excluded(self, now: float) -> Excluded:
        """Return what to leave out at *now*, and forget what need not wait any more."""
        for waits in (self._topics, self._keys, self._rows):
            waits.end(now)
        return Excluded(self._topics.things(), self._keys.things(), self._rows.things())

    def blocks(self, row: Outgoing) -> bool:
        """Tell whether *row* is to be left out, as of the last :meth:`excluded`."""
        if row.topic in self._topics:
            return True
        return row.id in self._rows if row.key is None else row.key in self._keys

    def forget_unconfirmed(self) -> None:
        """Let everything be tried whose outcome was unknown: the broker is back."""
        for waits in (self._topics, self._keys, self._rows):
            waits.forget_unconfirmed()

    def next_end(self) -> float | None:
        """Return when the first of them may be tried again."""
        every = (self._topics, self._keys, self._rows)
        return min((end for waits in every for end in waits.ends()), default=None)
