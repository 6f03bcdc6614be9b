"""Redis without memory for another message: who publishes waits, who consumes makes the room."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.exceptions import OutOfMemoryError
from sqlalchemy.orm import Session

from reliable_mq import ReliableMQ
from reliable_mq.errors import PublishUnconfirmedError
from tests.conftest import OwnServer
from tests.e2e.brokers import Broker
from tests.e2e.conftest import MakeMQ
from tests.e2e.shop import leave
from tests.e2e.waiting import until

COUNT, KEYS = 400, 4
ROOM = 4_000_000
"""Enough for several calls of the relay, which carry a megabyte each."""
BODY = "{}|" + 20_000 * "x"


@pytest.fixture
def broker(own_server: OwnServer, sqlite_url: str) -> Broker:
    return Broker("redis", own_server("redis").url + "?trim=0.5", sqlite_url)


@pytest.fixture
def raw(broker: Broker) -> Iterator[Any]:
    with redis.Redis.from_url(broker.url.partition("?")[0]) as client:
        yield client


def take_what_is_left(raw: Any) -> None:
    """Fill it to the brim: a relay is refused earlier, for the megabyte it brings itself."""
    with contextlib.suppress(OutOfMemoryError):
        while True:
            raw.rpush("of another program", bytes(100))


def shop(mq: ReliableMQ, topic: str, *, ordered: bool) -> None:
    @mq.handler(topic, ordered=ordered)
    def handle(body: str, session: Session) -> None:
        leave(session, body.partition("|")[0])


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
def test_what_a_full_redis_refuses_waits_in_the_outbox_until_consumers_have_made_room(
    make_mq: MakeMQ, raw: Any, unique: str, seen: Callable[[], list[str]], *, ordered: bool
) -> None:
    publisher, consumer = make_mq(), make_mq()
    for mq in (publisher, consumer):
        shop(mq, unique, ordered=ordered)
    publisher.declare()
    raw.config_set("maxmemory", raw.info("memory")["used_memory"] + ROOM)
    with publisher.transaction():
        for number in range(COUNT):
            publisher.publish(unique, BODY.format(number), key=f"k{number % KEYS}")
    with publisher.running(consume=False):
        until(lambda: publisher.status().parts["relay"] == "stalled", publisher.status)
    # Only now: what the relay has under way takes memory as well, and gives it back.
    take_what_is_left(raw)
    with pytest.raises(PublishUnconfirmedError, match="OOM"):
        publisher.publish_direct(unique, BODY.format("refused"))
    assert 0 < publisher.status().outbox.pending < COUNT
    # Of the consumers none had been there before: they declare, join, handle and trim.
    with publisher.running(consume=False), consumer.running(relay=False):
        until(lambda: len(seen()) >= COUNT, publisher.status)
        until(lambda: publisher.status().outbox.pending == 0, publisher.status)
    handled = [int(what) for what in seen()]
    assert sorted(handled) == list(range(COUNT))
    if ordered:
        by_key = [[number for number in handled if number % KEYS == key] for key in range(KEYS)]
        assert by_key == [sorted(numbers) for numbers in by_key]
    assert consumer.dead_letters() == []
