"""Garbage of foreign clients on real brokers: each is handled or a dead letter, none is in the way
of its neighbours, and the counts add up."""

from __future__ import annotations

import logging
import zlib
from collections import Counter

import pytest
from pydantic import BaseModel
from sqlalchemy import Column, Integer, LargeBinary, MetaData, String, Table, insert, select
from sqlalchemy.orm import Session

from reliable_mq import Delivery, ReliableMQ, Settings
from tests.fuzz.mutation import Mutator
from tests.fuzz.running import SEED
from tests.fuzz.senders import SENDERS, Pairs, record

GARBAGE = 300
EVERY = 5
"""Between so many records of garbage stands a good one."""

_GROUP = "billing"
_metadata = MetaData()
_effect = Table(
    "effect",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("handler", String(20), nullable=False),
    Column("message_id", String(255), nullable=False),
    Column("body", LargeBinary, nullable=False),
)


class Order(BaseModel):
    id: int
    neighbour: bool = False


def _leave(session: Session, handler: str, delivery: Delivery) -> None:
    message = delivery.message
    session.execute(
        insert(_effect).values(handler=handler, message_id=message.id, body=message.body)
    )


def _application(broker_url: str, database_url: str, topic: str) -> ReliableMQ:
    mq = ReliableMQ(Settings(broker_url=broker_url, database_url=database_url))

    @mq.handler(mq.topic(topic, Order, partitions=1), group=_GROUP)
    def handle(order: Order, session: Session, delivery: Delivery) -> None:
        _leave(session, "handle", delivery)

    @mq.handler(mq.topic(f"{topic}.{_GROUP}.dlq", bytes, partitions=1), group="undertaker")
    def bury(body: bytes, session: Session, delivery: Delivery) -> None:
        _leave(session, "bury", delivery)

    return mq


def _records(kind: str) -> list[tuple[bytes, Pairs]]:
    mutator = Mutator()
    mutator.reseed(SEED << 32 | zlib.crc32(kind.encode()))
    records: list[tuple[bytes, Pairs]] = []
    for number in range(GARBAGE):
        records.append(record(mutator))
        if number % EVERY == 0:
            records.append((b'{"id": %d, "neighbour": true}' % number, []))
    return records


def _effects(mq: ReliableMQ, handler: str) -> list[bytes]:
    with mq.transaction() as session:
        query = select(_effect.c.body).where(_effect.c.handler == handler)
        return list(session.scalars(query))


@pytest.mark.parametrize("kind", SENDERS)
def test_garbage_is_handled_or_dead_lettered_and_blocks_nobody(
    kind: str,
    unique: str,
    sqlite_url: str,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "reliable_mq")  # a line for each dead letter
    url: str = request.getfixturevalue(f"{kind}_url")
    records = _records(kind)
    with _application(url, sqlite_url, unique) as mq:
        mq.declare()
        _metadata.create_all(mq.store.engine)
        sent = SENDERS[kind](url, unique, records)
        counts = mq.run_until_idle(240)
        handled, buried = _effects(mq, "handle"), _effects(mq, "bury")
        letters = mq.dead_letters(topic=unique, limit=len(records))
        status = mq.status()

    print(f"{kind}: seed {SEED}, {sent} records, {counts}")
    # All of them, and each once: handled, dead, or a copy of one that was.
    assert len(handled) + len(letters) + counts.duplicates == sent
    assert counts.retried == 0
    good = [body for body, pairs in records if body.endswith(b'"neighbour": true}')]
    assert Counter(handled) >= Counter(good)
    # A dead letter is the record as it came, with an id and a cause; its copy has arrived.
    assert not Counter(letter.message.body for letter in letters) - Counter(b for b, _ in records)
    assert all(letter.message.id and letter.cause for letter in letters)
    assert len(letters) == counts.sent == len(buried)
    assert (status.outbox.pending, status.outbox.held) == (0, 0)
    assert {one.lag for one in status.groups.values()} == {0}
