"""The library's relay, running as in a process of its own."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.child import Clock, go, linger, peak_memory, report
from benchmarks.ours.application import application
from benchmarks.progress import Progress

_LOOK_EVERY = 0.005


def relay(
    *, database_url: str, broker_url: str, topic: str, partitions: int | None, count: int
) -> dict[str, Any]:
    """Send what the outbox holds; *count* messages."""
    with application(database_url=database_url, broker_url=broker_url) as mq:
        mq.topic(topic, partitions=partitions)
        mq.declare()
        go()
        clock = Clock()
        with mq.running(consume=False) as service:
            assert service.relay is not None
            while service.relay.sent < count:
                time.sleep(_LOOK_EVERY)
            return {"count": service.relay.sent, **clock.read()}


def share(
    *, database_url: str, broker_url: str, topic: str, partitions: int | None
) -> dict[str, Any]:
    """Relay, maybe with others, until the parent says that all is sent."""
    with application(database_url=database_url, broker_url=broker_url) as mq:
        mq.topic(topic, partitions=partitions)
        mq.declare()
        go()
        with mq.running(consume=False) as service:
            relay = service.relay
            assert relay is not None
            progress = Progress(lambda: relay.sent)
            report(event="running")
            linger()
            return {**progress.end(), "rss_mb": peak_memory()}
