"""At every crash point a process is killed; another goes on, and the promises hold."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliable_mq.crashpoints import POINTS
from tests.e2e.conftest import broker_url
from tests.sweep.cells import Report
from tests.sweep.forking import Victims
from tests.sweep.scenarios import MORE, SCENARIOS
from tests.sweep.sweeping import pool_of_victims, sweep

CHOSEN = (("sql", "postgresql"), ("kafka", "mariadb"), ("rabbitmq", "sqlite"), ("redis", "mariadb"))
"""What runs each time; ``python -m tests.sweep`` runs every combination."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """The logs of five cells at once help nobody; a cell has those of the process it killed."""
    caplog.set_level(logging.CRITICAL, "reliable_mq")


@pytest.fixture(scope="module")
def victims() -> Iterator[queue.SimpleQueue[Victims]]:
    with pool_of_victims() as pool:
        yield pool


def test_every_point_that_the_library_has_is_swept():
    assert {scenario.point for scenario in SCENARIOS} == set(POINTS)
    assert len(SCENARIOS) == len(POINTS)
    assert {scenario.point for scenario in MORE} <= set(POINTS)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("adapter", "database"), CHOSEN)
def test_a_kill_at_any_point_breaks_no_promise(
    adapter: str,
    database: str,
    request: pytest.FixtureRequest,
    unique: str,
    tmp_path: Path,
    victims: queue.SimpleQueue[Victims],
):
    url = "" if database == "sqlite" else request.getfixturevalue(f"{database}_url")
    reports = sweep(
        SCENARIOS,
        adapter=adapter,
        broker_url=broker_url(adapter, request),
        database_url=url,
        folder=tmp_path,
        name=f"t{unique[-8:]}",
        pool=victims,
    )
    show(reports)
    assert {
        report.scenario.name: report.violations for report in reports if report.violations
    } == {}
    assert all(report.killed for report in reports)


def show(reports: list[Report]) -> None:
    for report in reports:
        result = "; ".join(report.violations) or "ok"
        print(f"{report.scenario.name:32} {report.seconds:6.1f} s  {result}")
    print(f"{len(reports)} kills, {sum(report.messages for report in reports)} messages")
