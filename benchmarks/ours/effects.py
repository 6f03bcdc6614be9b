"""The library's consumer with a handler that inserts one row of the application's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from benchmarks.child import go
from benchmarks.effects import Effect, effects, values_of, wait_for_rows
from benchmarks.ours.application import application
from benchmarks.seen import Seen
from reliable_mq import ReliableMQ
from reliable_mq.events import DuplicateSkipped

_ONE = effects.insert().inline()


def _handlers(seen: Seen) -> dict[str, Callable[..., None]]:
    def core(order: dict[str, Any], connection: Connection) -> None:
        seen.begin()
        row = values_of(order)
        connection.execute(_ONE, row)
        seen.add(row["n"])

    def orm(order: dict[str, Any], session: Session) -> None:
        seen.begin()
        row = values_of(order)
        session.add(Effect(**row))
        seen.add(row["n"])

    return {"core": core, "orm": orm}


def _open(
    database_url: str, broker_url: str, topic: str, partitions: int | None
) -> tuple[ReliableMQ, Any]:
    mq = application(database_url=database_url, broker_url=broker_url)
    return mq, mq.topic(topic, partitions=partitions)


def consume(
    *,
    database_url: str,
    broker_url: str,
    topic: str,
    partitions: int | None,
    group: str,
    count: int,
    style: str,
    **options: Any,
) -> NoReturn:
    """Apply *count* messages; the clock runs from the first one to the last commit."""
    seen = Seen(count)
    mq, where = _open(database_url, broker_url, topic, partitions)
    mq.handler(where, group=group, **options)(_handlers(seen)[style])
    mq.declare()
    go()
    with mq.running(relay=False):
        seen.done.wait()
        wait_for_rows(mq.store.engine, count)  # the last transaction may be open still
        seen.read()
        seen.report()


def skip(
    *,
    database_url: str,
    broker_url: str,
    topic: str,
    partitions: int | None,
    group: str,
    count: int,
    style: str,
    **options: Any,
) -> NoReturn:
    """Recognise *count* messages as duplicates."""
    seen = Seen(count)

    def on_duplicate(event: DuplicateSkipped) -> None:
        seen.add(event.message_id)

    mq, where = _open(database_url, broker_url, topic, partitions)
    mq.handler(where, group=group, **options)(_handlers(seen)[style])
    mq.declare()
    mq.events.subscribe(DuplicateSkipped, on_duplicate)
    go()
    with mq.running(relay=False):
        seen.report()
