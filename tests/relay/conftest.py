"""Stores for relays, each with a fresh database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reliable_mq.store import Store
from reliable_mq.testing.clock import FakeClock
from tests.relay.support import ADAPTER, ScriptedBroker


def _opened(url: str) -> Iterator[Store]:
    store = Store(database_url=url, adapter=ADAPTER)
    store.create()
    yield store
    store.dispose()


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """On each kind of database in turn."""
    yield from _opened(store_url)


@pytest.fixture
def postgresql_store(postgresql_url: str) -> Iterator[Store]:
    yield from _opened(postgresql_url)


@pytest.fixture(params=["postgresql", "mariadb"])
def server_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Where transactions run side by side."""
    yield from _opened(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def timed_store(store_url: str, clock: FakeClock) -> Iterator[Store]:
    """A store whose clock is ``clock``."""
    store = Store(database_url=store_url, adapter=ADAPTER, now=clock.expression)
    store.create()
    yield store
    store.dispose()


@pytest.fixture
def broker() -> ScriptedBroker:
    return ScriptedBroker()
