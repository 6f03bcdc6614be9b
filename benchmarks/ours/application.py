"""The application under measurement: its settings are the defaults wherever possible."""

from __future__ import annotations

from typing import Any

from reliable_mq import ReliableMQ, Settings

GROUP = "bench"


def application(*, database_url: str, broker_url: str, **settings: Any) -> ReliableMQ:
    """Return the library on this database and broker."""
    return ReliableMQ(Settings(database_url=database_url, broker_url=broker_url, **settings))


def prepare(
    *,
    database_url: str,
    broker_url: str,
    topic: str,
    partitions: int | None,
    ordered: bool = False,
    group: str = GROUP,
) -> None:
    """Create tables, topic and group, which is no part of any measurement."""
    with application(database_url=database_url, broker_url=broker_url) as mq:

        @mq.handler(mq.topic(topic, partitions=partitions), group=group, ordered=ordered)
        def nothing(message: bytes) -> None: ...

        mq.declare()
