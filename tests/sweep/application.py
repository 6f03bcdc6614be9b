"""The application whose processes are killed: what it publishes, handles and leaves behind."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, insert
from sqlalchemy.orm import Session

from reliable_mq import Delivery, Reject, ReliableMQ, RetryPolicy, Settings

MAX_ATTEMPTS = 3
RETRY_DELAY = 0.3
RETRY = RetryPolicy(
    max_attempts=MAX_ATTEMPTS,
    initial_delay=RETRY_DELAY,
    max_delay=RETRY_DELAY,
    multiplier=1,
    jitter=0,
)
PARTITIONS = 4
HEADERS = {"x-sweep": "ünïcode, kept as it is"}

metadata = MetaData()
_number = BigInteger().with_variant(Integer, "sqlite")
effect = Table(
    "sweep_effect",
    metadata,
    Column("id", _number, primary_key=True),  # and no unique key: what is twice has to show
    Column("cell", String(100), nullable=False),
    Column("consumer_group", String(20), nullable=False),
    Column("number", Integer, nullable=False),
)
marker = Table(
    "sweep_marker",
    metadata,
    Column("id", _number, primary_key=True),
    Column("cell", String(100), nullable=False),
    Column("number", Integer, nullable=False),
)


class Job(BaseModel):
    """One message. Its *number* is unique, and rises with the order of its key."""

    number: int
    key: str | None = None
    fails: int = 0
    """How many attempts fail."""
    rejected: bool = False
    twin: bool = False
    """Whether another one has the same message id, and another body."""
    slow: float = 0.0
    """Seconds that the handler takes."""


class InjectedError(Exception):
    """A failure on purpose."""


@dataclass(frozen=True)
class Place:
    """Where a cell lives; as JSON it goes to the process that is killed."""

    cell: str
    broker_url: str
    database_url: str
    folder: str
    kind: str = "plain"

    def settings(self) -> Settings:
        """Settings with which a dead process is noticed within seconds."""
        return Settings(
            broker_url=self.broker_url,
            database_url=self.database_url,
            table_prefix=f"{self.cell}_",
            retry=RETRY,
            relay={"lease": 3, "publish_timeout": 2, "poll_interval": 0.2},  # type: ignore[arg-type]
            consumer={  # type: ignore[arg-type]
                "lease": 2,
                "idle_in_transaction": 5,
                "shutdown_timeout": 10,
            },
        )


class History:
    """What processes did, as JSON lines: each one unbuffered write, which a SIGKILL leaves."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "history"

    def note(self, what: str, **values: Any) -> None:
        """Append a line."""
        line = json.dumps({"t": time.monotonic(), "pid": os.getpid(), "what": what, **values})
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, line.encode() + b"\n")
        os.close(descriptor)

    def lines(self, what: str) -> list[dict[str, Any]]:
        """Return the lines of this kind."""
        if not self._path.exists():
            return []
        lines = map(json.loads, self._path.read_text().splitlines())
        return [line for line in lines if line["what"] == what]


def build(place: Place) -> ReliableMQ:
    """Return the application."""
    mq = ReliableMQ(place.settings())
    _HANDLERS[place.kind](mq, place)
    return mq


def _plain(mq: ReliableMQ, place: Place) -> None:
    jobs = mq.topic(place.cell, Job, partitions=PARTITIONS)
    history = History(Path(place.folder))

    @mq.handler(jobs, group="ordered", ordered=True, concurrency=2)
    def in_order(job: Job, session: Session, delivery: Delivery) -> None:
        with _attempt(history, job, delivery):
            _leave(session, place, "ordered", job)

    @mq.handler(jobs, group="batch", transaction_size=4)
    def together(job: Job, session: Session, delivery: Delivery) -> None:
        with _attempt(history, job, delivery):
            _leave(session, place, "batch", job)

    @mq.handler(f"{place.cell}.ordered.dlq", group="graves")
    def bury(job: Job, session: Session) -> None:
        _leave(session, place, "graves", job)


def _least(mq: ReliableMQ, place: Place) -> None:
    history = History(Path(place.folder))

    @mq.handler(
        mq.topic(place.cell, Job, partitions=PARTITIONS), group="least", guarantee="at-least-once"
    )
    def at_least_once(job: Job, delivery: Delivery) -> None:
        with _attempt(history, job, delivery):
            history.note("done", group="least", number=job.number)


def _most(mq: ReliableMQ, place: Place) -> None:
    history = History(Path(place.folder))

    @mq.handler(
        mq.topic(place.cell, Job, partitions=PARTITIONS), group="most", guarantee="at-most-once"
    )
    def at_most_once(job: Job, delivery: Delivery) -> None:
        with _attempt(history, job, delivery):
            history.note("done", group="most", number=job.number)


def _exactly(mq: ReliableMQ, place: Place) -> None:
    history = History(Path(place.folder))
    outputs = mq.topic(f"{place.cell}.out", Job, partitions=PARTITIONS)

    @mq.handler(
        mq.topic(place.cell, Job, partitions=PARTITIONS), group="exactly", guarantee="exactly-once"
    )
    def exactly_once(job: Job, delivery: Delivery) -> None:
        with _attempt(history, job, delivery):
            mq.publish(outputs, job, key=job.key)

    @mq.handler(f"{place.cell}.exactly.dlq", group="graves")
    def bury(job: Job, session: Session) -> None:
        _leave(session, place, "graves", job)

    @mq.handler(outputs, group="reader")
    def read(job: Job, session: Session) -> None:
        _leave(session, place, "reader", job)


_HANDLERS = {"plain": _plain, "least": _least, "most": _most, "exactly": _exactly}


class _attempt:  # noqa: N801 - reads as a block
    """Notes the beginning of an attempt and how it ended; lets it fail if its job says so."""

    def __init__(self, history: History, job: Job, delivery: Delivery) -> None:
        self._history = history
        self._job = job
        self._about = {
            "group": delivery.group,
            "number": job.number,
            "attempt": delivery.attempt,
        }

    def __enter__(self) -> None:
        job, attempt = self._job, self._about["attempt"]
        self._history.note("call", **self._about)
        threading.Event().wait(job.slow)
        if job.rejected:
            raise Reject("never")
        if isinstance(attempt, int) and attempt <= job.fails:
            self._history.note("fail", **self._about)
            raise InjectedError(f"attempt {attempt}")

    def __exit__(self, *_: object) -> None:
        return None


def _leave(session: Session, place: Place, group: str, job: Job) -> None:
    session.execute(insert(effect).values(cell=place.cell, consumer_group=group, number=job.number))


# --- what is published ------------------------------------------------------------------------

ROLLED_BACK = (901, 902)
UNCOMMITTED = (911, 912)


_FATES: tuple[tuple[str | None, dict[str, Any]], ...] = (
    ("a", {}),
    ("a", {"fails": 1}),
    ("a", {}),
    ("a", {}),
    ("a", {}),
    ("b", {}),
    ("b", {"rejected": True}),
    ("b", {"fails": 2}),
    ("b", {}),
    ("b", {}),
    ("c", {"fails": 99}),
    ("c", {}),
    ("c", {"twin": True}),
    ("c", {"twin": True}),
    (None, {}),
    (None, {}),
    (None, {"fails": 1}),
)


def workload(*, slow: float = 0.0, healthy: bool = False) -> list[Job]:
    """Return jobs of every fate, handled at once or later, rejected, failing to the end.

    The *healthy* all succeed at once.
    """
    return [
        Job(number=number, key=key, slow=slow, **({} if healthy else fate))
        for number, (key, fate) in enumerate(_FATES)
    ]


def chunks(jobs: list[Job]) -> Iterator[list[Job]]:
    """The jobs of each transaction."""
    for start in range(0, len(jobs), 5):
        yield jobs[start : start + 5]


def publish(mq: ReliableMQ, place: Place, jobs: list[Job]) -> None:
    """Publish *jobs*, some in each transaction, each with its marker."""
    for chunk in chunks(jobs):
        with mq.transaction() as session:
            write(mq, session, place, chunk)


def write(mq: ReliableMQ, session: Session, place: Place, jobs: list[Job]) -> None:
    """Publish *jobs* in the caller's transaction, with a marker for each."""
    for job in jobs:
        mq.publish(
            place.cell,
            job,
            key=job.key,
            headers=HEADERS,
            message_id=f"{place.cell}-twin" if job.twin else None,
        )
        session.execute(insert(marker).values(cell=place.cell, number=job.number))
