"""Publishing from async code: the same promises, and never an await where there is none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from reliable_mq.errors import NoTransactionError
from reliable_mq.store import Store
from tests.store.conftest import Bridge
from tests.store.shop import Order, inserts, listening, orders, publish, stored

pytestmark = pytest.mark.parametrize(
    "bridge", ["aiosqlite", "psycopg_async", "asyncpg", "asyncmy"], indirect=True
)

Work = Callable[[Store, AsyncEngine], Awaitable[None]]


def run(bridge: Bridge, work: Work) -> None:
    async def main() -> None:
        engine = create_async_engine(bridge.url)
        try:
            await work(bridge.store, engine)
        finally:
            await engine.dispose()

    bridge.runner.run(main())


def test_an_async_session_stores_what_it_commits_and_nothing_else(bridge):
    async def work(store: Store, engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            async with session.begin():
                session.add(Order(number=1, customer="ann"))
                publish(store, session, "a")
            publish(store, session, "b")
            await session.rollback()
            async with session.begin():
                publish(store, session, "c")
                async with session.begin_nested():
                    publish(store, session, "d")
                savepoint = await session.begin_nested()
                publish(store, session, "e")
                await savepoint.rollback()
                publish(store, session, "f")

    run(bridge, work)
    assert (stored(bridge.store), orders(bridge.store)) == (["a", "c", "d", "f"], 1)


def test_an_async_connection_stores_what_it_commits_and_nothing_else(bridge):
    async def work(store: Store, engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(insert(Order).values(number=1, customer="ann"))
            publish(store, connection, "a")
            savepoint = await connection.begin_nested()
            publish(store, connection, "b")
            await savepoint.rollback()
        async with engine.connect() as connection:
            with pytest.raises(NoTransactionError):
                publish(store, connection, "c")
            await connection.begin()
            publish(store, connection, "d")
            await connection.rollback()
        with pytest.raises(NoTransactionError, match="not started"):
            publish(store, engine.connect(), "e")

    run(bridge, work)
    assert (stored(bridge.store), orders(bridge.store)) == (["a"], 1)


def test_an_async_scoped_session_is_the_session_of_this_task(bridge):
    async def work(store: Store, engine: AsyncEngine) -> None:
        scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: 1)
        publish(store, scoped, "a")
        await scoped.commit()
        await scoped.remove()

    run(bridge, work)
    assert stored(bridge.store) == ["a"]


def test_very_many_messages_wait_for_the_commit(bridge):
    names = [f"{n:05}" for n in range(2100)]

    async def work(store: Store, engine: AsyncEngine) -> None:
        with inserts(engine.sync_engine, store) as seen:
            async with AsyncSession(engine) as session, session.begin():
                publish(store, session, *names)
                assert seen == []
            assert seen == [2100]
            async with engine.begin() as connection:
                publish(store, connection, *names)
            assert seen == [2100, 2100]

    run(bridge, work)
    assert stored(bridge.store) == names * 2


def test_a_hook_of_the_commit_may_publish(bridge):
    async def work(store: Store, engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:

            def hook(inner: Session, *_: Any) -> None:
                publish(store, inner, "hook")

            with listening(session.sync_session, "after_flush", hook):
                session.add(Order(number=1, customer="ann"))
                await session.commit()

    run(bridge, work)
    assert stored(bridge.store) == ["hook"]


def test_a_commit_that_failed_stores_nothing_and_the_session_goes_on(bridge):
    async def work(store: Store, engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            session.add(Order(number=1, customer="ann"))
            await session.commit()
            session.add(Order(number=1, customer="bob"))
            publish(store, session, "a")
            with pytest.raises(IntegrityError):
                await session.commit()
            await session.rollback()
            publish(store, session, "b")
            await session.commit()

    run(bridge, work)
    assert stored(bridge.store) == ["b"]


def test_listeners_are_told_after_the_commit(bridge):
    seen: list[list[str]] = []

    async def work(store: Store, engine: AsyncEngine) -> None:
        store.on_appended.append(lambda: seen.append(stored(store)))
        async with AsyncSession(engine) as session, session.begin():
            publish(store, session, "a")
        assert seen == [["a"]]
        async with engine.connect() as connection:
            await connection.begin()
            publish(store, connection, "b")
            await connection.commit()
        assert seen == [["a"], ["a", "b"]]

    run(bridge, work)
