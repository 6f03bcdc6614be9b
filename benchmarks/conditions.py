"""Under which conditions a run took place."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.bench import Options, Outcome

PACKAGES = (
    "reliable-mq", "sqlalchemy", "psycopg", "confluent-kafka", "pika", "redis",
    "faststream", "faststream-outbox", "dramatiq", "celery", "omni-box",
)  # fmt: skip


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def conditions(options: Options, servers: Mapping[str, str]) -> list[str]:
    """Return what a reader has to know to judge the figures."""
    lines = [
        f"`python -m benchmarks.run {shlex.join(sys.argv[1:])}`, "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f} at the end, Python {platform.python_version()}",
        ", ".join(f"{name} {number}" for name, number in _versions().items()),
        f"{options.repeat} rounds, contestants in turn; median (lowest to highest); "
        "a ratio is the median of the rounds' ratios",
    ]
    lines += [f"{kind}: {text}" for kind, text in servers.items()]
    if options.short:
        lines.append("**short form**: few messages, so that start-up weighs more than it should")
    return lines


def as_json(outcomes: Sequence[Outcome], lines: Sequence[str]) -> dict[str, Any]:
    """Return everything for machines."""
    return {"conditions": list(lines), "rows": [_row(outcome) for outcome in outcomes]}


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.row.name,
        "title": outcome.row.title,
        "unit": outcome.row.unit,
        "count": outcome.count,
        "samples": outcome.samples,
        "notes": outcome.notes,
        "missing": outcome.missing,
        "failure": outcome.failure,
        "goals": [
            {
                "goal": verdict.goal.text,
                "median": verdict.reached.median,
                "low": verdict.reached.low,
                "high": verdict.reached.high,
                "met": verdict.met,
            }
            for verdict in outcome.verdicts()
        ],
    }
