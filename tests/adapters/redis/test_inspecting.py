"""What ``inspect`` says of servers that are really set up wrongly, and of one that is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from reliable_mq.adapter import SENT, Severity, TopicSpec
from reliable_mq.testing.contract.messages import numbered
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_redis.adapter import RedisAdapter
from reliable_mq_redis.inspect import _version
from tests.adapters.redis.conftest import TIMEOUT, Open, replicas_online
from tests.brokers import Redis
from tests.conftest import OwnServer

RECOMMENDED = {"appendonly": "yes", "appendfsync": "always", "repl-diskless-sync-delay": "0"}

Start = Callable[..., Redis]


@pytest.fixture
def start(own_server: OwnServer) -> Start:
    """Starts a server as recommended but for the settings given."""

    def make(**settings: str) -> Redis:
        named = {name.replace("_", "-"): value for name, value in settings.items()}
        server = own_server("redis", {**RECOMMENDED, **named})
        assert isinstance(server, Redis)
        return server

    return make


def findings(adapter: RedisAdapter) -> list[tuple[str, Severity]]:
    found = adapter.inspect()
    assert all(one.why and one.remedy and one.subject.startswith("redis 127") for one in found)
    return [(one.code, one.severity) for one in found]


def test_a_server_as_recommended_has_no_findings(start: Start, open_one: Open) -> None:
    assert open_one(start().url).inspect() == []
    assert open_one(start(maxmemory="1gb", maxmemory_policy="noeviction").url).inspect() == []


@pytest.mark.parametrize(
    ("settings", "code", "severity", "what"),
    [
        ({"appendfsync": "everysec"}, "redis-appendfsync", Severity.WARNING, "everysec"),
        ({"appendfsync": "no"}, "redis-appendfsync", Severity.WARNING, "appendfsync is no"),
        (
            {"no_appendfsync_on_rewrite": "yes"},
            "redis-fsync-on-rewrite",
            Severity.WARNING,
            "no-appendfsync-on-rewrite is yes",
        ),
        ({"appendonly": "no"}, "redis-volatile", Severity.ERROR, "no snapshots"),
        ({"appendonly": "no", "save": "60 1"}, "redis-volatile", Severity.ERROR, "is no"),
        ({"maxmemory_policy": "allkeys-lru"}, "redis-eviction", Severity.WARNING, "not in force"),
        (
            {"maxmemory_policy": "allkeys-lru", "maxmemory": "100mb"},
            "redis-eviction",
            Severity.ERROR,
            "allkeys-lru with maxmemory",
        ),
        (
            {"maxmemory_policy": "volatile-ttl", "maxmemory": "100mb"},
            "redis-eviction",
            Severity.WARNING,
            "volatile-ttl",
        ),
    ],
    ids=lambda value: " ".join(map("=".join, value.items())) if isinstance(value, dict) else "",
)
def test_a_setting_that_breaks_a_promise_is_found(
    start: Start,
    open_one: Open,
    settings: dict[str, str],
    code: str,
    severity: Severity,
    what: str,
) -> None:
    adapter = open_one(start(**settings).url)
    assert findings(adapter) == [(code, severity)]
    assert what in adapter.inspect()[0].what


def test_a_server_that_is_almost_full_is_found_and_one_that_evicted_keys(
    start: Start, open_one: Open
) -> None:
    server = start()
    with redis.Redis.from_url(server.url) as client:
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", int(used * 1.02))
        adapter = open_one(server.url)
        assert findings(adapter) == [("redis-memory-full", Severity.WARNING)]
        client.config_set("maxmemory", 0)
        client.set("somebody's", "x" * 100_000)
        client.config_set("maxmemory-policy", "allkeys-random")
        client.config_set("maxmemory", used)
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
        assert findings(adapter) == [("redis-evicted", Severity.WARNING)]
        client.config_resetstat()
        assert findings(adapter) == []


def test_wait_is_compared_with_the_replicas_there_are(start: Start, open_one: Open) -> None:
    server = start()
    careless, waiting = open_one(server.url), open_one(server.url, query="wait=1")
    assert findings(waiting) == [("redis-wait", Severity.ERROR)]
    replicas = [start(replicaof=f"127.0.0.1 {server.port()}") for _ in range(2)]
    wait_for(lambda: replicas_online(server) == 2, "two replicas")
    assert findings(open_one(server.url, query="wait=2")) == []
    assert findings(waiting) == [("redis-wait-for-some", Severity.INFO)]
    asynchronous = ("redis-asynchronous", Severity.WARNING)
    assert findings(careless) == [asynchronous, ("redis-min-replicas", Severity.WARNING)]
    with redis.Redis.from_url(server.url) as client:
        client.config_set("min-replicas-to-write", 1)
        assert findings(careless) == [asynchronous]
        client.config_set("min-replicas-max-lag", 3600)
    assert findings(careless) == [asynchronous, ("redis-replica-lag", Severity.WARNING)]
    assert findings(open_one(server.url, query="wait=2")) == []
    assert findings(open_one(replicas[0].url)) == [("redis-read-only", Severity.ERROR)]


def test_a_server_that_refuses_writes_for_want_of_replicas_is_an_error(
    start: Start, open_one: Open
) -> None:
    server = start()
    adapter = open_one(server.url)
    adapter.declare([TopicSpec(name="t")], [])
    assert adapter.publish(numbered("t", [1]), TIMEOUT) == [SENT]
    with redis.Redis.from_url(server.url) as client:
        client.config_set("min-replicas-to-write", 1)
    (outcome,) = adapter.publish(numbered("t", [2]), TIMEOUT)
    assert "NOREPLICAS" in str(outcome)
    assert findings(adapter) == [("redis-too-few-replicas", Severity.ERROR)]


@pytest.mark.parametrize("version", ["6.0.16", "5.0.14", ""])
def test_a_version_without_the_commands_that_are_needed_is_an_error(version: str) -> None:
    (finding,) = _version("redis", {"redis_version": version})
    assert finding.severity is Severity.ERROR
    assert (version or "unknown") in finding.what
    assert [*_version("redis", {"redis_version": "6.2.0"})] == []


def test_what_may_not_be_looked_at_is_said_and_known_from_elsewhere_where_it_can_be(
    start: Start, open_one: Open
) -> None:
    server = start(appendfsync="everysec", maxmemory_policy="allkeys-lru", maxmemory="100mb")
    with redis.Redis.from_url(server.url) as client:
        client.acl_setuser("app", enabled=True, passwords=["+s3cret"], commands=["+info"])
    address = server.url.partition("://")[2]
    assert findings(open_one(f"redis://app:s3cret@{address}")) == [
        ("redis-eviction", Severity.ERROR),
        ("redis-appendfsync-unknown", Severity.INFO),
    ]
