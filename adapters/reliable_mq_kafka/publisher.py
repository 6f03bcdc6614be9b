"""Publishing: rounds over one shared producer until every outcome is known or the time is up.

How the promises are kept:

- *Sent* is a delivery report without an error, of an idempotent producer with ``acks=all``; with
  an offset where the broker did not know the producer before. There the client reports what was
  never stored, if only a later request was.
- *Prefix rule.* A partition's messages are stored in the order in which they were handed over,
  and the first one that a broker refuses ends the producer (``enable.gapless.guarantee``), so
  that nothing behind it is stored. For what is on its way already the broker sees to that, but
  only in a partition where it knows the producer: elsewhere of each key the first message goes
  ahead alone. A message that the client itself refuses blocks its key.
- *Nothing later.* Whoever does not have all its reports at its deadline ends the producer:
  what was queued is taken out of it. What a broker has been sent already may still be stored,
  as a copy of what will be sent again before anything younger of its key.
- *One at fault, many refused.* A broker refuses requests, and a request holds many messages.
  After a refusal the messages without an outcome are sent again, each in a request of its own
  and at most one of a key at a time, which finds the one that does not fit.

A producer that was ended by one thread takes the messages of the others with it. They send
theirs again on the next one, within their own time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from confluent_kafka import Producer

from reliable_mq.adapter import Outcome, Refused, Unknown, Unroutable
from reliable_mq.errors import ReliableMQError, TransportError
from reliable_mq.message import Message
from reliable_mq_kafka.config import Clients
from reliable_mq_kafka.drafts import Draft
from reliable_mq_kafka.health import Health
from reliable_mq_kafka.producing import Line
from reliable_mq_kafka.shipments import Shipment

Unsure: TypeAlias = Unknown | Unroutable

_ROUNDS = 5
"""How many producers a publish may use up. Each end of one is rare by itself."""

_SMALLEST_BATCH = 1024
_ALONE = {
    "batch_num_messages": 1,
    "max_in_flight_requests_per_connection": 1,
    # Of a key only one is under way: nothing can be stored behind it.
    "enable_gapless_guarantee": False,
}


class Publisher:
    """Thread-safe: publishes share one producer, and batch together."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._closed = False
        self._batch_bytes = clients.batch_bytes

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        """Return one outcome a message, as :meth:`reliable_mq.adapter.Adapter.publish` says."""
        deadline = time.monotonic() + timeout
        draft = Draft(messages)
        rest: Unsure | None = None
        for _ in range(_ROUNDS):
            if draft.complete or time.monotonic() >= deadline:
                break
            try:
                rest = _combined(rest, self._round(draft, deadline))
            except ReliableMQError as error:
                rest = Unknown(str(error))
                break
        draft.settle_open(rest or Unknown("nothing was sent"))
        return draft.outcomes()

    def tend(self) -> None:
        """Serve an idle producer: what it reports would pile up otherwise."""
        with self._lock:
            line = self._line
            if line is None or line.users:
                return
            line.users += 1
        try:
            line.serve(0)
        finally:
            self._give_back(line)

    def close(self) -> None:
        """End the producer. Publishes under way return; what was not confirmed is unknown."""
        with self._lock:
            self._closed = True
            line = self._retire()
        if line is not None:
            line.give_up()
            self._give_back(line)

    # --- rounds ---

    def _round(self, draft: Draft, deadline: float) -> Unsure:
        """Send what is open; return what to say of what still is."""
        if draft.suspicious:
            return self._one_by_one(draft, deadline)
        line = self._take()
        try:
            topics = {message.topic for message in draft.messages}
            line.look_up(topics, deadline - time.monotonic())
            if not all(map(line.is_primed, topics)):
                first = [head for head in draft.heads() if line.must_prime(head[1])]
                if first:
                    self._send(line, draft, first, deadline, first=True)
            if not draft.complete and line.usable:
                self._send(line, draft, draft.open(), deadline)
            return _left(line)
        finally:
            self._give_back(line)

    def _send(
        self,
        line: Line,
        draft: Draft,
        messages: Iterable[tuple[int, Message]],
        deadline: float,
        *,
        first: bool = False,
    ) -> None:
        shipment = Shipment(line, draft, deadline)
        shipment.send(messages, first=first)
        shipment.settle()

    def _one_by_one(self, draft: Draft, deadline: float) -> Unsure:
        line = Line(lambda health: self._clients.producer(health, **_ALONE))
        try:
            while (heads := draft.heads()) and line.usable and time.monotonic() < deadline:
                shipment = Shipment(line, draft, deadline)
                shipment.send(heads)
                shipment.settle(alone=True)
            if draft.complete and not any(isinstance(o, Refused) for o in draft.outcomes()):
                self._send_smaller_batches()
            return _left(line)
        finally:
            line.close()

    def _send_smaller_batches(self) -> None:
        # Each message fits, all together did not: the topic's limit is below the producer's.
        with self._lock:
            self._batch_bytes = max(_SMALLEST_BATCH, self._batch_bytes // 4)
            old = self._retire()
        if old is not None:
            self._give_back(old)

    # --- the producer ---

    def _take(self) -> Line:
        """Return the shared producer, to be given back."""
        with self._lock:
            if self._closed:
                raise TransportError("the adapter is closed")
            old = self._retire() if self._line is not None and self._line.is_old else None
            if self._line is None or not self._line.usable:
                self._line = Line(self._make)
            line = self._line
            line.users += 1
        if old is not None:
            self._give_back(old)
        return line

    def _retire(self) -> Line | None:
        """Give the shared producer to nobody any more; it is to be given back. Under the lock."""
        old, self._line = self._line, None
        if old is not None:
            old.users += 1
        return old

    def _make(self, health: Health) -> Producer:
        return self._clients.producer(health, batch_size=self._batch_bytes)

    def _give_back(self, line: Line) -> None:
        """Close *line* if this was its last user and it will have no more."""
        with self._lock:
            line.users -= 1
            if line is self._line and not line.usable:
                self._line = None
            is_left = line is not self._line and not line.users
        if is_left:
            line.close()


def _left(line: Line) -> Unsure:
    """Return the outcome of what has none after a round."""
    if line.has_sent_nothing:
        return Unroutable(str(line.health.error("cannot publish")))
    return Unknown(line.health.why() or "the brokers did not confirm it in time")


def _combined(earlier: Unsure | None, found: Unsure) -> Unsure:
    """Return *found*, but nothing that is sure where an earlier round may have sent something."""
    return Unknown(found.cause) if isinstance(earlier, Unknown) else found
