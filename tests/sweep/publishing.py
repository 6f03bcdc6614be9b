"""The table of a whole sweep, between two marks of a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from reliable_mq.crashpoints import POINTS
from tests.sweep.cells import Report

BEGIN, END = "<!-- sweep: begin -->\n", "<!-- sweep: end -->\n"
_SHORT = {"postgresql": "PG", "mariadb": "MariaDB", "sqlite": "SQLite"}


@dataclass(frozen=True)
class Result:
    """A cell, and where it was."""

    adapter: str
    database: str
    report: Report


def write_page(page: Path, results: Sequence[Result], *, seconds: float) -> None:
    """Put the table where the marks of *page* are."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = "\n".join(_lines(results, seconds))
    page.write_text(f"{before}{BEGIN}\n{lines}\n\n{END}{after}")


def _lines(results: Sequence[Result], seconds: float) -> Iterator[str]:
    yield from _summary(results, seconds)
    yield ""
    places = sorted({(one.adapter, one.database) for one in results}, key=_place)
    yield "| point | " + " | ".join(f"{a} {_SHORT[d]}" for a, d in places) + " |"
    yield "|---|" + "---|" * len(places)
    cells: dict[tuple[str, str, str], list[Report]] = defaultdict(list)
    for one in results:
        cells[one.report.scenario.point, one.adapter, one.database].append(one.report)
    for point in POINTS:
        shown = " | ".join(_cell(cells[point, adapter, database]) for adapter, database in places)
        yield f"| `{point}` | {shown} |"


def _summary(results: Sequence[Result], seconds: float) -> Iterator[str]:
    kills = sum(one.report.killed for one in results)
    messages = sum(one.report.messages for one in results)
    broken = sum(bool(one.report.violations) for one in results)
    violations = "1 violation" if broken == 1 else f"{broken} violations"
    yield (
        f"`python -m tests.sweep`, {datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.0f} minutes on two "
        f"cores: {kills} kills, {messages} messages, **{violations}**."
    )


def _place(place: tuple[str, str]) -> tuple[int, int]:
    adapters = ("sql", "kafka", "rabbitmq", "redis")
    return adapters.index(place[0]), list(_SHORT).index(place[1])


def _cell(reports: Sequence[Report]) -> str:
    if not reports:
        return ""
    broken = sum(bool(report.violations) for report in reports)
    kills = sum(report.killed for report in reports)
    return f"{kills}, **{broken} broken**" if broken else str(kills)
