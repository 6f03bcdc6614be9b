"""A publish as it travels: the bytes that the client itself would have sent."""

from __future__ import annotations

from enum import Enum

from redis.connection import Connection

from reliable_mq import wire
from reliable_mq.message import Message
from reliable_mq_redis import keys, scripts
from reliable_mq_redis.chunks import Chunk, digest_of


class Name(str, Enum):  # noqa: UP042 - shows its own name
    TENANT = "tenant"


FULL = Message(
    id="01900000-0000-7000-8000-000000000001",
    topic="orders",
    key="Zoë",
    body=b"\r\n$3\r\n\x00\xff",
    headers={"text": "ü", "nämé": "1", Name.TENANT: "a", "bytes": b"\x00\r\n", "empty": b""},
    content_type="application/json",
)


EMPTY = Message(id="2", topic="orders")


def test_a_publish_travels_as_the_client_would_pack_it():
    chunk = Chunk()
    chunk.add(0, FULL, 3)
    chunk.add(1, EMPTY, 0)
    chunk.add(2, EMPTY, 3)
    sent = chunk.call("orders", "me", partitions=4, generation=7, window=60_000)
    entries: list[str | bytes | int] = []
    for message, place in ((FULL, 5), (EMPTY, 6), (EMPTY, 5)):
        pairs = [*wire.encode_headers(message), (wire.BODY, message.body)]
        entries += (place, 2 * len(pairs), *(word for pair in pairs for word in pair))
    names = [keys.meta("orders"), keys.floor("orders", "me")]
    names += [keys.seen("orders", 0), keys.seen("orders", 1)]
    names += [keys.stream("orders", 3), keys.stream("orders", 0)]
    digests = [digest_of(message) for message in (FULL, EMPTY, EMPTY)]
    command = scripts.PUBLISH.call(names, 4, 7, 60_000, 3, *digests, *entries)
    assert sent.data == b"".join(Connection().pack_command(*command))
    assert sent.sha == scripts.PUBLISH.sha
