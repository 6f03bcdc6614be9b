"""Stores on every database, and engines of every driver the library knows."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine, create_engine, delete, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

from reliable_mq.store import Store
from tests.brokers import Server
from tests.brokers.databases import fresh_database
from tests.store.shop import Base, Order

T = TypeVar("T")

DRIVERS = {
    "sqlite": ("sqlite", "sqlite"),
    "aiosqlite": ("sqlite", "sqlite+aiosqlite"),
    "psycopg": ("postgresql", "postgresql+psycopg"),
    "psycopg_async": ("postgresql", "postgresql+psycopg_async"),
    "asyncpg": ("postgresql", "postgresql+asyncpg"),
    "pymysql": ("mariadb", "mysql+pymysql"),
    "asyncmy": ("mariadb", "mariadb+asyncmy"),
}


@dataclass
class Bridge:
    """A store and an engine of one driver; ``run`` runs sync code where that engine works."""

    driver: str
    url: str
    store: Store
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)

    @property
    def is_async(self) -> bool:
        return self.driver in {"aiosqlite", "psycopg_async", "asyncpg", "asyncmy"}

    @property
    def engine(self) -> Engine:
        return self.store.async_engine.sync_engine if self.is_async else self.store.engine

    def engine_of_the_application(self, **options: Any) -> Engine:
        """Make one that the store does not know; to be disposed of inside ``run``."""
        if self.is_async:
            return create_async_engine(self.url, **options).sync_engine
        return create_engine(self.url, **options)

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        if not self.is_async:
            return work(*arguments)
        return self.runner.run(greenlet_spawn(work, *arguments))

    def close(self) -> None:
        if self.is_async:
            self.runner.run(self.store.adispose())
        self.store.dispose()
        self.runner.close()


# One database of each kind for all these tests, emptied before each: making one costs more than
# most of the tests.


@pytest.fixture(scope="session")
def lasting_sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'store.db'}"


@pytest.fixture(scope="session")
def lasting_postgresql_url(postgresql_server: Server) -> Iterator[str]:
    with fresh_database(postgresql_server.url, f"t_store_{secrets.token_hex(4)}") as url:
        yield url


@pytest.fixture(scope="session")
def lasting_mariadb_url(mariadb_server: Server) -> Iterator[str]:
    with fresh_database(mariadb_server.url, f"t_store_{secrets.token_hex(4)}") as url:
        yield url


def open_store(url: str) -> Store:
    """A store on the database of *url* with its tables and the business's, all empty."""
    store = Store(database_url=url)
    store.create()
    Base.metadata.create_all(store.engine)
    with store.transaction() as connection:
        for table in (store.tables.outbox, store.tables.inbox, Order):
            connection.execute(delete(table))
    return store


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store with its tables, on each kind of database."""
    found = open_store(request.getfixturevalue(f"lasting_{request.param}_url"))
    yield found
    found.dispose()


@pytest.fixture
def shop(store: Store) -> Iterator[Engine]:
    """An engine of the application's own on the database of ``store``."""
    engine = create_engine(store.engine.url)
    yield engine
    engine.dispose()


@pytest.fixture(params=DRIVERS)
def bridge(request: pytest.FixtureRequest) -> Iterator[Bridge]:
    """A store with its tables, and the engine of each driver in turn."""
    kind, name = DRIVERS[request.param]
    lasting = make_url(request.getfixturevalue(f"lasting_{kind}_url"))
    url = lasting.set(drivername=name).render_as_string(hide_password=False)
    found = Bridge(request.param, url, open_store(url))
    yield found
    found.close()
