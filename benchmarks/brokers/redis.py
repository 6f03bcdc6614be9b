"""Redis Streams, with a raw client: filling, reading back, what is pending."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis

from benchmarks.workload import CONTENT_TYPE, id_of, messages, number_in

_PAGE = 5000


def connect(url: str) -> Any:
    """Return a client."""
    return redis.Redis.from_url(url, socket_timeout=60)


def stream_of(topic: str) -> str:
    """Return the stream of a topic with one partition, as the library names it."""
    return f"{{{topic}}}:0"


def fields_of(n: int, key: str, body: bytes, run: int = 0) -> dict[str, str | bytes]:
    """Return the entry that the library's relay would write."""
    return {
        "body": body,
        "message-id": id_of(n, run),
        "message-time": "2026-01-01T00:00:00.000000+00:00",
        "message-key": key,
        "content-type": CONTENT_TYPE,
    }


def fill(url: str, stream: str, count: int, keys: int, *, run: int = 0) -> None:
    """Add the messages to a stream."""
    client = connect(url)
    pipeline = client.pipeline(transaction=False)
    for n, key, body in messages(count, keys):
        pipeline.xadd(stream, fields_of(n, key, body, run))
        if n % 500 == 499:
            pipeline.execute()
    pipeline.execute()
    client.close()


def read_back(url: str, stream: str) -> Iterator[int]:
    """Yield the numbers of all messages of a stream, in its order."""
    client = connect(url)
    first = "-"
    while page := client.xrange(stream, min=first, count=_PAGE):
        for _, fields in page:
            yield number_in(b"".join(fields.values()))
        first = "(" + page[-1][0].decode()
    client.close()


def outstanding(url: str, stream: str, group: str, count: int) -> int:
    """Return how many of *count* messages the group was not given or has not acknowledged."""
    client = connect(url)
    try:
        for info in client.xinfo_groups(stream):
            if info["name"] == group.encode():
                return int(info["pending"]) + max(0, count - int(info["entries-read"] or 0))
        raise RuntimeError(f"no group {group} on {stream}")
    finally:
        client.close()


def copy(url: str, source: str, target: str) -> None:
    """Let the server copy a stream."""
    client = connect(url)
    if not client.copy(source, target):
        raise RuntimeError(f"{source} was not copied to {target}")
    client.close()


def delete(url: str, topic: str) -> None:
    """Delete everything of a topic."""
    client = connect(url)
    names = [*client.scan_iter(match=f"*{topic}*", count=1000)]
    if names:
        client.unlink(*names)
    client.close()
