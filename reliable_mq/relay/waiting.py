"""What the relay leaves alone for a while, because trying it again at once could not help."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from reliable_mq.clock import Clock
from reliable_mq.store.outbox.outgoing import Outgoing, RowKey
from reliable_mq.store.outbox.reading import Excluded

FIRST_DELAY = 0.5
MAX_DELAY = 10.0
"""Seconds. A consumer that is deployed at last gets its messages within this time."""

_MAX_TOPICS = 250
_MAX_KEYS = 60
_MAX_ROWS = 60
"""They become parameters of the reading statement, on MariaDB and MySQL once for each slot."""

T = TypeVar("T")


def delay_after(attempts: int) -> float:
    """Return the seconds until the next try of what has failed *attempts* times before."""
    return min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(attempts, 32))


@dataclass(frozen=True, slots=True)
class _Wait:
    until: float
    no_route: bool


class _Waits(Generic[T]):
    """Things that wait; of too many, the one that is due first is tried early."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waits: dict[T, _Wait] = {}

    def add(self, thing: T, wait: _Wait) -> None:
        self._waits[thing] = wait
        if len(self._waits) > self._limit:
            del self._waits[min(self._waits, key=lambda one: self._waits[one].until)]

    def keep(self, still: Callable[[_Wait], bool]) -> None:
        self._waits = {thing: wait for thing, wait in self._waits.items() if still(wait)}

    def things(self) -> list[T]:
        return list(self._waits)

    def waits(self) -> Iterable[_Wait]:
        return self._waits.values()

    def __contains__(self, thing: T) -> bool:
        return thing in self._waits

    def __len__(self) -> int:
        return len(self._waits)


class Waiting:
    """Topics, keys and single rows without a key that are not to be tried for some seconds.

    What has no route waits by *clock*, as its ``try_at`` in the outbox does. What has no
    confirmation waits by *real* time: that is about the state of a network. Bounded: of many keys
    their whole topics wait instead. In memory only, for another relay may well try at once. Used
    by one thread at a time.
    """

    def __init__(self, clock: Clock, *, real: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._real = real
        self._topics: _Waits[str] = _Waits(_MAX_TOPICS)
        self._keys: _Waits[RowKey] = _Waits(_MAX_KEYS)
        self._rows: _Waits[int] = _Waits(_MAX_ROWS)
        self._aside = Excluded()

    def add_topic(self, topic: str, delay: float) -> None:
        """Leave out a topic that has no route."""
        self._topics.add(topic, self._wait(delay, no_route=True))

    def add_row(self, row: Outgoing, delay: float, *, no_route: bool) -> None:
        """Leave out a row, and with it all others of its key."""
        wait = self._wait(delay, no_route=no_route)
        if row.key is None:
            self._rows.add(row.id, wait)
        elif len(self._keys) < _MAX_KEYS or row.key in self._keys:
            self._keys.add(row.key, wait)
        else:
            self._topics.add(row.topic, wait)

    def set_aside(self, rows: Sequence[Outgoing]) -> None:
        """Leave these out of the next read alone, so that others get their try."""
        keys = {row.key for row in rows if row.key is not None}
        singles = {row.id for row in rows if row.key is None}
        if len(keys) <= _MAX_KEYS and len(singles) <= _MAX_ROWS:
            self._aside = Excluded((), keys, singles)
        else:
            self._aside = Excluded({row.topic for row in rows})

    def excluded(self) -> Excluded:
        """Return what to leave out of a read now, and forget what need not wait any more."""
        self._forget(lambda wait: self._left(wait) > 0)
        aside, self._aside = self._aside, Excluded()
        return Excluded(
            {*self._topics.things(), *aside.topics},
            {*self._keys.things(), *aside.keys},
            {*self._rows.things(), *aside.rows},
        )

    def blocks(self, row: Outgoing) -> bool:
        """Tell whether *row* waits, as of the last :meth:`excluded` and what was added since."""
        if row.topic in self._topics:
            return True
        return row.id in self._rows if row.key is None else row.key in self._keys

    def forget_unconfirmed(self) -> None:
        """Let everything be tried that had no confirmation: the broker is back."""
        self._forget(lambda wait: wait.no_route)
        self._aside = Excluded()

    def next_end(self) -> float | None:
        """Return in how many seconds the first of them may be tried again; None: none waits."""
        every = (self._topics, self._keys, self._rows)
        return min((self._left(wait) for waits in every for wait in waits.waits()), default=None)

    def _wait(self, delay: float, *, no_route: bool) -> _Wait:
        return _Wait(self._now(no_route) + delay, no_route)

    def _left(self, wait: _Wait) -> float:
        return wait.until - self._now(wait.no_route)

    def _now(self, no_route: bool) -> float:
        return self._clock.monotonic() if no_route else self._real()

    def _forget(self, still: Callable[[_Wait], bool]) -> None:
        self._topics.keep(still)
        self._keys.keep(still)
        self._rows.keep(still)
