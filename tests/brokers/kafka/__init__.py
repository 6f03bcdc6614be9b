"""Private Kafka brokers (KRaft: broker and controller in one process)."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..base import Server
from . import node
from .distribution import Distribution

__all__ = ["Kafka"]


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
        node.check(self.kind)

    def prepare(self) -> None:
        kafka = Distribution()
        node.write(self._properties(), self.folder / "node.properties")
        kafka.once(kafka.formatted, self._format)
        shutil.copytree(kafka.formatted, self.folder / "data")
        kafka.once(kafka.archive, self._archive_classes)

    def launch(self) -> None:
        self.spawn(node.server(self.folder / "node.properties"))

    def ready(self) -> bool:
        """The broker is registered and every partition has a leader."""
        return node.serves(node.metadata(self.bootstrap))

    def _properties(self) -> dict[str, str]:
        found = node.node_properties(
            node=1,
            broker=self.port(),
            voters={1: self.port("controller")},
            data=self.folder / "data",
        )
        return {
            **found,
            # A restarted broker is let in only when the session of its former life is over. With
            # less, one on a busy machine is taken for dead again and again, and serves nothing.
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "500",
            **self.settings,
        }

    def _format(self, place: Path) -> None:
        if not node.format_log(self._properties(), place, self.log):
            raise self.failed("could not be formatted")

    def _archive_classes(self, place: Path) -> None:
        """Runs the broker once and lets Java write down, at its exit, the classes it used."""
        option = f"-XX:ArchiveClassesAtExit={place}"
        self.spawn(node.program(option, "kafka.Kafka", self.folder / "node.properties"))
        self.wait_ready()
        self.terminate()
