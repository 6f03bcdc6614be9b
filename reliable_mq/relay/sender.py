"""One call of the broker's adapter, whatever it answers or raises."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from reliable_mq.adapter import Adapter, Outcome, Sent, Unknown
from reliable_mq.clock import Clock
from reliable_mq.errors import ReliableMQError
from reliable_mq.message import Message
from reliable_mq.store.texts import cause_of

log = logging.getLogger("reliable_mq")

_CAUSE_BYTES = 500
_NOT_TRIED = Unknown("it was not tried: the time was over, or its key was stopped before it")


class Sender:
    """Publishes messages and always returns outcomes. Used by one thread at a time."""

    def __init__(self, adapter: Adapter, clock: Clock) -> None:
        self._adapter = adapter
        self._clock = clock
        self._broken: type[BaseException] | None = None

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        """Return an outcome for each of *messages* within *timeout* seconds. Never raises.

        An adapter that raises breaks its contract. Should one message be the reason, the others
        are sent all the same: each by itself, a key no further than its first failure.
        """
        deadline = self._clock.monotonic() + timeout
        outcomes = self._call(messages, timeout)
        if isinstance(outcomes, list):
            return outcomes
        if isinstance(outcomes, ReliableMQError) or len(messages) == 1:
            return [_unknown(outcomes)] * len(messages)
        return self._one_by_one(messages, deadline)

    def _one_by_one(self, messages: Sequence[Message], deadline: float) -> list[Outcome]:
        found: list[Outcome] = []
        stopped: set[tuple[str, str]] = set()
        for message in messages:
            key = None if message.key is None else (message.topic, message.key)
            left = deadline - self._clock.monotonic()
            if key in stopped or left <= 0:
                outcome: Outcome = _NOT_TRIED
            else:
                answer = self._call([message], left)
                outcome = _unknown(answer) if isinstance(answer, Exception) else answer[0]
            if key is not None and not isinstance(outcome, Sent):
                stopped.add(key)
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


def _unknown(error: Exception) -> Unknown:
    return Unknown(cause_of(error, _CAUSE_BYTES))
