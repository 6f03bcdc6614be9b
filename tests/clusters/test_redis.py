"""Redis with sentinels and a Redis cluster, whose masters die in mid-traffic.

What a confirmed publish is worth there, with and without ``wait``, is measured and printed.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from operator import methodcaller
from typing import Any, ClassVar, Self

import pytest
import redis

from reliable_mq.adapter import SENT, Adapter, AdapterContext, GroupSpec, TopicSpec, Unknown
from reliable_mq.errors import TransportError
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract import AdapterContract
from reliable_mq.testing.contract.base import ContextFactory, Foreign
from reliable_mq.testing.contract.messages import decoded, message, number_of
from reliable_mq.testing.contract.outage import send_eventually
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_redis import keys
from tests.brokers import RedisCluster, RedisSentinels
from tests.brokers.redis_cluster import RedisNodes
from tests.clusters.traffic import Publishing, without_repeats
from tests.conftest import started

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

TOPIC = "orders"
GROUP = "billing"
PARTITIONS = 4
KEYS = [f"key-{index}" for index in range(8)]
REPLICAS = {"sentinels": 2, "cluster": 1}
SLOW = 120.0

Numbers = dict[str, list[int]]


class Place:
    """Some nodes, and which of them has the topic."""

    def __init__(self, nodes: RedisNodes, master: Callable[[], int]) -> None:
        self.nodes = nodes
        self.master = master

    def took_over(self, before: int) -> bool:
        """Tell whether another node than *before* has the topic."""
        try:
            return self.master() != before
        except (redis.RedisError, StopIteration):
            return False

    def replicas(self, master: int) -> list[int]:
        """The nodes that follow *master*."""
        port = self.nodes.nodes[master].port()
        facts = {number: self.nodes.nodes[number].info() for number in self.nodes.alive}
        return [number for number, info in facts.items() if info.get("master_port") == port]

    def stored(self) -> Numbers:
        """By key, what the streams of the topic have, in their order."""
        found: Numbers = defaultdict(list)
        for stream in keys.streams(TOPIC, PARTITIONS):
            node = self.nodes.nodes[self.master()]
            for _, fields in node.ask(methodcaller("xrange", stream)):
                key = fields[b"message-key"].decode()
                found[key].append(int(fields[b"body"].rstrip(b" ")))
        return found


@pytest.fixture(params=["sentinels", "cluster"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def place(request: pytest.FixtureRequest, kind: str) -> Iterator[Place]:
    nodes = RedisSentinels() if kind == "sentinels" else RedisCluster()
    for _ in started(request, nodes):
        if isinstance(nodes, RedisSentinels):
            yield Place(nodes, lambda: nodes.primary)
        else:
            yield Place(nodes, lambda: nodes.master_of(TOPIC))


@pytest.fixture
def opened(place: Place) -> Iterator[Callable[..., Adapter]]:
    """Open an adapter that has declared the topic with its group."""
    with ExitStack() as stack:

        def make(instance: str, *, wait: int) -> Adapter:
            spec = TopicSpec(name=TOPIC, partitions=PARTITIONS)
            context = AdapterContext(instance=instance, topics={TOPIC: spec}, lease=5.0)
            adapter = open_adapter(f"{place.nodes.url}?wait={wait}", context)
            stack.callback(adapter.close)
            adapter.declare([spec], [GroupSpec(topic=TOPIC, group=GROUP, ordered=True)])
            return adapter

        yield make


class Receiving:
    """A member of the ordered group on a thread, which acknowledges what it receives."""

    def __init__(self, adapter: Adapter, numbers: Numbers) -> None:
        self.times: list[float] = []
        self._numbers = numbers
        self._reader = Reader(adapter.subscribe([TOPIC], GROUP, prefetch=500, ordered=True))
        self._end = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def longest_silence(self) -> float:
        """Return the longest time without a delivery, in seconds."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return max((later - earlier for earlier, later in pairs), default=0.0)

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                self._step()
            self._reader.close()
        except BaseException as error:  # noqa: BLE001 - raised again at the end
            self._failure = error

    def _step(self) -> None:
        for one in self._reader.step_through_outage():
            self._numbers[decoded(one).key or ""].append(number_of(one))
            self.times.append(time.monotonic())
        try:
            self._reader.ack(list(self._reader.held))
        except TransportError:
            return  # They come again, from the next connection or to another member.


def missing(sent: Numbers, there: Numbers) -> list[tuple[str, int]]:
    """What was confirmed and is not there."""
    return [(key, n) for key, numbers in sent.items() for n in set(numbers) - set(there[key])]


# --- a master dies in mid-traffic -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "wait"),
    [(kind, wait) for kind, most in REPLICAS.items() for wait in range(most + 1)],
)
def test_a_publisher_finds_the_new_master_and_adds_nothing_twice(
    place: Place, opened: Callable[..., Adapter], kind: str, wait: int
) -> None:
    dead = place.master()
    with Publishing(opened("publisher", wait=wait), TOPIC, KEYS) as publishing:
        wait_for(publishing.progressed, "publishes", seconds=SLOW)
        place.nodes.kill(dead)
        wait_for(lambda: place.took_over(dead), "a new master", seconds=SLOW)
        if wait == REPLICAS[kind]:
            # One replica less now: nothing is confirmed before the dead node is back.
            place.nodes.restart(dead)
        wait_for(publishing.progressed, "publishes to the new master", seconds=SLOW)
    stored = place.stored()
    gone = missing(publishing.sent, stored)
    print(
        f"\n{kind}, wait={wait}: master killed, {publishing.count} confirmed, {len(gone)} of them "
        f"lost, longest silence {publishing.longest_silence():.1f} s"
    )
    assert all(numbers == sorted(set(numbers)) for numbers in stored.values())
    if wait == REPLICAS[kind]:
        assert not gone


def test_members_of_an_ordered_group_find_the_new_master_and_miss_nothing(
    place: Place, opened: Callable[..., Adapter], kind: str
) -> None:
    dead, seen = place.master(), defaultdict[str, list[int]](list)
    members = [opened(f"member-{number}", wait=0) for number in range(2)]
    with ExitStack() as stack:
        receiving = [stack.enter_context(Receiving(one, seen)) for one in members]
        publisher = opened("publisher", wait=REPLICAS[kind])
        with Publishing(publisher, TOPIC, KEYS) as publishing:
            wait_for(
                lambda: publishing.progressed() and all(one.times for one in receiving),
                "deliveries to both members",
                seconds=SLOW,
            )
            place.nodes.kill(dead)
            wait_for(lambda: place.took_over(dead), "a new master", seconds=SLOW)
            place.nodes.restart(dead)
            wait_for(publishing.progressed, "publishes to the new master", seconds=SLOW)
        wait_for(lambda: not missing(publishing.sent, seen), "every message", seconds=SLOW)
    silences = ", ".join(f"{one.longest_silence():.1f} s" for one in receiving)
    repeats = sum(len(numbers) - len(set(numbers)) for numbers in seen.values())
    print(f"\n{kind}: master killed, longest silences {silences}; {repeats} delivered again")
    for numbers in seen.values():
        first = without_repeats(numbers)
        assert first == sorted(first)


# --- what replication does not promise ------------------------------------------------------------


@pytest.mark.parametrize("wait", [0, 1])
def test_what_no_replica_has_is_lost_with_its_master_and_was_not_confirmed_with_wait(
    place: Place, opened: Callable[..., Adapter], kind: str, wait: int
) -> None:
    adapter, dead = opened("publisher", wait=wait), place.master()
    # More than the connections to the replicas take while those are stopped.
    batch = [message(TOPIC, b"%d" % n + b" " * 500_000, key="key") for n in range(60)]
    behind = place.replicas(dead)
    assert len(behind) == REPLICAS[kind]
    for replica in behind:
        place.nodes.pause(replica)
    outcomes = adapter.publish(batch, 30.0)
    place.nodes.kill(dead)
    for replica in behind:
        place.nodes.resume(replica)
    wait_for(lambda: place.took_over(dead), "a new master", seconds=SLOW)
    confirmed = [number for number, outcome in enumerate(outcomes) if outcome == SENT]
    gone = missing({"key": confirmed}, place.stored())
    print(f"\n{kind}, wait={wait}: {len(confirmed)} of 60 confirmed, {len(gone)} of them lost")
    if wait:
        assert all(isinstance(outcome, Unknown) for outcome in outcomes)
        place.nodes.heal()
        send_eventually(adapter, batch)
        assert place.stored() == {"key": list(range(60))}
    else:
        assert len(confirmed) == 60
        assert gone


# --- as recommended -------------------------------------------------------------------------------


def test_inspect_is_silent_as_recommended_and_tells_of_dead_nodes(
    place: Place, opened: Callable[..., Adapter], kind: str
) -> None:
    for node in place.nodes.nodes:
        node.command_of("CONFIG", "SET", "appendfsync", "always")
    adapter = opened("inspector", wait=REPLICAS[kind])
    assert adapter.inspect() == []
    (replica, *_) = place.replicas(place.master())
    place.nodes.kill(replica)
    if isinstance(place.nodes, RedisSentinels):
        place.nodes.sentinels[0].kill()
    expected = {"redis-wait", "redis-sentinel" if kind == "sentinels" else "redis-no-replica"}
    wait_for(lambda: {one.code for one in adapter.inspect()} == expected, "the findings")


# --- the contract on a cluster --------------------------------------------------------------------


class TestRedisClusterContract(AdapterContract):
    column = "redis: cluster"
    without: ClassVar = {"broker": "which node dies decides; see the other tests of this file"}

    @pytest.fixture(scope="class")
    @classmethod
    def nodes(cls, request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
        yield from started(request, RedisCluster())

    @pytest.fixture
    def url(self, nodes: RedisCluster) -> str:
        return nodes.url

    @pytest.fixture
    def adapter(self, url: str, context: ContextFactory) -> Iterator[Adapter]:
        adapter = open_adapter(url, context())
        yield adapter
        adapter.close()

    @pytest.fixture
    def bad_credentials_url(self, nodes: RedisCluster) -> str:
        for node in nodes.nodes:
            node.command_of("ACL", "SETUSER", "app", "on", ">right")
        return nodes.url.replace("://", "://app:wrong-s3cret@")

    @pytest.fixture
    def foreign(self, nodes: RedisCluster) -> Foreign:
        def publish(topic: str, body: bytes | None, headers: list[tuple[str, bytes]]) -> None:
            pairs = headers if body is None else [("body", body), *headers]
            words: list[Any] = [word for pair in pairs for word in pair]
            node = nodes.nodes[nodes.master_of(topic)]
            node.command_of("XADD", keys.stream(topic, 0), "*", *words)

        return publish
