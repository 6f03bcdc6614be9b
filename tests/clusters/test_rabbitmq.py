"""Three RabbitMQ nodes, some of which are dead."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from reliable_mq import (
    Message,
    PublishUnconfirmedError,
    ReliableMQ,
    Settings,
    TransportError,
)
from reliable_mq.adapter import (
    SENT,
    Adapter,
    AdapterContext,
    Finding,
    GroupSpec,
    Severity,
    Subscription,
    TopicSpec,
    Unknown,
)
from reliable_mq.doctor import diagnose
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract.messages import (
    decoded,
    number_of,
    numbered,
    numbers_of,
    one_key_per_partition,
)
from reliable_mq.testing.contract.readers import Reader
from tests.adapters.rabbitmq.certificates import (
    make_authority,
    make_certificate,
    needs_openssl,
    tls_settings,
)
from tests.brokers import RabbitMQCluster
from tests.clusters.traffic import Publishing, without_repeats
from tests.conftest import started
from tests.e2e.shop import effects, leave, metadata
from tests.e2e.waiting import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

GROUP = "billing"
PARTITIONS = 4
KEYS = [f"key-{index}" for index in range(8)]
SLOW = 120.0
STEADY = 6.0
"""Seconds in which members whose shares are not balanced would hand over, once a second."""

Numbers = dict[str, list[int]]
Opened = Callable[..., Adapter]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an authority, and of a certificate for ``localhost``."""
    needs_openssl()
    folder = tmp_path_factory.mktemp("tls")
    make_authority(folder, "ca")
    make_certificate(folder, "server", "ca", "localhost")
    return folder


@pytest.fixture(scope="module")
def nodes(request: pytest.FixtureRequest, certificates: Path) -> Iterator[RabbitMQCluster]:
    """A cluster with TLS beside its plain ports."""
    server = RabbitMQCluster(
        {
            "cluster_partition_handling": "pause_minority",
            **tls_settings(certificates, "ssl_options"),
            **tls_settings(certificates, "management.ssl"),
        }
    )
    for node in server.nodes:
        node.settings["listeners.ssl.1"] = f"127.0.0.1:{node.port('tls')}"
        node.settings["management.ssl.ip"] = "127.0.0.1"
        node.settings["management.ssl.port"] = str(node.port("management-tls"))
    for _ in started(request, server):
        yield server


@pytest.fixture
def cluster(nodes: RabbitMQCluster) -> Iterator[RabbitMQCluster]:
    """The cluster, whole at the beginning of each test."""
    yield nodes
    dead = {0, 1, 2} - set(nodes.alive)
    if dead:
        nodes.restart(*dead)
    nodes.wait_ready()


@pytest.fixture
def url(cluster: RabbitMQCluster, unique: str) -> str:
    """A virtual host of its own, by way of all nodes."""
    return cluster.create_vhost(unique)


@pytest.fixture
def topics() -> dict[str, TopicSpec]:
    return {"orders": TopicSpec(name="orders", partitions=PARTITIONS)}


@pytest.fixture
def opened(url: str, topics: dict[str, TopicSpec]) -> Iterator[Opened]:
    with ExitStack() as stack:

        def make(instance: str, *, where: str = url) -> Adapter:
            adapter = open_adapter(where, AdapterContext(instance=instance, topics=topics))
            stack.callback(adapter.close)
            return adapter

        yield make


@pytest.fixture
def publisher(opened: Opened, topics: dict[str, TopicSpec]) -> Adapter:
    """An adapter that has declared the topic with an ordered group and another one."""
    adapter = opened("publisher")
    groups = [GroupSpec(topic="orders", group=GROUP, ordered=True)]
    adapter.declare([topics["orders"]], [*groups, GroupSpec(topic="orders", group="audit")])
    return adapter


@pytest.fixture
def seen(postgresql_url: str) -> Iterator[Callable[[], Numbers]]:
    """Return by group and key what the handlers have done, in the order of their effects."""
    engine: Engine = create_engine(postgresql_url)
    metadata.create_all(engine)

    def look() -> Numbers:
        found = defaultdict(list)
        for what in effects(engine):
            who, _, number = what.rpartition(":")
            found[who].append(int(number))
        return found

    yield look
    engine.dispose()


@pytest.fixture
def running(
    url: str, publisher: Adapter, postgresql_url: str, seen: object
) -> Iterator[Callable[[], ReliableMQ]]:
    """Start a process' worth of consumers, in this process: an ordered group and another one."""
    with ExitStack() as stack:

        def start() -> ReliableMQ:
            settings = Settings(broker_url=url, database_url=postgresql_url)
            mq = stack.enter_context(ReliableMQ(settings))
            topic = mq.topic("orders", int, partitions=PARTITIONS)

            @mq.handler(topic, group=GROUP, ordered=True, concurrency=4)
            def bill(number: int, session: Session, message: Message) -> None:
                leave(session, f"{message.key}:{number}")

            @mq.handler(topic, group="audit", concurrency=4)
            def audit(number: int, session: Session, message: Message) -> None:
                leave(session, f"audit {message.key}:{number}")

            stack.enter_context(mq.running())
            return mq

        yield start


def received(adapter: Adapter, count: int) -> Numbers:
    """Return by key what the group finds in the queues, which is *count* different messages."""
    reader = Reader(adapter.subscribe(["orders"], GROUP, prefetch=60_000, ordered=True))
    found: Numbers = defaultdict(list)

    def whole() -> bool:
        for one in reader.step_through_outage():
            found[decoded(one).key or ""].append(number_of(one))
        return sum(len(set(numbers)) for numbers in found.values()) >= count

    until(whole, lambda: f"{count} messages, {dict(found)}", seconds=SLOW)
    reader.close()
    return found


def handles(seen: Callable[[], Numbers], count: int) -> None:
    """Wait until so many more effects are there."""

    def total() -> int:
        return sum(map(len, seen().values()))

    before = total()
    until(lambda: total() >= before + count, f"{count} effects", seconds=SLOW)


def all_handled_once(seen: Callable[[], Numbers], sent: Numbers) -> None:
    """Wait for all effects; check that none is there twice, and the order of the ordered group."""
    expected = 2 * sum(map(len, sent.values()))

    def total() -> int:
        return sum(map(len, seen().values()))

    until(lambda: total() >= expected, lambda: f"{expected} effects, {total()}", seconds=SLOW)
    found = seen()
    assert {key: found.pop(key) for key in sent} == sent
    assert {who: sorted(numbers) for who, numbers in found.items()} == {
        f"audit {key}": numbers for key, numbers in sent.items()
    }


def report(what: str, publishing: Publishing) -> None:
    """Print what is measured and not asserted."""
    print(
        f"\n{what}: {publishing.count} confirmed, longest silence "
        f"{publishing.longest_silence():.1f} s, {publishing.repeated} rounds sent again"
    )


# --- the doctor ---------------------------------------------------------------------------------


@pytest.fixture
def recommended(cluster: RabbitMQCluster, url: str, unique: str, certificates: Path) -> str:
    """The URL that docs/brokers.md recommends, with users who may do no more than they need."""
    vhost, rights = f"/permissions/{unique}", r"^orders(\..+)?$"
    for user, tags in (("app", ""), ("doctor", "monitoring")):
        cluster.api("PUT", f"/users/{user}", {"password": f"canary-{user}", "tags": tags})
    cluster.api("PUT", f"{vhost}/doctor", {"configure": "", "write": "", "read": ""})
    cluster.api("PUT", f"{vhost}/app", {"configure": rights, "write": rights, "read": rights})
    full = {"max-length-bytes": 10_000_000_000, "overflow": "reject-publish"}
    policy = {"pattern": ".*", "apply-to": "queues", "definition": full}
    cluster.api("PUT", f"/policies/{unique}/backlog", policy)
    hosts = ",".join(f"localhost:{node.port('tls')}" for node in cluster.nodes)
    asked = ",".join(f"localhost:{node.port('management-tls')}" for node in cluster.nodes)
    return (
        f"amqps://app:canary-app@{hosts}/{unique}?cafile={certificates}/ca.pem"
        f"&management=https://{asked}&management_user=doctor&management_password=canary-doctor"
    )


def test_the_doctor_finds_nothing_in_the_recommended_cluster_and_says_what_it_lacks(
    cluster: RabbitMQCluster, recommended: str, postgresql_url: str, unique: str
) -> None:
    def found() -> list[Finding]:
        return [one for one in diagnose(mq) if one.code.startswith(("rabbitmq-", "broker-"))]

    def codes() -> dict[str, Severity]:
        return {one.code: one.severity for one in found()}

    with ReliableMQ(Settings(broker_url=recommended, database_url=postgresql_url)) as mq:
        orders = mq.topic("orders", int, partitions=PARTITIONS)
        mq.handler(orders, group=GROUP, ordered=True)(_ignore)
        mq.declare()
        until(lambda: found() == [], found, seconds=SLOW)
        lonely = f"/queues/{unique}/orders.lonely"
        arguments = {"x-queue-type": "quorum", "x-quorum-initial-group-size": 1}
        cluster.api("PUT", lonely, {"durable": True, "arguments": arguments})
        binding = {"routing_key": "#", "arguments": {}}
        cluster.api("POST", f"/bindings/{unique}/e/orders/q/orders.lonely", binding)
        few = {"rabbitmq-few-replicas": Severity.WARNING}
        until(lambda: codes() == few, codes, seconds=SLOW)
        cluster.api("DELETE", lonely)
        cluster.kill(0)
        dead = {"rabbitmq-dead-node": Severity.WARNING}
        until(lambda: codes() == dead, codes, seconds=SLOW)
        assert "canary" not in str(found())


def _ignore(number: int) -> None:
    """A handler that is never called."""


# --- a leader dies ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["on the leader", "beside the leader"])
def test_all_that_was_confirmed_survives_its_leader_in_the_order_of_each_key(
    cluster: RabbitMQCluster,
    publisher: Adapter,
    opened: Opened,
    url: str,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    victim = cluster.leader(f"orders.{GROUP}.0", unique)
    # Hosts are tried in random order; not here, where the last one is the first.
    monkeypatch.setattr(random, "shuffle", lambda hosts: None)
    ports = [node.port() for node in cluster.nodes]
    first = ports.pop(victim)
    order = [*ports, first] if place == "on the leader" else [first, *ports]
    hosts = ",".join(f"127.0.0.1:{port}" for port in order)
    adapter = opened("traffic", where=f"amqp://guest:guest@{hosts}/{unique}")
    with Publishing(adapter, "orders", KEYS) as publishing:
        until(publishing.progressed, "traffic", seconds=SLOW)
        cluster.kill(victim)
        until(publishing.progressed, "traffic without the leader", seconds=SLOW)
    report(f"leader killed, publisher {place}", publishing)
    found = received(adapter, publishing.count)
    assert {key: without_repeats(found[key]) for key in KEYS} == publishing.sent


def test_groups_go_on_without_the_leader(
    cluster: RabbitMQCluster,
    publisher: Adapter,
    running: Callable[[], ReliableMQ],
    seen: Callable[[], Numbers],
    unique: str,
) -> None:
    mq = running()
    with Publishing(publisher, "orders", KEYS) as publishing:
        for partition in (0, 1):
            handles(seen, 100)
            victim = cluster.leader(f"orders.{GROUP}.{partition}", unique)
            cluster.kill(victim)
            began = time.monotonic()
            handles(seen, 100)
            print(f"\nleader killed, 100 effects later: {time.monotonic() - began:.1f} s")
            cluster.restart(victim)
    report("leaders killed, with consumers", publishing)
    all_handled_once(seen, publishing.sent)
    groups = [("orders", GROUP), ("orders", "audit")]
    until(lambda: [mq.status().groups[one].lag for one in groups] == [0, 0], "lag 0", seconds=SLOW)


# --- a part of the cluster is cut off -----------------------------------------------------------


@pytest.fixture
def part(cluster: RabbitMQCluster) -> Iterator[Callable[[int], None]]:
    """Cut one node off from the others, which find it again after the test."""
    parted: list[int] = []

    def cut_off(node: int) -> None:
        parted.append(node)
        cluster.isolate(node)

    yield cut_off
    for node in parted:
        cluster.rejoin(node)


def test_a_split_cluster_loses_and_repeats_nothing_and_goes_on_with_its_majority(
    cluster: RabbitMQCluster,
    part: Callable[[int], None],
    publisher: Adapter,
    opened: Opened,
    running: Callable[[], ReliableMQ],
    seen: Callable[[], Numbers],
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Hosts are tried in random order; not here, where the last one is the first.
    monkeypatch.setattr(random, "shuffle", lambda hosts: None)
    victim = cluster.leader(f"orders.{GROUP}.0", unique)
    traffic = opened("traffic", where=on_node(cluster, unique, victim))
    running()
    with Publishing(traffic, "orders", KEYS) as publishing:
        handles(seen, 100)
        part(victim)
        began = time.monotonic()
        until(publishing.progressed, "traffic with the majority", seconds=SLOW)
        handles(seen, 100)
        print(f"\ncluster split, 100 effects later: {time.monotonic() - began:.1f} s")
        cluster.rejoin(victim)
        handles(seen, 100)
    report("cluster split, publisher in the minority", publishing)
    all_handled_once(seen, publishing.sent)


@pytest.fixture
def divisible(cluster: RabbitMQCluster) -> Iterator[None]:
    """Let each part of a split cluster go on by itself, as RabbitMQ does unless it is told to."""
    for node in cluster.nodes:
        node.control("eval", f"{_HANDLING}, ignore).")
    yield
    cluster.restart(0)
    for node in cluster.nodes[1:]:
        node.control("eval", f"{_HANDLING}, pause_minority).")


_HANDLING = "application:set_env(rabbit, cluster_partition_handling"


@pytest.mark.usefixtures("divisible")
def test_the_doctor_sees_that_a_cluster_was_split(
    cluster: RabbitMQCluster, part: Callable[[int], None], recommended: str, postgresql_url: str
) -> None:
    def codes() -> dict[str, Severity]:
        return {one.code: one.severity for one in diagnose(mq)}

    def alone() -> bool:
        nodes = cluster.nodes[0].api("GET", "/nodes")
        return [node["name"] for node in nodes if node["running"]] == [cluster.nodes[0].name]

    with ReliableMQ(Settings(broker_url=recommended, database_url=postgresql_url)) as mq:
        part(0)
        until(alone, "a node that is alone", seconds=SLOW)
        cluster.rejoin(0)
        until(lambda: codes().get("rabbitmq-split") == Severity.ERROR, codes, seconds=SLOW)


# --- shares of an ordered group -----------------------------------------------------------------


class Sharing:
    """Members of the ordered group, each on a connection to a node of its own, in one thread."""

    def __init__(self) -> None:
        self.members: list[Reader] = []
        self.effects: Numbers = defaultdict(list)
        self.owners: dict[str, Reader] = {}

    def add(self, adapter: Adapter) -> None:
        """Have one more member, for which the others are to make room."""
        subscription = adapter.subscribe(["orders"], GROUP, prefetch=500, ordered=True)
        self.members.append(Reader(subscription))

    def turn(self) -> None:
        """Let each handle and acknowledge what it gets."""
        for member in self.members:
            taken = member.step_through_outage()
            self.owners.update({one.partition: member for one in taken})
            for one in taken:
                self.effects[decoded(one).key or ""].append(number_of(one))
            member.ack(taken)

    def becomes_fair(self, *shares: int) -> None:
        """Wait until the members own so many partitions each, and do so for a while."""
        since, before = time.monotonic(), self._state()

        def settled() -> bool:
            nonlocal since, before
            self.turn()
            state = self._state()
            if state != before or state[0] != list(shares):
                since, before = time.monotonic(), state
            return time.monotonic() - since > STEADY

        until(settled, lambda: f"{shares}, {before}", seconds=SLOW)

    def _state(self) -> tuple[list[int], list[int]]:
        """Return how much each member owns, and how often it lost something."""
        owners = list(self.owners.values())
        shares = sorted(owners.count(member) for member in self.members)
        return shares, [len(member.lost) for member in self.members]

    def has(self, count: int) -> bool:
        """Tell whether so many different messages were handled, after one more turn."""
        self.turn()
        return sum(len(set(numbers)) for numbers in self.effects.values()) == count


def on_node(cluster: RabbitMQCluster, vhost: str, number: int) -> str:
    """Return the URL of the cluster for a client that takes the last host first, this node."""
    ports = [cluster.nodes[(number + step) % 3].port() for step in (1, 2, 0)]
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"amqp://guest:guest@{hosts}/{vhost}"


def test_members_share_fairly_while_the_node_where_they_are_counted_is_dead(
    cluster: RabbitMQCluster,
    topics: dict[str, TopicSpec],
    opened: Opened,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Hosts are tried in random order; not here, where the last one is the first.
    monkeypatch.setattr(random, "shuffle", lambda hosts: None)
    topics["orders"] = TopicSpec(name="orders", partitions=12)
    keys = one_key_per_partition(12)
    publisher = opened("publisher")
    publisher.declare([topics["orders"]], [GroupSpec(topic="orders", group=GROUP, ordered=True)])
    sharing = Sharing()
    for node in range(2):
        sharing.add(opened(f"member-{node}", where=on_node(cluster, unique, node)))
    with Publishing(publisher, "orders", keys) as publishing:
        sharing.becomes_fair(6, 6)
        place = cluster.leader(f"orders.{GROUP}:members", unique)
        cluster.kill(place)
        began = time.monotonic()
        sharing.add(opened("late", where=on_node(cluster, unique, (place + 1) % 3)))
        sharing.becomes_fair(4, 4, 4)
        print(f"\nfair without the node: {time.monotonic() - began - STEADY:.1f} s")
        cluster.restart(place)
        sharing.add(opened("last", where=on_node(cluster, unique, place)))
        sharing.becomes_fair(3, 3, 3, 3)
    report("members of a dead node", publishing)
    until(lambda: sharing.has(publishing.count), "all messages", seconds=SLOW)
    assert {key: without_repeats(sharing.effects[key]) for key in keys} == publishing.sent


# --- all of them, one after the other -----------------------------------------------------------


def test_a_rolling_restart_under_traffic_loses_and_repeats_nothing(
    cluster: RabbitMQCluster,
    publisher: Adapter,
    running: Callable[[], ReliableMQ],
    seen: Callable[[], Numbers],
) -> None:
    running()
    with Publishing(publisher, "orders", KEYS) as publishing:
        for node in range(3):
            handles(seen, 50)
            cluster.terminate(node)
            handles(seen, 50)
            cluster.restart(node)
    report("rolling restart", publishing)
    all_handled_once(seen, publishing.sent)


# --- no majority --------------------------------------------------------------------------------


@pytest.mark.parametrize("leader", ["lives", "is dead"])
def test_without_a_majority_nothing_is_falsely_confirmed_and_it_goes_on_with_one(
    cluster: RabbitMQCluster,
    topics: dict[str, TopicSpec],
    url: str,
    unique: str,
    opened: Opened,
    postgresql_url: str,
    leader: str,
) -> None:
    topics["orders"] = TopicSpec(name="orders")
    adapter = opened("publisher")
    adapter.declare([topics["orders"]], [GroupSpec(topic="orders", group=GROUP, ordered=True)])
    first, second, third = (numbered("orders", [number]) for number in (1, 2, 3))
    assert adapter.publish(first, SLOW) == [SENT]
    leads = cluster.leader(f"orders.{GROUP}", unique)
    survivor = leads if leader == "lives" else (leads + 1) % 3
    dead = [one for one in range(3) if one != survivor]
    for one in dead:
        cluster.kill(one)
    assert [type(one) for one in adapter.publish(second, 8.0)] == [Unknown]
    settings = Settings(broker_url=url, database_url=postgresql_url, auto_declare=False)
    with ReliableMQ(settings) as mq, pytest.raises(PublishUnconfirmedError):
        mq.publish_direct("orders", 99, key="other", timeout=8)
    cluster.restart(*dead)
    began = time.monotonic()
    until(lambda: adapter.publish(second, 30.0) == [SENT], "a confirmation", seconds=SLOW)
    print(f"\na majority again: confirmed after {time.monotonic() - began:.1f} s")
    assert adapter.publish(third, SLOW) == [SENT]
    assert without_repeats(received(adapter, 3)["key"]) == [1, 2, 3]


def test_acknowledgements_are_flushed_when_a_majority_has_them(
    cluster: RabbitMQCluster,
    topics: dict[str, TopicSpec],
    opened: Opened,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Hosts are tried in random order; not here, where the last one is the first.
    monkeypatch.setattr(random, "shuffle", lambda hosts: None)
    topics["orders"] = TopicSpec(name="orders")
    publisher = opened("publisher")
    publisher.declare([topics["orders"]], [GroupSpec(topic="orders", group="audit")])
    assert publisher.publish(numbered("orders", range(3)), SLOW) == [SENT] * 3
    leads = cluster.leader("orders.audit", unique)
    member = opened("member", where=f"{on_node(cluster, unique, leads)}?operation_timeout=3")
    subscription = member.subscribe(["orders"], "audit", prefetch=2, ordered=False)
    first = Reader(subscription).take(1)
    others = {0, 1, 2} - {leads}
    for one in others:
        cluster.pause(one)
    subscription.ack(first)
    for _ in range(2):
        with pytest.raises(TransportError):
            subscription.flush()
    for one in others:
        cluster.resume(one)
    until(lambda: _flushed(subscription), "a majority", seconds=SLOW)
    subscription.close()
    again = Reader(publisher.subscribe(["orders"], "audit", prefetch=9, ordered=False))
    assert sorted(numbers_of(again.take(2, through_outage=True))) == [1, 2]


def _flushed(subscription: Subscription) -> bool:
    try:
        subscription.flush()
    except TransportError:
        return False
    return True
