"""What ``import reliable_mq`` costs, and that it brings no broker's client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

from benchmarks.bench import Bench, Contestant, Figures, Row
from benchmarks.goals import at_most
from benchmarks.processes import ROOT, environment

_PROGRAM = """
import sys, time
started = time.perf_counter()
import {what}
print(time.perf_counter() - started)
print(*[name for name in {clients!r} if name in sys.modules])
"""
_CLIENTS = ("confluent_kafka", "pika", "redis")


class Importing(Row):
    """A fresh interpreter each time."""

    name = "import"
    title = "import reliable_mq against import sqlalchemy, pydantic"
    unit = "milliseconds, the best of *count* fresh interpreters"
    count, short_count = 10, 3
    goals = (at_most(2, "ours", "raw", figure="ms"), at_most(0, "ours", figure="clients"))
    _WHAT: ClassVar[dict[str, str]] = {"raw": "sqlalchemy, pydantic", "ours": "reliable_mq"}

    @contextmanager
    def open(self, bench: Bench, count: int) -> Iterator[list[Contestant]]:
        yield [
            Contestant(
                name=name,
                measure=partial(_measure, what, min(count, self.count)),
                note=f"import {what}",
            )
            for name, what in self._WHAT.items()
        ]


def _measure(what: str, times: int, _count: int) -> Figures:
    _import(what)  # what was never imported is compiled first
    found = [_import(what) for _ in range(times)]
    return {
        "count": times,
        "ms": min(seconds for seconds, _ in found) * 1e3,
        "clients": max(clients for _, clients in found),
    }


def _import(what: str) -> tuple[float, int]:
    program = _PROGRAM.format(what=what, clients=_CLIENTS)
    command = [sys.executable, "-c", program]
    output = subprocess.run(  # noqa: S603 - our own program
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    ).stdout
    seconds, _, clients = output.partition("\n")
    return float(seconds), len(clients.split())


ROWS = (Importing,)
