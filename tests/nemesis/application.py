"""The application under the nemesis: the sweep's messages and tables, in more kinds of groups."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import BigInteger, Column, Integer, String, Table, insert, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import Update

from reliable_mq import Delivery, ReliableMQ, Settings
from tests.sweep import application as sweep
from tests.sweep.application import History, Job, Place, effect, metadata

GROUPS = ("ordered", "batch", "async", "least")
EXACTLY = "exactly"
"""The group with Kafka's own transactions, where that is the broker."""
ACCOUNTS = 6

account = Table(
    "nemesis_account",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("consumer_group", String(20), nullable=False),
    Column("handled", Integer, nullable=False),
)
"""Few rows that many handlers change, in any order: where deadlocks come from."""


@dataclass(frozen=True)
class Arena(Place):
    """Where a run lives, in the eyes of its processes."""

    def settings(self) -> Settings:
        """Settings with which a dead process is noticed within seconds, a slow one is not."""
        return (
            super()
            .settings()
            .replace(
                relay={"lease": 6, "publish_timeout": 4, "poll_interval": 0.2},
                consumer={"lease": 4, "idle_in_transaction": 6, "shutdown_timeout": 15},
            )
        )


def groups_of(arena: Arena) -> tuple[str, ...]:
    """Return the groups that must end every message."""
    on_kafka = arena.broker_url.startswith("kafka")
    return (*GROUPS, EXACTLY) if on_kafka else GROUPS


class Mended:
    """Messages whose handlers succeed from now on, whatever is in them: a file for each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "mended"
        self._folder.mkdir(exist_ok=True)

    def mend(self, group: str, number: int) -> None:
        """As if somebody had found the error in the code of *group*."""
        (self._folder / f"{group}-{number}").touch()

    def seen(self, group: str, job: Job) -> Job:
        """Return *job* as the handlers of *group* take it now."""
        if (self._folder / f"{group}-{job.number}").exists():
            return job.model_copy(update={"rejected": False, "fails": 0})
        return job


def build(arena: Arena) -> ReliableMQ:
    """Return the application."""
    mq = ReliableMQ(arena.settings())
    folder = Path(arena.folder)
    history, mended = History(folder), Mended(folder)
    jobs = mq.topic(arena.cell, Job, partitions=sweep.PARTITIONS)

    def attempt(job: Job, delivery: Delivery) -> sweep._attempt:
        return sweep._attempt(history, mended.seen(delivery.group, job), delivery)

    @mq.handler(jobs, group="ordered", ordered=True, concurrency=2)
    def in_order(job: Job, session: Session, delivery: Delivery) -> None:
        with attempt(job, delivery):
            sweep._leave(session, arena, "ordered", job)

    @mq.handler(jobs, group="batch", transaction_size=8, concurrency=2)
    def together(job: Job, session: Session, delivery: Delivery) -> None:
        with attempt(job, delivery):
            sweep._leave(session, arena, "batch", job)
            for one in (job.number, job.number // ACCOUNTS):
                session.execute(_counted(one))

    @mq.handler(jobs, group="async", concurrency=4)
    async def on_the_loop(job: Job, session: AsyncSession, delivery: Delivery) -> None:
        await asyncio.sleep(job.slow)
        with attempt(job.model_copy(update={"slow": 0.0}), delivery):
            values = {"cell": arena.cell, "consumer_group": "async", "number": job.number}
            await session.execute(insert(effect).values(values))

    @mq.handler(jobs, group="least", guarantee="at-least-once")
    def at_least_once(job: Job, delivery: Delivery) -> None:
        with attempt(job, delivery):
            history.note("done", group="least", number=job.number)

    @mq.handler(f"{arena.cell}.ordered.dlq", group="graves")
    def bury(job: Job, session: Session) -> None:
        sweep._leave(session, arena, "graves", job)

    if EXACTLY in groups_of(arena):
        _exactly_once(mq, arena, history)
    return mq


def _exactly_once(mq: ReliableMQ, arena: Arena, history: History) -> None:
    """Its effects are what it publishes, and its dead letters are in their topic alone."""
    outputs = mq.topic(f"{arena.cell}.out", Job, partitions=sweep.PARTITIONS)

    @mq.handler(arena.cell, group=EXACTLY, guarantee="exactly-once")
    def hand_on(job: Job, delivery: Delivery) -> None:
        with sweep._attempt(history, job, delivery):
            mq.publish(outputs, job, key=job.key)

    @mq.handler(outputs, group="reader")
    def read(job: Job, session: Session) -> None:
        sweep._leave(session, arena, EXACTLY, job)

    @mq.handler(f"{arena.cell}.{EXACTLY}.dlq", group="exact-graves")
    def bury_exactly(job: Job, session: Session) -> None:
        sweep._leave(session, arena, "exact-graves", job)


def _counted(number: int) -> Update:
    mine = account.c.id == 1 + number % ACCOUNTS
    return update(account).where(mine).values(handled=account.c.handled + 1)
