"""Writing to the store what became of a batch, beside the publishing of the next one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from reliable_mq.beside import beside
from reliable_mq.events import Events, MessageHeld, MessageSent
from reliable_mq.relay.verdict import Verdict
from reliable_mq.store import Store
from reliable_mq.store.dialects import Trouble
from reliable_mq.store.leases import LeaseSet
from reliable_mq.store.outbox.outgoing import Outgoing
from reliable_mq.store.outbox.sending import Unfit, hold, settle

log = logging.getLogger("reliable_mq")


class Settler:
    """Writes verdicts in the order in which they came; one that fails stays until it is written.

    Used by one thread; the writing itself may be done by another (:meth:`beside`).
    """

    def __init__(self, store: Store, leases: LeaseSet, events: Events) -> None:
        self._store = store
        self._leases = leases
        self._events = events
        # Replaced and never changed: any thread may look, while another one writes.
        self._unsettled: tuple[Verdict, ...] = ()
        self._is_beside = False
        self._writing: Future[None] | None = None
        self.sent = 0
        self.held = 0

    @property
    def unsettled(self) -> int:
        """How many confirmed messages may still have their row, or are not in :attr:`sent` yet.

        If we end now, they may be sent again. May be asked by any thread.
        """
        return sum(len(verdict.sent) for verdict in self._unsettled)

    def unsettled_rows(self) -> list[Outgoing]:
        """Return the confirmed rows that are not known to be deleted; of these a few may be."""
        # Of one that is being written both lists are replaced and not changed.
        return [row for verdict in self._unsettled for row in verdict.sent]

    @contextmanager
    def writing_beside(self) -> Iterator[None]:
        """Inside the block write on other threads, so that publishing need not wait for it."""
        self._is_beside = True
        try:
            yield
        finally:
            self._is_beside = False

    def begin(self, verdict: Verdict) -> None:
        """Write *verdict*, maybe while the caller goes on. Raises what the one before raised.

        Whatever is raised, *verdict* is kept.
        """
        try:
            self.finish()
        finally:
            # Only now: whoever writes the one before would go on with it, and be waited for.
            self._unsettled = (*self._unsettled, verdict)
        if not self._is_beside:
            self._write_all()
            return
        self._writing = beside(self._write_all, "reliable-mq-settle")

    def finish(self) -> None:
        """Wait for what is being written; raise the database's error where it failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def settle(self) -> None:
        """Write everything there is, now. Raises the database's error where that fails."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.exception()  # Waited for, and not raised: what failed is tried again.
        self._write_all()

    def _write_all(self) -> None:
        while self._unsettled:
            self._write(self._unsettled[0])
            self._unsettled = self._unsettled[1:]

    def _write(self, verdict: Verdict) -> None:
        self._store.patiently(lambda: settle(self._store, verdict.sent, verdict.later))
        self.sent += len(verdict.sent)
        # What follows may fail, and is then done again; this part is not repeated.
        sent, verdict.sent, verdict.later = verdict.sent, [], []
        if self._events.wants(MessageSent):
            self._report_sent(sent)
        if verdict.unfit:
            self._hold(verdict)

    def _report_sent(self, rows: Sequence[Outgoing]) -> None:
        try:
            with self._store.reading() as connection:
                now = int(connection.execute(select(self._store.now())).scalar_one())
        except SQLAlchemyError as error:
            # They are sent and deleted: no reason to take the round for failed.
            log.warning("%d messages were sent without an event of it: %r", len(rows), error)
            return
        for row in rows:
            age = max(0.0, (now - row.created_at) / 1e6)
            self._events.emit(MessageSent(row.topic, row.message_id, age))

    def _hold(self, verdict: Verdict) -> None:
        try:
            moved = self._store.patiently(lambda: hold(self._store, verdict.unfit, self._leases))
        except DBAPIError as error:
            if self._store.dialect.classify(error) is not Trouble.OTHER:
                raise
            # Not the weather but these rows or that table: they stay, and others go on.
            log.exception("%d refused messages cannot be held", len(verdict.unfit))
            return
        self.held += len(moved)
        for item in moved:
            self._report(item)

    def _report(self, item: Unfit) -> None:
        message_id = item.row.message_id
        log.error(
            "message %s for %s was refused and is held, row %d: %s",
            message_id,
            item.row.topic,
            item.row.id,
            item.cause,
        )
        self._events.emit(MessageHeld(item.row.topic, message_id, item.cause))
