"""What an attempt is made at: a delivery from the broker, or a row that waited in the store.

Both are taken at the start of a transaction and settled at its end; in between is the handler.
Every method runs in the caller's transaction.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from reliable_mq.consumer.failures import Failure, FailureBook
from reliable_mq.consumer.items import Again, Ended, Item, Result
from reliable_mq.consumer.transaction import HandlerTransaction
from reliable_mq.crashpoints import crash_point
from reliable_mq.message import Delivery, Message
from reliable_mq.retry import GiveUp, TryLater
from reliable_mq.store.dialects import Claimed
from reliable_mq.store.inbox import Inbox, Seen
from reliable_mq.store.retries import Retries, Waiting
from reliable_mq.store.room import Shortage
from reliable_mq.wire import RawHeaders

if TYPE_CHECKING:
    from reliable_mq.store import Store

LOCK_TIMEOUT = 2.0
"""Seconds to wait for another transaction that handles the same message."""

ELSEWHERE_DELAY = 0.05
BEHIND_DELAY = 1.0
"""Seconds between two looks at what waits before a message that cannot wait in the store."""

CONFLICT = "id-conflict: this group has had another message with the same id"


class Subject(Protocol):
    """One message and its history, as an attempt needs it."""

    @property
    def message(self) -> Message:
        """The message."""
        ...

    @property
    def headers(self) -> RawHeaders:
        """Its header pairs as they arrived."""
        ...

    @property
    def made(self) -> int:
        """How many attempts were made before this hand-over."""
        ...

    @property
    def replays(self) -> int:
        """How often a person replayed it."""
        ...

    @property
    def source(self) -> str:
        """Where on the broker it came from; empty where that is not known."""
        ...

    collisions: int

    def shortage(self, connection: Connection) -> Shortage | None:
        """Return what the database would not take of it, if it had to be written now."""
        ...

    def stay(self, attempts: int) -> None:
        """Remember that so many attempts were made, in memory."""
        ...

    def delivery(self, number: int) -> Delivery:
        """Return what the handler sees of attempt number *number*."""
        ...

    def take(self, transaction: HandlerTransaction) -> Result | None:
        """Take responsibility; a result means that there is nothing left to handle."""
        ...

    def settle(self, transaction: HandlerTransaction) -> bool:
        """Record the success, not committed yet; False: another attempt came first."""
        ...

    def keep(
        self, transaction: HandlerTransaction, failure: Failure, decision: TryLater | GiveUp
    ) -> Result:
        """Record the failure and commit."""
        ...


class Fresh:
    """A delivery from the broker."""

    replays = 0

    def __init__(self, item: Item, books: Books) -> None:
        self._item = item
        self._books = books

    @property
    def message(self) -> Message:
        """The message."""
        return self._item.message

    @property
    def headers(self) -> RawHeaders:
        """Its header pairs as they arrived."""
        return self._item.headers

    @property
    def made(self) -> int:
        """How many attempts were made; what is counted in the store begins with none."""
        return self._item.attempts

    @property
    def source(self) -> str:
        """Its position, or the partition where it has an id and therefore no position."""
        return self._item.received.raw.position or self._item.received.partition

    @property
    def collisions(self) -> int:
        """Kept on the item: it outlives this hand-over."""
        return self._item.collisions

    @collisions.setter
    def collisions(self, value: int) -> None:
        self._item.collisions = value

    def shortage(self, connection: Connection) -> Shortage | None:
        """Return what the database would not take of it."""
        return self._books.book.shortage(connection, self.message, self.headers)

    def stay(self, attempts: int) -> None:
        """Count on the item: the delivery starts again from here."""
        self._item.attempts = attempts

    def delivery(self, number: int) -> Delivery:
        """Return what the handler sees."""
        return self._item.delivery(self._books.group, number)

    def take(self, transaction: HandlerTransaction) -> Result | None:
        """Claim the message; park it where an earlier one of its key waits."""
        books, message = self._books, self.message
        claimed = books.claim(transaction, self, done=True)
        if not isinstance(claimed, Claimed):
            return claimed
        crash_point("consumer.claimed")
        if not books.ordered:
            return None
        connection = transaction.connection
        waits = claimed.waits
        if waits is None:
            waits = books.retries.key_waits(connection, books.group, message.topic, message.key)
        if not waits:
            return None
        if self.shortage(connection) is not None:
            return Again(BEHIND_DELAY)  # and what follows it in its key waits behind it
        books.inbox.mark_waiting(connection, books.group, message.topic, message.id)
        parked = books.failure(self, attempts=0, cause="waits behind an earlier message of its key")
        books.book.wait(connection, parked, 0.0)
        crash_point("parking.written")
        transaction.commit()
        crash_point("parking.committed")
        return Ended.PARKED

    def settle(self, transaction: HandlerTransaction) -> bool:
        """The claim says it all."""
        return True

    def keep(
        self, transaction: HandlerTransaction, failure: Failure, decision: TryLater | GiveUp
    ) -> Result:
        """Claim the message together with its retry row or dead letter.

        Where it is not new a redelivery was handled meanwhile: then nothing is written.
        """
        books = self._books
        claimed = books.claim(transaction, self, done=False)
        if not isinstance(claimed, Claimed):
            return claimed
        if isinstance(decision, TryLater):
            books.book.wait(transaction.connection, failure, decision.delay)
            crash_point("failure.retry_written")
            ended = Ended.RETRIED
        else:
            books.book.give_up(transaction.connection, failure)
            crash_point("failure.dead_written")
            ended = Ended.DEAD
        transaction.commit()
        return ended


class Stored:
    """A row that waited for its next attempt."""

    source = ""

    def __init__(self, waiting: Waiting, books: Books) -> None:
        self._waiting = waiting
        self._books = books
        self._begun = 0

    @property
    def message(self) -> Message:
        """The message."""
        return self._waiting.message

    @property
    def headers(self) -> RawHeaders:
        """Its header pairs as they arrived."""
        return self._waiting.headers

    @property
    def collisions(self) -> int:
        """Kept with the books: each hand-over of the row makes a new object."""
        return self._books.collisions.get(self._waiting.seq, 0)

    @collisions.setter
    def collisions(self, value: int) -> None:
        if value:
            self._books.collisions[self._waiting.seq] = value
        else:
            self._books.collisions.pop(self._waiting.seq, None)

    @property
    def made(self) -> int:
        """How many attempts the row counts, without the one that has just begun."""
        return self._waiting.attempt - self._begun

    @property
    def interrupted(self) -> bool:
        """Whether an attempt that :meth:`begin` recorded did not come to its end."""
        return self.made > 0

    @property
    def replays(self) -> int:
        """How often a person replayed it."""
        return self._waiting.replays

    def shortage(self, connection: Connection) -> Shortage | None:
        """Return None: nothing of it is written again."""
        return None

    def stay(self, attempts: int) -> None:
        """Do nothing: the row counts."""

    def delivery(self, number: int) -> Delivery:
        """Return what the handler sees."""
        return Delivery(message=self.message, group=self._books.group, attempt=number)

    def take(self, transaction: HandlerTransaction) -> Result | None:
        """Lock the row, and see by a statement after that whether it is its key's first."""
        connection, retries = transaction.connection, self._books.retries
        if not retries.lock(connection, self._waiting):
            return Ended.STALE
        crash_point("retry.locked")
        if self._books.ordered and not retries.is_head(connection, self._waiting):
            return Ended.STALE
        return None

    def begin(self, transaction: HandlerTransaction, lease: float) -> Result | None:
        """Count the attempt before it is made, and commit; nobody else looks for *lease* seconds.

        A result means that another one has the row.
        """
        taken = self.take(transaction)
        if taken is not None:
            return taken
        attempt = self._waiting.attempt + 1
        if not self._books.retries.postpone(
            transaction.connection, self._waiting, attempt=attempt, delay=lease, cause=None
        ):
            return Ended.STALE
        transaction.commit()
        crash_point("retry.begun")
        self._waiting = dataclasses.replace(self._waiting, attempt=attempt)
        self._begun = 1
        return None

    def settle(self, transaction: HandlerTransaction) -> bool:
        """Delete the row; its absence is what makes the effects this attempt's own."""
        ours = self._books.book.finish(transaction.connection, self._waiting)
        crash_point("retry.settled")
        return ours

    def keep(
        self, transaction: HandlerTransaction, failure: Failure, decision: TryLater | GiveUp
    ) -> Result:
        """Postpone the row or turn it into a dead letter, unless another attempt took it."""
        book, connection = self._books.book, transaction.connection
        if isinstance(decision, TryLater):
            ours = book.postpone(
                connection,
                self._waiting,
                attempt=failure.attempts,
                delay=decision.delay,
                cause=failure.cause,
            )
            crash_point("retry.postponed")
            ended = Ended.RETRIED
        else:
            ours = book.bury(connection, self._waiting, failure)
            crash_point("retry.buried")
            ended = Ended.DEAD
        if not ours:
            return Ended.STALE
        transaction.commit()
        return ended


class Books:
    """The store's books as one handler uses them."""

    def __init__(self, store: Store, book: FailureBook, *, group: str, ordered: bool) -> None:
        self.group = group
        self.ordered = ordered
        self.book = book
        self.inbox = Inbox(store)
        self.retries = Retries(store)
        self.collisions: dict[int, int] = {}
        """Of retry rows, by their number, since their last attempt that counted."""
        self._dialect = store.dialect

    def failure(self, subject: Subject, *, attempts: int, cause: str) -> Failure:
        """Return what is written about *subject* when it could not be handled."""
        return Failure(
            group=self.group,
            message=subject.message,
            headers=subject.headers,
            attempts=attempts,
            cause=cause,
            replays=subject.replays,
            source=subject.source,
        )

    def claim(
        self, transaction: HandlerTransaction, subject: Subject, *, done: bool
    ) -> Claimed | Result:
        """Insert the inbox row; a result means that the message was not new to the group."""
        try:
            claimed = self.inbox.claim_one(
                transaction.connection,
                self.group,
                subject.message,
                lock_timeout=LOCK_TIMEOUT,
                done=done,
                look_for_key=done and self.ordered,
            )
        except DBAPIError as error:
            if self._dialect.is_lock_timeout(error):
                return Again(ELSEWHERE_DELAY)
            raise
        return claimed if claimed.new else self._not_new(transaction, subject, claimed.known)

    def _not_new(
        self, transaction: HandlerTransaction, subject: Subject, known: bytes | None
    ) -> Result:
        seen = self.inbox.seen(transaction.connection, self.group, subject.message, known)
        if seen is Seen.DUPLICATE:
            # Nothing was written; but see Store.reading() for what a ROLLBACK would cost.
            transaction.commit()
            return Ended.DUPLICATE
        if seen is Seen.GONE:
            return Again(ELSEWHERE_DELAY)
        conflict = self.failure(subject, attempts=0, cause=CONFLICT)
        shortage = subject.shortage(transaction.connection)
        if shortage is not None:
            conflict = self.book.short_of(shortage, conflict)
        added = self.book.give_up(transaction.connection, conflict, conflict=True)
        crash_point("failure.conflict_written")
        transaction.commit()
        crash_point("failure.conflict_committed")
        return Ended.DEAD if added else Ended.DUPLICATE
