"""Several processes beside each other, and many rows that wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from benchmarks.bench import Bench, Contestant, Figures, Row
from benchmarks.brokers import kafka
from benchmarks.goals import at_least, at_most
from benchmarks.lab import connect
from benchmarks.ours.application import prepare
from benchmarks.outbox import Outboxes
from benchmarks.processes import Child
from benchmarks.progress import together
from benchmarks.rows.relay import KEYS, OnKafka
from benchmarks.tally import Tally

_START = 120.0
_PATIENCE = 300.0
_LOOK_EVERY = 0.1
PROCESSES = (1, 2, 4)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not done within {_PATIENCE:g} s")
        time.sleep(_LOOK_EVERY)


class _Field:
    """A database, Kafka, and processes of the library between them."""

    def __init__(self, bench: Bench, database: str, connection: Any) -> None:
        self.bench = bench
        self.database = database
        self.broker = bench.lab.url("kafka")
        self.connection = connection

    def topic(self) -> OnKafka:
        """Return a new topic."""
        topic = OnKafka(self.broker, self.bench.lab.unique("scale"))
        prepare(**self.where(topic))
        return topic

    def where(self, topic: OnKafka) -> dict[str, Any]:
        """Return where processes find everything."""
        return {
            "database_url": self.database,
            "broker_url": self.broker,
            "topic": topic.topic,
            "partitions": topic.partitions,
        }

    @contextmanager
    def processes(self, name: str, side: str, number: int, **task: Any) -> Iterator[list[Child]]:
        """Start so many processes; all are running in the block."""
        with ExitStack() as stack:
            children = [
                stack.enter_context(self.bench.child(name, side, **task)) for _ in range(number)
            ]
            for child in children:
                child.expect("ready", _START)
                child.go()
            for child in children:
                child.expect("running", _START)
            yield children

    def end(self, children: list[Child]) -> list[dict[str, Any]]:
        """Stop the processes; return what they report."""
        for child in children:
            child.go()
        return [child.expect("result", _START) for child in children]

    def lease_holders(self) -> int:
        """Return how many relays hold slots."""
        query = "SELECT count(DISTINCT owner) FROM reliable_mq_lease WHERE kind = 'relay'"
        return self._number(query)

    def wait_until_sent(self, topic: OnKafka, count: int) -> None:
        """Return once so many messages are on Kafka.

        Kafka is asked: to count the rows that wait takes the database as long as to send them.
        """
        _until(lambda: kafka.stored(self.broker, topic.topic) >= count)

    def waiting(self) -> int:
        """Return how many rows wait."""
        return self._number("SELECT count(*) FROM reliable_mq_outbox")

    def _number(self, query: str) -> int:
        found = int(self.connection.execute(query).fetchone()[0])
        self.connection.commit()
        return found


class _ScaleRow(Row):
    @contextmanager
    def open(self, bench: Bench, count: int) -> Iterator[list[Contestant]]:
        with bench.lab.database() as database, connect(database) as connection:
            field = _Field(bench, database, connection)
            field.topic().remove()
            yield self.contestants(field, count)

    def contestants(self, field: _Field, count: int) -> list[Contestant]:
        """Return who takes part."""
        raise NotImplementedError


class RelayProcesses(_ScaleRow):
    """One outbox, several relays."""

    name = "relay-processes"
    title = "1, 2 and 4 relay processes on one outbox, to Kafka"
    unit = "rows/s"
    count, short_count = 200_000, 40_000
    goals = (at_least(1.3, "ours 2", "ours 1"),)

    def contestants(self, field: _Field, count: int) -> list[Contestant]:
        outboxes = Outboxes(field.connection, count, KEYS)

        def measure(number: int, count: int) -> Figures:
            topic = field.topic()
            side, name = "benchmarks.ours.relay:share", f"ours {number}"
            with field.processes(name, side, number, **field.where(topic)) as children:
                _until(lambda: field.lease_holders() == number)
                outboxes.fill_at_once(topic.topic)
                field.wait_until_sent(topic, count)
                _until(lambda: field.waiting() == 0)
                figures = together(field.end(children))
            Tally.of(topic.read(count), count, KEYS).check(ordered=True)
            topic.remove()
            return figures

        return [Contestant(name=f"ours {n}", measure=partial(measure, n)) for n in PROCESSES]


class ConsumerProcesses(_ScaleRow):
    """One topic, several consumers of a group."""

    name = "consumer-processes"
    title = "1, 2 and 4 consumer processes of a group, from Kafka, at least once"
    count, short_count = 200_000, 40_000

    def contestants(self, field: _Field, count: int) -> list[Contestant]:
        def measure(number: int, count: int) -> Figures:
            topic = field.topic()
            group = field.bench.lab.unique("group")
            side, name = "benchmarks.ours.consume:share", f"ours {number}"
            where = field.where(topic)
            with field.processes(name, side, number, group=group, **where) as children:
                kafka.wait_for_members(field.broker, group, number)
                kafka.fill_at_once(field.broker, topic.topic, count, KEYS)
                _until(lambda: kafka.outstanding(field.broker, topic.topic, group) <= _MARKERS)
                reports = field.end(children)
            Tally.of((n for one in reports for n in one["numbers"]), count).check()
            topic.remove()
            return together(reports)

        return [Contestant(name=f"ours {n}", measure=partial(measure, n)) for n in PROCESSES]


_MARKERS = kafka.PARTITIONS
"""The end of the transaction that filled the topic is an offset too, one a partition."""


class Backlog(_ScaleRow):
    """Rows that wait must not make those dearer that are sent."""

    name = "backlog"
    title = "relay to Kafka while many rows wait: cost per row"
    unit = "rows/s"
    count, short_count = 1_000_000, 200_000
    goals = tuple(
        at_most(1.3, f"ours {waiting:,} waiting", "ours 10,000 waiting", figure="cost_us")
        for waiting in (100_000, 1_000_000)
    )
    _SENT = 50_000
    _LEAST = 10_000

    def contestants(self, field: _Field, count: int) -> list[Contestant]:
        outboxes = Outboxes(field.connection, self._LEAST, KEYS)

        def measure(waiting: int, _count: int, *, snapshot: bool = False) -> Figures:
            topic = field.topic()
            outboxes.empty()
            outboxes.fill_at_once(topic.topic, waiting // self._LEAST)
            side, name = "benchmarks.ours.relay:share", f"ours {waiting:,} waiting"
            sent = min(waiting, self._SENT)
            with ExitStack() as stack:
                if snapshot:
                    old = stack.enter_context(connect(field.database))
                    old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                    old.execute("SELECT count(*) FROM reliable_mq_lease")
                with field.processes(name, side, 1, **field.where(topic)) as children:
                    field.wait_until_sent(topic, sent)
                    figures = together(field.end(children))
            outboxes.empty()
            topic.remove()
            return figures

        sizes = sorted({self._LEAST, min(count, 100_000), count})
        found = [
            Contestant(name=f"ours {size:,} waiting", measure=partial(measure, size))
            for size in sizes
        ]
        held = Contestant(
            name=f"ours {sizes[-1]:,} waiting, old snapshot held",
            measure=partial(measure, sizes[-1], snapshot=True),
            note="a transaction elsewhere keeps every deleted row; no goal",
        )
        return [*found, held]


ROWS = (RelayProcesses, ConsumerProcesses, Backlog)
