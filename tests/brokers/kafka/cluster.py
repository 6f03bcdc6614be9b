"""Three Kafka nodes on this machine, each of which can be killed by itself."""

from __future__ import annotations

import secrets
import shutil
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path

from ..base import Server
from ..process import Process
from . import Kafka, node
from .distribution import Distribution

_QUICK = {
    # A dead node is noticed in seconds, and one that is merely slow is not taken for dead.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "500",
    "controller.quorum.fetch.timeout.ms": "2000",
    "controller.quorum.election.timeout.ms": "1000",
    "replica.lag.time.max.ms": "4000",
}


class KafkaCluster(Server):
    """Nodes 1, 2 and 3, brokers and controllers at once; ``settings`` are properties of each.

    As ``docs/brokers.md`` recommends: 3 replicas, 2 of which must have what is acknowledged.
    While two nodes live, everything works; the data of a killed node stay for its restart.
    ``kill``, ``restart``, ``terminate``, ``pause`` and ``resume`` take the node they are for, or
    are for all of them.
    """

    kind = "kafka-cluster"
    ids = (1, 2, 3)
    start_timeout = 180.0

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(settings)
        self._alive: dict[int, Process] = {}

    @property
    def url(self) -> str:
        return f"kafka://{self.bootstrap}"

    @property
    def bootstrap(self) -> str:
        """All nodes' ``host:port``, as Kafka's clients want it."""
        return ",".join(f"127.0.0.1:{self.port(f'node{one}')}" for one in self.ids)

    @property
    def alive(self) -> list[int]:
        """The nodes that run."""
        return [one for one, process in self._alive.items() if process.alive]

    def leader(self, topic: str, partition: int = 0) -> int:
        """The node that leads a partition, as the living ones say; -1 while none does."""
        found = node.metadata(self.bootstrap, timeout=10.0)
        return int(found.topics[topic].partitions[partition].leader)

    def in_sync(self, topic: str, partition: int = 0) -> set[int]:
        """The nodes that have everything of a partition, as the living ones say."""
        found = node.metadata(self.bootstrap, timeout=10.0)
        return set(found.topics[topic].partitions[partition].isrs)

    # --- one node or all ---

    def start_node(self, one: int) -> None:
        """Starts a node on its data, without waiting until it serves."""
        if one in self.alive:
            return
        self.spawn(node.server(self._place(one) / "node.properties"))
        self._alive[one] = self._processes[-1]

    def kill(self, one: int | None = None) -> None:
        """SIGKILL to a node. Its data stay. Harmless when it is dead already."""
        for number in self._chosen(one):
            process = self._alive.pop(number, None)
            if process is not None:
                process.kill()
                self._processes.remove(process)
        if one is None:
            super().kill()

    def terminate(self, one: int | None = None) -> None:
        """SIGTERM: a node hands over what it leads and ends. Its data stay.

        All of them at once cannot do that, and are killed after a while.
        """
        for number in self._chosen(one):
            if number in self._alive:
                self._alive[number].terminate()
        self.kill(one)

    def restart(self, one: int | None = None) -> None:
        """Kills a node if it lives, starts it, waits until it has caught up with the others."""
        self.kill(one)
        for number in self._chosen(one):
            self.start_node(number)
        self.wait_ready()

    def pause(self, one: int | None = None) -> None:
        """SIGSTOP: its connections stay open and nothing answers."""
        for number in self._chosen(one):
            self._alive[number].pause()

    def resume(self, one: int | None = None) -> None:
        """SIGCONT."""
        for number in self._chosen(one):
            self._alive[number].resume()

    def _chosen(self, one: int | None) -> tuple[int, ...]:
        return self.ids if one is None else (one,)

    # --- what a kind of server has to say ---

    def check(self) -> None:
        node.check(self.kind)

    def prepare(self) -> None:
        kafka = Distribution()
        if not (kafka.formatted.exists() and kafka.archive.exists()):
            # A single node makes what all nodes begin with.
            with Kafka():
                pass
        for one in self.ids:
            self._lay_out(one, kafka.formatted)

    def launch(self) -> None:
        for one in self.ids:
            self.start_node(one)

    def ready(self) -> bool:
        """The running nodes are registered, and in step with the leaders of all partitions."""
        return node.serves(node.metadata(self.bootstrap), self.alive)

    def _lay_out(self, one: int, formatted: Path) -> None:
        place = self._place(one)
        place.mkdir()
        node.write(self._properties(one), place / "node.properties")
        shutil.copytree(formatted, place / "data")
        described = place / "data" / "meta.properties"
        lines = dict(line.split("=") for line in described.read_text().splitlines() if "=" in line)
        directory = urlsafe_b64encode(b"d" + secrets.token_bytes(15)).decode().rstrip("=")
        node.write({**lines, "node.id": str(one), "directory.id": directory}, described)

    def _properties(self, one: int) -> dict[str, str]:
        found = node.node_properties(
            node=one,
            broker=self.port(f"node{one}"),
            voters={voter: self.port(f"controller{voter}") for voter in self.ids},
            data=self._place(one) / "data",
            copies=len(self.ids),
        )
        durable = {"default.replication.factor": "3", "min.insync.replicas": "2"}
        return {**found, **durable, **_QUICK, **self.settings}

    def _place(self, one: int) -> Path:
        return self.folder / f"node{one}"
