"""A private Kafka broker (KRaft: broker and controller in one process)."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from ..base import Server, missing
from ..process import run
from .distribution import Distribution, java

_JVM = (
    *("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
    *("-XX:-UsePerfData", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"),
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)
_CLUSTER = "cmVsaWFibGUtbXEtdGVzdA"


class Kafka(Server):
    """One Kafka node without authentication; ``settings`` are broker properties.

    Every acknowledged message survives ``kill``, though not a power failure. Topics are not
    created by use. Sessions of consumer groups may be as short as half a second.
    """

    kind = "kafka"

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.port()}"

    @property
    def bootstrap(self) -> str:
        """``host:port``, as Kafka's clients want it."""
        return f"127.0.0.1:{self.port()}"

    def check(self) -> None:
        if not (Distribution().folder / "lib").exists() and shutil.which("mvn") is None:
            raise missing(self.kind, "mvn (Maven)", "default-jre-headless maven")

    def prepare(self) -> None:
        kafka = Distribution()
        kafka.jars()
        properties = self.folder / "node.properties"
        lines = [f"{name}={value}\n" for name, value in self._properties().items()]
        properties.write_text("".join(lines))
        kafka.once(kafka.formatted, self._format)
        shutil.copytree(kafka.formatted, self.folder / "data")
        kafka.once(kafka.archive, self._archive_classes)

    def launch(self) -> None:
        archive = f"-XX:SharedArchiveFile={Distribution().archive}"
        self.spawn(self._java(archive, "kafka.Kafka", self.folder / "node.properties"))

    def ready(self) -> bool:
        """The broker is registered and every partition has a leader."""
        from confluent_kafka.admin import AdminClient

        quiet = logging.getLogger("tests.brokers.kafka")
        quiet.setLevel(logging.CRITICAL)
        client = AdminClient({"bootstrap.servers": self.bootstrap}, logger=quiet)
        metadata = client.list_topics(timeout=2)
        partitions = [
            partition
            for topic in metadata.topics.values()
            for partition in topic.partitions.values()
        ]
        return bool(metadata.brokers) and all(partition.leader >= 0 for partition in partitions)

    def _java(self, *arguments: str | Path) -> list[str | Path]:
        # In a fixed order: the class archive is valid for one class path only.
        jars = sorted(Distribution().jars().glob("*.jar"))
        return [java(), *_JVM, "-cp", os.pathsep.join(map(str, jars)), *arguments]

    def _properties(self) -> dict[str, str]:
        broker, controller = self.port(), self.port("controller")
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "listeners": f"PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": "3",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "3",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "3",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "500",
            "log.index.size.max.bytes": "1048576",
            # A restarted broker is let in only when the session of its former life is over.
            "broker.session.timeout.ms": "1500",
            "broker.heartbeat.interval.ms": "300",
            "num.network.threads": "2",
            "num.io.threads": "2",
            "log.cleaner.dedupe.buffer.size": "2097152",
            **self.settings,
        }

    def _format(self, place: Path) -> None:
        """Formats a log folder; the result does not depend on ports or settings."""
        properties = place.with_name("format.properties")
        lines = {**self._properties(), "log.dirs": str(place)}
        properties.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        tool = self._java("kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", properties)
        if run(tool, log=self.log) != 0:
            raise self.failed("could not be formatted")

    def _archive_classes(self, place: Path) -> None:
        """Runs the broker once and lets Java write down, at its exit, the classes it used."""
        option = f"-XX:ArchiveClassesAtExit={place}"
        self.spawn(self._java(option, "kafka.Kafka", self.folder / "node.properties"))
        self.wait_ready()
        self.terminate()
