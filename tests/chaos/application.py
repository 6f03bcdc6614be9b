"""The application under attack: two groups on one topic, effects in a table without a key.

Run as a script, ``application.py relay|consume``, it is one of the processes that are killed. Its
settings come from the environment.
"""

from __future__ import annotations

import logging
import os
import sys
import zlib

from pydantic import BaseModel
from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, insert
from sqlalchemy.orm import Session

from reliable_mq import Delivery, ReliableMQ, RetryPolicy, Settings

PARTITIONS = 8
RETRY = RetryPolicy(max_attempts=10, initial_delay=0.05, max_delay=0.5)

metadata = MetaData()
effects = Table(
    "chaos_effect",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("consumer_group", String(20), nullable=False),
    Column("key", String(20), nullable=False),
    Column("number", Integer, nullable=False),
)


class Step(BaseModel):
    """The *number*-th message of its key."""

    key: str
    number: int


class InjectedError(Exception):
    """A failure on purpose."""


def build() -> ReliableMQ:
    """Return the application; the topic's name comes from the environment."""
    mq = ReliableMQ(Settings())
    steps = mq.topic(os.environ["CHAOS_TOPIC"], Step, partitions=PARTITIONS)

    @mq.handler(steps, group="ordered", ordered=True, concurrency=4, retry=RETRY)
    def in_order(step: Step, session: Session, delivery: Delivery) -> None:
        fail_some(step, delivery, 97)
        apply(step, session, delivery)

    @mq.handler(steps, group="unordered", concurrency=2, transaction_size=50, retry=RETRY)
    def in_any_order(step: Step, session: Session, delivery: Delivery) -> None:
        fail_some(step, delivery, 997)
        apply(step, session, delivery)

    return mq


def fail_some(step: Step, delivery: Delivery, one_in: int) -> None:
    """Fail the first attempts at some messages, the same ones in every run."""
    number = zlib.crc32(f"{step.key}/{step.number}".encode())
    if number % one_in == 0 and delivery.attempt <= 1 + number % 3:
        raise InjectedError(f"attempt {delivery.attempt}")


def apply(step: Step, session: Session, delivery: Delivery) -> None:
    """Leave the effect; twice is possible on purpose, so that it would be seen."""
    session.execute(
        insert(effects).values(consumer_group=delivery.group, key=step.key, number=step.number)
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
    role = sys.argv[1]
    build().run(relay=role == "relay", consume=role == "consume")
