"""Publishing on Redis: lost replies, late executions, and what the server refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis

from reliable_mq.adapter import SENT, TopicSpec, Unknown, Unroutable
from reliable_mq.errors import ConfigurationError
from reliable_mq.message import Message
from reliable_mq.partitioning import partition_for
from reliable_mq.testing.contract.messages import message, numbered
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_redis import chunks
from reliable_mq_redis.adapter import RedisAdapter
from tests.adapters.redis.conftest import TIMEOUT, Declare, Open
from tests.adapters.redis.proxy import Proxy
from tests.brokers import Redis, Server
from tests.conftest import OwnServer

Length = Callable[[str], int]


def bodies(raw: Any, topic: str, partition: int = 0) -> list[bytes]:
    return [fields[b"body"] for _, fields in raw.xrange(f"{{{topic}}}:{partition}")]


# --- the reply is lost ------------------------------------------------------------------------


def test_a_message_sent_again_after_a_lost_reply_is_stored_once(
    open_one: Open, declare: Declare, proxy: Proxy, through: str, length: Length
) -> None:
    topic = declare(partitions=1)
    adapter = open_one(through)
    batch = numbered(topic, range(600))
    assert adapter.publish([message(topic)], TIMEOUT) == [SENT]
    proxy.drop_replies()
    lost = adapter.publish(batch, TIMEOUT)
    assert all(isinstance(outcome, Unknown) for outcome in lost)
    # The first call was executed; nothing followed it.
    assert length(topic) == 1 + chunks.MAX_COUNT
    proxy.go_on()
    assert adapter.publish(batch, TIMEOUT) == [SENT] * 600
    assert length(topic) == 601


def test_without_the_guard_a_lost_reply_makes_a_second_copy(
    open_one: Open, declare: Declare, proxy: Proxy, through: str, length: Length
) -> None:
    topic = declare()
    adapter = open_one(through, query="guard=0")
    sent = message(topic)
    assert adapter.publish([message(topic)], TIMEOUT) == [SENT]
    proxy.drop_replies()
    adapter.publish([sent], TIMEOUT)
    proxy.go_on()
    assert adapter.publish([sent], TIMEOUT) == [SENT]
    assert length(topic) == 3


def test_the_guard_knows_what_another_process_published(
    adapter: RedisAdapter, open_one: Open, declare: Declare
) -> None:
    topic = declare(partitions=4)
    sent = numbered(topic, range(20), key=None)
    assert adapter.publish(sent, TIMEOUT) == [SENT] * 20
    assert open_one().publish(sent, TIMEOUT) == [SENT] * 20
    assert adapter.lag(topic, "billing") == 20


def test_the_same_id_with_another_body_is_stored_so_that_the_conflict_shows(
    adapter: RedisAdapter, declare: Declare, raw: Any
) -> None:
    topic = declare()
    first = message(topic, b"one")
    second = replace(first, body=b"two")
    assert adapter.publish([first, second, first], TIMEOUT) == [SENT] * 3
    assert adapter.publish([second], TIMEOUT) == [SENT]
    assert bodies(raw, topic) == [b"one", b"two"]


def test_the_guard_remembers_for_a_whole_window_at_least(
    open_one: Open, declare: Declare, length: Length, raw: Any
) -> None:
    adapter = open_one(query="guard=2")

    def window() -> float:
        seconds, microseconds = map(int, raw.time())
        return (seconds + microseconds / 1e6) / 2

    def remembered() -> bool:
        """Publish twice, in one window and in the next; False where it was not in these."""
        topic = declare()
        sent = message(topic)
        wait_for(lambda: window() % 1 > 0.6, "the end of a window")
        first = int(window())
        assert adapter.publish([sent], TIMEOUT) == [SENT]
        if int(window()) != first:
            return False
        wait_for(lambda: int(window()) > first, "the next window")
        assert adapter.publish([sent], TIMEOUT) == [SENT]
        copies = length(topic)
        if int(window()) != first + 1:
            return False
        assert copies == 1
        return True

    wait_for(remembered, "two publishes in neighbouring windows")


def test_the_guard_forgets_after_its_windows(
    open_one: Open, declare: Declare, length: Length, raw: Any
) -> None:
    topic = declare()
    adapter = open_one(query="guard=0.2")
    first, other = message(topic), message(topic)
    adapter.publish([first], TIMEOUT)

    def forgotten() -> bool:
        # Other messages keep the guard's sets in use: they must be emptied all the same.
        adapter.publish([replace(other, id=f"{other.id}-{length(topic)}")], TIMEOUT)
        before = length(topic)
        assert adapter.publish([first], TIMEOUT) == [SENT]
        return length(topic) > before

    wait_for(forgotten, "the end of the guard's memory", seconds=10)
    for half in (0, 1):
        assert raw.pttl(f"{{{topic}}}:seen:{half}") != -1
    wait_for(
        lambda: not raw.exists(f"{{{topic}}}:seen:0", f"{{{topic}}}:seen:1"),
        "the end of the guard's sets",
        seconds=10,
    )


# --- the call comes late ----------------------------------------------------------------------


def give_up(
    adapter: RedisAdapter, declare: Declare, proxy: Proxy, numbers: Sequence[int]
) -> list[Message]:
    """Return messages whose call was given up on its way, behind message 0 of a fresh topic."""

    def given_up() -> list[Message]:
        topic = declare()
        proxy.go_on()
        assert adapter.publish(numbered(topic, [0]), TIMEOUT) == [SENT]
        proxy.hold_requests()
        batch = numbered(topic, numbers)
        assert all(isinstance(one, Unknown) for one in adapter.publish(batch, 0.3))
        # On a busy machine the time may have passed before anything was sent.
        return batch if proxy.holds_some else []

    return wait_for(given_up, "a call that was given up on its way")


def test_a_call_given_up_is_not_executed_after_a_younger_one(
    open_one: Open, declare: Declare, proxy: Proxy, through: str, raw: Any
) -> None:
    adapter = open_one(through)
    topic = give_up(adapter, declare, proxy, [1])[0].topic
    # The younger one takes another way to the server, and arrives first.
    adapter._servers.locator = open_one()._servers.locator
    assert adapter.publish(numbered(topic, [2]), TIMEOUT) == [SENT]
    calls = raw.info("commandstats")["cmdstat_evalsha"]["calls"]
    proxy.go_on()
    wait_for(
        lambda: raw.info("commandstats")["cmdstat_evalsha"]["calls"] > calls,
        "the late call at the server",
    )
    assert bodies(raw, topic) == [b"0", b"2"]


def test_a_call_given_up_may_be_executed_before_a_younger_one_and_counts_then(
    open_one: Open, declare: Declare, proxy: Proxy, through: str, raw: Any, length: Length
) -> None:
    adapter = open_one(through)
    batch = give_up(adapter, declare, proxy, [1, 2])
    topic = batch[0].topic
    proxy.go_on()
    wait_for(lambda: length(topic) == 3, "the late call at the server")
    assert adapter.publish([*batch, *numbered(topic, [3])], TIMEOUT) == [SENT] * 3
    assert bodies(raw, topic) == [b"0", b"1", b"2", b"3"]


def test_a_call_overtaken_by_another_threads_failure_is_sent_again(
    adapter: RedisAdapter, declare: Declare, raw: Any
) -> None:
    topic = declare()
    instance = adapter._context.instance
    raw.set(f"{{{topic}}}:floor:{instance}", 7)
    assert adapter.publish(numbered(topic, range(3)), TIMEOUT) == [SENT] * 3
    assert bodies(raw, topic) == [b"0", b"1", b"2"]


def test_a_timed_out_publish_leaves_nothing_under_way_in_the_client(
    alone: Redis, open_one: Open, topics: dict[str, TopicSpec]
) -> None:
    adapter = open_one(alone.url)
    adapter.declare([TopicSpec(name="slow", partitions=1)], [])
    alone.pause()
    # More than the buffers of both sides hold: the rest is still in this process.
    batch = [message("slow", bytes(900_000), key="k") for _ in range(20)]
    assert all(isinstance(one, Unknown) for one in adapter.publish(batch, 0.5))
    alone.resume()
    assert adapter.publish([message("slow", b"young", key="k")], TIMEOUT) == [SENT]
    with redis.Redis.from_url(alone.url) as raw:
        assert bodies(raw, "slow")[-1] == b"young"


# --- what the server says ---------------------------------------------------------------------


def test_publish_survives_the_loss_of_the_servers_scripts(
    adapter: RedisAdapter, declare: Declare, raw: Any
) -> None:
    topic = declare()
    for number in range(3):
        raw.script_flush()
        assert adapter.publish(numbered(topic, [number]), TIMEOUT) == [SENT]
    assert bodies(raw, topic) == [b"0", b"1", b"2"]


def test_a_user_who_may_not_keep_the_guard_stores_nothing_rather_than_copies(
    alone: Redis, open_one: Open
) -> None:
    open_one(alone.url).declare([TopicSpec(name="t", partitions=1)], [])
    for forbidden in ("sadd", "pexpireat", "smismember"):
        with redis.Redis.from_url(alone.url) as raw:
            raw.acl_setuser(
                "app",
                enabled=True,
                reset=True,
                passwords=["+pw"],
                keys=["*"],
                commands=["+@all", f"-{forbidden}"],
            )
            adapter = open_one(f"redis://app:pw@127.0.0.1:{alone.port()}/0")
            (outcome,) = adapter.publish([message("t")], TIMEOUT)
            assert isinstance(outcome, Unroutable)
            assert raw.xlen("{t}:0") == 0


def test_a_read_only_server_is_unknown_and_looked_for_again(alone: Redis, open_one: Open) -> None:
    adapter = open_one(alone.url)
    adapter.declare([TopicSpec(name="t", partitions=1)], [])
    with redis.Redis.from_url(alone.url) as raw:
        raw.replicaof("127.0.0.1", 1)
        (outcome,) = adapter.publish([message("t")], TIMEOUT)
        assert isinstance(outcome, Unknown)
        assert "READONLY" in outcome.cause
        raw.replicaof("NO", "ONE")
    assert adapter.publish([message("t")], TIMEOUT) == [SENT]


def test_without_permission_a_message_is_unroutable(
    alone: Redis, open_one: Open, topics: dict[str, TopicSpec]
) -> None:
    open_one(alone.url).declare([TopicSpec(name="t", partitions=1)], [])
    with redis.Redis.from_url(alone.url) as raw:
        raw.acl_setuser(
            "app", enabled=True, passwords=["+pw"], keys=["{other}*"], commands=["+@all"]
        )
    port = alone.port()
    (outcome,) = open_one(f"redis://app:pw@127.0.0.1:{port}/0").publish([message("t")], TIMEOUT)
    assert isinstance(outcome, Unroutable)
    assert "NOPERM" in outcome.cause
    (outcome,) = open_one(f"redis://app:wr0ng@127.0.0.1:{port}/0").publish([message("t")], TIMEOUT)
    assert isinstance(outcome, Unroutable)
    assert "WRONGPASS" in outcome.cause
    assert "wr0ng" not in outcome.cause


def test_a_call_stops_at_the_first_message_that_cannot_be_added(
    adapter: RedisAdapter, declare: Declare, raw: Any
) -> None:
    topic = declare(partitions=2)
    keys = {partition_for(key.encode(), 2): key for key in map(str, range(10))}
    raw.delete(f"{{{topic}}}:1")
    raw.set(f"{{{topic}}}:1", "somebody else's")
    first, bad, last = (
        message(topic, body, key=keys[partition])
        for body, partition in ((b"first", 0), (b"bad", 1), (b"last", 0))
    )
    more = numbered(topic, range(2 * chunks.MAX_COUNT), key=keys[0])
    outcomes = adapter.publish([first, bad, last, *more], TIMEOUT)
    assert outcomes[0] == SENT
    assert isinstance(outcomes[1], Unroutable)
    assert "WRONGTYPE" in outcomes[1].cause
    assert all(isinstance(outcome, Unknown) for outcome in outcomes[2:])
    assert bodies(raw, topic) == [b"first"]


def test_a_publisher_with_another_number_of_partitions_is_unroutable(
    open_one: Open, declare: Declare, topics: dict[str, TopicSpec]
) -> None:
    topic = declare(partitions=4)
    topics[topic] = TopicSpec(name=topic, partitions=8)
    (outcome,) = open_one().publish([message(topic)], TIMEOUT)
    assert isinstance(outcome, Unroutable)
    assert "8" in outcome.cause
    assert "4" in outcome.cause


def test_a_publisher_that_names_no_number_follows_a_topic_declared_anew(
    open_one: Open, declare: Declare, topics: dict[str, TopicSpec], raw: Any
) -> None:
    topic = declare(partitions=1)
    topics.clear()
    adapter = open_one()
    assert adapter.publish(numbered(topic, range(4), key=None), TIMEOUT) == [SENT] * 4
    raw.hset(f"{{{topic}}}:meta", "partitions", 2)
    batch = [message(topic, key=f"key-{index}") for index in range(300)]
    assert adapter.publish(batch, TIMEOUT) == [SENT] * 300
    expected = [one for one in batch if partition_for((one.key or "").encode(), 2) == 1]
    assert raw.xlen(f"{{{topic}}}:1") == len(expected)


def test_a_deleted_topic_is_unroutable_again(
    adapter: RedisAdapter, declare: Declare, raw: Any
) -> None:
    topic = declare()
    assert adapter.publish([message(topic)], TIMEOUT) == [SENT]
    raw.delete(f"{{{topic}}}:meta")
    (outcome,) = adapter.publish([message(topic)], TIMEOUT)
    assert isinstance(outcome, Unroutable)


def test_more_headers_than_an_entry_takes_are_refused_before_the_send(
    adapter: RedisAdapter, declare: Declare, length: Length
) -> None:
    topic = declare()
    many: Mapping[str, str] = {f"h{index}": "" for index in range(chunks.MAX_HEADERS + 1)}
    most = dict(list(many.items())[:-1])
    refused, sent = adapter.publish(
        [Message(id="many", topic=topic, headers=many), Message(id="m", topic=topic, headers=most)],
        TIMEOUT,
    )
    assert "headers" in str(refused)
    assert sent == SENT
    assert length(topic) == 1


# --- copies -----------------------------------------------------------------------------------


def test_with_wait_a_publish_is_sent_once_the_replicas_have_it(
    alone: Redis, own_server: OwnServer, open_one: Open
) -> None:
    adapter = open_one(alone.url, query="wait=1&wait_timeout=0.2")
    adapter.declare([TopicSpec(name="t", partitions=1)], [])
    batch = numbered("t", range(300))
    outcomes = adapter.publish(batch, TIMEOUT)
    assert all(isinstance(outcome, Unknown) for outcome in outcomes)
    assert "0 of 1 replicas" in str(outcomes[0])
    with redis.Redis.from_url(alone.url) as primary:
        primary.config_set("repl-diskless-sync-delay", "0")
    replica = own_server("redis", {"replicaof": f"127.0.0.1 {alone.port()}"})
    wait_for(lambda: adapter.publish(batch, TIMEOUT) == [SENT] * 300, "the replica's confirmation")
    with redis.Redis.from_url(replica.url) as copy:
        assert copy.xlen("{t}:0") == 300
        # What is known already is confirmed only by replicas that have it.
        replica.pause()
        (again,) = adapter.publish(batch[:1], TIMEOUT)
        replica.resume()
    assert isinstance(again, Unknown)


def test_wait_aof_on_a_server_without_it_is_said_at_declare(alone: Redis, open_one: Open) -> None:
    if has_waitaof(alone):
        pytest.skip("this server has WAITAOF")
    with pytest.raises(ConfigurationError, match="wait_aof"):
        open_one(alone.url, query="wait_aof=1").declare([TopicSpec(name="t")], [])


def test_with_wait_aof_a_publish_is_sent_once_it_is_on_disk(
    own_server: OwnServer, open_one: Open
) -> None:
    server = own_server("redis", {"appendfsync": "everysec"})
    if not has_waitaof(server):
        pytest.skip("this server has no WAITAOF")
    adapter = open_one(server.url, query="wait_aof=1&wait_timeout=5")
    adapter.declare([TopicSpec(name="t", partitions=1)], [])
    assert adapter.publish(numbered("t", range(300)), TIMEOUT) == [SENT] * 300
    with redis.Redis.from_url(server.url) as raw:
        raw.config_set("appendonly", "no")
    (outcome,) = adapter.publish(numbered("t", [300]), TIMEOUT)
    assert isinstance(outcome, Unknown)


def has_waitaof(server: Server) -> bool:
    with redis.Redis.from_url(server.url) as raw:
        return tuple(map(int, raw.info("server")["redis_version"].split("."))) >= (7, 2)


# --- threads ----------------------------------------------------------------------------------


def test_close_ends_a_publish_under_way(
    open_one: Open, declare: Declare, proxy: Proxy, through: str
) -> None:
    topic = declare()
    adapter = open_one(through)
    assert adapter.publish([message(topic)], TIMEOUT) == [SENT]
    proxy.hold_requests()
    outcomes: list[object] = []
    thread = threading.Thread(target=lambda: outcomes.extend(adapter.publish([message(topic)], 60)))
    thread.start()
    wait_for(lambda: adapter._servers._busy, "the publish")
    adapter.close()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(outcomes[0], Unknown)
    (closed,) = adapter.publish([message(topic)], TIMEOUT)
    assert isinstance(closed, Unknown)
