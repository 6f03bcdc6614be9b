"""What publishing costs the transaction it is part of."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import create_engine, text

from benchmarks.bench import Bench, Contestant, Figures, Row
from benchmarks.effects import TABLE
from benchmarks.goals import at_least, at_most
from benchmarks.ours.publish import MESSAGES, WARM_UP
from benchmarks.tally import WrongCount


def _count(database: str, table: str) -> int:
    engine = create_engine(database)
    with engine.connect() as connection:
        found = int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())
    engine.dispose()
    return found


def _check(database: str, table: str, expected: int) -> None:
    found = _count(database, table)
    if found != expected:
        raise WrongCount(f"{found} rows in {table}, expected {expected}")


@contextmanager
def _postgresql(bench: Bench) -> Iterator[str]:
    with bench.lab.database() as database:
        yield database


@contextmanager
def _sqlite(bench: Bench) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="rmq-bench-") as folder:
        yield f"sqlite:///{Path(folder) / 'app.db'}"


class _Way(NamedTuple):
    name: str
    style: str
    database: Callable[[Bench], AbstractContextManager[str]]


_WAYS = (
    _Way("Core", "core", _postgresql),
    _Way("ORM", "orm", _postgresql),
    _Way("SQLite ORM", "orm", _sqlite),
)
_NOTES = {
    "ours": "the business write alone, with 1 and with 5 messages take turns in one process",
    "raw": "the same; the application inserts the same rows itself, by Core or as mapped objects",
}


class Publish(Row):
    """One business INSERT, with none, one and five messages."""

    name = "publish"
    title = "publish in a transaction with one business INSERT"
    unit = "transactions/s with one message"
    count, short_count = 4000, 800
    goals = (
        at_least(0.68, "ours Core", figure="kept"),
        at_least(0.82, "ours ORM", figure="kept"),
        at_least(0.88, "ours SQLite ORM", figure="kept"),
        *(
            at_most(1.35, name, figure="five_to_one")
            for name in ("ours Core", "ours ORM", "ours SQLite ORM")
        ),
    )

    @contextmanager
    def open(self, bench: Bench, count: int) -> Iterator[list[Contestant]]:
        yield [
            Contestant(
                name=f"{side} {way.name}",
                measure=partial(self._measure, bench, side, way),
                note=note,
            )
            for way in _WAYS
            for side, note in _NOTES.items()
        ]

    def _measure(self, bench: Bench, side: str, way: _Way, count: int) -> Figures:
        with way.database(bench) as database:
            task = {"database_url": database, "topic": "orders", "count": count}
            function = f"benchmarks.{side}.publish:transactions"
            with bench.child(f"{side} {way.name}", function, style=way.style, **task) as child:
                child.expect("ready", 120)
                child.go()
                found = child.expect("result", 600)
            return self._figures(database, found)

    def _figures(self, database: str, found: dict[str, Any]) -> Figures:
        done = int(found["count"])
        _check(database, TABLE, len(MESSAGES) * (done + WARM_UP))
        _check(database, "reliable_mq_outbox", sum(MESSAGES) * (done + WARM_UP))
        wall = found["wall"]
        return {
            "count": done,
            "rate": done / wall["1"],
            "alone": done / wall["0"],
            "kept": wall["0"] / wall["1"],
            "five_to_one": wall["5"] / wall["1"],
        }


class WakeUp(Row):
    """Hints to other processes' relays, on and off."""

    name = "wake-up"
    title = "append with wake-up hints on against off, four threads"
    unit = "transactions/s"
    count, short_count = 12_000, 3000
    goals = (at_least(0.95, "ours", "ours without hints"),)
    _HINTS: ClassVar[dict[str, bool]] = {"ours without hints": False, "ours": True}

    @contextmanager
    def open(self, bench: Bench, count: int) -> Iterator[list[Contestant]]:
        def measure(name: str, count: int) -> Figures:
            with bench.lab.database() as database:
                task = {"database_url": database, "topic": "orders", "count": count}
                side = "benchmarks.ours.publish:appends"
                with bench.child(name, side, hints=self._HINTS[name], **task) as child:
                    figures = bench.run(child)
                _check(database, "reliable_mq_outbox", int(figures["count"]) + 1)
                return figures

        yield [Contestant(name=name, measure=partial(measure, name)) for name in self._HINTS]


ROWS = (Publish, WakeUp)
