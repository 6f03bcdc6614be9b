"""What a consumer tells the world: counts, events and log lines, never a payload."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from reliable_mq import events as ev
from reliable_mq.consumer.failures import Failure
from reliable_mq.consumer.items import Ended, Result
from reliable_mq.durations import QUIET
from reliable_mq.handlers import HandlerSpec
from reliable_mq.message import Message
from reliable_mq.redaction import redact_url
from reliable_mq.retry import GiveUp, TryLater

log = logging.getLogger("reliable_mq")


@dataclass(slots=True)
class ConsumerCounts:
    """What one handler of this process did so far."""

    handled: int = 0
    duplicates: int = 0
    retried: int = 0
    dead_lettered: int = 0


class Reporter:
    """Counts and announces what became of deliveries. Thread-safe."""

    def __init__(self, events: ev.Events, spec: HandlerSpec) -> None:
        self.counts = ConsumerCounts()
        self._events = events
        self._topic = spec.topic
        self._group = spec.group
        self._lock = threading.Lock()
        self._quiet_until = 0.0

    def handled(self, message: Message, attempt: int, duration: float) -> None:
        """The effects are committed."""
        with self._lock:
            self.counts.handled += 1
        if self._events.wants(ev.MessageHandled):
            self._events.emit(
                ev.MessageHandled(self._topic, self._group, message.id, attempt, duration)
            )

    def ended(self, message: Message, result: Result) -> None:
        """It ended without its handler."""
        if result is Ended.DUPLICATE:
            with self._lock:
                self.counts.duplicates += 1
            log.debug("duplicate %r skipped: %s/%s", message.id, self._topic, self._group)
            if self._events.wants(ev.DuplicateSkipped):
                self._events.emit(ev.DuplicateSkipped(self._topic, self._group, message.id))
        elif result is Ended.DEAD:
            self._dead(message, 0, "id-conflict")

    def kept(
        self, message: Message, result: Result, failure: Failure, decision: TryLater | GiveUp
    ) -> None:
        """A failure was written down, or found to be settled by another attempt."""
        if result is Ended.RETRIED and isinstance(decision, TryLater):
            self._retried(message, failure, decision.delay)
        elif result is Ended.DEAD:
            self._dead(message, failure.attempts, failure.cause)
        else:
            self.ended(message, result)

    def _retried(self, message: Message, failure: Failure, delay: float) -> None:
        with self._lock:
            self.counts.retried += 1
        log.warning(
            "message %r of %s failed in group %s (attempt %d), next try in %.1f s: %s",
            message.id, self._topic, self._group, failure.attempts, delay, _line(failure.cause),
            extra=self._fields(message, failure.attempts),
        )  # fmt: skip
        self._events.emit(
            ev.MessageRetried(
                self._topic, self._group, message.id, failure.attempts, delay, failure.cause
            )
        )

    def _dead(self, message: Message, attempts: int, cause: str) -> None:
        with self._lock:
            self.counts.dead_lettered += 1
        log.error(
            "message %r of %s is a dead letter of group %s after %d attempts: %s",
            message.id, self._topic, self._group, attempts, _line(cause),
            extra=self._fields(message, attempts),
        )  # fmt: skip
        self._events.emit(
            ev.MessageDeadLettered(self._topic, self._group, message.id, attempts, cause)
        )

    def _fields(self, message: Message, attempt: int) -> dict[str, object]:
        """Return what structured log formatters pick up from the record."""
        return {
            "mq_topic": self._topic,
            "mq_group": self._group,
            "mq_message_id": message.id,
            "mq_attempt": attempt,
        }

    def store_failed(self, error: BaseException) -> None:
        """The database did not do its part; said once in a while."""
        now = time.monotonic()
        with self._lock:
            if now < self._quiet_until:
                return
            self._quiet_until = now + QUIET
        log.warning(
            "the database failed, %s/%s waits and tries again: %s: %s",
            self._topic, self._group, type(error).__name__, redact_url(str(error)).split("\n")[0],
        )  # fmt: skip


def _line(cause: str) -> str:
    """Return a cause fit for a log line: one line, not too long."""
    line = " ".join(cause.split())
    return line if len(line) <= 500 else line[:500] + "..."
