"""celery on RabbitMQ."""

from __future__ import annotations

import json
from typing import Any

from celery import Celery

from benchmarks.child import go
from benchmarks.seen import Seen
from benchmarks.workload import messages

_PREFETCH = 500


def _task(broker_url: str, queue: str, seen: Seen | None) -> tuple[Any, Any]:
    app = Celery("bench", broker=broker_url)
    app.conf.update(
        task_default_queue=queue,
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=_PREFETCH,
        broker_connection_retry_on_startup=True,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
    )

    @app.task(name="bench.handle")
    def handle(order: dict[str, Any]) -> None:
        if seen is not None:
            seen.add(order["n"])

    return app, handle


def fill(*, broker_url: str, where: str, count: int, keys: int) -> dict[str, Any]:
    """Publish tasks, which declares the queue."""
    app, task = _task(broker_url, where, None)
    with app.producer_or_acquire() as producer:
        for _, _, body in messages(count, keys):
            task.apply_async((json.loads(body),), producer=producer)
    return {}


def consume(*, broker_url: str, queue: str, count: int) -> None:
    """Run a worker in this process."""
    seen = Seen(count)
    app, _ = _task(broker_url, queue, seen)
    go()
    seen.report_beside()
    app.worker_main(
        ["worker", "--pool", "solo", "--concurrency", "1", "--loglevel", "ERROR", "--queues",
         queue, "--without-gossip", "--without-mingle", "--without-heartbeat"]
    )  # fmt: skip
