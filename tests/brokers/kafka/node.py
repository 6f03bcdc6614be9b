"""What a Kafka node is made of, alone or in a cluster: command, files, properties."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..base import missing
from ..process import run
from .distribution import Distribution, java

_JVM = (
    *("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
    *("-XX:-UsePerfData", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"),
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)
_CLUSTER = "cmVsaWFibGUtbXEtdGVzdA"
_INTERNAL = ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")


def check(kind: str) -> None:
    """Raises ServerMissing unless all programs needed are there."""
    if not (Distribution().folder / "lib").exists() and shutil.which("mvn") is None:
        raise missing(kind, "mvn (Maven)", "default-jre-headless maven")


def program(*arguments: str | Path) -> list[str | Path]:
    """The command that runs a class of Kafka's."""
    # In a fixed order: the class archive is valid for one class path only.
    jars = sorted(Distribution().jars().glob("*.jar"))
    return [java(), *_JVM, "-cp", os.pathsep.join(map(str, jars)), *arguments]


def server(properties: Path) -> list[str | Path]:
    """The command that runs a node; quicker where the archive of classes was made before."""
    return program(f"-XX:SharedArchiveFile={Distribution().archive}", "kafka.Kafka", properties)


def write(properties: dict[str, str], path: Path) -> None:
    """Writes a file of properties."""
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))


def format_log(properties: dict[str, str], place: Path, log: Path) -> bool:
    """Formats the log folder *place*; the result depends neither on ports nor on settings."""
    path = place.with_name("format.properties")
    write({**properties, "log.dirs": str(place)}, path)
    tool = program("kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", path)
    return run(tool, log=log) == 0


def node_properties(
    *, node: int, broker: int, voters: dict[int, int], data: Path, copies: int = 1
) -> dict[str, str]:
    """A node that listens on the port *broker*; *voters* are the controllers' ports by node.

    The brokers' own topics have *copies* replicas, and need one less.
    """
    in_sync = str(max(1, copies - 1))
    internal = {f"{name}.replication.factor": str(copies) for name in _INTERNAL}
    internal |= {f"{name}.num.partitions": "3" for name in _INTERNAL}
    return {
        "process.roles": "broker,controller",
        "node.id": str(node),
        "listeners": f"PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{voters[node]}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.quorum.voters": ",".join(
            f"{voter}@127.0.0.1:{port}" for voter, port in voters.items()
        ),
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        **internal,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.min.isr": in_sync,
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "500",
        "log.index.size.max.bytes": "1048576",
        "num.network.threads": "2",
        "num.io.threads": "2",
        "log.cleaner.dedupe.buffer.size": "2097152",
    }


def metadata(bootstrap: str, timeout: float = 2.0) -> Any:
    """What the brokers say of themselves and of all topics; raises where none answers."""
    from confluent_kafka.admin import AdminClient

    quiet = logging.getLogger("tests.brokers.kafka")
    quiet.setLevel(logging.CRITICAL)
    client = AdminClient({"bootstrap.servers": bootstrap}, logger=quiet)
    return client.list_topics(timeout=timeout)


def serves(found: Any, running: Collection[int] = ()) -> bool:
    """Whether every partition has a leader, and the *running* nodes are in step with theirs."""
    partitions = [one for topic in found.topics.values() for one in topic.partitions.values()]
    return (
        bool(found.brokers)
        and set(running) <= set(found.brokers)
        and all(one.leader >= 0 for one in partitions)
        and all(set(one.replicas) & set(running) <= set(one.isrs) for one in partitions)
    )
