"""The application's own async engine, of each async driver: publish, handle, fail, replay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from reliable_mq import Delivery, ReliableMQ, RetryPolicy, Settings
from tests.e2e.shop import Order, leave
from tests.e2e.waiting import until

DRIVERS = {
    "aiosqlite": ("sqlite_url", "sqlite+aiosqlite"),
    "psycopg": ("postgresql_url", "postgresql+psycopg"),
    "asyncpg": ("postgresql_url", "postgresql+asyncpg"),
    "asyncmy": ("mariadb_url", "mariadb+asyncmy"),
}


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def database_url(driver: str, request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(DRIVERS[driver][0])
    return url


@pytest.fixture
def async_url(driver: str, database_url: str) -> str:
    url = make_url(database_url).set(drivername=DRIVERS[driver][1])
    if driver == "asyncmy":
        url = url.set(query={})
    return url.render_as_string(hide_password=False)


@pytest.mark.parametrize("kind", ["sql", "redis"])
def test_messages_of_an_async_application_are_applied_once_and_replayed_once(
    broker: Any, async_url: str, unique: str, seen: Callable[[], list[str]]
) -> None:
    failing = [2]

    async def use() -> None:
        engine = create_async_engine(async_url)
        sessions = async_sessionmaker(engine)
        mq = ReliableMQ(
            Settings(broker_url=broker.url, group="billing"),
            async_engine=engine,
            async_session_factory=sessions,
        )

        @mq.handler(unique, retry=RetryPolicy(max_attempts=2, initial_delay=0.05))
        async def handle(order: Order, session: AsyncSession, delivery: Delivery) -> None:
            await (await session.connection()).run_sync(leave, f"{order.id}/{delivery.attempt}")
            if order.id in failing:
                raise OSError("injected")

        async with mq.running():
            async with sessions.begin() as session:
                mq.publish(unique, Order(id=1), session=session)
                mq.publish(unique, Order(id=2), session=session)
            await asyncio.to_thread(until, mq.dead_letters)
            failing.clear()
            (dead,) = await mq.adead_letters()
            assert await mq.areplay(dead.id)
            assert not await mq.areplay(dead.id)
            await asyncio.to_thread(until, lambda: len(seen()) == 2)
        await mq.aclose()
        await engine.dispose()

    asyncio.run(use())
    assert sorted(seen()) == ["1/1", "2/1"]
