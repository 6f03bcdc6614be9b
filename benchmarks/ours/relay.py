"""The library's relay, running as in a process of its own."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.child import Clock, go
from benchmarks.ours.application import application

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
