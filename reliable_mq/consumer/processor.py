"""The life of one delivery: take it, run its handler, commit, or keep the failure.

The order of the steps is the guarantee. Nothing here acknowledges: a result other than
:class:`Again` means that what follows from the delivery is durable, and the caller may.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, Retrying, retry_if_result, stop_after_attempt, wait_none

from reliable_mq import events as ev
from reliable_mq.clock import Clock, SystemClock
from reliable_mq.consumer.calling import Caller, Told
from reliable_mq.consumer.failures import Failure, FailureBook
from reliable_mq.consumer.items import Again, Ended, Failed, Item, Result
from reliable_mq.consumer.lanes import AnyContext, HandlerStoppedError, Lane
from reliable_mq.consumer.reports import Reporter
from reliable_mq.consumer.subjects import Books, Fresh, Stored, Subject
from reliable_mq.consumer.transaction import HandlerTransaction, handler_transaction
from reliable_mq.crashpoints import crash_point
from reliable_mq.durations import seconds
from reliable_mq.errors import DecodeError
from reliable_mq.handlers import Guarantee, HandlerSpec
from reliable_mq.message import Delivery
from reliable_mq.retry import Decision, GiveUp, Reject, TryLater, TryNow
from reliable_mq.settings import Settings
from reliable_mq.store.dialects import Trouble
from reliable_mq.store.retries import Waiting
from reliable_mq.store.texts import cause_of

if TYPE_CHECKING:
    from reliable_mq.store import Store

log = logging.getLogger("reliable_mq")

MAX_COLLISIONS = 20
"""Deadlocks, lost connections, full disks in a row, inside the handler, before one counts."""

_NOBODYS_FAULT = (Trouble.BUSY, Trouble.GONE, Trouble.FULL)

STORE_DOWN_DELAY = 1.0

INTERRUPTED = (
    "interrupted: the only attempt that at-most-once allows began and its end is not known"
)


class _Stage(Enum):
    """How far an attempt came; it says whose fault an error is."""

    PREPARE = auto()
    OPEN = auto()
    TAKE = auto()
    HANDLE = auto()
    SETTLE = auto()
    COMMIT = auto()


@dataclass(slots=True)
class _Progress:
    stage: _Stage = _Stage.PREPARE
    transaction: HandlerTransaction | None = None


class Processor(Caller):
    """Runs one handler on deliveries and retry rows. Thread-safe, one per handler and process."""

    def __init__(
        self,
        spec: HandlerSpec,
        *,
        store: Store,
        settings: Settings,
        events: ev.Events,
        lane: Lane,
        around: Callable[[Delivery], AnyContext] | None,
        application: object,
        clock: Clock,
    ) -> None:
        super().__init__(spec, lane=lane, around=around, application=application)
        self.store = store
        self.reporter = Reporter(events, spec)
        self.books = Books(
            store, FailureBook(store, settings), group=spec.group, ordered=spec.ordered
        )
        self._idle_timeout = seconds(settings.consumer.idle_in_transaction)
        self._cause_bytes = settings.dead_letter.max_error_bytes
        # A clock that a test moves does not move by waiting.
        self._waits = isinstance(clock, SystemClock)
        self._once = spec.guarantee is Guarantee.EFFECTIVELY_ONCE
        self._at_most_once = spec.guarantee is Guarantee.AT_MOST_ONCE
        self._transactional = self._once or bool(spec.call.database)

    def transaction(self, handlers: int = 1) -> Any:
        """Return the context of a transaction in which so many handler calls may run."""
        idle = self._idle_timeout
        if self.spec.timeout is not None:
            idle = self.spec.timeout * handlers + 5.0
        return handler_transaction(self.store, self.lane, idle_timeout=idle, shared=handlers > 1)

    # --- entry points ---------------------------------------------------------------------------

    def process(self, item: Item) -> Result:
        """Bring a delivery to an end, or say when to start it again. Never raises."""
        subject = Fresh(item, self.books)
        if item.fault is not None:
            return self._keep(subject, Failed(item.fault, 0, GiveUp()))
        outcome = item.failed or self._attempts(subject)
        if not isinstance(outcome, Failed):
            return outcome
        if self._at_most_once:
            item.failed = outcome
        return self._keep(subject, outcome)

    def process_waiting(self, waiting: Waiting) -> Result:
        """Bring a retry row one hand-over further. Never raises."""
        subject = Stored(waiting, self.books)
        outcome = self._begin_once(subject) if self._at_most_once else None
        outcome = outcome or self._attempts(subject)
        return self._keep(subject, outcome) if isinstance(outcome, Failed) else outcome

    def _begin_once(self, subject: Stored) -> Result | Failed | None:
        """Record, durably, that the only attempt begins; a result means that it must not.

        At-most-once handlers have rows where a dead letter is replayed. Whoever finds one whose
        attempt began and did not end makes it a dead letter again: it may have been handled.
        """
        if subject.interrupted:
            return Failed(INTERRUPTED, subject.made, GiveUp())
        progress = _Progress(_Stage.OPEN)
        # Nobody looks at the row while its handler runs: it has no lock where there is no database.
        lease = (self.spec.timeout or 0.0) + self._idle_timeout
        try:
            with self.transaction() as transaction:
                progress.transaction = transaction
                return subject.begin(transaction, lease)
        except Exception as error:  # noqa: BLE001 - a worker must not die of it
            return self._store_failed(error, self._trouble(error, progress))

    def next_of_key(self, waiting: Waiting) -> Waiting | None:
        """Return the row to go on with after *waiting* ended; None also where it cannot be read."""
        if not self.spec.ordered:
            return None
        try:
            with self.transaction() as transaction:
                found = self.books.retries.next_of_key(transaction.connection, waiting)
                transaction.commit()
                return found
        except Exception:
            log.debug("the next row of a key could not be read", exc_info=True)
            return None

    def _attempts(self, subject: Subject) -> Result | Failed:
        """Make an attempt, and more in place as long as the policy says so."""
        first = self._attempt(subject, 1)
        if not _is_now(first):
            return first
        # Only failures pay for tenacity: it costs more than all of the success path.
        tries = itertools.count(2)
        again = Retrying(
            retry=retry_if_result(_is_now),
            stop=stop_after_attempt(self.spec.retry.immediate_attempts - 1),
            wait=wait_none(),
            sleep=self.lane.pause,
            retry_error_callback=_last_result,
        )
        result: Result | Failed = again(lambda: self._attempt(subject, next(tries)))
        return result

    # --- one attempt ------------------------------------------------------------------------------

    def _attempt(self, subject: Subject, tries: int) -> Result | Failed:
        progress = _Progress()
        number = subject.made + tries
        started = time.monotonic()
        try:
            result = self._handle(subject, number, progress)
        except Exception as error:  # noqa: BLE001 - handlers raise anything
            return self._judge(subject, error, progress, tries)
        except BaseException as error:
            if self.lane.ends_with(error):
                raise
            stopped = HandlerStoppedError(f"the handler raised {type(error).__name__}")
            return self._judge(subject, stopped, progress, tries)
        subject.collisions = 0
        if result is Ended.HANDLED:
            self.reporter.handled(subject.message, number, time.monotonic() - started)
        else:
            self.reporter.ended(subject.message, result)
        return result

    def _handle(self, subject: Subject, number: int, progress: _Progress) -> Result:
        def delivery() -> Delivery:
            return subject.delivery(number)

        payload = self.spec.call.payload(subject.message)
        with self.entered(delivery):
            if self._transactional:
                return self._handle_in_transaction(subject, payload, delivery, progress)
            gone = self._look_at(subject, progress)
            if gone is not None:
                return gone
            progress.stage = _Stage.HANDLE
            self.call(payload, delivery, None)
        return self._settle_alone(subject, progress)

    def _look_at(self, subject: Subject, progress: _Progress) -> Result | None:
        """See that a retry row is still to be handled: it may have ended since it was read.

        A handler without a transaction cannot hold the row, so that this keeps no other process
        from it. It keeps the rows that this process has ended itself from being handled again.
        """
        if isinstance(subject, Fresh) or self._at_most_once:  # whose row was taken already
            return None
        progress.stage = _Stage.OPEN
        with self.transaction() as transaction:
            progress.transaction = transaction
            progress.stage = _Stage.TAKE
            gone = subject.take(transaction)
        progress.transaction = None
        return gone

    def _handle_in_transaction(
        self, subject: Subject, payload: Any, delivery: Told, progress: _Progress
    ) -> Result:
        progress.stage = _Stage.OPEN
        with self.transaction() as transaction:
            progress.transaction = transaction
            progress.stage = _Stage.TAKE
            if self._once or isinstance(subject, Stored):
                taken = subject.take(transaction)
                if taken is not None:
                    return taken
            progress.stage = _Stage.HANDLE
            self.call(payload, delivery, transaction)
            progress.stage = _Stage.SETTLE
            if not subject.settle(transaction):
                return Ended.STALE
            crash_point("consumer.before_commit")
            progress.stage = _Stage.COMMIT
            transaction.commit()
        crash_point("consumer.committed")
        return Ended.HANDLED

    def _settle_alone(self, subject: Subject, progress: _Progress) -> Result:
        """Record the success of a handler that had no transaction; only retry rows need it."""
        if isinstance(subject, Fresh):
            return Ended.HANDLED
        progress.stage = _Stage.OPEN
        with self.transaction() as transaction:
            progress.transaction = transaction
            progress.stage = _Stage.SETTLE
            if not subject.settle(transaction):
                return Ended.STALE
            progress.stage = _Stage.COMMIT
            transaction.commit()
        return Ended.HANDLED

    # --- when it failed ------------------------------------------------------------------------

    def _judge(
        self, subject: Subject, error: Exception, progress: _Progress, tries: int
    ) -> Result | Failed:
        """Tell a failure of the handler from one of the store."""
        trouble = self._trouble(error, progress)
        if progress.stage in (_Stage.OPEN, _Stage.TAKE):
            return self._store_failed(error, trouble)
        if progress.stage is _Stage.SETTLE and trouble in (None, Trouble.OTHER):
            return self._store_failed(error, trouble)
        if trouble in _NOBODYS_FAULT and self._may_collide(subject):
            if trouble is Trouble.BUSY:
                return Again(min(1.0, 0.01 * 2**subject.collisions))
            return self._store_failed(error, trouble)
        subject.collisions = 0
        number = subject.made + tries
        cause = cause_of(error, self._cause_bytes)
        if trouble is Trouble.IDLE:
            cause = f"transaction-idle: {cause}"
        return Failed(cause, number, self._decide(error, number, tries))

    def _may_collide(self, subject: Subject) -> bool:
        """Count a collision; False where it was one too many, or the handler may run only once."""
        if self._at_most_once or subject.collisions >= MAX_COLLISIONS:
            return False
        subject.collisions += 1
        return True

    def _trouble(self, error: Exception, progress: _Progress) -> Trouble | None:
        transaction = progress.transaction
        if transaction is None:
            opening = progress.stage is _Stage.OPEN
            return self.store.dialect.classify(error) if opening else None
        if transaction.guard.trouble is not None:
            return transaction.guard.trouble
        if transaction.committing or progress.stage is not _Stage.HANDLE:
            return self.store.dialect.classify(error, transaction.connection)
        return None

    def _store_failed(self, error: Exception, trouble: Trouble | None) -> Again:
        if trouble is Trouble.BUSY:
            return Again(0.02)
        self.reporter.store_failed(error)
        return Again(STORE_DOWN_DELAY, store_down=True)

    def _decide(self, error: Exception, number: int, tries: int) -> Decision:
        if isinstance(error, DecodeError) or self._at_most_once:
            return GiveUp()
        if isinstance(error, Reject):
            return GiveUp()
        return self.spec.retry.decide(number, error, tries=tries)

    def _keep(self, subject: Subject, failed: Failed) -> Result:
        """Write a failure down, in a transaction of its own."""
        decision = failed.decision
        if isinstance(decision, TryNow):
            return Again(0.0)  # stopped in the middle of its tries: nothing is decided
        failure = self.books.failure(subject, attempts=failed.attempt, cause=failed.cause)
        progress = _Progress(_Stage.OPEN)
        try:
            with self.transaction() as transaction:
                progress.transaction = transaction
                shortage = subject.shortage(transaction.connection)
                stays = shortage is not None and isinstance(decision, TryLater)
                if shortage is not None:
                    failure = self.books.book.short_of(shortage, failure, stays=stays)
                kept = None if stays else subject.keep(transaction, failure, decision)
        except Exception as error:  # noqa: BLE001 - a worker must not die of it
            # Also after a COMMIT of unknown outcome: the delivery starts again and will see.
            return self._store_failed(error, self._trouble(error, progress))
        if kept is None:
            return self._stay(subject, failure, decision)
        crash_point("failure.committed")
        self.reporter.kept(subject.message, kept, failure, decision)
        return kept

    def _stay(self, subject: Subject, failure: Failure, decision: TryLater | GiveUp) -> Again:
        """Let what the store does not take wait in memory: a dead letter would lack its body.

        If this process ends, another one gets it from the broker, and counts anew.
        """
        subject.stay(failure.attempts)
        self.reporter.kept(subject.message, Ended.RETRIED, failure, decision)
        delay = decision.delay if isinstance(decision, TryLater) else 0.0
        return Again(delay if self._waits else 0.0)


def _is_now(outcome: Result | Failed) -> bool:
    return isinstance(outcome, Failed) and isinstance(outcome.decision, TryNow)


def _last_result(state: RetryCallState) -> Any:
    return state.outcome.result() if state.outcome is not None else Again(0.0)
