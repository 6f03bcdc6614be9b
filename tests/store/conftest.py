"""Stores on every database, and engines of every driver the library knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

from reliable_mq.store import Store

T = TypeVar("T")

DRIVERS = {
    "sqlite": ("sqlite_url", "sqlite"),
    "aiosqlite": ("sqlite_url", "sqlite+aiosqlite"),
    "psycopg": ("postgresql_url", "postgresql+psycopg"),
    "psycopg_async": ("postgresql_url", "postgresql+psycopg_async"),
    "asyncpg": ("postgresql_url", "postgresql+asyncpg"),
    "pymysql": ("mariadb_url", "mysql+pymysql"),
    "asyncmy": ("mariadb_url", "mariadb+asyncmy"),
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


def url_of(request: pytest.FixtureRequest, driver: str) -> str:
    fixture, name = DRIVERS[driver]
    url = make_url(request.getfixturevalue(fixture)).set(drivername=name)
    return url.render_as_string(hide_password=False)


@pytest.fixture(params=DRIVERS)
def bridge(request: pytest.FixtureRequest) -> Iterator[Bridge]:
    """A store with its tables, and the engine of each driver in turn."""
    url = url_of(request, request.param)
    found = Bridge(request.param, url, Store(database_url=url))
    found.store.create()
    yield found
    found.close()


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """A store with its tables, on each kind of database."""
    found = Store(database_url=store_url)
    found.create()
    yield found
    found.dispose()
