"""What publishing costs the transaction it is part of."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

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
        note = "the business write alone, with 1 and with 5 messages take turns in one process"

        def on_postgresql(name: str, style: str, count: int) -> Figures:
            with bench.lab.database() as database:
                return self._measure(bench, name, database, style, count)

        def on_sqlite(count: int) -> Figures:
            with tempfile.TemporaryDirectory(prefix="rmq-bench-") as folder:
                database = f"sqlite:///{Path(folder) / 'app.db'}"
                return self._measure(bench, "ours SQLite ORM", database, "orm", count)

        yield [
            Contestant(
                name="ours Core", measure=lambda n: on_postgresql("ours Core", "core", n), note=note
            ),
            Contestant(
                name="ours ORM", measure=lambda n: on_postgresql("ours ORM", "orm", n), note=note
            ),
            Contestant(name="ours SQLite ORM", measure=on_sqlite, note=note),
        ]

    def _measure(self, bench: Bench, name: str, database: str, style: str, count: int) -> Figures:
        side = "benchmarks.ours.publish:transactions"
        task = {"database_url": database, "topic": "orders", "count": count, "style": style}
        with bench.child(name, side, **task) as child:
            child.expect("ready", 120)
            child.go()
            found = child.expect("result", 600)
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
