"""Traffic through an adapter while nodes of its broker come and go."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from reliable_mq.adapter import SENT, Adapter
from reliable_mq.message import Message
from reliable_mq.testing.contract.messages import numbered

PUBLISH_TIMEOUT = 30.0


class Publishing:
    """Publishes numbers of a few keys in rounds, until the block ends; then all are confirmed.

    As the relay does: a round that is not confirmed is sent again, with the same ids, before the
    next. ``confirmed`` has the time of every round that was confirmed.
    """

    def __init__(self, adapter: Adapter, topic: str, keys: Sequence[str]) -> None:
        self._adapter = adapter
        self._topic = topic
        self._keys = keys
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: BaseException | None = None
        self.sent: dict[str, list[int]] = defaultdict(list)
        """By key, the numbers that were confirmed, in the order of publishing."""
        self.confirmed: list[float] = []
        self.repeated = 0
        """How many rounds had to be sent again."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        if error is None and self._failure is not None:
            raise self._failure

    @property
    def count(self) -> int:
        """How many messages are confirmed."""
        return sum(map(len, self.sent.values()))

    def progressed(self, rounds: int = 20) -> bool:
        """Tell whether so many rounds were confirmed since the last time that this was true."""
        if self._failure is not None:
            raise self._failure
        done = len(self.confirmed) - self._seen >= rounds
        if done:
            self._seen = len(self.confirmed)
        return done

    _seen = 0

    def longest_silence(self) -> float:
        """Return the longest time without a confirmation, in seconds."""
        pairs = zip(self.confirmed, self.confirmed[1:], strict=False)
        return max((later - earlier for earlier, later in pairs), default=0.0)

    def _run(self) -> None:
        try:
            number = 0
            while not self._end.is_set():
                self._round(number)
                number += 1
        except BaseException as error:  # noqa: BLE001 - it is the test's, which asks for it
            self._failure = error

    def _round(self, number: int) -> None:
        messages = [numbered(self._topic, [number], key=key)[0] for key in self._keys]
        while left := self._send(messages):
            self.repeated += 1
            messages = left
            # Where nobody listens the answer comes at once.
            time.sleep(0.05)
        self.confirmed.append(time.monotonic())
        # Enough to keep all partitions busy, little enough for a small machine.
        time.sleep(0.01)

    def _send(self, messages: list[Message]) -> list[Message]:
        """Return what is not confirmed."""
        outcomes = self._adapter.publish(messages, PUBLISH_TIMEOUT)
        for message, outcome in zip(messages, outcomes, strict=True):
            if outcome is SENT:
                self.sent[message.key or ""].append(int(message.body))
        return [m for m, outcome in zip(messages, outcomes, strict=True) if outcome is not SENT]


def without_repeats(numbers: Sequence[int]) -> list[int]:
    """Return each number where it came first."""
    return list(dict.fromkeys(numbers))
