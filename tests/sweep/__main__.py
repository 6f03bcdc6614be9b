"""The whole sweep: ``python -m tests.sweep``, which writes its table into docs/reliability.md."""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.brokers import RabbitMQ, Redis, Server, find
from tests.brokers.databases import fresh_database
from tests.e2e.brokers import quick
from tests.sweep.publishing import Result, write_page
from tests.sweep.scenarios import MORE, SCENARIOS
from tests.sweep.sweeping import pool_of_victims, sweep

ADAPTERS = ("sql", "kafka", "rabbitmq", "redis")
DATABASES = ("postgresql", "mariadb", "sqlite")
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


class Servers:
    """Started when the first combination needs them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._servers: dict[str, Server] = {}

    def __call__(self, kind: str) -> Server:
        if kind not in self._servers:
            server = self._servers[kind] = find(kind)
            server.start()
            self._stack.callback(server.stop)
        return self._servers[kind]


@contextmanager
def places(servers: Servers, adapter: str, database: str, name: str) -> Iterator[tuple[str, str]]:
    """Give the URLs of an empty broker and an empty database; "" is a file for each cell."""
    with ExitStack() as stack:
        url = ""
        if database != "sqlite":
            url = stack.enter_context(fresh_database(servers(database).url, name))
        yield _broker(servers, adapter, name), url


def _broker(servers: Servers, adapter: str, name: str) -> str:
    if adapter == "sql":
        return "sql://"
    server = servers(adapter)
    if isinstance(server, RabbitMQ):
        return quick(adapter, server.create_vhost(name))
    if isinstance(server, Redis):
        return quick(adapter, server.fresh_database())
    return quick(adapter, server.url)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__)
    parser.add_argument("--adapter", choices=ADAPTERS, action="append")
    parser.add_argument("--database", choices=DATABASES, action="append")
    parser.add_argument("--point", help="only scenarios whose name has this in it")
    parser.add_argument("--rounds", type=int, default=1, help="how often to do it all")
    return parser.parse_args()


def main() -> int:
    """Return 1 where a promise was broken or a point not reached."""
    chosen = options()
    logging.getLogger("reliable_mq").setLevel(logging.CRITICAL)
    scenarios = [one for one in (*SCENARIOS, *MORE) if (chosen.point or "") in one.name]
    combinations = [
        (adapter, database)
        for adapter in chosen.adapter or ADAPTERS
        for database in chosen.database or DATABASES
    ] * chosen.rounds
    results: list[Result] = []
    began = time.monotonic()
    with ExitStack() as stack:
        servers = Servers(stack)
        pool = stack.enter_context(pool_of_victims())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sweep-")))
        for adapter, database in combinations:
            name = f"s{secrets.token_hex(4)}"
            with places(servers, adapter, database, name) as (broker_url, database_url):
                reports = sweep(
                    scenarios,
                    adapter=adapter,
                    broker_url=broker_url,
                    database_url=database_url,
                    folder=folder,
                    name=name,
                    pool=pool,
                )
            results.extend(Result(adapter, database, report) for report in reports)
            _tell(adapter, database, results[-len(reports) :])
    if len(set(combinations)) == len(ADAPTERS) * len(DATABASES) and not chosen.point:
        write_page(PAGE, results, seconds=time.monotonic() - began)
    return int(any(result.report.violations for result in results))


def _tell(adapter: str, database: str, results: list[Result]) -> None:
    kills = sum(result.report.killed for result in results)
    print(f"{adapter} + {database}: {kills} kills of {len(results)}", flush=True)
    for result in results:
        for violation in result.report.violations:
            print(f"  {result.report.scenario.name}: {violation}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
