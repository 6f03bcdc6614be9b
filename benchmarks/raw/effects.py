"""Inbox row and business row in one transaction, then acknowledge: SQLAlchemy, by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.orm import Session

from benchmarks.child import Clock, consumed, go
from benchmarks.effects import Effect, effects, values_of
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

Row = dict[str, Any]


def _one_by_one(connection: Connection, rows: Sequence[Row]) -> None:
    for row in rows:
        connection.execute(_ONE, row)


def _at_once(connection: Connection, rows: Sequence[Row]) -> None:
    connection.execute(_ONE, rows)


def _by_orm(connection: Connection, rows: Sequence[Row]) -> None:
    with Session(connection) as session:
        session.add_all([Effect(**row) for row in rows])
        session.flush()


_WAYS: Mapping[str, Callable[[Connection, Sequence[Row]], None]] = {
    "one by one": _one_by_one,
    "at once": _at_once,
    "ORM": _by_orm,
}


def consume(
    *, database_url: str, broker: str, count: int, size: int, way: str, **where: str
) -> NoReturn:
    """Apply *size* messages a transaction, their rows inserted in this *way*."""
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
                numbers += _apply(connection, taken, _WAYS[way])
            deliveries.ack()
    assert clock is not None
    figures = clock.read()
    deliveries.take(1)  # Kafka's client commits here what was left open
    consumed(numbers, figures)


def _apply(
    connection: Connection,
    taken: Sequence[Taken],
    write: Callable[[Connection, Sequence[Row]], None],
) -> list[int]:
    if len(taken) == 1:
        found = connection.execute(_REMEMBER, {"id": taken[0].message_id})
    else:
        found = connection.execute(_REMEMBER_ALL, {"ids": [one.message_id for one in taken]})
    new = set(found.scalars())
    rows = [values_of(json.loads(one.body)) for one in taken if one.message_id in new]
    write(connection, rows)
    return [row["n"] for row in rows]
