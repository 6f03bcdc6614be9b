"""All points on one adapter and one database, some cells at a time: most of a cell is waiting."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.sweep.application import Place
from tests.sweep.cells import Report, make_tables, run
from tests.sweep.forking import Victims
from tests.sweep.scenarios import Scenario

AT_ONCE = 5


@contextmanager
def pool_of_victims(size: int = AT_ONCE) -> Iterator[queue.SimpleQueue[Victims]]:
    """As many servers of processes as cells run at a time."""
    with ExitStack() as stack:
        pool: queue.SimpleQueue[Victims] = queue.SimpleQueue()
        for _ in range(size):
            pool.put(stack.enter_context(Victims()))
        yield pool


def sweep(
    scenarios: Iterable[Scenario],
    *,
    adapter: str,
    broker_url: str,
    database_url: str,
    folder: Path,
    name: str,
    pool: queue.SimpleQueue[Victims],
) -> list[Report]:
    """Run the cells of those *scenarios* that the adapter can have; SQLite has a file for each."""

    def one(number: int, scenario: Scenario) -> Report:
        own = folder / f"{name}_{number}"
        own.mkdir()
        url = database_url or f"sqlite:///{own / 'store.db'}"
        if not database_url:
            make_tables(url)
        place = Place(
            cell=f"{name}_{number}",
            broker_url=broker_url,
            database_url=url,
            folder=str(own),
            kind=scenario.kind,
        )
        victims = pool.get()
        try:
            return run(scenario, place, victims)
        finally:
            pool.put(victims)

    if database_url:
        make_tables(database_url)
    wanted = [scenario for scenario in scenarios if adapter in scenario.adapters]
    with ThreadPoolExecutor(AT_ONCE) as executor:
        return list(executor.map(one, range(len(wanted)), wanted))
