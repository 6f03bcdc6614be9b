"""The messages of one transaction on their way through its producer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeAlias

from confluent_kafka import KafkaError, KafkaException

from reliable_mq.adapter import Refused, Unroutable
from reliable_mq.message import Message
from reliable_mq_kafka.calls import caught
from reliable_mq_kafka.errors import ROUTE, UNFIT, error_of, outcome_of
from reliable_mq_kafka.records import KafkaRecord, headers_of
from reliable_mq_kafka.txn_client import TxnClient

_SERVE_EVERY = 100
_ROOM = 0.05
"""Seconds between two looks whether a full queue has room."""

Homeless: TypeAlias = Mapping[int, Refused | Unroutable]
"""Why messages, by position, cannot be stored."""

_FOLLOWS = frozenset(
    {
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._FATAL,
        KafkaError._DESTROY,
    }
)
"""What a message ends with because the transaction did."""

_UNANSWERED = KafkaError(KafkaError._TIMED_OUT, "an output was not answered")
"""What the client takes for stored because a later request was. A broker that does not know the
producer takes that one behind a refused one too: see the same in ``shipments``."""


class Outputs:
    """What becomes of the messages of one transaction. Used by one thread."""

    def __init__(self, client: TxnClient, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.failures: dict[int, KafkaError] = {}
        """Why messages, by position, are not stored."""
        self._client = client

    def send(self, deadline: float) -> None:
        """Have all stored; ends early with the first failure. Raises where there is no answer."""
        self._look_up()
        if self.failures:
            return
        for index, message in enumerate(self.messages):
            self._hand_over(index, message, deadline)
            if not index % _SERVE_EVERY:
                self._client.serve()
        unanswered = self._client.unanswered
        while unanswered and not self.failures and time.monotonic() < deadline:
            self._client.producer.flush(0.1)
        if unanswered and not self.failures:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "outputs were not confirmed"))

    def _look_up(self) -> None:
        found = self._client.look_up(message.topic for message in self.messages)
        for index, message in enumerate(self.messages):
            if message.topic in found:
                self.failures[index] = found[message.topic]

    def _hand_over(self, index: int, message: Message, deadline: float) -> None:
        while True:
            self._client.unanswered.add(index)
            error = caught(partial(self._produce, index, message))
            if error is None:
                return
            self._client.unanswered.discard(index)
            if not isinstance(error, BufferError):
                break
            if time.monotonic() >= deadline:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "queue full"))
            self._client.producer.poll(_ROOM)
        if not isinstance(error, KafkaException) or error_of(error).code() not in UNFIT | ROUTE:
            raise error
        self.failures[index] = error_of(error)

    def _produce(self, index: int, message: Message) -> None:
        self._client.producer.produce(
            message.topic,
            message.body,
            message.key,
            on_delivery=partial(self._report, index),
            headers=headers_of(message),
        )

    def _report(self, index: int, error: KafkaError | None, record: KafkaRecord) -> None:
        self._client.unanswered.discard(index)
        if error is None and record.offset() is None:
            error = _UNANSWERED
        if error is not None and error.code() not in _FOLLOWS:
            self.failures[index] = error

    # --- those without a place ---

    def homeless(self) -> Homeless:
        """Return which messages are refused for good or have no topic."""
        return {
            index: outcome
            for index, found in self.failures.items()
            if isinstance(
                outcome := outcome_of(found, self.messages[index].topic), Refused | Unroutable
            )
        }

    def look_again(self) -> None:
        """Note which messages have no topic now. Raises where the brokers do not tell."""
        self._client.forget(message.topic for message in self.messages)
        self._look_up()

    def forget_failed(self) -> None:
        """Let the next transaction ask anew for the topics of those that failed."""
        self._client.forget(self.messages[index].topic for index in self.failures)
