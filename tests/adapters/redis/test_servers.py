"""Sentinel, Cluster, encryption, users: the same promises on other roads to the server."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from reliable_mq.adapter import SENT, GroupSpec, TopicSpec, Unknown
from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq.testing.contract.messages import message, number_of, numbered
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_redis import client as clients
from reliable_mq_redis import rights
from reliable_mq_redis.adapter import RedisAdapter
from tests.adapters.redis.conftest import TIMEOUT, Open, replicas_online
from tests.brokers import Redis, Server
from tests.conftest import OwnServer

SLOTS = 16384
CALL = 8.0
SHARED: dict[str, object] = {"socket_timeout": CALL, "socket_connect_timeout": 30.0}
"""Time of a whole call, which those that are asked for the way share: half of it for each of two.
One that is silent would take all of it if only the time-out of its connection ended the wait; the
next is asked even then, and may be quick enough."""
ROOT = Path(__file__).parents[3]

# --- servers the toolkit does not know ----------------------------------------------------------


class Node(Redis):
    """One node of a cluster."""

    def launch(self) -> None:
        self.settings |= {
            "cluster-enabled": "yes",
            "cluster-port": str(self.port("bus")),
            "cluster-node-timeout": "1000",
            "databases": "1",
        }
        super().launch()


class Sentinel(Redis):
    """One sentinel that watches the primary at ``settings["primary"]``."""

    def prepare(self) -> None:
        primary = self.settings["primary"]
        (self.folder / "sentinel.conf").write_text(
            f"port {self.port()}\nbind 127.0.0.1\n"
            f"sentinel monitor orders 127.0.0.1 {primary} 1\n"
            # No primary is taken for dead before a test has killed it.
            "sentinel down-after-milliseconds orders 60000\n"
            "sentinel failover-timeout orders 3000\n"
        )

    def launch(self) -> None:
        self.spawn(["redis-server", "sentinel.conf", "--sentinel"])


class Encrypted(Redis):
    """A server with a TLS port beside the plain one that the toolkit looks at."""

    def launch(self) -> None:
        self.settings |= {"tls-port": str(self.port("tls")), "tls-auth-clients": "no"}
        super().launch()


@pytest.fixture
def start(redis_server: Server, resources: ExitStack) -> Callable[[Redis], Redis]:
    if not isinstance(redis_server, Redis):
        pytest.skip("needs servers of its own")
    return resources.enter_context


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with ca.pem, server.pem and server.key; good for 127.0.0.1."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    for authority in ("ca", "other"):
        openssl(*new, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-subj", "/CN=ca")
    openssl(
        *new,
        *("-CA", "ca.pem", "-CAkey", "ca.key", "-subj", "/CN=server"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"),
        *("-keyout", "server.key", "-out", "server.pem"),
    )
    return tmp_path


def use(adapter: RedisAdapter, *topics: str, ordered: bool = False) -> None:
    """Publish to and read from *topics*; everything must arrive."""
    adapter.declare(
        [TopicSpec(name=topic, partitions=2) for topic in topics],
        [GroupSpec(topic=topic, group="billing", ordered=ordered) for topic in topics],
    )
    batch = [one for topic in topics for one in numbered(topic, range(300))]
    assert adapter.publish(batch, TIMEOUT) == [SENT] * len(batch)
    consumer = adapter.subscribe(topics, "billing", prefetch=100, ordered=ordered)
    seen: dict[str, list[int]] = {topic: [] for topic in topics}

    def step() -> None:
        taken = consumer.receive(100, 0.2).deliveries
        for one in taken:
            seen[one.raw.topic].append(number_of(one))
        consumer.ack(taken)

    wait_for(lambda: sum(map(len, seen.values())) == len(batch), "everything", meanwhile=step)
    consumer.close()
    assert seen == {topic: list(range(300)) for topic in topics}
    assert [adapter.lag(topic, "billing") for topic in topics] == [0] * len(topics)


# --- cluster -----------------------------------------------------------------------------------


@pytest.fixture
def cluster(start: Callable[[Redis], Redis]) -> list[Redis]:
    nodes = [start(Node()) for _ in range(3)]
    clients = [redis.Redis(port=node.port()) for node in nodes]
    for number, client in enumerate(clients):
        first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        client.execute_command(
            "CLUSTER", "MEET", "127.0.0.1", nodes[0].port(), nodes[0].port("bus")
        )
    wait_for(lambda: all(map(_is_whole, clients)), "the cluster")
    for client in clients:
        # Short until here, for it is also how long a node waits before it joins.
        client.config_set("cluster-node-timeout", 60_000)
        client.close()
    return nodes


def _is_whole(client: redis.Redis) -> bool:
    info: Any = client.execute_command("CLUSTER", "INFO")
    return b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
def test_topics_live_on_all_nodes_of_a_cluster(
    cluster: list[Redis], open_one: Open, *, ordered: bool
) -> None:
    topics = [f"topic-{number}" for number in range(6)]
    # One seed is down; the others know the map.
    seeds = f"127.0.0.1:1,127.0.0.1:{cluster[1].port()}"
    use(open_one(f"redis+cluster://{seeds}"), *topics, ordered=ordered)
    sizes = [_keys_of(node) for node in cluster]
    assert all(sizes)


def _keys_of(node: Redis) -> int:
    with redis.Redis(port=node.port()) as client:
        return int(client.dbsize())


def test_a_slot_that_moves_is_followed(cluster: list[Redis], open_one: Open) -> None:
    adapter = open_one(f"redis+cluster://127.0.0.1:{cluster[0].port()}")
    adapter.declare([TopicSpec(name="t", partitions=1)], [GroupSpec(topic="t", group="billing")])
    consumer = adapter.subscribe(["t"], "billing", prefetch=10, ordered=False)
    consumer.receive(10, 0.1)
    _move_slot(cluster, "{t}")
    outcomes = adapter.publish([message("t")], TIMEOUT)
    assert all(isinstance(one, Unknown) and "MOVED" in one.cause for one in outcomes)
    assert adapter.publish([message("t")], TIMEOUT) == [SENT]
    with pytest.raises(TransportError):
        consumer.receive(10, 5.0)
    assert len(consumer.receive(10, 5.0).deliveries) == 1
    consumer.close()


def _move_slot(nodes: list[Redis], key: str) -> None:
    clients = [redis.Redis(port=node.port()) for node in nodes]
    slot: Any = clients[0].execute_command("CLUSTER", "KEYSLOT", key)
    ids: list[Any] = [client.execute_command("CLUSTER", "MYID") for client in clients]
    source = slot * 3 // SLOTS
    target = (source + 1) % 3
    found: Any = clients[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
    clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    clients[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    clients[source].execute_command(
        "MIGRATE", "127.0.0.1", nodes[target].port(), "", 0, 5000, "KEYS", *found
    )
    for client in clients:
        client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        client.close()


def test_a_node_of_a_cluster_is_not_taken_for_a_single_server(
    cluster: list[Redis], open_one: Open
) -> None:
    single = open_one(f"redis://127.0.0.1:{cluster[0].port()}")
    with pytest.raises(ConfigurationError, match="redis\\+cluster"):
        single.declare([TopicSpec(name=f"topic-{number}") for number in range(6)], [])


def test_a_single_server_is_not_taken_for_a_cluster(redis_url: str, open_one: Open) -> None:
    address = redis_url.partition("://")[2].partition("/")[0]
    with pytest.raises(ConfigurationError, match="redis://"):
        open_one(f"redis+cluster://{address}").lag("t", "billing")


# --- sentinel ----------------------------------------------------------------------------------


def test_a_fail_over_is_followed(start: Callable[[Redis], Redis], open_one: Open) -> None:
    primary = start(Redis({"repl-diskless-sync-delay": "0"}))
    replica = start(Redis({"replicaof": f"127.0.0.1 {primary.port()}"}))
    sentinel = start(Sentinel({"primary": str(primary.port())}))
    with redis.Redis(port=sentinel.port()) as client:
        wait_for(lambda: client.sentinel_slaves("orders"), "the replica at the sentinel")
    # A sentinel has it in its list before it has its first copy.
    wait_for(lambda: replicas_online(primary) == 1, "the replica's copy")
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port()}/orders/0"
    adapter = open_one(url, query="wait=1")
    adapter.declare([TopicSpec(name="t", partitions=1)], [GroupSpec(topic="t", group="billing")])
    before = numbered("t", range(100))
    wait_for(lambda: adapter.publish(before, TIMEOUT) == [SENT] * 100, "the replica's confirmation")
    primary.kill()
    with redis.Redis(port=sentinel.port()) as client:
        client.execute_command("SENTINEL", "SET", "orders", "down-after-milliseconds", 500)
    after = open_one(url, client_options={"socket_connect_timeout": 1.0})
    batch = numbered("t", range(100, 200))
    wait_for(lambda: after.publish(batch, 2.0) == [SENT] * 100, "the new primary")
    consumer = after.subscribe(["t"], "billing", prefetch=500, ordered=False)
    seen: list[int] = []
    wait_for(
        lambda: len(seen) >= 200,
        "200 messages",
        meanwhile=lambda: seen.extend(map(number_of, consumer.receive(500, 0.2).deliveries)),
    )
    assert seen == list(range(200))
    consumer.close()
    with redis.Redis(port=replica.port()) as client:
        assert client.role()[0] == b"master"


def test_a_service_no_sentinel_knows_is_an_error_naming_it(
    start: Callable[[Redis], Redis], open_one: Open, redis_server: Redis
) -> None:
    sentinel = start(Sentinel({"primary": str(redis_server.port())}))
    adapter = open_one(f"redis+sentinel://127.0.0.1:{sentinel.port()}/billing")
    with pytest.raises(ConfigurationError, match="billing"):
        adapter.lag("t", "g")


def test_no_sentinel_answering_is_a_transport_error(open_one: Open) -> None:
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:1"):
        open_one("redis+sentinel://127.0.0.1:1,127.0.0.1:2/orders").lag("t", "g")


@pytest.fixture
def silent(resources: ExitStack) -> str:
    """Where connections are taken and nothing is ever answered."""
    listening = resources.enter_context(socket.create_server(("127.0.0.1", 0)))
    return f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_sentinel_that_is_silent_leaves_the_others_their_turn(
    start: Callable[[Redis], Redis], open_one: Open, redis_server: Redis, silent: str, unique: str
) -> None:
    sentinel = start(Sentinel({"primary": str(redis_server.port())}))
    place = f"127.0.0.1:{sentinel.port()}"
    adapter = open_one(f"redis+sentinel://{silent},{place}/orders", client_options=SHARED)
    begin = time.monotonic()
    adapter.declare([TopicSpec(name=unique)], [])
    assert time.monotonic() - begin < CALL
    assert adapter.publish([message(unique)], TIMEOUT) == [SENT]


def test_a_sentinel_cut_off_with_a_dead_primary_is_not_believed_for_ever(
    start: Callable[[Redis], Redis], open_one: Open, redis_server: Redis, unique: str
) -> None:
    dead, live = redis_server.port("nobody"), redis_server.port()
    places = [f"127.0.0.1:{start(Sentinel({'primary': str(p)})).port()}" for p in (dead, live)]
    adapter = open_one(f"redis+sentinel://{','.join(places)}/orders")
    with pytest.raises(TransportError):
        adapter.declare([TopicSpec(name=unique)], [])
    adapter.declare([TopicSpec(name=unique)], [])
    assert adapter.publish([message(unique)], TIMEOUT) == [SENT]


def test_a_node_that_is_silent_leaves_the_others_their_turn(
    cluster: list[Redis], open_one: Open, silent: str
) -> None:
    adapter = open_one(
        f"redis+cluster://{silent},127.0.0.1:{cluster[0].port()}", client_options=SHARED
    )
    begin = time.monotonic()
    adapter.declare([TopicSpec(name="t")], [])
    assert time.monotonic() - begin < CALL
    assert adapter.publish([message("t")], TIMEOUT) == [SENT]


@pytest.mark.parametrize("wrong", [{}, {"sentinel_password": "s3cret-wrong"}], ids=["no", "wrong"])
def test_a_wrong_password_of_the_sentinels_is_an_error_at_once(
    start: Callable[[Redis], Redis],
    open_one: Open,
    redis_server: Redis,
    wrong: dict[str, object],
) -> None:
    sentinel = start(Sentinel({"primary": str(redis_server.port())}))
    with redis.Redis(port=sentinel.port()) as client:
        client.acl_setuser(
            "default", enabled=True, passwords=["+right"], keys=["*"], categories=["+@all"]
        )
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port()}/orders"
    with pytest.raises(ConfigurationError, match="sentinel_password") as caught:
        open_one(url, client_options=wrong).declare([TopicSpec(name="t")], [])
    assert "s3cret" not in str(caught.value)
    right = open_one(url, client_options={"sentinel_password": "right"})
    right.declare([TopicSpec(name="t")], [])


def test_a_wrong_password_of_a_cluster_is_an_error_at_once(
    start: Callable[[Redis], Redis], open_one: Open
) -> None:
    node = start(Node())
    with redis.Redis(port=node.port()) as client:
        client.acl_setuser("app", enabled=True, passwords=["+right"], categories=["+@all"])
    url = f"redis+cluster://app:s3cret-wrong@127.0.0.1:1,127.0.0.1:{node.port()}"
    with pytest.raises(ConfigurationError, match="password") as caught:
        open_one(url).declare([TopicSpec(name="t")], [])
    assert "s3cret" not in str(caught.value)


# --- encryption and users ----------------------------------------------------------------------


@pytest.fixture
def encrypted(start: Callable[[Redis], Redis], certificates: Path) -> Redis:
    return start(
        Encrypted(
            {
                "tls-cert-file": str(certificates / "server.pem"),
                "tls-key-file": str(certificates / "server.key"),
                "tls-ca-cert-file": str(certificates / "ca.pem"),
            }
        )
    )


def test_an_encrypted_connection_is_verified_and_never_falls_back(
    encrypted: Redis, certificates: Path, open_one: Open, unique: str
) -> None:
    url = f"rediss://127.0.0.1:{encrypted.port('tls')}"
    use(open_one(url, client_options={"ssl_ca_certs": str(certificates / "ca.pem")}), unique)
    topics = [TopicSpec(name=unique)]
    for wrong in ({"ssl_ca_certs": str(certificates / "other.pem")}, {}):
        with pytest.raises(ConfigurationError, match="certificate"):
            open_one(url, client_options=dict(wrong)).declare(topics, [])
    # To the plain port, an encrypted connection is an error, not a plain one.
    trusting: dict[str, object] = {
        "ssl_ca_certs": str(certificates / "ca.pem"),
        "socket_timeout": 1.0,
        "socket_connect_timeout": 1.0,
    }
    plain = f"rediss://127.0.0.1:{encrypted.port()}"
    with pytest.raises(TransportError):
        open_one(plain, client_options=trusting).declare(topics, [])


@pytest.mark.parametrize("kind", ["redis+sentinel", "redis+cluster"])
def test_a_wrong_authority_is_an_error_at_once_on_the_way_to_the_right_server(
    encrypted: Redis, certificates: Path, open_one: Open, kind: str
) -> None:
    url = f"{kind}://127.0.0.1:{encrypted.port('tls')}/{'orders' if 'sentinel' in kind else ''}"
    wrong = open_one(
        url, query="tls=1", client_options={"ssl_ca_certs": str(certificates / "other.pem")}
    )
    with pytest.raises(ConfigurationError, match="ertificate"):
        wrong.declare([TopicSpec(name="t")], [])


def test_a_certificate_for_another_host_is_refused(
    encrypted: Redis, certificates: Path, open_one: Open
) -> None:
    adapter = open_one(
        f"rediss://localhost:{encrypted.port('tls')}",
        client_options={"ssl_ca_certs": str(certificates / "ca.pem")},
    )
    with pytest.raises(ConfigurationError, match="certificate"):
        adapter.declare([TopicSpec(name="t")], [])


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
def test_a_user_with_the_documented_rights_can_do_everything_and_no_more(
    own_server: OwnServer, open_one: Open, *, ordered: bool
) -> None:
    documented = (ROOT / "docs/brokers.md").read_text()
    assert set(f"{rights.USE} {rights.INSPECT}".split()) <= set(documented.split())
    server = own_server("redis")
    with redis.Redis.from_url(server.url) as client:
        user = ("ACL", "SETUSER", "app", "on", ">s3cret", "~{app.*", *rights.USE.split())
        client.execute_command(*user)
    address = server.url.partition("://")[2]
    adapter = open_one(f"redis://app:s3cret@{address}")
    use(adapter, "app.orders", ordered=ordered)
    with pytest.raises(ConfigurationError, match="NOPERM"):
        adapter.declare([TopicSpec(name="other")], [])
    with pytest.raises(ConfigurationError, match="NOPERM"):
        adapter.inspect()


@pytest.mark.parametrize("command", ["xreadgroup", "xack", "evalsha"])
def test_a_missing_right_is_an_error_at_once_that_names_the_rights(
    own_server: OwnServer, open_one: Open, command: str
) -> None:
    server = own_server("redis")
    with redis.Redis.from_url(server.url) as client:
        words = ("ACL", "SETUSER", "app", "on", ">s3cret", "~*", "+@all", f"-{command}")
        client.execute_command(*words)
    adapter = open_one(f"redis://app:s3cret@{server.url.partition('://')[2]}")
    begin = time.monotonic()
    with pytest.raises(ConfigurationError, match=rf"\+{command}\b") as caught:
        use(adapter, "t")
    assert "s3cret" not in str(caught.value)
    assert time.monotonic() - begin < 30.0


def test_a_server_that_does_not_answer_is_a_transport_error_in_time(
    own_server: OwnServer, open_one: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A wait that the option does not bound would be seen, however busy the machine is.
    for default in ("SOCKET_TIMEOUT", "CONNECT_TIMEOUT"):
        monkeypatch.setattr(clients, default, 120.0)
    server = own_server("redis")
    patient = open_one(server.url)
    patient.declare([TopicSpec(name="t")], [GroupSpec(topic="t", group="billing")])
    adapter = open_one(server.url, client_options={"socket_timeout": 0.5})
    server.pause()
    begin = time.monotonic()
    for call in (adapter.inspect, lambda: adapter.lag("t", "billing")):
        with pytest.raises(TransportError):
            call()
    assert time.monotonic() - begin < 60.0
    server.resume()
    assert patient.lag("t", "billing") == 0
