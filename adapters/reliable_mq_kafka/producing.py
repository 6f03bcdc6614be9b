"""One producer, shared by the publishes under way, until something is wrong with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaException, Producer

from reliable_mq.message import Message
from reliable_mq.partitioning import partition_for
from reliable_mq_kafka.errors import error_of
from reliable_mq_kafka.health import Health

_SLICE = 0.1
_LOOK = 0.3
_PURGE = 1.0
_LIFETIME = 1800.0
"""Seconds; far below the day after which a broker forgets a producer that was silent."""


class Line:
    """A producer and what is known of it. Thread-safe.

    *Primed* is a partition in which a broker has stored a message of this producer. Only there
    does it refuse a request that does not follow the one before. What a producer sends first, or
    after the broker forgot it (``producer.id.expiration.ms``, a day), it takes with any number:
    requests behind a refused one too. Hence nothing may be sent behind a message of an unprimed
    partition before that is confirmed, and a producer must not grow old.

    Delivery reports are served by whichever thread polls: one of those that wait polls for all,
    the others sleep until it wakes them. Once all of its users have given it up it stores nothing
    more: what it still held comes back as errors. Whoever wants to publish takes a new one.
    """

    def __init__(self, make: Callable[[Health], Producer]) -> None:
        self.health = Health()
        self.producer = make(self.health)
        self.users = 0
        """How many publishes use it; counted by their owner, under its lock."""
        self._gate = threading.Lock()
        self._retires_at = time.monotonic() + _LIFETIME
        self._partitions: dict[str, int] = {}
        self._primed: dict[str, set[int]] = {}
        self._confirmed = False
        self._given_up = threading.Event()
        self._turn = threading.Condition()
        self._polled = False

    @property
    def usable(self) -> bool:
        """Tell whether messages may be given to it."""
        return not self._given_up.is_set()

    @property
    def is_old(self) -> bool:
        """Tell whether another one should take its place."""
        return time.monotonic() >= self._retires_at

    @property
    def hopeless(self) -> bool:
        """Tell whether the brokers refuse this client, so that waiting for them is in vain."""
        return self.health.refused and not self._confirmed

    @property
    def has_sent_nothing(self) -> bool:
        """Tell whether nothing can have been stored: the brokers gave this user no producer id."""
        return self.health.has_no_id and not self._confirmed

    def confirm(self) -> None:
        """Note that a broker has confirmed a message."""
        self._confirmed = True
        self.health.recovered()

    def produce(self, *record: Any) -> None:
        """Hand a record to the client; ``BufferError`` where it has no room, or was given up.

        What stood before it of its key may have been taken out then, and it would be sent.
        """
        with self._gate:
            if self._given_up.is_set():
                raise BufferError("given up")
            self.producer.produce(*record)

    # --- topics ---

    def look_up(self, topics: Iterable[str], patience: float) -> None:
        """Ask a broker for those of *topics* that are not known to exist.

        Makes the first message of a new producer ten times as fast: librdkafka looks for its id
        every half a second otherwise. And lets it know at once that a missing topic exists now.
        Whether there is an answer does not matter here: the messages will tell.
        """
        until = time.monotonic() + min(patience, _LOOK)
        for topic in topics:
            left = until - time.monotonic()
            if topic in self._partitions or left <= 0:
                continue
            with suppress(KafkaException):
                found = self.producer.list_topics(topic, timeout=left).topics[topic]
                if found.error is None:
                    self._partitions[topic] = len(found.partitions)

    def forget(self, topic: str) -> None:
        """Note that a topic does not exist (any more): what comes of its name is another log."""
        self._partitions.pop(topic, None)
        self._primed.pop(topic, None)

    def prime(self, topic: str, partition: int) -> None:
        """Note that a broker has stored a message in a partition."""
        self._primed.setdefault(topic, set()).add(partition)

    def knows(self, topic: str | None, partition: int | None) -> bool:
        """Tell whether a partition is primed."""
        return topic is not None and partition in self._primed.get(topic, ())

    def is_primed(self, topic: str) -> bool:
        """Tell whether every partition of *topic* is primed."""
        partitions = self._partitions.get(topic)
        return partitions is not None and len(self._primed.get(topic, ())) >= partitions

    def must_prime(self, message: Message) -> bool:
        """Tell whether nothing of its key may follow *message* before that is confirmed."""
        if message.key is None:
            return False
        partitions = self._partitions.get(message.topic)
        if partitions is None:
            return True
        # What is not UTF-8 the client refuses; where it would have gone does not matter.
        partition = partition_for(message.key.encode(errors="surrogatepass"), partitions)
        return not self.knows(message.topic, partition)

    # --- reports ---

    def serve(self, seconds: float) -> None:
        """Run the callbacks of what has ended, waiting up to *seconds* for the first."""
        try:
            # Longer waits are cut into pieces by the client and do not end with the first.
            self.producer.poll(min(seconds, _SLICE))
        except KafkaException as error:
            # A fatal error comes out of poll: nothing can be sent on this producer any more.
            self.health.on_error(error_of(error))
            self.give_up()

    def wait(self, done: Callable[[], bool], deadline: float) -> None:
        """Serve until *done*, or it is given up, or the time is up."""
        while not done() and self.usable:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            if self._take_turn(left):
                try:
                    self.serve(left)
                finally:
                    self._end_turn()

    def _take_turn(self, patience: float) -> bool:
        """Return whether it is this thread that polls; else wait until another one has polled."""
        with self._turn:
            if self._polled:
                self._turn.wait(min(patience, _SLICE))
                return False
            self._polled = True
            return True

    def _end_turn(self) -> None:
        with self._turn:
            self._polled = False
            self._turn.notify_all()

    # --- the end ---

    def give_up(self) -> None:
        """Take everything out of the producer: it comes back with errors, nothing is sent later.

        What a broker has already been sent may still be stored; its outcome is unknown. Nothing
        is handed over any more.
        """
        with self._gate:
            self._given_up.set()
        self.producer.purge()

    def give_up_broken(self, deadline: float) -> None:
        """The same where the client takes no message any more: hear first what broke it.

        The client refuses messages a moment before it tells why.
        """
        deadline = min(deadline, time.monotonic() + _PURGE)
        while self.usable and time.monotonic() < deadline:
            self.serve(0.01)
        self.give_up()

    def collect(self, done: Callable[[], bool]) -> None:
        """After :meth:`give_up`: run the callbacks of what was taken out."""
        deadline = time.monotonic() + _PURGE
        while not done() and time.monotonic() < deadline:
            self.serve(0.01)

    def close(self) -> None:
        """End it; nobody uses it any more."""
        self.give_up()
        self.collect(lambda: len(self.producer) == 0)
        # Its own close() would wait without a bound for what could not be taken out.
        del self.producer
