"""The library without its threads: processes made of the real parts, which a test steps.

Real are the relay, the group consumers with their processors and schedulers, the retry loop, the
store (SQLite) and the memory broker. Not real: the threads, the clock, and death. A process dies
by an exception at a crash point that nothing catches; the test drops its objects, and the broker
notices the lost connection. What a real death leaves of a transaction, nothing, the rollback of
an exception leaves too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, event, insert, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from reliable_mq import Delivery, Reject, ReliableMQ, Settings, crashpoints
from reliable_mq.adapter import Subscription
from reliable_mq.consumer import group, retry_loop, scheduler
from reliable_mq.consumer.group import GroupConsumer
from reliable_mq.consumer.lanes import SyncLane
from reliable_mq.errors import ReliableMQError
from reliable_mq.message import new_message_id
from reliable_mq.relay import Relay
from reliable_mq.service import Service
from reliable_mq.testing import FakeClock
from reliable_mq.testing.memory import MemoryAdapter, MemoryBroker
from tests.sweep.application import HEADERS, RETRY, Job, effect, marker, metadata

TOPIC = "jobs"
PARTITIONS = 2
GROUPS = ("ordered", "batch", "single")
CELL = "model"


class Crash(BaseException):
    """The death of a process."""


class Fuse:
    """What is armed at crash points in place of a SIGKILL."""

    def __init__(self, point: str, passages: int) -> None:
        self._point = point
        self._left = passages

    def passed(self, point: str) -> None:
        """Raise at the last passage."""
        if point == self._point:
            self._left -= 1
            if not self._left:
                raise Crash(point)


class World:
    """One database, one broker, one application; emptied for each schedule."""

    def __init__(self, folder: Path) -> None:
        settings = Settings(
            broker_url="memory://model",
            database_url=f"sqlite:///{folder / 'model.db'}",
            retry=RETRY,
            relay={"lease": 3, "publish_timeout": 2, "batch_size": 3},  # type: ignore[arg-type]
            consumer={"lease": 2, "prefetch": 8},  # type: ignore[arg-type]
        )
        self.mq = ReliableMQ(settings)
        self.clock = FakeClock()
        runtime = self.mq._open(settings, clock=self.clock, now=self.clock.expression)
        self.mq._runtime = self.runtime = runtime
        assert isinstance(runtime.adapter, MemoryAdapter)
        self.adapter: MemoryAdapter = runtime.adapter
        self.store = runtime.store
        self.calls: list[dict[str, Any]] = []
        self.commit_faults: list[bool] = []
        """For the commits that come: whether they are applied before they fail."""
        self._register()
        self.mq.declare()
        self._hurry()
        metadata.create_all(self.store.engine)
        self._break_commits()

    def _register(self) -> None:
        topic = self.mq.topic(TOPIC, Job, partitions=PARTITIONS)

        def handle(job: Job, session: Session, delivery: Delivery) -> None:
            self._attempt(job, delivery)
            session.execute(
                insert(effect).values(cell=CELL, consumer_group=delivery.group, number=job.number)
            )

        self.mq.handler(topic, group="ordered", ordered=True, concurrency=2)(handle)
        self.mq.handler(topic, group="batch", transaction_size=3)(handle)
        self.mq.handler(topic, group="single")(handle)

    def _attempt(self, job: Job, delivery: Delivery) -> None:
        line = {
            "group": delivery.group,
            "number": job.number,
            "attempt": delivery.attempt,
            "t": self.clock.monotonic(),
        }
        self.calls.append({"what": "call", **line})
        if job.rejected:
            raise Reject("never")
        if delivery.attempt <= job.fails:
            self.calls.append({"what": "fail", **line})
            raise ValueError(f"attempt {delivery.attempt}")

    def _hurry(self) -> None:
        """Do not wait for the disk: whoever dies here leaves the operating system alive."""

        @event.listens_for(self.store.engine, "connect")
        def no_sync(connection: Any, _: object) -> None:
            connection.execute("PRAGMA synchronous=OFF")

        self.store.engine.dispose()

    def _break_commits(self) -> None:
        dialect: Any = self.store.engine.dialect
        commit, rollback = dialect.do_commit, dialect.do_rollback

        def do_commit(connection: Any) -> None:
            if not self.commit_faults:
                commit(connection)
                return
            applied = self.commit_faults.pop(0)
            (commit if applied else rollback)(connection)
            raise sqlite3.OperationalError("disk I/O error, as told")

        dialect.do_commit = do_commit

    @property
    def broker(self) -> MemoryBroker:
        """The broker of this schedule."""
        return self.adapter.broker

    def empty(self) -> None:
        """Begin anew: no rows, no messages, nobody's leases."""
        self.calls.clear()
        self.heal()
        self.adapter.broker = MemoryBroker()
        with self.store.transaction() as connection:
            for table in (*metadata.sorted_tables, *self._tables()):
                connection.execute(delete(table))
        self.mq.declare()

    def _tables(self) -> list[Any]:
        tables = self.store.tables
        return [
            tables.outbox,
            tables.outbox_held,
            tables.inbox,
            tables.retry,
            tables.dead_letter,
            tables.lease,
        ]

    def heal(self) -> None:
        """End every fault."""
        crashpoints.arm(None)
        self.commit_faults.clear()
        broker = self.adapter.broker
        broker.up()
        broker.accept(TOPIC)
        broker.duplicate(0)
        broker._unknown.clear()
        broker._lost_acks.clear()

    # --- producing ----------------------------------------------------------------------------

    def produce(self, jobs: list[Job], *, commits: bool) -> bool:
        """Publish *jobs* in one transaction; tell whether it is known to be committed."""
        try:
            with self.store.transaction() as connection:
                for job in jobs:
                    self.mq.publish(TOPIC, job, key=job.key, headers=HEADERS, session=connection)
                    connection.execute(insert(marker).values(cell=CELL, number=job.number))
                if not commits:
                    raise _RolledBackError
        except (_RolledBackError, DBAPIError, Crash):
            return False
        return True

    def numbers(self, table: Any, *conditions: Any) -> list[int]:
        """Return what is in one of the application's tables, in the order of the inserts."""
        query = select(table.c.number).where(*conditions).order_by(table.c.id)
        with self.store.engine.connect() as connection:
            return list(connection.scalars(query))


class _RolledBackError(Exception):
    pass


class Process:
    """Relay, consumers and retry loop of one process."""

    def __init__(self, world: World) -> None:
        world.runtime.instance = new_message_id()
        mq = world.mq
        self._service = Service(
            world.runtime,
            mq.settings,
            mq.events,
            mq.handlers,
            relay=True,
            around=None,
            application=mq,
        )
        assert self._service.relay is not None
        assert self._service.retries is not None
        self.relay: Relay = self._service.relay
        self.retries = self._service.retries
        self.consumers: dict[str, GroupConsumer] = {
            one.spec.group: one for one in self._service.consumers
        }
        self._subscriptions: dict[str, Subscription] = {}

    def send(self) -> None:
        """One round of the relay."""
        self.relay.step()

    def take_in(self, name: str) -> None:
        """Acknowledge what has ended, and receive: one turn of an intake thread."""
        consumer = self.consumers[name]
        if name not in self._subscriptions:
            self._subscriptions[name] = consumer._subscribe()
        consumer._turn(self._subscriptions[name])

    def work(self, name: str) -> bool:
        """Do what a worker takes at a time; False where there is nothing."""
        consumer = self.consumers[name]
        work, _ = consumer.scheduler.try_take()
        if work is not None:
            consumer._work(work)
        return work is not None

    def retry(self) -> None:
        """One round of the retry loop."""
        self.retries._round()

    def die(self) -> None:
        """Leave without a word; the broker notices that the connections are gone."""
        for subscription in self._subscriptions.values():
            subscription.close()

    def do(self, step: Callable[[], object]) -> None:
        """Do *step*; the errors are those after which the threads go on. Only a crash leaves."""
        try:
            step()
        except (DBAPIError, ReliableMQError):
            return


class _FakeTime:
    """The module ``time``, as far as the parts look at it."""

    def __init__(self, clock: FakeClock) -> None:
        self.monotonic = clock.monotonic


@contextmanager
def threadless(world: World) -> Iterator[None]:
    """Let the parts look at the clock of the test, wait for nothing, and die where told."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (scheduler, retry_loop):
            patch.setattr(module, "time", _FakeTime(world.clock))
        patch.setattr(group, "RECEIVE_TIMEOUT", 0.0)
        patch.setattr(SyncLane, "ends_with", lambda _, error: isinstance(error, Crash))
        try:
            yield
        finally:
            crashpoints.arm(None)
