"""How long it takes until work goes on, after something was killed: real processes, SIGKILL.

These rows are run by their names only (``--only recovery-consumer-redis``): with the default
settings a kill costs up to a minute. ``--count`` is the number of kills, ``--repeat`` how often
that many; for a p99 that means something take one round with many.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

from benchmarks.bench import Bench, Contestant, Figures, Row
from benchmarks.crew import KEYS, Crew, crew
from benchmarks.goals import Goal, at_most
from benchmarks.notes import HANDLED, HOLDING
from benchmarks.spread import percentile
from tests.brokers import Server, server
from tests.brokers.databases import fresh_database

OUTAGE = 3.0
"""Seconds between the kill of a broker and its start."""

KINDS = ("sql", "kafka", "rabbitmq", "redis")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """How the application is set, and what of the broker's URL that needs."""

    name: str
    settings: Mapping[str, Any]
    options: Mapping[str, str]

    def note(self, kind: str) -> str:
        """Say what differs from the defaults."""
        sections = [
            f"{section}.{name}={value}"
            for section, values in self.settings.items()
            for name, value in values.items()
        ]
        return ", ".join([*sections, self.options.get(kind, "")]).strip(", ") or "all defaults"


DEFAULTS = Variant(name="ours, defaults", settings={}, options={})
SHORT = Variant(
    name="ours, short leases",
    settings={"relay": {"lease": 3.0, "publish_timeout": 2.0}, "consumer": {"lease": 3.0}},
    options={"rabbitmq": "?heartbeat=2", "kafka": "?session_timeout=2"},
)


@dataclass(frozen=True, slots=True)
class Scene:
    """What an event works with."""

    crew: Crew
    broker: Server
    kind: str


class Recovery(Row):
    """One kind of event on one broker. The database is PostgreSQL, with ``sql://`` the broker."""

    kind: ClassVar[str]
    relays: ClassVar[int] = 1
    consumers: ClassVar[int] = 1
    by_name_only = True
    unit = "milliseconds; a message here is one kill"
    count, short_count = 20, 2

    @abstractmethod
    def event(self, scene: Scene) -> float:
        """Kill something and return the seconds until work went on; all is as before then."""

    @contextmanager
    def open(self, bench: Bench, count: int) -> Iterator[list[Contestant]]:
        yield [
            Contestant(
                name=variant.name,
                measure=partial(self._measure, bench, variant, count),
                note=variant.note(self.kind),
            )
            for variant in (DEFAULTS, SHORT)
        ]

    def _measure(self, bench: Bench, variant: Variant, count: int, _at_least: int) -> Figures:
        with self._scene(bench, variant) as scene:
            for side, number in (("relay", self.relays), ("consume", self.consumers)):
                for _ in range(number):
                    scene.crew.start(side)
            taken = []
            for _ in range(count):
                scene.crew.settle()
                taken.append(self.event(scene) * 1e3)
        return {
            "count": len(taken),
            "p50_ms": percentile(taken, 0.5),
            "p99_ms": percentile(taken, 0.99),
            "max_ms": max(taken),
        }

    @contextmanager
    def _scene(self, bench: Bench, variant: Variant) -> Iterator[Scene]:
        # Servers of its own: others share the lab's, and nobody shares one that is killed.
        with (
            server("postgresql" if self.kind == "sql" else self.kind) as broker,
            self._database(bench, broker) as database,
            crew(
                bench,
                database_url=database,
                broker_url=self._url(broker) + variant.options.get(self.kind, ""),
                settings=variant.settings,
            ) as made,
        ):
            yield Scene(made, broker, self.kind)

    @contextmanager
    def _database(self, bench: Bench, broker: Server) -> Iterator[str]:
        url = broker.url if self.kind == "sql" else bench.lab.url("postgresql")
        with fresh_database(url, bench.lab.unique("db")) as found:
            yield found

    def _url(self, broker: Server) -> str:
        return "sql://" if self.kind == "sql" else broker.url


# --- the events -----------------------------------------------------------------------------------


def _broker_back(scene: Scene) -> float:
    """From the broker's first answer to the handling of a message committed before it, or with
    ``sql://`` as soon as the database takes it."""
    scene.broker.kill()
    waiting = [] if scene.kind == "sql" else scene.crew.publish()
    time.sleep(OUTAGE)
    scene.broker.restart()
    back = time.monotonic()
    (note,) = scene.crew.notes.wait(HANDLED, *(waiting or scene.crew.publish()))
    return max(0.0, note.at - back)


def _relay_killed(scene: Scene) -> float:
    """From the kill of one of two relays to the handling of the last of messages of all keys."""
    victim = min(scene.crew.pids("relay"))
    killed = time.monotonic()
    scene.crew.kill(victim)
    notes = scene.crew.notes.wait(HANDLED, *scene.crew.publish(count=KEYS))
    scene.crew.start("relay")
    return max(note.at for note in notes) - killed


def _consumer_killed(scene: Scene) -> float:
    """From the kill of a consumer inside its handler to the same message in another process."""
    (number,) = scene.crew.publish(hold=True)
    (holding,) = scene.crew.notes.wait(HOLDING, number)
    killed = time.monotonic()
    scene.crew.kill(holding.pid)
    (note,) = scene.crew.notes.wait(HANDLED, number)
    scene.crew.start("consume")
    return note.at - killed


@dataclass(frozen=True, slots=True)
class _What:
    name: str
    title: str
    event: Callable[[Scene], float]
    relays: int = 1
    consumers: int = 1
    goals: Sequence[Goal] = ()


_EVENTS = (
    _What(
        "broker",
        "from broker back (SIGKILL, restart) to the next message handled",
        _broker_back,
        goals=(at_most(10_000, DEFAULTS.name, figure="p99_ms"),),
    ),
    _What("relay", "from killed relay to the take-over of all its keys", _relay_killed, relays=2),
    _What("consumer", "from killed consumer to redelivery", _consumer_killed, consumers=2),
)


def _row(what: _What, kind: str) -> type[Recovery]:
    members: dict[str, Any] = {
        "__doc__": f"{what.title}, {kind}.",
        "name": f"recovery-{what.name}-{kind}",
        "title": f"{what.title}, {kind}",
        "kind": kind,
        "relays": what.relays,
        "consumers": what.consumers,
        "goals": what.goals,
        "event": lambda self, scene: what.event(scene),
    }
    made = type(f"Recovery{what.name.title()}{kind.title()}", (Recovery,), members)
    return cast("type[Recovery]", made)


ROWS = tuple(_row(what, kind) for what in _EVENTS for kind in KINDS)
