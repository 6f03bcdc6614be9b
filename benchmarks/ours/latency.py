"""The library's three processes on the way of a message: publisher, relay, consumer."""

from __future__ import annotations

import time
from typing import Any, NoReturn

from benchmarks.arrivals import Arrivals, pace
from benchmarks.child import go, linger, report
from benchmarks.ours.application import application
from benchmarks.workload import body_of
from reliable_mq import ReliableMQ, Topic


def _open(
    database_url: str, broker_url: str, topic: str, partitions: int | None
) -> tuple[ReliableMQ, Topic[Any]]:
    mq = application(database_url=database_url, broker_url=broker_url)
    return mq, mq.topic(topic, partitions=partitions)


def publish(*, count: int, rate: int, keys: int, **where: Any) -> dict[str, Any]:
    """Commit *rate* messages a second; return when each COMMIT had come back."""
    mq, topic = _open(**where)
    mq.declare()
    times = []
    with mq:
        go()
        for n in pace(count, rate):
            with mq.store.engine.begin() as connection:
                mq.publish(
                    topic,
                    body_of(n, keys),
                    key=f"customer-{n % keys}",
                    content_type="application/json",
                    session=connection,
                )
            times.append(time.monotonic_ns())
    return {"times": times}


def relay(**where: Any) -> dict[str, Any]:
    """Relay until the parent says the end."""
    mq, _ = _open(**where)
    mq.declare()
    go()
    with mq, mq.running(consume=False):
        report(event="running")
        linger()
    return {}


def consume(*, group: str, count: int, **where: Any) -> NoReturn:
    """Note when the handler starts for each message."""
    mq, topic = _open(**where)
    arrivals = Arrivals(count)

    @mq.handler(topic, group=group, guarantee="at-least-once")
    def handle(order: dict[str, Any]) -> None:
        arrivals.add(int(order["n"]))

    mq.declare()
    go()
    with mq.running(relay=False):
        arrivals.tell()
