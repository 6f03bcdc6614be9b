"""What producers publish: transactions of every fate, and what is known of each."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

from reliable_mq import ReliableMQ
from tests.nemesis.application import Arena
from tests.sweep import application as sweep
from tests.sweep.application import History, Job

NUMBERS = 100_000
"""That many messages at most in one life of a producer; their numbers begin with the life's."""
KEYS = 4
ROLLED_BACK = 0.05
PAUSE = (0.05, 0.3)
PAUSE_ON_FILE = (0.4, 1.2)
"""Between two transactions. A slow handler keeps SQLite's only write lock from all others."""
FATES: tuple[tuple[int, dict[str, Any]], ...] = (
    (800, {}),
    (60, {"fails": 1}),
    (30, {"fails": 2}),
    (15, {"rejected": True}),
    (10, {"fails": 99}),
    (30, {"slow": 0.3}),
    (2, {"slow": 5.0}),
)
"""How many of each kind there are. The last is slower than its lease allows."""


class RolledBackError(Exception):
    """On purpose."""


class Plan:
    """The jobs of one life of a producer, the same ones for the same seed.

    A key ends with the first transaction of unknown outcome: that one may still be committed,
    beside those that follow, and the order of transactions that overlap is nobody's promise.
    """

    def __init__(self, life: int, rng: random.Random) -> None:
        self._life = life
        self._rng = rng
        self._epoch = 0
        self._number = life * NUMBERS

    def jobs(self) -> list[Job]:
        """Return those of the next transaction."""
        return [self._job() for _ in range(self._rng.randint(1, 4))]

    def break_off(self) -> None:
        """Begin new keys."""
        self._epoch += 1

    def _job(self) -> Job:
        self._number += 1
        (fate,) = self._rng.choices([f for _, f in FATES], [weight for weight, _ in FATES])
        key = f"{self._life}.{self._epoch}.{self._rng.randrange(KEYS)}"
        keyed = self._rng.random() < 0.85
        return Job(number=self._number, key=key if keyed else None, **fate)


def produce(mq: ReliableMQ, arena: Arena, life: int, seed: int, stop: threading.Event) -> None:
    """Publish until *stop*; the history knows each transaction and how it ended."""
    rng = random.Random(f"{seed} producer {life}")
    plan = Plan(life, rng)
    history = History(Path(arena.folder))
    pause = PAUSE_ON_FILE if arena.database_url.startswith("sqlite") else PAUSE
    while not stop.is_set():
        jobs = plan.jobs()
        numbers = [job.number for job in jobs]
        history.note("invoke", numbers=numbers, jobs=[job.model_dump() for job in jobs])
        try:
            _publish(mq, arena, jobs, undo=rng.random() < ROLLED_BACK)
        except RolledBackError:
            history.note("undone", numbers=numbers)
        except Exception as error:  # noqa: BLE001 - of unknown outcome, whatever it is
            history.note("info", numbers=numbers, error=f"{type(error).__name__}: {error}"[:300])
            plan.break_off()
        else:
            history.note("ok", numbers=numbers)
        stop.wait(rng.uniform(*pause))


def _publish(mq: ReliableMQ, arena: Arena, jobs: list[Job], *, undo: bool) -> None:
    with mq.transaction() as session:
        sweep.write(mq, session, arena, jobs)
        if undo:
            session.flush()
            raise RolledBackError
