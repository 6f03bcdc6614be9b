"""Publishing: one transaction a call, which stores all that can be stored."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from sqlalchemy import Connection
from sqlalchemy.exc import DataError

from reliable_mq.adapter import SENT, Outcome, Refused, Unknown, Unroutable
from reliable_mq.crashpoints import crash_point
from reliable_mq.errors import (
    ConfigurationError,
    MessageTooLargeError,
    ReliableMQError,
    TransportError,
)
from reliable_mq.message import Message
from reliable_mq.partitioning import partition_for
from reliable_mq_sql.appending import Entry, Log, TopicChanged
from reliable_mq_sql.database import Database
from reliable_mq_sql.rows import why_refused
from reliable_mq_sql.topology import TopicRow, Topology

Check = Callable[[], None]


class _Draft:
    """The outcomes of one call as they become known, under the prefix rule."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self._outcomes: dict[int, Outcome] = {}
        self._not_stored: dict[tuple[str, str], int] = {}

    def open(self) -> Iterator[tuple[int, Message]]:
        """Yield what has no outcome yet; what follows a message not stored is settled here."""
        for index, message in enumerate(self.messages):
            if index in self._outcomes:
                continue
            if self._follows_one_not_stored(index, message):
                self.settle(index, Unknown("an earlier message of its key was not stored"))
            else:
                yield index, message

    def _follows_one_not_stored(self, index: int, message: Message) -> bool:
        if message.key is None:
            return False
        return index > self._not_stored.get((message.topic, message.key), index)

    def settle(self, index: int, outcome: Outcome) -> None:
        """Note an outcome."""
        self._outcomes[index] = outcome
        message = self.messages[index]
        if outcome != SENT and message.key is not None:
            place = (message.topic, message.key)
            self._not_stored[place] = min(index, self._not_stored.get(place, index))

    def settle_all(self, outcome: Outcome) -> None:
        """Note the same outcome for what has none."""
        for index in range(len(self.messages)):
            self._outcomes.setdefault(index, outcome)

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes, one a message."""
        return [self._outcomes[index] for index in range(len(self.messages))]


class Publisher:
    """Publishes to the log. Thread-safe."""

    def __init__(self, database: Database, topology: Topology, max_body: int) -> None:
        self._database = database
        self._topology = topology
        self._log = Log(database)
        self._max_body = max_body
        self._turns: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        """See ``Adapter.publish``."""
        draft = _Draft(messages)
        end = time.monotonic() + timeout
        for index, message in draft.open():
            reason = why_refused(message, self._max_body)
            if reason is not None:
                draft.settle(index, Refused(reason))
        try:
            self._database.within(timeout, lambda check: self._store(draft, end, check))
        except ConfigurationError as error:
            draft.settle_all(Unroutable(str(error)))
        except TransportError as error:
            draft.settle_all(Unknown(str(error)))
        except TopicChanged:
            draft.settle_all(Unroutable("a topic lacks partitions: declare it again"))
        return draft.outcomes()

    def _store(self, draft: _Draft, end: float, check: Check) -> None:
        try:
            self._store_once(draft, end, check)
        except TopicChanged:
            # Somebody dropped or remade a topic: it was looked up anew, and is now as it is.
            self._store_once(draft, end, check)

    def _store_once(self, draft: _Draft, end: float, check: Check) -> None:
        topics = self._topology.find({message.topic for _, message in draft.open()})
        for index, message in draft.open():
            if message.topic not in topics:
                reason = f"topic {message.topic!r} does not exist: declare it"
                draft.settle(index, Unroutable(reason))
        entries = [self._entry(index, message, topics) for index, message in draft.open()]
        try:
            self._store_together(draft, entries, end, check)
        except TopicChanged:
            self._topology.forget(topics)
            raise

    def _entry(self, index: int, message: Message, topics: Mapping[str, TopicRow]) -> Entry:
        partitions = topics[message.topic].partitions
        if message.key is None:
            partition = next(self._turns[message.topic]) % partitions
        else:
            partition = partition_for(message.key.encode(), partitions)
        return Entry(index, message, (message.topic, partition))

    def _store_together(
        self, draft: _Draft, entries: Sequence[Entry], end: float, check: Check
    ) -> None:
        if not entries:
            return
        try:
            self._write(entries, end, check)
        except ReliableMQError as error:
            reason = _lasting(error)
            if reason is None:
                raise
            self._store_one_by_one(draft, entries, reason, end, check)
        else:
            for entry in entries:
                draft.settle(entry.index, SENT)

    def _store_one_by_one(
        self, draft: _Draft, entries: Sequence[Entry], reason: str, end: float, check: Check
    ) -> None:
        """Find the message that the database cannot hold, without blocking the others."""
        if len(entries) == 1:
            draft.settle(entries[0].index, Refused(reason))
            return
        by_index = {entry.index: entry for entry in entries}
        for index, _ in draft.open():
            if index in by_index:
                self._store_together(draft, [by_index[index]], end, check)

    def _write(self, entries: Sequence[Entry], end: float, check: Check) -> None:
        def work(connection: Connection) -> None:
            self._log.append(connection, entries)
            crash_point("publish.unconfirmed")
            check()

        patience = max(0.0, end - time.monotonic())
        self._database.write(work, patience=patience, limits_itself=True)
        crash_point("publish.answered")


def _lasting(error: ReliableMQError) -> str | None:
    """Return why the database will never take a message; None where it may."""
    if isinstance(error, MessageTooLargeError):
        return str(error)
    lasts = isinstance(error.__cause__, DataError)
    return "the database cannot hold this message" if lasts else None
