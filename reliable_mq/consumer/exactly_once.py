"""Exactly once: a handler's outputs and its delivery's offset in one transaction of the broker.

The handler runs first, and what it publishes is kept; only then everything that has ended goes
into one transaction, in the order of each partition. A failure keeps nothing, and is tried again
in place: no store could remember it in the same transaction. So attempts are counted in memory,
later deliveries of the partition wait with their commit, and what is given up goes, as a
dead-letter message, into the transaction that steps over it.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from reliable_mq import events as ev
from reliable_mq.clock import Clock, SystemClock
from reliable_mq.consumer.calling import Caller
from reliable_mq.consumer.failures import Failure, dead_letter_message
from reliable_mq.consumer.items import Again, Ended, Failed, Item, Result
from reliable_mq.consumer.lanes import AnyContext, HandlerStoppedError, Lane
from reliable_mq.consumer.ledger import Completion, Progress, progress_of
from reliable_mq.consumer.outputs import collecting
from reliable_mq.consumer.reports import Reporter
from reliable_mq.errors import DecodeError, PublishRejectedError
from reliable_mq.handlers import HandlerSpec
from reliable_mq.message import Delivery, Message
from reliable_mq.retry import Decision, GiveUp, TryLater, TryNow
from reliable_mq.settings import Settings
from reliable_mq.store.retries import Waiting
from reliable_mq.store.texts import cause_of

if TYPE_CHECKING:
    from reliable_mq.store import Store

log = logging.getLogger("reliable_mq")

REFUSED_DELAY = 10.0
"""Seconds between two tries with a dead letter that its topic refuses."""


class ExactlyOnceProcessor(Caller):
    """Runs one handler on deliveries; what they end with is left in their progress.

    Thread-safe, one per handler and process. Nothing here is durable, or told to anybody but for
    retries: that is for whoever commits.
    """

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
        instance: str,
        clock: Clock,
    ) -> None:
        super().__init__(spec, lane=lane, around=around, application=application)
        self.reporter = Reporter(events, spec)
        self._store = store
        self._settings = settings
        self._instance = instance
        self._clock = clock
        # A clock that a test moves does not move by waiting.
        self._waits = isinstance(clock, SystemClock)
        self._cause_bytes = settings.dead_letter.max_error_bytes

    def process(self, item: Item) -> Result:
        """Bring a delivery to an end that can be committed, or say when to start it again."""
        progress = progress_of(item)
        if progress.given_up is not None:
            return self._give_up_again(progress, progress.given_up)
        if item.fault is not None:
            return self._give_up(item, progress, item.fault)
        failed = self._refused(progress) or self._attempts(item, progress)
        if failed is None:
            return Ended.HANDLED
        if isinstance(failed.decision, TryLater):
            return self._wait(item, failed, failed.decision)
        if isinstance(failed.decision, TryNow):
            return Again(0.0)
        return self._give_up(item, progress, failed.cause)

    def process_waiting(self, waiting: Waiting) -> Result:
        """Leave the row alone: the start refuses a group that has any."""
        return Ended.STALE

    def next_of_key(self, waiting: Waiting) -> Waiting | None:
        """Return None: there are no rows."""
        return None

    # --- attempts -------------------------------------------------------------------------------

    def _attempts(self, item: Item, progress: Progress) -> Failed | None:
        """Make an attempt, and more as long as the policy says at once; None for a success."""
        for tries in itertools.count(1):
            progress.attempts += 1
            error = self._attempt(item, progress)
            if error is None:
                return None
            failed = self._failed(error, progress, tries)
            if not isinstance(failed.decision, TryNow):
                return failed
        return None

    def _attempt(self, item: Item, progress: Progress) -> Exception | None:
        """Run the handler, and return its error; without one *progress* has its outputs."""
        delivery = item.delivery(self.spec.group, progress.attempts)
        started = time.monotonic()
        try:
            outputs = self._handle(delivery)
        except Exception as error:  # noqa: BLE001 - handlers raise anything
            return error
        except BaseException as error:
            if self.lane.ends_with(error):
                raise
            return HandlerStoppedError(f"the handler raised {type(error).__name__}")
        took = time.monotonic() - started
        tell = partial(self.reporter.handled, item.message, progress.attempts, took)
        progress.completion = Completion(outputs, tell)
        return None

    def _handle(self, delivery: Delivery) -> Sequence[Message]:
        payload = self.spec.call.payload(delivery.message)
        with self.entered(lambda: delivery), collecting(self._store, self._instance) as outputs:
            self.call(payload, lambda: delivery, None)
        return tuple(outputs.messages)

    # --- failures -------------------------------------------------------------------------------

    def _refused(self, progress: Progress) -> Failed | None:
        """Return the failure of an attempt whose outputs a broker has refused."""
        cause, progress.refused = progress.refused, None
        if cause is None:
            return None
        tries = self.spec.retry.immediate_attempts
        return self._failed(PublishRejectedError(cause), progress, tries)

    def _failed(self, error: Exception, progress: Progress, tries: int) -> Failed:
        cause = cause_of(error, self._cause_bytes)
        return Failed(cause, progress.attempts, self._decide(error, progress.attempts, tries))

    def _decide(self, error: Exception, number: int, tries: int) -> Decision:
        if isinstance(error, DecodeError):
            return GiveUp()
        return self.spec.retry.decide(number, error, tries=tries)

    def _wait(self, item: Item, failed: Failed, decision: TryLater) -> Result:
        failure = self._failure(item, failed.cause, failed.attempt)
        self.reporter.kept(item.message, Ended.RETRIED, failure, decision)
        return Again(decision.delay if self._waits else 0.0)

    def _give_up(self, item: Item, progress: Progress, cause: str) -> Result:
        failure = self._failure(item, cause, progress.attempts)
        progress.given_up = failure
        return self._give_up_again(progress, failure)

    def _give_up_again(self, progress: Progress, failure: Failure) -> Result:
        cause, progress.refused = progress.refused, None
        if cause is not None:
            # It must not be stepped over, and nothing else can keep it: a person must help.
            log.error(
                "message %r of %s cannot become a dead letter of group %s, its partition waits: %s",
                failure.message.id, failure.message.topic, failure.group, cause,
            )  # fmt: skip
            return Again(REFUSED_DELAY)
        letter = dead_letter_message(failure, self._settings, self._clock.now())
        tell = partial(self.reporter.kept, failure.message, Ended.DEAD, failure, GiveUp())
        progress.completion = Completion((letter,), tell)
        return Ended.DEAD

    def _failure(self, item: Item, cause: str, attempts: int) -> Failure:
        return Failure(
            group=self.spec.group,
            message=item.message,
            headers=item.headers,
            attempts=attempts,
            cause=cause,
        )
