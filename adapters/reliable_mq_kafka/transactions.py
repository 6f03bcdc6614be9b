"""Transactions of one producer: outputs and consumed offsets, stored together or not at all.

librdkafka sorts its errors into three kinds, and so does this module:

- *retriable*: the same call goes on where it was, until the time is up;
- *requires abort*: the transaction is undone and the producer can begin another one;
- all others: this producer can do nothing more. A new one with the same ``transactional.id``
  undoes what the old one left open.

Only a COMMIT that is not answered leaves it open whether the transaction is there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from reliable_mq.adapter import Refused, Unroutable
from reliable_mq.errors import ReliableMQError, TransportError
from reliable_mq.message import Message
from reliable_mq_kafka.config import Clients
from reliable_mq_kafka.errors import ROUTE, UNFIT, error_of, outcome_of, text_of, translate
from reliable_mq_kafka.health import Health
from reliable_mq_kafka.membership import Membership
from reliable_mq_kafka.records import KafkaRecord, headers_of

log = logging.getLogger("reliable_mq.kafka")

_SERVE_EVERY = 100
_LOOK_UP = 5.0
_PATIENCE = 2.0
"""Seconds for a successor to undo what was left open, before the next transaction asks for it."""
_GRACE = 1.0
"""Seconds after its time is up in which a call of the client's may still return."""

Homeless: TypeAlias = Mapping[int, Refused | Unroutable]
"""Why messages, by position, cannot be stored."""

_ALONE = {"batch_num_messages": 1, "max_in_flight_requests_per_connection": 1}

_NOT_A_MEMBER = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
    }
)
"""The group has changed since its metadata was read."""

_TIMED_OUT = frozenset({KafkaError._TIMED_OUT, KafkaError._MSG_TIMED_OUT})

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


class FencedError(Exception):
    """The group did not take the offsets from this member; everything was undone."""


class InDoubtError(Exception):
    """Whether the transaction was committed is not known; its cause says why."""


class Transactions:
    """One transaction after the other. Used by one thread.

    The ``transactional.id`` belongs to this object alone: nobody else fences it off, and a
    producer that takes the place of a broken one undoes what that one left.
    """

    def __init__(self, clients: Clients, transactional_id: str) -> None:
        self._clients = clients
        self._id = transactional_id
        self._doing = "cannot store outputs and offsets in one transaction"
        self._health = Health()
        self._producer: Producer | None = None
        self._one_by_one = False
        self._is_ready = False
        self._known: set[str] = set()
        self._failures: dict[int, KafkaError] = {}

    # --- the producer ---

    def prepare(self, patience: float) -> None:
        """Make the producer ready; raise where the brokers did not answer in *patience* s.

        What a producer of this id has left open is undone then. One that was interrupted begins
        no other transaction: a broker would take a late request of its last one for one of the
        next, which has the same epoch. An end that comes late ends that one.
        """
        self.serve()
        if self._is_ready and self._health.interrupted:
            self._drop()
        if self._is_ready:
            return
        if self._producer is None:
            self._health = Health()
            self._producer = self._make()
        deadline = time.monotonic() + patience
        try:
            self._repeat(self._producer.init_transactions, deadline)
        except KafkaException as error:
            found = error_of(error)
            self.serve()  # it tells what it knows
            if not found.retriable():
                self._drop()
            self._health.raise_if_refused(self._doing)
            raise translate(found, self._doing) from error
        self._is_ready = True

    def _make(self) -> Producer:
        changes: dict[str, object] = dict(_ALONE) if self._one_by_one else {}
        return self._clients.transactional_producer(self._health, self._id, **changes)

    def _drop(self) -> None:
        """Let go of a producer. What it left open is undone by the next, or by a time-out."""
        producer, self._producer = self._producer, None
        self._is_ready = False
        if producer is None:
            return
        try:
            producer.purge()
            self._serve(producer)
        except Exception as error:  # noqa: BLE001 - why it is let go of matters more
            log.debug("%s: a producer that is let go of: %r", self._id, error)

    def close(self) -> None:
        """Let go of the producer; nothing is open."""
        self._drop()

    def serve(self) -> None:
        """Take what the idle client has to say."""
        if self._producer is not None:
            self._serve(self._producer)

    def _serve(self, producer: Producer) -> None:
        try:
            producer.poll(0)
        except KafkaException as error:
            # The fatal error of a producer comes out of each poll; the next call tells of it too.
            self._health.on_error(error_of(error))

    # --- a transaction ---

    def run(
        self, messages: Sequence[Message], offsets: Sequence[TopicPartition], member: Membership
    ) -> Homeless:
        """Store *messages* and *offsets*; bounded to a few times the transaction's time-out.

        Returns nothing once it is committed, or the outcomes of messages, by position, that are
        refused for good or have no topic. Raises :class:`FencedError` or an error of the library
        where nothing was stored, :class:`InDoubtError` where that is not known.
        """
        homeless = self._run(messages, offsets, member)
        if len(messages) > 1 and any(one.code() in UNFIT for one in self._failures.values()):
            # Brokers refuse a whole request, though one message of it may be the reason, or
            # none: then it was too many together.
            with self._requests_of_one():
                homeless = self._run(messages, offsets, member)
        return homeless

    @contextmanager
    def _requests_of_one(self) -> Iterator[None]:
        self._drop()
        self._one_by_one = True
        try:
            yield
        finally:
            self._one_by_one = False
            self._drop()

    def _run(
        self, messages: Sequence[Message], offsets: Sequence[TopicPartition], member: Membership
    ) -> Homeless:
        deadline = time.monotonic() + self._clients.options.transaction_timeout
        self.prepare(deadline - time.monotonic())
        producer = self._producer
        assert producer is not None  # noqa: S101 - prepared
        self._failures = {}
        try:
            producer.begin_transaction()
            self._produce(producer, messages, deadline)
            if self._failures:
                return self._undo(messages, None)
            self._send_offsets(producer, offsets, member, deadline)
        except KafkaException as error:
            return self._undo(messages, error)
        except Exception as error:
            # Nobody knows where this producer is now; its successor undoes what is open.
            self._drop()
            raise TransportError(f"{self._doing}: {error!r}") from error
        return self._commit(producer, messages, deadline)

    def _produce(self, producer: Producer, messages: Sequence[Message], deadline: float) -> None:
        self._look_up(producer, messages)
        if self._failures:
            return
        for index, message in enumerate(messages):
            self._hand_over(producer, index, message, deadline)
            if not index % _SERVE_EVERY:
                self._serve(producer)
        while len(producer) and not self._failures and time.monotonic() < deadline:
            producer.flush(0.1)
        if len(producer) and not self._failures:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "outputs were not confirmed"))

    def _send_offsets(
        self,
        producer: Producer,
        offsets: Sequence[TopicPartition],
        member: Membership,
        deadline: float,
    ) -> None:
        """Add the offsets to the transaction; without an answer in time let go of the producer.

        While the group's coordinator is away this call does not keep to its time-out (librdkafka
        #5456, #5511), so a thread of its own waits for it. What it left open its successor undoes.
        """
        send = partial(producer.send_offsets_to_transaction, list(offsets), member.metadata)
        ended: Future[None] = Future()

        def run() -> None:
            try:
                self._repeat(send, deadline)
            except BaseException as error:  # noqa: BLE001 - it is raised again below
                ended.set_exception(error)
            else:
                ended.set_result(None)

        threading.Thread(target=run, name="reliable-mq-kafka-offsets", daemon=True).start()
        try:
            ended.result(deadline + _GRACE - time.monotonic())
        except TimeoutError:
            log.warning("%s: the client does not return from sending offsets", self._id)
            self._drop()
            raise KafkaException(
                KafkaError(KafkaError._TIMED_OUT, "the offsets were not answered")
            ) from None

    def _look_up(self, producer: Producer, messages: Sequence[Message]) -> None:
        """Ask for topics that are new to this producer: it learns of them late by itself."""
        for topic in {message.topic for message in messages} - self._known:
            error = producer.list_topics(topic, timeout=_LOOK_UP).topics[topic].error
            if error is None:
                self._known.add(topic)
            elif error.code() in ROUTE:
                places = (index for index, one in enumerate(messages) if one.topic == topic)
                self._failures.update(dict.fromkeys(places, error))
            else:
                raise KafkaException(KafkaError(error.code(), f"topic {topic!r}"))

    def _hand_over(self, producer: Producer, index: int, message: Message, deadline: float) -> None:
        while True:
            try:
                producer.produce(
                    message.topic,
                    message.body,
                    message.key,
                    on_delivery=partial(self._report, index),
                    headers=headers_of(message),
                )
            except BufferError:
                if time.monotonic() >= deadline:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "queue full")) from None
                producer.poll(0.05)
            except KafkaException as error:
                if error_of(error).code() not in UNFIT | ROUTE:
                    raise
                self._failures[index] = error_of(error)
                return
            else:
                return

    def _report(self, index: int, error: KafkaError | None, record: KafkaRecord) -> None:
        if error is None and record.offset() is None:
            error = _UNANSWERED
        if error is not None and error.code() not in _FOLLOWS:
            self._failures[index] = error

    def _commit(self, producer: Producer, messages: Sequence[Message], deadline: float) -> Homeless:
        # With some time of its own: to be in doubt is dear.
        deadline = max(deadline, time.monotonic() + self._clients.timeout)
        try:
            self._repeat(producer.commit_transaction, deadline)
        except KafkaException as error:
            if error_of(error).txn_requires_abort():
                return self._undo(messages, error)
            self._drop()
            raise InDoubtError(text_of(error_of(error))) from error
        except Exception as error:
            self._drop()
            raise InDoubtError(repr(error)) from error
        self._health.recovered()
        return {}

    # --- when it fails ---

    def _undo(self, messages: Sequence[Message], error: KafkaException | None) -> Homeless:
        """Abort; return which messages have no place, or raise what it was."""
        homeless = self._homeless(messages)
        if not homeless and self._may_lack_a_topic(error):
            homeless = self._missing(messages)
        failures = self._failures
        self._abort()
        self._known.difference_update(messages[index].topic for index in failures)
        if homeless:
            return homeless
        if failures:
            index, found = next(iter(failures.items()))
            raise self._translated(found, messages[index].topic) from error
        assert error is not None  # noqa: S101 - one of the two
        found = error_of(error)
        if found.code() in _NOT_A_MEMBER:
            raise FencedError(text_of(found)) from error
        raise self._translated(found, None) from error

    def _homeless(self, messages: Sequence[Message]) -> Homeless:
        return {
            index: outcome
            for index, found in self._failures.items()
            if isinstance(outcome := outcome_of(found, messages[index].topic), Refused | Unroutable)
        }

    def _may_lack_a_topic(self, error: KafkaException | None) -> bool:
        """Tell whether a topic that was deleted meanwhile may be the reason, without its name.

        The client may try one until the time is up (``rd_kafka_txn_handle_AddPartitionsToTxn``).
        """
        errors = [*self._failures.values(), *([] if error is None else [error_of(error)])]
        return any(one.code() in ROUTE | _TIMED_OUT for one in errors)

    def _missing(self, messages: Sequence[Message]) -> Homeless:
        """Return which outputs have no topic now."""
        if self._producer is None:
            return {}
        self._known.clear()
        try:
            self._look_up(self._producer, messages)
        except KafkaException as failed:
            log.debug("%s cannot look topics up: %s", self._id, text_of(error_of(failed)))
        return self._homeless(messages)

    def _translated(self, error: KafkaError, topic: str | None) -> ReliableMQError:
        self._health.raise_if_refused(self._doing)
        where = "" if topic is None else f" (topic {topic!r})"
        return translate(error, self._doing + where)

    def _abort(self) -> None:
        """Undo what is open; where this producer cannot, or must not, its successor does."""
        producer = self._producer
        if producer is not None and self._may_abort(producer):
            deadline = time.monotonic() + self._clients.options.transaction_timeout
            try:
                return self._repeat(producer.abort_transaction, deadline)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is not undone
                log.debug("%s cannot abort: %r", self._id, error)
        self._drop()
        try:
            self.prepare(_PATIENCE)
        except ReliableMQError as error:
            log.debug("%s: what is open is not undone yet: %s", self._id, error)
        return None

    def _may_abort(self, producer: Producer) -> bool:
        """Tell whether nothing of the transaction may still reach a broker.

        Its end leaves the epoch as it is, and the next transaction goes on with the sequence
        numbers of outputs that have no answer, stored or not
        (``rd_kafka_toppar_purge_queues``): a broker that has stored one takes the next output
        for its copy, confirms it and throws it away. The epoch of a successor is new.
        """
        self._serve(producer)
        return not (len(producer) or self._health.interrupted)

    def _repeat(self, call: Callable[[float], None], deadline: float) -> None:
        """Make a call of the client's, and go on with it as long as it may be."""
        while True:
            left = max(0.1, deadline - time.monotonic())
            try:
                return call(left)
            except KafkaException as error:
                if not error_of(error).retriable() or time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)
