"""Three Kafka nodes, some of which are dead."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from reliable_mq import Message, PublishUnconfirmedError, ReliableMQ, Settings
from reliable_mq.adapter import SENT, AdapterContext, GroupSpec, Severity, TopicSpec, Unknown
from reliable_mq.errors import TransportError
from reliable_mq.testing.contract.messages import numbered
from reliable_mq_kafka import open_adapter
from reliable_mq_kafka.adapter import KafkaAdapter
from tests.brokers import KafkaCluster
from tests.clusters.traffic import Publishing, without_repeats
from tests.conftest import started
from tests.e2e.shop import effects, leave, metadata
from tests.e2e.waiting import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

PARTITIONS = 3
KEYS = [f"key-{index}" for index in range(8)]
SLOW = 120.0


@pytest.fixture(scope="module")
def nodes(request: pytest.FixtureRequest) -> Iterator[KafkaCluster]:
    yield from started(request, KafkaCluster())


@pytest.fixture
def cluster(nodes: KafkaCluster) -> Iterator[KafkaCluster]:
    """The cluster, whole at the beginning of each test."""
    yield nodes
    for one in nodes.ids:
        nodes.start_node(one)
    nodes.wait_ready()


@pytest.fixture
def adapter(cluster: KafkaCluster, topics: dict[str, TopicSpec]) -> Iterator[KafkaAdapter]:
    opened = open_adapter(cluster.url, AdapterContext(instance="publisher", topics=topics))
    yield opened
    opened.close()


@pytest.fixture
def topics() -> dict[str, TopicSpec]:
    return {}


@pytest.fixture
def topic(adapter: KafkaAdapter, topics: dict[str, TopicSpec], unique: str) -> str:
    topics[unique] = TopicSpec(name=unique, partitions=PARTITIONS)
    adapter.declare([topics[unique]], [])
    return unique


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    engine = create_engine(sqlite_url)
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def seen(engine: Engine) -> Callable[[], dict[str, list[int]]]:
    """Return by key what the handlers have done, in the order of their commits."""

    def look() -> dict[str, list[int]]:
        found = defaultdict(list)
        for what in effects(engine):
            key, _, number = what.partition(":")
            found[key].append(int(number))
        return found

    return look


@pytest.fixture
def running(
    cluster: KafkaCluster, topic: str, sqlite_url: str
) -> Iterator[Callable[[], ReliableMQ]]:
    """Start a process' worth of consumers, in this process."""
    with ExitStack() as stack:

        def start() -> ReliableMQ:
            settings = Settings(
                broker_url=f"{cluster.url}?session_timeout=6",
                database_url=sqlite_url,
                group="billing",
            )
            mq = stack.enter_context(ReliableMQ(settings))

            @mq.handler(topic, ordered=True, concurrency=4)
            def handle(number: int, session: Session, message: Message) -> None:
                leave(session, f"{message.key}:{number}")

            stack.enter_context(mq.running())
            return mq

        yield start


def stored(cluster: KafkaCluster, topic: str) -> dict[str, list[int]]:
    """Return by key what is on the brokers, in its order."""
    consumer = Consumer(
        {
            "bootstrap.servers": cluster.bootstrap,
            "group.id": "reads-all",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    found: dict[str, list[int]] = defaultdict(list)
    ended: set[int | None] = set()
    try:
        while len(ended) < PARTITIONS:
            record = consumer.poll(30)
            assert record is not None, "the brokers did not answer"
            if record.error():
                ended.add(record.partition())
                continue
            found[(record.key() or b"").decode()].append(int(record.value() or b""))
    finally:
        consumer.close()
    return found


def coordinator(cluster: KafkaCluster, group: str) -> int:
    """Return the node that coordinates a group."""
    client = AdminClient({"bootstrap.servers": cluster.bootstrap})
    found: list[int] = []

    def look() -> bool:
        try:
            described: Any = client.describe_consumer_groups([group])[group].result()
        except KafkaException as error:
            # It moves, and the node that was asked has heard of it before the client has.
            if not error.args[0].retriable():
                raise
            return False
        found.append(int(described.coordinator.id))
        return True

    until(look, "a coordinator", seconds=SLOW)
    return found[-1]


def report(what: str, publishing: Publishing) -> None:
    """Print what is measured and not asserted."""
    print(
        f"\n{what}: {publishing.count} confirmed, longest silence "
        f"{publishing.longest_silence():.1f} s, {publishing.repeated} rounds sent again"
    )


# --- a leader dies ------------------------------------------------------------------------------


def test_all_that_was_confirmed_survives_its_leader_in_the_order_of_each_key(
    cluster: KafkaCluster, adapter: KafkaAdapter, topic: str
) -> None:
    with Publishing(adapter, topic, KEYS) as publishing:
        for _ in range(2):
            until(publishing.progressed, "traffic", seconds=SLOW)
            victim = cluster.leader(topic)
            cluster.kill(victim)
            until(publishing.progressed, "traffic without the leader", seconds=SLOW)
            cluster.restart(victim)
    report("leader killed twice, publisher", publishing)
    found = stored(cluster, topic)
    assert {key: without_repeats(found[key]) for key in KEYS} == publishing.sent


def test_a_group_goes_on_without_the_leader_and_without_its_coordinator(
    cluster: KafkaCluster,
    adapter: KafkaAdapter,
    topic: str,
    running: Callable[[], ReliableMQ],
    seen: Callable[[], dict[str, list[int]]],
) -> None:
    mq = running()
    silences = []
    with Publishing(adapter, topic, KEYS) as publishing:
        for choose in (lambda: cluster.leader(topic), lambda: coordinator(cluster, "billing")):
            handles(seen, 100)
            victim = choose()
            cluster.kill(victim)
            with longest_silence(seen) as silence:
                handles(seen, 100)
            silences.append(silence[0])
            cluster.restart(victim)
    until(lambda: seen() == publishing.sent, "all effects, once and in order", seconds=SLOW)
    until(lambda: mq.status().groups[topic, "billing"].lag == 0, "lag 0", seconds=SLOW)
    assert seen() == publishing.sent
    print("\nleader, then coordinator killed, consumer: longest silences", silences)
    report("leader, then coordinator killed", publishing)


def handles(seen: Callable[[], dict[str, list[int]]], count: int) -> None:
    """Wait until so many more effects are there."""
    before = total(seen)
    until(lambda: total(seen) >= before + count, f"{count} effects", seconds=SLOW)


def total(seen: Callable[[], dict[str, list[int]]]) -> int:
    return sum(map(len, seen().values()))


@contextmanager
def longest_silence(seen: Callable[[], dict[str, list[int]]]) -> Iterator[list[float]]:
    """Put the longest time without a new effect, in seconds, into the list when the block ends."""
    times, end, found = [time.monotonic()], threading.Event(), [0.0]

    def watch() -> None:
        count = total(seen)
        while not end.wait(0.05):
            if (now := total(seen)) > count:
                count = now
                times.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        end.set()
        watcher.join()
        pairs = itertools.pairwise(times)
        found[0] = round(max((later - earlier for earlier, later in pairs), default=0.0), 1)


# --- all of them, one after the other -----------------------------------------------------------


def test_a_rolling_restart_under_traffic_loses_and_repeats_nothing(
    cluster: KafkaCluster,
    adapter: KafkaAdapter,
    topic: str,
    running: Callable[[], ReliableMQ],
    seen: Callable[[], dict[str, list[int]]],
) -> None:
    running()
    with Publishing(adapter, topic, KEYS) as publishing:
        for node in cluster.ids:
            handles(seen, 50)
            cluster.terminate(node)
            handles(seen, 50)
            cluster.restart(node)
    until(lambda: seen() == publishing.sent, "all effects, once and in order", seconds=SLOW)
    found = stored(cluster, topic)
    assert {key: without_repeats(found[key]) for key in KEYS} == publishing.sent
    report("rolling restart", publishing)


# --- too few replicas ---------------------------------------------------------------------------


def test_with_one_of_three_nodes_nothing_is_falsely_confirmed_and_it_goes_on_with_two(
    cluster: KafkaCluster, adapter: KafkaAdapter, topic: str, sqlite_url: str
) -> None:
    first, second = (numbered(topic, [number], key="key") for number in (1, 2))
    assert adapter.publish(first, SLOW) == [SENT]
    dead = [one for one in cluster.ids if one != cluster.leader(topic)]
    for one in dead:
        cluster.kill(one)
    (outcome,) = adapter.publish(second, 8.0)
    assert isinstance(outcome, Unknown), outcome
    settings = Settings(
        broker_url=cluster.url, database_url=sqlite_url, group="billing", auto_declare=False
    )
    with ReliableMQ(settings) as mq, pytest.raises(PublishUnconfirmedError):
        mq.publish_direct(topic, 99, key="other", timeout=8)
    cluster.start_node(dead[0])
    began = time.monotonic()
    until(lambda: adapter.publish(second, 30.0) == [SENT], "a confirmation", seconds=SLOW)
    print(f"\nmin.insync.replicas kept again: confirmed after {time.monotonic() - began:.1f} s")
    assert adapter.publish(numbered(topic, [3], key="key"), SLOW) == [SENT]
    assert without_repeats(stored(cluster, topic)["key"]) == [1, 2, 3]


def test_fewer_replicas_in_step_than_the_topic_wants_leave_a_message_unconfirmed(
    cluster: KafkaCluster, adapter: KafkaAdapter, unique: str
) -> None:
    spec = TopicSpec(name=unique, partitions=PARTITIONS, options={"min.insync.replicas": 3})
    adapter.declare([spec], [])
    assert adapter.publish(numbered(unique, [1]), SLOW) == [SENT]
    leader = cluster.leader(unique)
    dead = next(one for one in cluster.ids if one != leader)
    cluster.kill(dead)
    until(lambda: dead not in cluster.in_sync(unique), "its loss to be noticed", seconds=SLOW)
    two = numbered(unique, [2])
    assert isinstance(adapter.publish(two, 5.0)[0], Unknown)
    cluster.restart(dead)
    until(lambda: adapter.publish(two, 30.0) == [SENT], "a confirmation", seconds=SLOW)
    assert without_repeats(stored(cluster, unique)["key"]) == [1, 2]


# --- what is recommended ------------------------------------------------------------------------


def findings(adapter: KafkaAdapter) -> set[tuple[str, str, Severity]]:
    return {
        (one.subject, one.code, one.severity)
        for one in adapter.inspect()
        if one.severity is not Severity.INFO
    }


def until_found(
    adapter: KafkaAdapter,
    expected: AbstractSet[tuple[str, str, Severity]],
    *,
    perhaps: AbstractSet[tuple[str, str, Severity]] = frozenset(),
) -> None:
    """Wait until an inspection finds what is *expected*; copies catch up, controllers change."""
    seen: object = None

    def looked() -> bool:
        nonlocal seen
        try:
            seen = found = findings(adapter)
        except TransportError as error:  # the controller is dead, and there is no other one yet
            seen = error
            return False
        return found - perhaps == expected - perhaps

    until(looked, lambda: seen, seconds=SLOW)


def test_nothing_is_found_wrong_with_a_cluster_as_it_is_recommended(
    adapter: KafkaAdapter, topic: str
) -> None:
    assert adapter.inspect() == []


# --- what is not --------------------------------------------------------------------------------


def test_copies_that_are_too_few_or_too_many_are_found_with_and_without_a_dead_node(
    cluster: KafkaCluster, adapter: KafkaAdapter, topics: dict[str, TopicSpec], unique: str
) -> None:
    def declare(what: str, replicas: int, in_sync: int) -> str:
        options = {"min.insync.replicas": in_sync}
        spec = TopicSpec(
            name=f"{unique}-{what}", partitions=3, replication_factor=replicas, options=options
        )
        topics[spec.name] = spec
        adapter.declare([spec], [])
        return f"topic {spec.name}"

    good, loose, tight = declare("good", 3, 2), declare("loose", 3, 1), declare("tight", 3, 3)
    pair, alone, never = declare("pair", 2, 2), declare("alone", 1, 1), declare("never", 3, 4)
    settings = {
        (loose, "kafka-min-isr", Severity.ERROR),
        (tight, "kafka-min-isr-high", Severity.WARNING),
        (pair, "kafka-replication", Severity.WARNING),
        (pair, "kafka-min-isr-high", Severity.WARNING),
        (alone, "kafka-replication", Severity.ERROR),
        (never, "kafka-min-isr-high", Severity.ERROR),
    }
    until_found(adapter, settings)
    cluster.kill(3)
    state = {
        *((one, "kafka-in-sync", Severity.WARNING) for one in (good, loose)),
        *((one, "kafka-in-sync", Severity.ERROR) for one in (tight, pair, alone, never)),
    }
    # There only if a group has used it.
    internal = ("topic __consumer_offsets", "kafka-in-sync", Severity.WARNING)
    until_found(adapter, settings | state, perhaps={internal})


def test_a_client_whose_controller_has_died_asks_for_another_one(
    cluster: KafkaCluster, adapter: KafkaAdapter, topic: str
) -> None:
    assert findings(adapter) == set()
    current = adapter._admin._current
    assert current is not None
    known = current[0].list_topics(timeout=SLOW).controller_id
    cluster.kill(known)
    dead_copies = {(f"topic {topic}", "kafka-in-sync", Severity.WARNING)}
    internal = ("topic __consumer_offsets", "kafka-in-sync", Severity.WARNING)
    until_found(adapter, dead_copies, perhaps={internal})


def test_each_broker_is_looked_at(cluster: KafkaCluster, adapter: KafkaAdapter, topic: str) -> None:
    properties = cluster.folder / "node2" / "node.properties"
    before = properties.read_text()
    wrong = "offsets.retention.minutes=60\ntransaction.state.log.min.isr=1\n"
    properties.write_text(before + wrong)
    cluster.restart(2)
    try:
        wrong_there = {
            ("broker 2", "kafka-offsets-retention", Severity.WARNING),
            ("broker 2", "kafka-internal-topics", Severity.WARNING),
        }
        until_found(adapter, wrong_there)
    finally:
        properties.write_text(before)
        cluster.restart(2)
    until_found(adapter, set())


def test_a_loose_topic_of_the_offsets_is_found(
    cluster: KafkaCluster, adapter: KafkaAdapter, topic: str
) -> None:
    adapter.declare([], [GroupSpec(topic=topic, group="billing")])  # makes it, if nobody has
    client = AdminClient({"bootstrap.servers": cluster.bootstrap})

    def require(in_sync: int) -> None:
        entry = ConfigEntry(
            "min.insync.replicas",
            str(in_sync),
            incremental_operation=AlterConfigOpType.SET,
        )
        offsets = ConfigResource(
            ResourceType.TOPIC, "__consumer_offsets", incremental_configs=[entry]
        )
        client.incremental_alter_configs([offsets])[offsets].result()

    require(1)
    found = ("topic __consumer_offsets", "kafka-min-isr", Severity.WARNING)
    try:
        until(lambda: findings(adapter) == {found}, lambda: findings(adapter), seconds=SLOW)
    finally:
        require(2)
    until(lambda: not findings(adapter), lambda: findings(adapter), seconds=SLOW)
