"""Messages on their way through one producer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from confluent_kafka import KafkaError, KafkaException

from reliable_mq.adapter import SENT, Unknown
from reliable_mq.crashpoints import crash_point
from reliable_mq.message import Message
from reliable_mq_kafka.calls import caught
from reliable_mq_kafka.drafts import Draft, Place, place_of
from reliable_mq_kafka.errors import MISSING, UNFIT, error_of, outcome_of
from reliable_mq_kafka.producing import Line
from reliable_mq_kafka.records import KafkaRecord, headers_of

if TYPE_CHECKING:
    from confluent_kafka._types import HeadersType

_SERVE_EVERY = 1000
"""Messages between two looks at what became of those before: a large batch may stop early."""

_PATIENCE = 0.05
_ANY, _NOW = -1, 0
"""The partition and the time of a record where the client is to choose them."""

_NOT_TAKEN = (BufferError, KafkaException, ValueError, TypeError)
"""What the client raises for a message: there is no room, or it is refused, or no record."""

_Report: TypeAlias = Callable[[int, KafkaError | None, KafkaRecord], None]

_NO_VERDICT = frozenset(
    {
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._FATAL,
        KafkaError._GAPLESS_GUARANTEE,
        KafkaError._DESTROY,
    }
)
"""The end of the producer, which says nothing of the message."""

_UNANSWERED = KafkaError(KafkaError._FAIL, "a later request was answered, and this one was not")
"""The client takes a message for stored where a request behind it was: a broker that knows the
producer would have refused that one (``rd_kafka_dr_implicit_ack``). One that does not know it yet
takes it, also behind a request that it had refused, with a topic that was just created, say.
Such a report has no offset. It is no verdict, and the message is sent again."""


class Shipment:
    """One round of a publish: messages are handed to a producer and their reports collected.

    Used by one thread; the reports come on any that polls the producer.
    """

    def __init__(self, line: Line, draft: Draft, deadline: float) -> None:
        self._line = line
        self._draft = draft
        self._deadline = deadline
        self._taken: list[int] = []
        self._waiting: set[int] = set()
        self._failures: dict[int, KafkaError] = {}
        self._own_failures: set[int] = set()
        self._seen: set[int] = set()
        self._blocked: set[Place | None] = set()

    def send(self, messages: Iterable[tuple[int, Message]], *, first: bool = False) -> None:
        """Hand *messages* over and wait until each has its report.

        Ends early with the deadline or the producer; nothing of it is under way in the client
        then. The producer stops at its first message that a broker refuses; what this round sees
        to is that none is handed over behind one of its key that is known to be refused. *first*:
        note which partitions are primed by it.
        """
        self._hand_over(messages, self._report_first if first else self._report)
        crash_point("publish.unconfirmed")
        self._line.wait(self._is_done, self._deadline)
        if self._waiting:
            self._line.give_up()
            self._line.collect(lambda: not self._waiting)
        if len(self._taken) > len(self._failures) + len(self._waiting):
            self._line.confirm()

    def settle(self, *, alone: bool = False) -> None:
        """Note in the draft what is known now; what is not stays open.

        *alone*: each message was a request of its own, so a refused request is a refused message.
        """
        if len(self._taken) == len(self._draft.messages) and not (self._waiting or self._failures):
            return self._draft.settle_all(SENT)
        for index in self._taken:
            if index not in self._failures and index not in self._waiting:
                self._draft.settle(index, SENT)
        for index, error in list(self._failures.items()):
            if error is _UNANSWERED or error.code() in _NO_VERDICT:
                continue
            if error.code() in UNFIT and not (alone or index in self._own_failures):
                self._draft.suspicious = True
                continue
            topic = self._draft.messages[index].topic
            self._draft.settle(index, outcome_of(error, topic))
            if error.code() in MISSING:
                self._line.forget(topic)
        if self._line.hopeless:
            self._draft.settle_open(Unknown(self._line.health.why()))
        return None

    # --- handing over ---

    def _hand_over(self, messages: Iterable[tuple[int, Message]], report: _Report) -> None:
        # The path of every message: what is not needed here is elsewhere. All are encoded before
        # the first is handed over: the client sends what it has, and what comes quickly shares
        # its requests.
        produce = self._line.produce
        waiting, taken = self._waiting, self._taken
        for index, message, headers in [*_encoded(messages)]:
            if self._failures and self._is_blocked(message):
                continue
            if isinstance(headers, Exception):
                self._fail(index, headers)
                continue
            # By position, for the client takes as long over names as over all the rest: partition,
            # report and its other name, time, headers.
            record = (
                message.topic,
                message.body,
                message.key,
                _ANY,
                partial(report, index),
                None,
                _NOW,
                headers,
            )
            waiting.add(index)
            trouble = None
            try:
                produce(*record)
            except _NOT_TAKEN as error:
                trouble = error.with_traceback(None)
            if trouble is None:
                taken.append(index)
            elif not self._hand_over_again(index, record, trouble):
                return
            if not (index + 1) % _SERVE_EVERY:
                self._line.serve(0)

    def _hand_over_again(self, index: int, record: tuple[Any, ...], trouble: Exception) -> bool:
        """Go on with a message that the client did not take; False where it takes no other.

        Not where its exception is handled: see ``caught``.
        """
        again: Exception | None = trouble
        while isinstance(again, BufferError):
            self._waiting.discard(index)
            if not self._makes_room():
                return False
            self._waiting.add(index)
            again = caught(partial(self._line.produce, *record))
        if again is None:
            self._taken.append(index)
            return True
        if not isinstance(again, _NOT_TAKEN):
            raise again
        self._fail(index, again)
        return self._line.usable

    def _makes_room(self) -> bool:
        """Wait a little for the full queue; False where there is no point in trying again."""
        self._line.serve(_PATIENCE)
        return self._line.usable and time.monotonic() < self._deadline

    def _fail(self, index: int, error: Exception) -> None:
        """Note that the client did not take a message."""
        self._waiting.discard(index)
        self._own_failures.add(index)
        if not isinstance(error, KafkaException):
            error = KafkaException(KafkaError(KafkaError.INVALID_RECORD, f"cannot encode: {error}"))
        self._failures[index] = found = error_of(error)
        if found.code() == KafkaError._FATAL:
            self._line.give_up_broken(self._deadline)

    def _report(self, index: int, error: KafkaError | None, record: KafkaRecord) -> None:
        """Take a delivery report; on whichever thread polls."""
        crash_point("publish.answered")
        if error is not None:
            self._failures[index] = error
        elif record.offset() is None and not self._line.knows(record.topic(), record.partition()):
            self._failures[index] = _UNANSWERED
        self._waiting.discard(index)

    def _report_first(self, index: int, error: KafkaError | None, record: KafkaRecord) -> None:
        topic, partition = record.topic(), record.partition()
        answered = error is None and record.offset() is not None
        if answered and topic is not None and partition is not None:
            self._line.prime(topic, partition)
        self._report(index, error, record)

    def _is_blocked(self, message: Message) -> bool:
        if len(self._seen) < len(self._failures):
            fresh = self._failures.keys() - self._seen
            self._seen |= fresh
            self._blocked.update(place_of(self._draft.messages[index]) for index in fresh)
        return message.key is not None and place_of(message) in self._blocked

    def _is_done(self) -> bool:
        return not self._waiting or self._line.hopeless


def _encoded(
    messages: Iterable[tuple[int, Message]],
) -> Iterator[tuple[int, Message, HeadersType | Exception]]:
    """Yield *messages* with the headers of their records, or why there are none."""
    for index, message in messages:
        try:
            yield index, message, headers_of(message)
        except (ValueError, TypeError) as error:
            yield index, message, error
