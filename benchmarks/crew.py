"""An application of several processes, any of which can be killed and replaced."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from benchmarks.bench import Bench
from benchmarks.notes import HANDLED, Notes
from benchmarks.ours.application import application, prepare
from benchmarks.processes import Child
from reliable_mq import ReliableMQ

KEYS = 64
"""Messages of a probe, each with a key of its own: some for every relay and every partition."""

PARTITIONS = 4

_START = 120.0
_PATIENCE = 300.0
_LOOK_EVERY = 0.05
_SIDE = "benchmarks.ours.recovery"


class Crew:
    """Relays and consumers of one topic, and a publisher in this process."""

    def __init__(self, bench: Bench, where: dict[str, Any], folder: Path) -> None:
        self._bench = bench
        self._where = where
        self._folder = folder
        self._numbers = itertools.count()
        self._stack = ExitStack()
        self._children: dict[int, ExitStack] = {}
        self._sides: dict[int, str] = {}
        self.notes = Notes(folder / "notes")
        self._mq = self._stack.enter_context(self._publisher())

    def _publisher(self) -> ReliableMQ:
        names = ("database_url", "broker_url")
        return application(**{name: self._where[name] for name in names}, **self._where["settings"])

    def close(self) -> None:
        """Kill what is left."""
        for pid in list(self._children):
            self.kill(pid)
        self._stack.close()
        self.notes.close()

    # --- processes ---

    def start(self, side: str) -> int:
        """Start a ``relay`` or a ``consume``; return its process id once it runs."""
        task = {"folder": str(self._folder)} if side == "consume" else {}
        stack = ExitStack()
        child: Child = stack.enter_context(
            self._bench.child("ours", f"{_SIDE}:{side}", **task, **self._where)
        )
        child.expect("ready", _START)
        child.go()
        child.expect("running", _START)
        pid = child.pid
        self._children[pid], self._sides[pid] = stack, side
        return pid

    def kill(self, pid: int) -> str:
        """SIGKILL one; return of which side it was."""
        self._children.pop(pid).close()
        return self._sides.pop(pid)

    def pids(self, side: str) -> set[int]:
        """Return the processes that live of one side."""
        return {pid for pid, one in self._sides.items() if one == side}

    # --- messages ---

    def publish(self, *, count: int = 1, hold: bool = False) -> list[int]:
        """Commit *count* messages of different keys to the outbox; return their numbers.

        Tries again until the database takes them: it may just have come back.
        """
        numbers = [next(self._numbers) for _ in range(count)]
        until(lambda: self._published(numbers, hold=hold), "published")
        return numbers

    def _published(self, numbers: list[int], *, hold: bool) -> bool:
        try:
            with self._mq.store.engine.begin() as connection:
                for n in numbers:
                    body = json.dumps({"n": n, "hold": hold}).encode()
                    self._mq.publish(
                        self._where["topic"],
                        body,
                        key=f"key-{n}",
                        content_type="application/json",
                        session=connection,
                    )
        except DBAPIError:
            return False
        return True

    # --- waiting ---

    def settle(self) -> None:
        """Wait until every process does its share, so that the next kill finds all at work."""
        until(self._relays_share, "shared by the relays")
        until(self._consumers_share, "shared by the consumers")

    def _relays_share(self) -> bool:
        query = "SELECT count(DISTINCT owner) FROM reliable_mq_lease WHERE kind = 'relay' "
        with self._mq.store.engine.connect() as connection:
            holders = connection.scalar(text(query + "AND name NOT LIKE '@%'"))
        return bool(holders == len(self.pids("relay")))

    def _consumers_share(self) -> bool:
        notes = self.notes.wait(HANDLED, *self.publish(count=KEYS))
        return {note.pid for note in notes} == self.pids("consume")


def until(condition: Callable[[], bool], what: str) -> None:
    """Poll until *condition* holds; ``RuntimeError`` says what did not come to be."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not {what} within {_PATIENCE:g} s")
        time.sleep(_LOOK_EVERY)


@contextmanager
def crew(
    bench: Bench, *, database_url: str, broker_url: str, settings: Mapping[str, Any]
) -> Iterator[Crew]:
    """Create tables, topic and group, and give an application without processes yet."""
    place: dict[str, Any] = {
        "database_url": database_url,
        "broker_url": broker_url,
        "topic": bench.lab.unique("recovery"),
        "partitions": PARTITIONS,
    }
    prepare(**place)
    with tempfile.TemporaryDirectory(prefix="rmq-recovery-") as folder:
        made = Crew(bench, {**place, "settings": dict(settings)}, Path(folder))
        try:
            yield made
        finally:
            made.close()
