"""The exactly-once group on Kafka, by the records of its topics: each input has one end.

Tables cannot show this: the relay may send a message twice, and then there are two inputs, each
with an output of its own.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from reliable_mq.wire import (
    MESSAGE_ID,
    MESSAGE_TIME,
    ORIGIN_ATTEMPTS,
    ORIGIN_CAUSE,
    ORIGIN_GROUP,
    ORIGIN_ID,
    ORIGIN_TOPIC,
    RESERVED_PREFIX,
)
from tests.nemesis.application import EXACTLY, Arena
from tests.nemesis.recording import number_of

UNDONE_WITHIN = 60.0
"""Seconds in which the brokers undo what a killed process left open: 20, on a quick machine."""
_ANSWER = 60.0
ORIGIN = (ORIGIN_ATTEMPTS, ORIGIN_CAUSE, ORIGIN_GROUP, ORIGIN_ID, ORIGIN_TOPIC)


@dataclass(frozen=True)
class Record:
    """What a client that is not ours reads of a message."""

    number: int
    key: bytes | None
    body: bytes
    headers: Mapping[str, bytes]

    @classmethod
    def of(cls, found: Message) -> Record:
        """Return what the checks look at."""
        body = found.value() or b""
        # A received record has a list of pairs of bytes; the types know of more.
        headers = dict(cast("Iterable[tuple[str, bytes]]", found.headers() or ()))
        return cls(number_of(body), found.key(), body, headers)


@dataclass(frozen=True)
class Exchange:
    """All committed records of the three topics, those of a key in their order."""

    inputs: Sequence[Record]
    outputs: Sequence[Record]
    letters: Sequence[Record]

    def violations(self) -> list[str]:
        """Return a line for everything that must not be."""
        return [*self._ends(), *self._order(), *self._fidelity()]

    def _ends(self) -> Iterator[str]:
        """Each input has one output or one dead letter, and nothing else is there."""
        came, left, dead = map(_counted, (self.inputs, self.outputs, self.letters))
        if lost := came - (left + dead):
            yield f"I1 {EXACTLY}: inputs without an end: {sorted(lost.elements())}"
        if more := (left + dead) - came:
            yield f"I2 {EXACTLY}: ends without an input of their own: {sorted(more.elements())}"
        if both := left.keys() & dead.keys():
            yield f"I5 {EXACTLY}: handled and dead-lettered: {sorted(both)}"

    def _order(self) -> Iterator[str]:
        """Outputs of a key have the order of its inputs; only dead letters leave gaps."""
        dead = _counted(self.letters)
        came, left = map(_by_key, (self.inputs, self.outputs))
        for key, numbers in came.items():
            expected = [number for number in numbers if number not in dead]
            if left[key] != expected:
                yield f"I4 {EXACTLY}: key {key!r} came as {expected} and left as {left[key]}"

    def _fidelity(self) -> Iterator[str]:
        sent = {record.number: record for record in self.inputs}
        for letter in self.letters:
            if letter.number not in sent:
                continue  # has a line already
            if letter.body != sent[letter.number].body:
                yield f"I6 {EXACTLY}: the body of dead letter {letter.number} has changed"
            if _own(letter) != _own(sent[letter.number]):
                yield f"I6 {EXACTLY}: dead letter {letter.number} has the headers {_own(letter)}"
            if any(not letter.headers.get(name) for name in ORIGIN):
                yield f"I6 {EXACTLY}: dead letter {letter.number} has no cause or no source"


def exchanged(arena: Arena, bootstrap: str) -> Exchange:
    """Read the topics of the group."""
    topics = (arena.cell, f"{arena.cell}.out", f"{arena.cell}.{EXACTLY}.dlq")
    inputs, outputs, letters = (
        [Record.of(found) for found in _committed(bootstrap, topic)] for topic in topics
    )
    return Exchange(inputs, outputs, letters)


def _committed(bootstrap: str, topic: str) -> Iterator[Message]:
    """Give what is committed before the first open transaction, each partition's in its order."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "nobody",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    try:
        left = set(consumer.list_topics(topic, timeout=_ANSWER).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, one, OFFSET_BEGINNING) for one in left])
        while left:
            found = consumer.poll(_ANSWER)
            if found is None:
                raise TimeoutError(f"Kafka gives nothing of {topic} within {_ANSWER:g} s")
            if (error := found.error()) is None:
                yield found
            elif error.code() == KafkaError._PARTITION_EOF:
                left.discard(found.partition())
    finally:
        consumer.close()


def broken_promises(arena: Arena, bootstrap: str) -> list[str]:
    """Return the violations that are left when nothing can be open any more."""
    deadline = time.monotonic() + UNDONE_WITHIN
    while (found := exchanged(arena, bootstrap).violations()) and time.monotonic() < deadline:
        time.sleep(1.0)
    return found


def _counted(records: Iterable[Record]) -> Counter[int]:
    return Counter(record.number for record in records)


def _by_key(records: Iterable[Record]) -> dict[bytes, list[int]]:
    """Return the numbers of each key, in their order."""
    found: dict[bytes, list[int]] = defaultdict(list)
    for record in records:
        if record.key is not None:
            found[record.key].append(record.number)
    return found


def _own(record: Record) -> dict[str, bytes]:
    """Return the headers that a dead letter shares with its message."""
    return {
        name: value
        for name, value in record.headers.items()
        if name not in (MESSAGE_ID, MESSAGE_TIME) and not name.startswith(RESERVED_PREFIX)
    }
