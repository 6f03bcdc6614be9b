"""Transactions of one producer: outputs and consumed offsets, stored together or not at all.

librdkafka sorts its errors into three kinds, and so does this module:

- *retriable*: the same call goes on where it was, until the time is up;
- *requires abort*: the transaction is undone and the producer can begin another one;
- all others: this producer can do nothing more. A new one with the same ``transactional.id``
  undoes what the old one left open.

Only a COMMIT that is not answered leaves it open whether the transaction is there.

A transaction in which a connection has ended is undone as well, and by a new producer: the client
sends what had no answer once more and says nothing of it, and what it sent first may come later
than all that follows, to whichever transaction is open then. The epoch of the new one keeps it
out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from functools import partial
from typing import TypeAlias

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from reliable_mq.errors import ReliableMQError
from reliable_mq.message import Message
from reliable_mq_kafka.calls import caught, repeat
from reliable_mq_kafka.config import Clients
from reliable_mq_kafka.errors import ROUTE, UNFIT, error_of, text_of, translate
from reliable_mq_kafka.health import Health
from reliable_mq_kafka.membership import Membership
from reliable_mq_kafka.outputs import Homeless, Outputs
from reliable_mq_kafka.txn_client import TxnClient

log = logging.getLogger("reliable_mq.kafka")

_PATIENCE = 2.0
"""Seconds for a successor to undo what was left open, before the next transaction asks for it."""
_GRACE = 1.0
"""Seconds after its time is up in which a call of the client's may still return."""

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

_Ended: TypeAlias = "futures.Future[Exception | None]"


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
        self._client: TxnClient | None = None
        self._stuck: list[tuple[TxnClient, _Ended]] = []
        self._one_by_one = False

    # --- the producer ---

    def prepare(self, patience: float) -> None:
        """Make the producer ready; raise where the brokers did not answer in *patience* s.

        What a producer of this id has left open is undone then. One that was interrupted begins
        no other transaction, not even where it was idle: it may not return from sending offsets
        for minutes when it has lost a coordinator's connection (see ``_send_offsets``).
        """
        if self._client is not None and not self._may_go_on(self._client):
            self._drop()
        if self._client is None:
            self._client = self._make()
        if not self._client.is_ready:
            self._initialise(self._client, time.monotonic() + patience)

    def _may_go_on(self, client: TxnClient) -> bool:
        fits = client.one_by_one == self._one_by_one
        return fits and (client.may_begin_another or not client.is_ready)

    def _make(self) -> TxnClient:
        changes: dict[str, object] = dict(_ALONE) if self._one_by_one else {}

        def make(health: Health) -> Producer:
            return self._clients.transactional_producer(health, self._id, **changes)

        return TxnClient(make, one_by_one=self._one_by_one)

    def _initialise(self, client: TxnClient, deadline: float) -> None:
        error = caught(partial(client.initialise, deadline))
        client.serve()  # it tells what it knows
        if error is None:
            # Nothing waits for an answer: the connections that have ended had none to lose.
            return client.health.uninterrupted()
        found = error_of(error)
        if not found.retriable():
            self._drop()
        raise self._reason(client, found) from error

    def _drop(self) -> None:
        """Let go of the producer. What it left open is undone by the next, or by a time-out."""
        client, self._client = self._client, None
        if client is not None:
            client.let_go()

    def close(self) -> None:
        """Let go of the producer; nothing is open."""
        self._drop()

    def serve(self) -> None:
        """Take what idle clients have to say: it would pile up otherwise."""
        if self._client is not None:
            self._client.serve()
        for client, _ in self._stuck:
            client.serve()
        self._stuck = [(client, ended) for client, ended in self._stuck if not ended.done()]

    # --- a transaction ---

    def run(
        self, messages: Sequence[Message], offsets: Sequence[TopicPartition], member: Membership
    ) -> Homeless:
        """Store *messages* and *offsets*; bounded to a few times the transaction's time-out.

        Returns nothing once it is committed, or the outcomes of messages, by position, that are
        refused for good or have no topic. Raises :class:`FencedError` or an error of the library
        where nothing was stored, :class:`InDoubtError` where that is not known.
        """
        homeless, unfit = self._run(messages, offsets, member)
        if unfit and len(messages) > 1:
            # Brokers refuse a whole request, though one message of it may be the reason, or
            # none: then it was too many together.
            self._one_by_one = True
            try:
                homeless, _ = self._run(messages, offsets, member)
            finally:
                self._one_by_one = False
        return homeless

    def _run(
        self, messages: Sequence[Message], offsets: Sequence[TopicPartition], member: Membership
    ) -> tuple[Homeless, bool]:
        """Return also whether it is undone because of a message that does not fit."""
        deadline = time.monotonic() + self._clients.options.transaction_timeout
        self.prepare(deadline - time.monotonic())
        client = self._client
        assert client is not None  # noqa: S101 - prepared
        outputs = Outputs(client, messages)
        error = caught(partial(self._store, client, outputs, offsets, member, deadline))
        if error is None and not outputs.failures:
            error = self._commit(client, deadline)
            if error is None:
                return {}, False
        elif error is not None and not isinstance(error, KafkaException):
            # Nobody knows where this producer is now; its successor undoes what is open.
            self._drop()
        homeless = self._undo(client, outputs, error)
        return homeless, any(one.code() in UNFIT for one in outputs.failures.values())

    def _store(
        self,
        client: TxnClient,
        outputs: Outputs,
        offsets: Sequence[TopicPartition],
        member: Membership,
        deadline: float,
    ) -> None:
        """Open a transaction and put everything into it; raises, or notes why an output failed."""
        client.producer.begin_transaction()
        outputs.send(deadline)
        if outputs.failures:
            return
        self._send_offsets(client, offsets, member, deadline)
        client.serve()
        if client.health.interrupted:
            raise KafkaException(
                KafkaError(KafkaError._TRANSPORT, "a connection has ended meanwhile")
            )

    def _send_offsets(
        self,
        client: TxnClient,
        offsets: Sequence[TopicPartition],
        member: Membership,
        deadline: float,
    ) -> None:
        """Add the offsets to the transaction; without an answer in time let go of the producer.

        While the group's coordinator is away this call does not keep to its time-out (librdkafka
        #5456, #5511), so a thread of its own waits for it. What it left open its successor undoes.
        """
        send = partial(client.producer.send_offsets_to_transaction, list(offsets), member.metadata)
        ended: _Ended = futures.Future()
        threading.Thread(
            target=lambda: ended.set_result(caught(partial(repeat, send, deadline))),
            name="reliable-mq-kafka-offsets",
            daemon=True,
        ).start()
        futures.wait([ended], deadline + _GRACE - time.monotonic())
        if not ended.done():
            log.warning("%s: the client does not return from sending offsets", self._id)
            self._stuck.append((client, ended))
            self._drop()
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the offsets were not answered"))
        error = ended.result()
        if error is not None:
            raise error

    def _commit(self, client: TxnClient, deadline: float) -> Exception | None:
        """Return nothing once it is committed, or why it is not, and must be undone."""
        # With some time of its own: to be in doubt is dear.
        deadline = max(deadline, time.monotonic() + self._clients.timeout)
        error = caught(partial(repeat, client.producer.commit_transaction, deadline))
        if error is None:
            client.health.recovered()
        elif not error_of(error).txn_requires_abort():
            self._drop()
            raise InDoubtError(text_of(error_of(error))) from error
        return error

    # --- when it fails ---

    def _undo(self, client: TxnClient, outputs: Outputs, error: Exception | None) -> Homeless:
        """Abort; return which messages have no place, or raise what it was."""
        homeless = outputs.homeless()
        if not homeless and self._may_lack_a_topic(outputs, error):
            homeless = self._missing(outputs)
        client.serve()  # it tells what it knows; its successor knows nothing of it
        reason = self._reason_of(client, outputs, error)
        self._abort()
        outputs.forget_failed()
        if homeless:
            return homeless
        raise reason from error

    def _may_lack_a_topic(self, outputs: Outputs, error: Exception | None) -> bool:
        """Tell whether a topic that was deleted meanwhile may be the reason, without its name.

        The client may try one until the time is up (``rd_kafka_txn_handle_AddPartitionsToTxn``).
        """
        errors = [*outputs.failures.values(), *([] if error is None else [error_of(error)])]
        return self._client is not None and any(one.code() in ROUTE | _TIMED_OUT for one in errors)

    def _missing(self, outputs: Outputs) -> Homeless:
        """Return which outputs have no topic now."""
        failed = caught(outputs.look_again)
        if failed is not None:
            log.debug("%s cannot look topics up: %s", self._id, text_of(error_of(failed)))
        return outputs.homeless()

    def _reason_of(
        self, client: TxnClient, outputs: Outputs, error: Exception | None
    ) -> FencedError | ReliableMQError:
        if outputs.failures:
            index, found = next(iter(outputs.failures.items()))
            return self._reason(client, found, f" (topic {outputs.messages[index].topic!r})")
        assert error is not None  # noqa: S101 - one of the two
        found = error_of(error)
        if found.code() in _NOT_A_MEMBER:
            return FencedError(text_of(found))
        return self._reason(client, found)

    def _reason(self, client: TxnClient, found: KafkaError, where: str = "") -> ReliableMQError:
        if client.health.refused:
            return client.health.error(self._doing)
        return translate(found, self._doing + where)

    def _abort(self) -> None:
        """Undo what is open; where this producer cannot, or must not, its successor does."""
        client = self._client
        if client is not None and client.may_begin_another:
            deadline = time.monotonic() + self._clients.options.transaction_timeout
            error = caught(partial(repeat, client.producer.abort_transaction, deadline))
            if error is None:
                return
            log.debug("%s cannot abort: %r", self._id, error)
        self._drop()
        try:
            self.prepare(_PATIENCE)
        except ReliableMQError as error:
            log.debug("%s: what is open is not undone yet: %s", self._id, error)
        return
