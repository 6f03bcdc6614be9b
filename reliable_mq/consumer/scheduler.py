"""Who works on what next: deliveries in any order, or one at a time per key.

A lock-protected data structure without threads of its own. Workers take :class:`Work` and give
results back; the intake thread puts deliveries in and takes finished ones out to acknowledge.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from reliable_mq.adapter import Lost, Received
from reliable_mq.consumer.items import Again, Item, Result, Work
from reliable_mq.store.retries import Waiting

CHUNK = 128
"""Deliveries a worker takes at once where each has its own transaction: fewer hand-overs."""


class Scheduler:
    """The queue between one group's intake and its workers. Thread-safe."""

    def __init__(self, *, ordered: bool, concurrency: int, transaction_size: int) -> None:
        self._ordered = ordered
        self._concurrency = concurrency
        self._transaction_size = transaction_size
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], None]] = []
        self._free: deque[Item] = deque()
        self._queues: dict[str, deque[Item]] = {}
        self._ready: deque[str] = deque()
        self._delayed: list[tuple[float, int, Item | str]] = []
        self._numbers = itertools.count()
        self._retries: deque[Waiting] = deque()
        self._retries_known: set[int] = set()
        self._retries_left: set[int] = set()
        self._live: dict[int, Item] = {}
        self._finished: list[Received] = []
        self._working = 0
        self._in_hand: dict[int, Work] = {}
        self._bytes = 0
        self._stopped = False
        self.finished_event = threading.Event()
        """Set when there is something to acknowledge; the intake thread clears it."""

    # --- the intake's side ------------------------------------------------------------------

    def put(self, items: Iterable[Item]) -> None:
        """Queue *items*, in their partition's order."""
        with self._changed:
            for item in items:
                self._live[id(item)] = item
                self._bytes += item.size
                key = self._key(item)
                if key is None:
                    self._free.append(item)
                else:
                    self._enqueue(key, item)
            self._notify()

    def _key(self, item: Item) -> str | None:
        return item.message.key if self._ordered else None

    def _enqueue(self, key: str, item: Item) -> None:
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = deque([item])
            self._ready.append(key)
        else:
            # Known keys are ready already, or busy and made ready by finish().
            queue.append(item)

    def begin_look(self) -> None:
        """Say that the rows of the next :meth:`put_retry` calls are read from now on.

        For one reader. A row that a worker leaves in the meantime is not as it was read.
        """
        with self._changed:
            self._retries_left.clear()

    def put_retry(self, waiting: Waiting) -> bool:
        """Queue a retry row; False where it is queued, worked on, or left since the look began."""
        with self._changed:
            if self._stopped or waiting.seq in self._retries_known:
                return False
            if waiting.seq in self._retries_left:
                return False
            self._retries_known.add(waiting.seq)
            self._retries.append(waiting)
            self._notify()
            return True

    def drop(self, lost: Sequence[Lost]) -> int:
        """Forget what waits of lost ownerships; return how many. What runs, runs to its end."""
        bounds: dict[str, int] = {}
        for one in lost:
            bounds[one.partition] = max(one.epoch, bounds.get(one.partition, one.epoch))
        with self._changed:
            before = len(self._live)
            self._free = deque(i for i in self._free if not self._is_lost(i, bounds))
            for key, queue in self._queues.items():
                self._queues[key] = deque(i for i in queue if not self._is_lost(i, bounds))
            for item in [i for i in self._live.values() if self._gone(i, bounds)]:
                self._forget(item)
            return before - len(self._live)

    @staticmethod
    def _gone(item: Item, bounds: dict[str, int]) -> bool:
        bound = bounds.get(item.received.partition)
        return bound is not None and item.received.epoch <= bound

    _is_lost = _gone

    def take_finished(self) -> list[Received]:
        """Return what is to be acknowledged since the last call."""
        with self._changed:
            finished, self._finished = self._finished, []
            self.finished_event.clear()
            return finished

    def held(self) -> list[Received]:
        """Return every delivery that is queued or worked on."""
        with self._changed:
            return [item.received for item in self._live.values()]

    @property
    def held_count(self) -> int:
        """Return how many deliveries are queued or worked on."""
        return len(self._live)

    @property
    def held_bytes(self) -> int:
        """Return roughly how much memory they take."""
        return self._bytes

    @property
    def idle(self) -> bool:
        """Tell whether nothing is queued, worked on or waiting to be acknowledged."""
        with self._changed:
            return not (self._live or self._retries_known or self._working or self._finished)

    @property
    def working(self) -> int:
        """Return how many workers have work in hand."""
        return self._working

    def stop(self) -> None:
        """Give out no more work."""
        with self._changed:
            self._stopped = True
            self._free.clear()
            self._queues.clear()
            self._retries_known.difference_update(waiting.seq for waiting in self._retries)
            self._retries.clear()
            self._ready.clear()
            self._delayed.clear()
            self._notify()

    @property
    def left(self) -> int:
        """Return how many deliveries and retry rows are in hand without an end, after a stop."""
        with self._changed:
            return len(self._live) + len(self._retries_known)

    @property
    def stopped(self) -> bool:
        """Tell whether :meth:`stop` was called."""
        return self._stopped

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until *condition* holds, looked at on every change; False after *timeout* s."""
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    # --- the workers' side ------------------------------------------------------------------

    def add_waker(self, waker: Callable[[], None]) -> None:
        """Call *waker* (quick, from any thread) whenever there may be work."""
        self._wakers.append(waker)

    def _notify(self) -> None:
        self._changed.notify_all()
        for waker in self._wakers:
            waker()

    def take(self) -> Work | None:
        """Return the next work, waiting for it; None once stopped."""
        with self._changed:
            while not self._stopped:
                work = self._next()
                if work is not None:
                    return work
                self._changed.wait(self._until_delayed())
            return None

    def try_take(self) -> tuple[Work | None, float | None]:
        """Return the next work if there is any, else the seconds until there may be some."""
        with self._changed:
            if self._stopped:
                return None, None
            work = self._next()
            return work, None if work else self._until_delayed()

    def _until_delayed(self) -> float | None:
        return max(0.0, self._delayed[0][0] - time.monotonic()) if self._delayed else None

    def _next(self) -> Work | None:
        self._wake_delayed()
        if self._retries:
            self._working += 1
            return Work(waiting=self._retries.popleft())
        items: list[Item] = []
        keys: list[str] = []
        limit = self._share()
        while self._free and len(items) < limit:
            items.append(self._free.popleft())
        while self._ready and len(items) < limit:
            key = self._ready.popleft()
            queue = self._queues[key]
            if not queue:
                del self._queues[key]
                continue
            keys.append(key)
            while queue and len(items) < limit:
                items.append(queue.popleft())
        work = Work(items, keys=keys) if items else self._take_away()
        if work is None:
            return None
        self._working += 1
        if self._transaction_size == 1:
            self._in_hand[id(work)] = work
        return work

    def begin(self, work: Work) -> Item | None:
        """Return the next delivery of *work* that is still to be handled; None without one."""
        if self._concurrency == 1:
            return self._begin(work)  # nobody else could take it away
        with self._changed:
            return self._begin(work)

    def _begin(self, work: Work) -> Item | None:
        while not self._stopped and work.left:
            item = work.items[work.begun]
            work.begun += 1
            if id(item) in self._live:
                return item
        return None

    def _take_away(self) -> Work | None:
        """Take half of what another worker has not begun: its handler may be at it for long."""
        begun = [work for work in self._in_hand.values() if work.begun and work.left]
        for work in sorted(begun, key=lambda one: one.left, reverse=True):
            start = self._boundary(work)
            if start < len(work.items):
                items, work.items[start:] = work.items[start:], []
                moved = {self._key(item) for item in items}
                keys = [key for key in work.keys if key in moved]
                work.keys = [key for key in work.keys if key not in moved]
                return Work(items, keys=keys)
        return None

    def _boundary(self, work: Work) -> int:
        """Return where the second half begins, or the first key after that, or the end."""
        start = work.begun + work.left // 2
        while start < len(work.items):
            key = self._key(work.items[start])
            if key is None or key != self._key(work.items[start - 1]):
                break
            start += 1
        return start

    def _share(self) -> int:
        if self._transaction_size > 1:
            return self._transaction_size
        # A fair part of what is here, so that no worker hoards while others are idle.
        return max(1, min(CHUNK, len(self._live) // self._concurrency))

    def _wake_delayed(self) -> None:
        now = time.monotonic()
        while self._delayed and self._delayed[0][0] <= now:
            _, _, waiting = heapq.heappop(self._delayed)
            if isinstance(waiting, str):
                self._ready.append(waiting)
            elif id(waiting) in self._live:
                self._free.append(waiting)

    def go_on(self, work: Work, following: Waiting) -> bool:
        """Leave the retry row of *work* for *following*; False where that is in hand already."""
        with self._changed:
            if following.seq in self._retries_known:
                return False
            if work.waiting is not None:
                self._leave(work.waiting)
            self._retries_known.add(following.seq)
            work.waiting = following
            return True

    def _leave(self, waiting: Waiting) -> None:
        self._retries_known.discard(waiting.seq)
        self._retries_left.add(waiting.seq)

    def finish(self, work: Work, results: Sequence[tuple[Item, Result]]) -> None:
        """Take back *work*: what ended is acknowledged, the rest is given out again.

        Deliveries of *work* without a result were not begun and keep their place.
        """
        again = [(i, r.delay) for i, r in results if isinstance(r, Again)]
        ended = [i for i, r in results if not isinstance(r, Again)]
        known = {id(item) for item, _ in results}
        with self._changed:
            # Only here: until now another worker may have taken some of them away.
            unbegun = [(item, 0.0) for item in work.items if id(item) not in known]
            self._working -= 1
            self._in_hand.pop(id(work), None)
            if work.waiting is not None:
                self._leave(work.waiting)
            for item in ended:
                self._end(item)
            if not self._stopped:
                self._give_back(work, again + unbegun)
            if self._finished:
                self.finished_event.set()
            self._notify()

    def _end(self, item: Item) -> None:
        if id(item) in self._live:
            self._forget(item)
            self._finished.append(item.received)

    def _forget(self, item: Item) -> None:
        del self._live[id(item)]
        self._bytes -= item.size

    def _give_back(self, work: Work, left: list[tuple[Item, float]]) -> None:
        delays: dict[str, float] = {}
        position = {id(item): n for n, item in enumerate(work.items)}
        for item, delay in sorted(left, key=lambda pair: position[id(pair[0])], reverse=True):
            if id(item) not in self._live:
                continue  # lost meanwhile
            key = self._key(item)
            if key is not None:
                self._queues[key].appendleft(item)
                delays[key] = max(delay, delays.get(key, 0.0))
            elif delay:
                self._delay(delay, item)
            else:
                self._free.appendleft(item)
        for key in work.keys:
            self._release_key(key, delays.get(key, 0.0))

    def _release_key(self, key: str, delay: float) -> None:
        if not self._queues.get(key):
            self._queues.pop(key, None)
        elif delay:
            self._delay(delay, key)
        else:
            self._ready.append(key)

    def _delay(self, delay: float, waiting: Item | str) -> None:
        entry = (time.monotonic() + delay, next(self._numbers), waiting)
        heapq.heappush(self._delayed, entry)
