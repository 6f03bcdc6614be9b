"""Several Redis nodes on this machine, each of which can be killed by itself."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from .base import Server
from .redis import Redis

T = TypeVar("T")

SLOTS = 16384
SERVICE = "orders"
"""What the sentinels call the primary and its replicas."""

_DOWN_AFTER = 2000
"""Milliseconds of silence after which a node counts as dead."""

_SETTLE_TIMEOUT = 60.0


class RedisNodes(Server):
    """Data nodes that follow each other, ``settings`` for each of them.

    ``kill``, ``restart``, ``pause`` and ``resume`` take the node they are for, or are for all.
    """

    start_timeout = 180.0

    def __init__(self, count: int, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(settings)
        # Replicas need not wait for company before they get their first copy.
        common = {"repl-diskless-sync-delay": "0", **self.settings}
        self.nodes = tuple(self.make_node(number, common) for number in range(count))

    @abstractmethod
    def make_node(self, number: int, settings: Mapping[str, str]) -> RedisNode:
        """A node, not started yet."""

    @property
    def alive(self) -> list[int]:
        """The nodes that run."""
        return [number for number, node in enumerate(self.nodes) if node.running]

    @property
    def running(self) -> bool:
        """Whether any node runs."""
        return bool(self.alive)

    def kill(self, one: int | None = None) -> None:
        """SIGKILL to a node. Its data stay. Harmless when it is dead already."""
        for node in self._chosen(one):
            node.kill()
        if one is None:
            super().kill()

    def restart(self, *chosen: int) -> None:
        """Kills nodes if they live, starts them, waits until they follow or are followed again."""
        for node in [self.nodes[one] for one in chosen] or self.nodes:
            node.restart()
        self.wait_ready()

    def pause(self, one: int | None = None) -> None:
        """SIGSTOP: its connections stay open and nothing answers."""
        for node in self._chosen(one):
            node.pause()

    def resume(self, one: int | None = None) -> None:
        """SIGCONT."""
        for node in self._chosen(one):
            node.resume()

    def heal(self) -> None:
        """Lets all nodes go on, starts the dead ones and waits until all is as it should be."""
        self.resume()
        dead = sorted(set(range(len(self.nodes))) - set(self.alive))
        if dead:
            self.restart(*dead)
        self.wait_ready()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        super().stop()

    def check(self) -> None:
        self.nodes[0].check()

    def prepare(self) -> None:
        """Nothing: each node has a folder of its own."""

    def following(self) -> bool:
        """Whether all living replicas have the whole of what their master has.

        One that dies, or sees its master die, during its first copy is never made the master.
        """
        facts = [self.nodes[number].info() for number in self.alive]
        links = [info["master_link_status"] for info in facts if info["role"] == "slave"]
        return all(link == "up" for link in links)

    def _chosen(self, one: int | None) -> Iterable[RedisNode]:
        return self.nodes if one is None else (self.nodes[one],)


class RedisNode(Redis):
    """One data node of several."""

    def info(self) -> dict[str, Any]:
        """What INFO says of it."""
        return self.ask(lambda client: dict(client.info()))

    def ask(self, question: Callable[[Any], T]) -> T:
        """What a client of this node returns for *question*."""
        import redis

        with redis.Redis(port=self.port(), socket_timeout=5) as client:
            return question(client)

    def command_of(self, *words: str | int) -> Any:
        """The reply to one command, as text where it is text."""
        reply = self.ask(lambda client: client.execute_command(*words))
        return reply.decode() if isinstance(reply, bytes) else reply


# --- sentinels ------------------------------------------------------------------------------------


class RedisSentinels(RedisNodes):
    """A primary (node 0 at first), two replicas, and three sentinels that watch them."""

    kind = "redis-sentinel"

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(3, settings)
        self.sentinels = tuple(_Sentinel() for _ in range(3))

    def make_node(self, number: int, settings: Mapping[str, str]) -> RedisNode:
        return RedisNode(settings)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{one.port()}" for one in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    @property
    def primary(self) -> int:
        """The node that the sentinels name."""
        _, port = self.sentinels[0].command_of("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return [node.port() for node in self.nodes].index(int(port))

    def launch(self) -> None:
        for node in self.nodes:
            if node is not self.nodes[0]:
                node.settings["replicaof"] = f"127.0.0.1 {self.nodes[0].port()}"
            node.start()
        for sentinel in self.sentinels:
            sentinel.watch(self.nodes[0].port())
            sentinel.start()

    def ready(self) -> bool:
        """Every sentinel knows the others and agrees; all that live follow the primary."""
        primary = self.nodes[self.primary].info()
        views = [sentinel.view() for sentinel in self.sentinels]
        return (
            primary["role"] == "master"
            and primary["connected_slaves"] == len(self.alive) - 1
            and self.following()
            and all(view["num-slaves"] == view["num-other-sentinels"] == 2 for view in views)
            and all(view["flags"] == "master" for view in views)
            and all(view["port"] == views[0]["port"] for view in views)
        )

    def stop(self) -> None:
        for sentinel in self.sentinels:
            sentinel.stop()
        super().stop()


class _Sentinel(RedisNode):
    """A sentinel; it writes what it learns into its configuration file."""

    def watch(self, port: int) -> None:
        self.settings["watched"] = str(port)

    def prepare(self) -> None:
        (self.folder / "sentinel.conf").write_text(
            f"port {self.port()}\nbind 127.0.0.1\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.settings['watched']} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER}\n"
            f"sentinel failover-timeout {SERVICE} 6000\n"
        )

    def launch(self) -> None:
        self.spawn(["redis-server", "sentinel.conf", "--sentinel"])

    def view(self) -> dict[str, Any]:
        """What it knows of the primary."""
        return self.ask(lambda client: dict(client.sentinel_master(SERVICE)))


# --- cluster --------------------------------------------------------------------------------------


class RedisCluster(RedisNodes):
    """Three masters (nodes 0 to 2 at first) with a third of the slots and a replica each."""

    kind = "redis-cluster"

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(6, settings)

    def make_node(self, number: int, settings: Mapping[str, str]) -> RedisNode:
        return _ClusterNode(settings)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port()}" for node in self.nodes)
        return f"redis+cluster://{hosts}"

    def master_of(self, topic: str) -> int:
        """The node that serves a topic's keys, as a living node knows it."""
        from redis.crc import key_slot

        slot = key_slot(f"{{{topic}}}".encode())
        ranges = self.nodes[self.alive[0]].command_of("CLUSTER", "SLOTS")
        port = next(node[1] for first, last, node, *_ in ranges if first <= slot <= last)
        return [node.port() for node in self.nodes].index(int(port))

    def launch(self) -> None:
        for node in self.nodes:
            node.start()
        for number, node in enumerate(self.nodes[:3]):
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            node.command_of("CLUSTER", "ADDSLOTSRANGE", first, last)
        seed = self.nodes[0]
        for node in self.nodes[1:]:
            node.command_of("CLUSTER", "MEET", "127.0.0.1", seed.port(), seed.port("bus"))
        for number, node in enumerate(self.nodes[3:]):
            self._follow(node, self.nodes[number])

    def _follow(self, replica: RedisNode, master: RedisNode) -> None:
        name = master.command_of("CLUSTER", "MYID")
        deadline = time.monotonic() + _SETTLE_TIMEOUT
        while name not in replica.command_of("CLUSTER", "NODES"):
            if time.monotonic() > deadline:
                raise self.failed("did not introduce its nodes to each other")
            time.sleep(0.05)
        replica.command_of("CLUSTER", "REPLICATE", name)

    def ready(self) -> bool:
        """All slots are served as all living nodes see it, and each master has its replica."""
        living = [self.nodes[number] for number in self.alive]
        views = [node.command_of("CLUSTER", "INFO") for node in living]
        masters = [info for info in (node.info() for node in living) if info["role"] == "master"]
        whole = len(living) == len(self.nodes)
        return (
            all("cluster_state:ok" in view for view in views)
            and all(f"cluster_known_nodes:{len(self.nodes)}" in view for view in views)
            and len(masters) == 3
            and self.following()
            and (not whole or all(info["connected_slaves"] == 1 for info in masters))
        )


class _ClusterNode(RedisNode):
    def launch(self) -> None:
        self.settings |= {
            "cluster-enabled": "yes",
            "cluster-port": str(self.port("bus")),
            "cluster-node-timeout": str(_DOWN_AFTER),
            "databases": "1",
        }
        super().launch()
