"""Acknowledgements of which replicas must have a copy before a handler may rely on them."""

from __future__ import annotations

import pytest
import redis

from reliable_mq.adapter import SENT, GroupSpec, Subscription, TopicSpec
from reliable_mq.errors import TransportError
from reliable_mq.testing.contract.messages import numbered
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import wait_for
from tests.adapters.redis.conftest import TIMEOUT, Open
from tests.conftest import OwnServer

GROUP = "billing"


@pytest.mark.parametrize("ordered", [False, True])
def test_with_wait_acknowledgements_are_flushed_when_the_replicas_have_them(
    own_server: OwnServer, open_one: Open, *, ordered: bool
) -> None:
    primary = own_server("redis", {"repl-diskless-sync-delay": "0"})
    replica = own_server("redis", {"replicaof": f"127.0.0.1 {primary.port()}"})
    adapter = open_one(primary.url, query="wait=1&wait_timeout=0.2")
    adapter.declare([TopicSpec(name="t")], [GroupSpec(topic="t", group=GROUP, ordered=ordered)])
    batch = numbered("t", range(3))
    wait_for(lambda: adapter.publish(batch, TIMEOUT) == [SENT] * 3, "the replica's confirmation")
    reader = Reader(adapter.subscribe(["t"], GROUP, prefetch=10, ordered=ordered))
    held = reader.take(3)
    reader.ack(held[:1])
    wait_for(lambda: _flushed(reader.subscription), "the copy of the first acknowledgement")
    replica.pause()
    reader.ack(held[1:2])
    for _ in range(2):
        with pytest.raises(TransportError, match="0 of 1 replicas"):
            reader.subscription.flush()
    replica.resume()
    wait_for(lambda: _flushed(reader.subscription), "the copy of the second one")
    assert _pending(replica.url) == 1
    # Nothing was lost by waiting: the rest goes on under the same ownership.
    reader.ack(held[2:])
    wait_for(lambda: _flushed(reader.subscription), "the copy of the last one")
    assert (_pending(replica.url), reader.lost) == (0, [])
    reader.close()


def _flushed(subscription: Subscription) -> bool:
    """Flush, and tell whether the replica had everything within ``wait_timeout``."""
    try:
        subscription.flush()
    except TransportError:
        return False
    return True


def _pending(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.xpending("{t}:0", GROUP)["pending"])
