"""The outbox: what cannot be sent, and what nobody sends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, case, func, select

from reliable_mq.adapter import Finding, Severity
from reliable_mq.doctor.case import LONG
from reliable_mq.store import Store
from reliable_mq.store.outbox.outgoing import raw_text, shown
from reliable_mq.store.outbox.sending import NO_ROUTE, NO_ROUTE_FOR_KEY


@dataclass(frozen=True, slots=True)
class Topic:
    """The waiting messages of one topic. ``age`` of the oldest in seconds, by the database."""

    name: str
    count: int
    age: float
    no_route: bool
    no_route_for_keys: int
    cause: str | None


def read_topics(connection: Connection, store: Store) -> list[Topic]:
    """Return the topics that have messages in the outbox. Reads all of it (not the bodies)."""
    c = store.tables.outbox.c
    now = connection.execute(select(store.now())).scalar_one()
    query = select(
        raw_text(store, c.topic),
        func.count(),
        func.min(c.created_at),
        func.sum(case((c.cause.like(NO_ROUTE + "%"), 1), else_=0)),
        func.sum(case((c.cause.like(NO_ROUTE_FOR_KEY + "%"), 1), else_=0)),
        func.max(c.cause),
    ).group_by(c.topic)
    return [
        Topic(shown(name), count, max(0.0, (now - oldest) / 1e6), bool(topic), int(keys), cause)
        for name, count, oldest, topic, keys, cause in connection.execute(query)
    ]


def count_held(connection: Connection, store: Store) -> int:
    """Return how many messages were refused for good and wait for a person."""
    query = select(func.count()).select_from(store.tables.outbox_held)
    return int(connection.execute(query).scalar_one())


def outbox_findings(topics: list[Topic], held: int, *, relay: bool) -> Iterator[Finding]:
    """Yield what stands still. *relay* says whether one runs anywhere."""
    for topic in topics:
        if topic.no_route or topic.no_route_for_keys:
            yield _unroutable(topic)
        elif relay and topic.age > LONG:
            yield _waiting(topic)
    if not relay:
        yield _no_relay(topics)
    if held:
        yield _held(held)


def _unroutable(topic: Topic) -> Finding:
    count = topic.count if topic.no_route else topic.no_route_for_keys
    return Finding(
        code="outbox-unroutable",
        severity=Severity.WARNING,
        subject=f"topic {topic.name}",
        what=f"{count} messages in the outbox have no place to go, the oldest is "
        f"{topic.age:.0f} s old: {topic.cause}",
        why="they wait, and are tried again at least every 10 s",
        remedy="declare the topic or its groups, deploy the consumer, or give the permission",
    )


def _waiting(topic: Topic) -> Finding:
    return Finding(
        code="outbox-waiting",
        severity=Severity.WARNING,
        subject=f"topic {topic.name}",
        what=f"{topic.count} messages wait in the outbox, the oldest for {topic.age:.0f} s: "
        f"{topic.cause or 'no attempt failed'}",
        why="a relay runs, and does not get them sent",
        remedy="see the relay's log; if it keeps up with nothing, start another",
    )


def _no_relay(topics: list[Topic]) -> Finding:
    count = sum(topic.count for topic in topics)
    return Finding(
        code="relay-missing",
        severity=Severity.WARNING if count else Severity.INFO,
        subject="relay",
        what=f"no relay runs, and {count or 'no'} messages wait in the outbox",
        why="what is published is sent by a relay only",
        remedy="start reliable-mq run or reliable-mq relay",
    )


def _held(count: int) -> Finding:
    return Finding(
        code="outbox-held",
        severity=Severity.WARNING,
        subject="outbox",
        what=f"{count} messages were refused for good and are held",
        why="they are not sent, nor are the later ones of their keys",
        remedy="reliable-mq outbox ls --held shows why; retry or discard them",
    )
