"""Three RabbitMQ nodes on this machine, each of which can be killed by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from .base import Server
from .rabbitmq import RabbitMQ

# A cookie for one peer: neither of the two accepts the other, and tools still reach them.
_PART = "erlang:set_cookie(Node, parted), erlang:disconnect_node(Node)"
_MEND = "erlang:set_cookie(Node, erlang:get_cookie())"


class RabbitMQCluster(Server):
    """Nodes 0, 1 and 2 of one cluster, user guest; ``settings`` are for each of them.

    What a quorum queue confirmed is on two nodes at least; while two live, everything works, and
    the data of a killed node stay for its restart. ``kill``, ``restart``, ``terminate``, ``pause``
    and ``resume`` take the node they are for, or are for all of them.
    """

    kind = "rabbitmq-cluster"
    start_timeout = 180.0

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(settings)
        self.nodes = tuple(_Member(self) for _ in range(3))

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port()}" for node in self.nodes)
        return f"amqp://guest:guest@{hosts}/"

    @property
    def alive(self) -> list[int]:
        """The nodes that run."""
        return [number for number, node in enumerate(self.nodes) if node.running]

    def api(self, method: str, path: str, body: object = None) -> Any:
        """One request to the management API of a node that runs."""
        return self.nodes[self.alive[0]].api(method, path, body)

    def create_vhost(self, name: str) -> str:
        """A new virtual host; returns its URL with all nodes in it."""
        self.nodes[self.alive[0]].create_vhost(name)
        return self.url + quote(name, safe="")

    def leader(self, queue: str, vhost: str = "/") -> int:
        """The node that leads a quorum queue (or has a classic one); -1 while none does."""
        found = self.api("GET", f"/queues/{quote(vhost, safe='')}/{quote(queue, safe='')}")
        names = [node.name for node in self.nodes]
        name = found.get("leader") or found.get("node")
        return names.index(name) if name in names and names.index(name) in self.alive else -1

    # --- one node or all ---

    def kill(self, one: int | None = None) -> None:
        """SIGKILL to a node. Its data stay. Harmless when it is dead already."""
        self._together(_Member.kill, self._chosen(one))
        if one is None:
            super().kill()

    def terminate(self, one: int | None = None) -> None:
        """SIGTERM: a node ends in order. Its data stay."""
        self._together(_Member.terminate, self._chosen(one))
        if one is None:
            super().kill()

    def restart(self, *chosen: int) -> None:
        """Kills nodes if they live, starts them together, waits until the cluster is whole again.

        Whole: every queue has a majority that would survive the loss of one more node.
        """
        if not chosen:
            self.kill()
            self._launch_and_wait()
            return
        self._together(_Member.restart, [self.nodes[one] for one in chosen])
        self.wait_ready()

    def pause(self, one: int | None = None) -> None:
        """SIGSTOP: its connections stay open and nothing answers."""
        for node in self._chosen(one):
            node.pause()

    def resume(self, one: int | None = None) -> None:
        """SIGCONT."""
        for node in self._chosen(one):
            node.resume()

    def isolate(self, one: int) -> None:
        """Parts a living node from the others, as a network would; clients still reach it.

        Its connections to them end, and it refuses new ones in both directions.
        """
        self.nodes[one].control("eval", _for_each(self._others(one), _PART))

    def rejoin(self, one: int) -> None:
        """Lets a node that was isolated be reached by the others again."""
        self.nodes[one].control("eval", _for_each(self._others(one), _MEND))

    def _others(self, one: int) -> Iterable[_Member]:
        return [node for number, node in enumerate(self.nodes) if number != one]

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        super().stop()

    def _chosen(self, one: int | None) -> Iterable[_Member]:
        return self.nodes if one is None else (self.nodes[one],)

    def _together(self, act: Callable[[_Member], object], nodes: Iterable[_Member]) -> None:
        # A node may wait for another one while it starts or ends.
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(act, nodes))

    # --- what a kind of server has to say ---

    def check(self) -> None:
        self.nodes[0].check()

    def prepare(self) -> None:
        """Tells each node of all; it lays out a folder of its own."""
        peers = {
            f"cluster_formation.classic_config.nodes.{number}": node.name
            for number, node in enumerate(self.nodes, 1)
        }
        for node in self.nodes:
            node.settings.update(peers)

    def launch(self) -> None:
        self.spawn(["epmd", "-port", str(self.port("epmd")), "-address", "127.0.0.1"])
        self._together(_Member.start_or_restart, self.nodes)

    def ready(self) -> bool:
        """The living nodes see each other; with all of them, none is indispensable."""
        living = self.alive
        running = [node["name"] for node in self.api("GET", "/nodes") if node["running"]]
        if len(running) < len(living):
            return False
        if len(living) == len(self.nodes):
            for node in self.nodes:  # An error status where a queue would lose its majority.
                node.api("GET", "/health/checks/node-is-quorum-critical")
        return True


def _for_each(nodes: Iterable[RabbitMQ], act: str) -> str:
    """An Erlang expression that does *act* with each name of a node as ``Node``."""
    names = ", ".join(f"'{node.name}'" for node in nodes)
    return f"lists:foreach(fun (Node) -> {act} end, [{names}])."


class _Member(RabbitMQ):
    """A node that is registered with the epmd of its cluster."""

    start_timeout = 180.0

    def __init__(self, cluster: RabbitMQCluster) -> None:
        discovery = {"cluster_formation.peer_discovery_backend": "classic_config"}
        super().__init__({**discovery, **cluster.settings})
        self._cluster = cluster

    @property
    def epmd_port(self) -> int:
        return self._cluster.port("epmd")

    def launch_epmd(self) -> None:
        """The cluster has one."""

    def start_or_restart(self) -> None:
        """Starts it, on its data if it has any."""
        if self._folder is None:
            self.start()
        else:
            self.restart()
