"""What the relay sends next: read when it is asked for, or beside the publishing before it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress

from reliable_mq.beside import beside
from reliable_mq.store import Store
from reliable_mq.store.outbox.in_flight import InFlight
from reliable_mq.store.outbox.outgoing import Outgoing, UnreadableRowError
from reliable_mq.store.outbox.reading import Excluded, Reader

log = logging.getLogger("reliable_mq")


_PATIENCE = 2.0
"""Seconds that an end waits for a read that nobody needs."""

_SLICE = 0.2


class Supply:
    """Reads the outbox, also ahead. Used by one thread.

    What is read ahead is what a read at its end would bring, had all that was in flight been sent
    by then: of a key it has everything that is not in flight, from the beginning. So it may be
    taken only if all of that *was* sent and the slots were ours all the while; otherwise it is to
    be dropped, for it may have a row whose predecessor is still in the outbox. Only one read is
    ahead.
    """

    def __init__(self, store: Store, *, rows: int) -> None:
        self._reader = Reader(store, rows=rows)
        # There a reader and a writer only get into each other's way.
        self._may_be_ahead = store.dialect.name != "sqlite"
        self._is_going_ahead = False
        self._ahead: Future[list[Outgoing]] | None = None

    @contextmanager
    def going_ahead(self) -> Iterator[None]:
        """Inside the block read ahead, on other threads; a read that hangs is left behind."""
        self._is_going_ahead = self._may_be_ahead
        try:
            yield
        finally:
            self._is_going_ahead = False
            self._leave_behind()

    @property
    def can_go_ahead(self) -> bool:
        """Tell whether it is of use to :meth:`go_ahead` now: more waits than the last read had."""
        return self._is_going_ahead and self._ahead is None and self._reader.left_some

    def read(
        self, slots: Sequence[int], excluded: Excluded, stop: threading.Event
    ) -> list[Outgoing]:
        """Return what may be sent now; nothing once *stop* is set. Raises the database's error.

        To be called when everything that was sent is settled.
        """
        return self._reader.read(slots, excluded) if self.drop(stop) else []

    def go_ahead(self, slots: Sequence[int], excluded: Excluded, in_flight: InFlight) -> None:
        """Begin to read what is there besides *in_flight*: all rows not settled for certain."""
        self._ahead = beside(
            lambda: _prepared(self._reader.read(slots, excluded, in_flight)), "reliable-mq-read"
        )

    def take(self, stop: threading.Event) -> list[Outgoing]:
        """Return what was read ahead, or nothing. Raises the database's error.

        Once *stop* is set it waits for no read that is not done.
        """
        ahead = self._ahead
        if ahead is None or not _wait(ahead, stop):
            return []
        self._ahead = None
        return ahead.result()

    def drop(self, stop: threading.Event) -> bool:
        """Forget what was read ahead, whatever became of it; False where it did not come to that.

        Waits for the end of that, for the reader is for one thread; not once *stop* is set.
        """
        ahead = self._ahead
        if ahead is not None:
            if not _wait(ahead, stop):
                return False
            self._ahead = None
            _explain(ahead.exception())
        return True

    def _leave_behind(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return
        try:
            error: object = ahead.exception(_PATIENCE)
        except TimeoutError:
            error = "it takes too long"
        _explain(error)


def _wait(ahead: Future[list[Outgoing]], stop: threading.Event) -> bool:
    """Return once *ahead* is done; False where it is not and *stop* is set."""
    while not ahead.done():
        if stop.is_set():
            return False
        with suppress(TimeoutError):
            ahead.exception(_SLICE)
    return True


def _explain(error: object) -> None:
    if error is not None:
        log.debug("what nobody needs any more could not be read: %r", error)


def _prepared(rows: list[Outgoing]) -> list[Outgoing]:
    """Return *rows* with their messages made: there is time for that while others are sent."""
    for row in rows:
        with suppress(UnreadableRowError):  # Raised again where the message is wanted.
            row.message()
    return rows
