"""``mq.transaction()`` on SQLite, where one transaction writes at a time."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.exc import OperationalError

from reliable_mq.errors import ConfigurationError
from reliable_mq.store import Store, current
from reliable_mq.store.transactions import Transaction
from tests.store.shop import Order, orders, publish, stored


def publish_here(store: Store, *names: str) -> None:
    publish(store, current.required(store), *names)


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Any:
    store = Store(database_url=sqlite_url)
    store.create()
    Order.metadata.create_all(store.engine)
    yield store
    store.dispose()


def test_on_sqlite_it_has_the_write_lock_from_the_start(sqlite_store):
    impatient = create_engine(sqlite_store.engine.url, connect_args={"timeout": 0})
    with Transaction(sqlite_store) as session:
        # A read first: turning it into a write would fail if another one came between.
        assert session.execute(select(Order)).all() == []
        with impatient.connect() as connection, pytest.raises(OperationalError, match="locked"):
            connection.execute(insert(Order).values(number=2, customer="bob"))
        session.add(Order(number=1, customer="ann"))
    impatient.dispose()
    assert orders(sqlite_store) == 1


def test_on_sqlite_an_async_one_has_it_too(sqlite_store):
    impatient = create_engine(sqlite_store.engine.url, connect_args={"timeout": 0})

    async def main() -> None:
        async with Transaction(sqlite_store) as session:
            await session.execute(select(Order))
            with impatient.connect() as connection, pytest.raises(OperationalError, match="locked"):
                connection.execute(insert(Order).values(number=2, customer="bob"))
        await sqlite_store.adispose()

    asyncio.run(main())
    impatient.dispose()


def test_on_sqlite_threads_wait_for_each_other_without_an_error(sqlite_store):
    def work(number: int) -> None:
        for step in range(10):
            with Transaction(sqlite_store) as session:
                session.add(Order(number=number * 100 + step, customer="ann"))
                publish_here(sqlite_store, f"{number}-{step}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert orders(sqlite_store) == len(stored(sqlite_store)) == 60


def test_on_sqlite_a_second_transaction_that_would_wait_for_itself_is_refused(sqlite_store):
    with (
        Transaction(sqlite_store),
        pytest.raises(ConfigurationError, match="wait for itself"),
        sqlite_store.transaction(),
    ):
        pass
    with sqlite_store.transaction() as connection:
        connection.execute(text("SELECT 1"))


def test_on_sqlite_a_waiting_task_does_not_block_its_loop(sqlite_store):
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with Transaction(sqlite_store):
            held.set()
            go_on.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    ticks: list[int] = []

    async def tick() -> None:
        for number in range(20):
            ticks.append(number)
            await asyncio.sleep(0.005)
        go_on.set()

    async def write() -> None:
        async with Transaction(sqlite_store):
            assert len(ticks) == 20

    async def main() -> None:
        await asyncio.gather(write(), tick())
        await sqlite_store.adispose()

    asyncio.run(main())
    thread.join()


def test_on_sqlite_a_task_that_is_cancelled_while_it_waits_leaves_the_queue(sqlite_store):
    async def write(number: int) -> None:
        async with Transaction(sqlite_store) as session:
            session.add(Order(number=number, customer="ann"))

    async def main() -> None:
        async with Transaction(sqlite_store):
            context = contextvars.Context()
            waiting = asyncio.create_task(write(1), context=context)
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await asyncio.wait_for(write(2), 10)
        await sqlite_store.adispose()

    asyncio.run(main())
    assert orders(sqlite_store) == 1
