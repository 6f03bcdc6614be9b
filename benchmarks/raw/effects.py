"""Inbox row and business row in one transaction, then acknowledge: SQLAlchemy Core, by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NoReturn

from sqlalchemy import Connection, create_engine, text

from benchmarks.child import Clock, consumed, go
from benchmarks.effects import effects, values_of
from benchmarks.raw.deliveries import DELIVERIES, Taken

INBOX = "CREATE TABLE IF NOT EXISTS raw_inbox (message_id text PRIMARY KEY)"
_REMEMBER = text(
    "INSERT INTO raw_inbox (message_id) VALUES (:id) ON CONFLICT DO NOTHING RETURNING message_id"
)
_REMEMBER_ALL = text(
    "INSERT INTO raw_inbox (message_id) SELECT unnest(cast(:ids AS text[])) "
    "ON CONFLICT DO NOTHING RETURNING message_id"
)
_ONE = effects.insert().inline()


def consume(
    *, database_url: str, broker: str, count: int, size: int, at_once: bool, **where: str
) -> NoReturn:
    """Apply *size* messages a transaction, with one INSERT for each or *at_once*."""
    engine = create_engine(database_url)
    deliveries = DELIVERIES[broker](**where)
    numbers: list[int] = []
    clock: Clock | None = None
    go()
    with engine.connect() as connection:
        while len(numbers) < count:
            taken = deliveries.take(size)
            if not taken:
                continue
            clock = clock or Clock()
            with connection.begin():
                numbers += _apply(connection, taken, at_once=at_once)
            deliveries.ack()
    assert clock is not None
    figures = clock.read()
    deliveries.take(1)  # Kafka's client commits here what was left open
    consumed(numbers, figures)


def _apply(connection: Connection, taken: Sequence[Taken], *, at_once: bool) -> list[int]:
    if len(taken) == 1:
        found = connection.execute(_REMEMBER, {"id": taken[0].message_id})
    else:
        found = connection.execute(_REMEMBER_ALL, {"ids": [one.message_id for one in taken]})
    new = set(found.scalars())
    rows = [values_of(json.loads(one.body)) for one in taken if one.message_id in new]
    if at_once:
        connection.execute(_ONE, rows)
    else:
        for row in rows:
            connection.execute(_ONE, row)
    return [row["n"] for row in rows]
