"""One call of the broker's adapter, whatever it answers or raises."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from reliable_mq.adapter import Adapter, Outcome, Sent, Unknown
from reliable_mq.clock import Clock
from reliable_mq.errors import ReliableMQError
from reliable_mq.message import Message
from reliable_mq.store.outbox.reading import Outgoing
from reliable_mq.store.texts import cause_of

log = logging.getLogger("reliable_mq")

_CAUSE_BYTES = 500
_EARLIER = Unknown("an earlier message of its key was not sent")


class Sender:
    """Publishes rows and always returns outcomes. Used by one thread at a time."""

    def __init__(self, adapter: Adapter, clock: Clock) -> None:
        self._adapter = adapter
        self._clock = clock
        self._broken: type[BaseException] | None = None

    def publish(self, rows: Sequence[Outgoing], timeout: float) -> list[Outcome]:
        """Return an outcome for each of *rows* within *timeout* seconds. Never raises.

        An adapter that raises breaks its contract. Should one message be the reason, the others
        are sent all the same: each by itself, a key no further than its first failure.
        """
        deadline = self._clock.monotonic() + timeout
        outcomes = self._call([_message(row) for row in rows], timeout)
        if isinstance(outcomes, list):
            return outcomes
        if isinstance(outcomes, ReliableMQError) or len(rows) == 1:
            return [_unknown(outcomes)] * len(rows)
        return self._one_by_one(rows, deadline)

    def _one_by_one(self, rows: Sequence[Outgoing], deadline: float) -> list[Outcome]:
        found: list[Outcome] = []
        stopped = set()
        for row in rows:
            left = deadline - self._clock.monotonic()
            if row.key in stopped or left <= 0:
                outcome: Outcome = _EARLIER
            else:
                answer = self._call([_message(row)], left)
                outcome = _unknown(answer) if isinstance(answer, Exception) else answer[0]
            if row.key is not None and not isinstance(outcome, Sent):
                stopped.add(row.key)
            found.append(outcome)
        return found

    def _call(self, messages: Sequence[Message], timeout: float) -> list[Outcome] | Exception:
        try:
            outcomes = list(self._adapter.publish(messages, timeout))
            if len(outcomes) == len(messages):
                return outcomes
            raise RuntimeError(f"{len(outcomes)} outcomes for {len(messages)} messages")
        except Exception as error:
            # A broken adapter must neither end the relay nor fill the log.
            if type(error) is not self._broken and not isinstance(error, ReliableMQError):
                log.exception("the adapter %s broke its contract", self._adapter.name)
            self._broken = type(error)
            return error


def _message(row: Outgoing) -> Message:
    if row.message is None:
        raise ValueError(f"row {row.id} has no message to publish")
    return row.message


def _unknown(error: Exception) -> Unknown:
    return Unknown(cause_of(error, _CAUSE_BYTES))
