"""Redis Streams by redis-py alone, with hiredis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import redis

from benchmarks.brokers.redis import connect, stream_of
from benchmarks.child import Clock, consumed, go
from benchmarks.raw.outbox import Row, drain, serve
from benchmarks.raw.payloads import HANDLED

_PAGE = 500


def relay(*, database_url: str, broker_url: str, forever: bool = False) -> dict[str, Any]:
    """SELECT 500, XADD in one pipeline, DELETE."""
    client = connect(broker_url)

    def publish(rows: Sequence[Row]) -> None:
        pipeline = client.pipeline(transaction=False)
        for _, message_id, key, body, content_type, topic in rows:
            fields = {
                "body": body,
                "message-id": message_id,
                "message-key": key,
                "content-type": content_type,
            }
            pipeline.xadd(stream_of(topic), fields)
        pipeline.execute()

    return serve(database_url, publish) if forever else drain(database_url, publish)


def consume(*, broker_url: str, stream: str, group: str, count: int, payload: str) -> NoReturn:
    """XREADGROUP 500, count, XACK 500."""
    client = connect(broker_url)
    client.xgroup_create(stream, group, id="0")
    go()
    numbers: list[object] = []
    clock = Clock()
    while len(numbers) < count:
        numbers += _page(client, stream, group, HANDLED[payload])
    consumed(numbers, clock.read())


def _page(
    client: redis.Redis, stream: str, group: str, handled: Callable[[bytes], object]
) -> list[object]:
    answer: Any = client.xreadgroup(group, "raw", {stream: ">"}, count=_PAGE, block=1000)
    if not answer:
        return []
    entries = answer[0][1] if isinstance(answer, list) else next(iter(answer.values()))[0]
    numbers = [handled(fields[b"body"]) for _, fields in entries]
    client.xack(stream, group, *(entry for entry, _ in entries))
    return numbers
