"""One application in three databases, on the memory broker with a fake clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, select

from reliable_mq import ReliableMQ, Settings
from reliable_mq.testing import Harness

metadata = MetaData()
effects = Table(
    "effects",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("what", String(100), nullable=False),
)
unique_effects = Table("unique_effects", metadata, Column("what", String(100), primary_key=True))


@pytest.fixture
def engine(store_url: str) -> Iterator[Engine]:
    engine = create_engine(store_url)
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def mq() -> ReliableMQ:
    """An application whose handlers the test adds; its database comes from the harness."""
    return ReliableMQ(Settings(broker_url="memory://unused", group="tests"))


@pytest.fixture
def harness(mq: ReliableMQ, engine: Engine) -> Iterator[Callable[[], Harness]]:
    """Enter the harness once the test has registered its handlers."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Harness(mq, engine))


@pytest.fixture
def seen(engine: Engine) -> Callable[[], list[str]]:
    """Return the committed effects in their order."""

    def read() -> list[str]:
        with engine.connect() as connection:
            return list(connection.scalars(select(effects.c.what).order_by(effects.c.id)))

    return read
