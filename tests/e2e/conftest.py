"""One application on every broker, the processes it runs in, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from reliable_mq import ReliableMQ, Settings
from tests.e2e.brokers import KINDS, Broker, quick
from tests.e2e.shop import effects, metadata

MakeMQ = Callable[..., ReliableMQ]


def broker_url(kind: str, request: pytest.FixtureRequest) -> str:
    """The URL of the shared server of this kind, with a place of its own for the test."""
    if kind == "sql":
        return "sql://"
    url: str = request.getfixturevalue(f"{kind}_url")
    return quick(kind, url)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each broker in turn."""
    found: str = request.param
    return found


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Where the choice of database does not matter; a test class or module may override it."""
    return sqlite_url


@pytest.fixture
def broker(kind: str, request: pytest.FixtureRequest, database_url: str) -> Broker:
    """Each broker in turn, with the database of the test."""
    return Broker(kind, broker_url(kind, request), database_url)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """The database, with the table that handlers write to."""
    engine = create_engine(database_url)
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def seen(engine: Engine) -> Callable[[], list[str]]:
    """Return the committed effects in their order."""
    return lambda: effects(engine)


@pytest.fixture
def make_mq(broker: Broker) -> Iterator[MakeMQ]:
    """Make an application on the broker and database of the test; closed after it."""
    with ExitStack() as stack:

        def make(**settings: Any) -> ReliableMQ:
            values = {
                "broker_url": broker.url,
                "database_url": broker.database_url,
                "group": "billing",
                **settings,
            }
            return stack.enter_context(ReliableMQ(Settings(**values)))

        yield make
