"""``mq.transaction()`` and the stack of current transactions behind it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import Connection, event, insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from reliable_mq.errors import NoTransactionError
from reliable_mq.store import Store, current
from reliable_mq.store.transactions import Transaction
from tests.store.conftest import Bridge
from tests.store.shop import Order, orders, publish, stored

ASYNC = ["aiosqlite", "psycopg_async", "asyncpg", "asyncmy"]
async_drivers = pytest.mark.parametrize("bridge", ASYNC, indirect=True)


def publish_here(store: Store, *names: str) -> None:
    publish(store, current.required(store), *names)


# --- with -----------------------------------------------------------------------------------------


def test_a_transaction_commits_at_the_end_of_its_block(store):
    with Transaction(store) as session:
        assert type(session) is Session
        order = Order(number=1, customer="ann")
        session.add(order)
        publish_here(store, "a")
        assert stored(store) == []
    assert (stored(store), orders(store)) == (["a"], 1)
    assert order.customer == "ann"


def test_a_transaction_rolls_back_when_its_block_raises(store):
    def work() -> None:
        with Transaction(store) as session:
            session.add(Order(number=1, customer="ann"))
            publish_here(store, "a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert (stored(store), orders(store)) == ([], 0)
    assert current.innermost(store) is None


def test_a_transaction_within_a_transaction_is_a_savepoint(store):
    def fail() -> None:
        with Transaction(store) as inner:
            inner.add(Order(number=2, customer="bob"))
            publish_here(store, "b")
            raise ZeroDivisionError

    with Transaction(store) as outer:
        publish_here(store, "a")
        with pytest.raises(ZeroDivisionError):
            fail()
        with Transaction(store) as inner:
            assert inner is outer
            inner.add(Order(number=3, customer="eve"))
            publish_here(store, "c")
        publish_here(store, "d")
    assert (stored(store), orders(store)) == (["a", "c", "d"], 1)


def test_it_joins_a_connection_as_a_savepoint(store):
    def fail() -> None:
        with Transaction(store) as session:
            session.add(Order(number=1, customer="ann"))
            publish_here(store, "b")
            raise ZeroDivisionError

    with store.transaction() as connection, current.entered(store, connection):
        publish_here(store, "a")
        with Transaction(store) as session:
            session.add(Order(number=2, customer="bob"))
            publish_here(store, "c")
        with pytest.raises(ZeroDivisionError):
            fail()
        publish_here(store, "d")
    assert orders(store) == 1
    assert stored(store) == ["a", "c", "d"]


def test_another_store_on_the_same_database_shares_the_transaction(store):
    other = Store(engine=store.engine, table_prefix="another_")
    other.create()
    with store.engine.begin() as connection:
        connection.execute(other.tables.outbox.delete())
    with Transaction(store) as session:
        publish_here(other, "a")
        with Transaction(other) as same:
            assert same is session
            publish_here(store, "b")
    assert (stored(store), stored(other)) == (["b"], ["a"])


def test_a_store_on_another_database_does_not(store, tmp_path):
    other = Store(database_url=f"sqlite:///{tmp_path / 'other.db'}")
    other.create()
    with Transaction(store) as session:
        with pytest.raises(NoTransactionError):
            publish_here(other, "a")
        with Transaction(other) as own:
            assert own is not session
            publish_here(other, "b")
            publish_here(store, "c")
    assert (stored(store), stored(other)) == (["c"], ["b"])
    other.dispose()


def test_outside_a_transaction_there_is_none(store):
    with pytest.raises(NoTransactionError, match=r"mq\.transaction"):
        current.required(store)


def test_a_hook_of_the_commit_still_finds_the_transaction(store):
    def hook(session: Session) -> None:
        publish_here(store, "hook")

    with Transaction(store) as session:
        event.listen(session, "before_commit", hook)
    assert stored(store) == ["hook"]


def test_sessions_come_from_the_applications_factory(store):
    class Own(Session):
        pass

    factory = sessionmaker(store.engine, class_=Own)
    own = Store(engine=store.engine, session_factory=factory)
    with Transaction(own) as session:
        assert isinstance(session, Own)
        publish_here(own, "a")
    with (
        own.transaction() as connection,
        current.entered(own, connection),
        Transaction(own) as session,
    ):
        assert isinstance(session, Own)
        publish_here(own, "b")
    assert stored(store) == ["a", "b"]


def test_a_transaction_object_is_entered_once(store):
    transaction = Transaction(store)
    with transaction:
        pass
    with pytest.raises(RuntimeError, match="again"), transaction:
        pass


def test_what_it_prepares_happens_before_and_not_for_a_savepoint(store):
    prepared: list[bool] = []

    def prepare() -> None:
        prepared.append(current.innermost(store) is None)

    with Transaction(store, prepare=prepare), Transaction(store, prepare=prepare):
        pass
    assert prepared == [True]


def test_a_thread_does_not_see_the_transaction_of_another(store):
    caught: list[Exception] = []

    def look() -> None:
        try:
            current.required(store)
        except NoTransactionError as error:
            caught.append(error)

    with Transaction(store):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert len(caught) == 1


def test_code_that_outlives_its_transaction_cannot_publish_into_it(store):
    with Transaction(store):
        context = contextvars.copy_context()
    with pytest.raises(NoTransactionError, match="has ended"):
        context.run(publish_here, store, "a")

    def begin_another() -> None:
        with Transaction(store):
            publish_here(store, "b")

    context.run(begin_another)
    assert stored(store) == ["b"]


def test_an_ended_inner_transaction_does_not_lead_to_the_outer_one(store):
    with store.transaction() as connection, current.entered(store, connection):
        with current.entered(store, connection) as inner:
            inner.end()
            with pytest.raises(NoTransactionError, match="has ended"):
                current.required(store)
        assert current.required(store) is connection


def test_an_entry_may_be_left_in_another_context_than_it_was_entered_in(store):
    with store.engine.connect() as connection:
        manager = current.entered(store, connection)
        context = contextvars.copy_context()
        context.run(manager.__enter__)
        manager.__exit__(None, None, None)
        with pytest.raises(NoTransactionError):
            context.run(current.required, store)


# --- async with -----------------------------------------------------------------------------------


def run(bridge: Bridge, work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    bridge.runner.run(main())


@async_drivers
def test_async_with_commits_rolls_back_and_nests(bridge):
    store = bridge.store

    async def fail() -> None:
        async with Transaction(store) as session:
            session.add(Order(number=9, customer="bob"))
            publish_here(store, "x")
            raise ZeroDivisionError

    async def work() -> None:
        async with Transaction(store) as outer:
            assert type(outer) is AsyncSession
            outer.add(Order(number=1, customer="ann"))
            publish_here(store, "a")
            with pytest.raises(ZeroDivisionError):
                await fail()
            async with Transaction(store) as inner:
                assert inner is outer
                publish_here(store, "b")
        with pytest.raises(ZeroDivisionError):
            await fail()

    run(bridge, work)
    assert (stored(store), orders(store)) == (["a", "b"], 1)


@async_drivers
def test_async_with_joins_a_connection_inside_the_bridge(bridge):
    store = bridge.store

    async def work() -> None:
        async with store.async_engine.connect() as outer:
            inner = outer.sync_connection
            assert isinstance(inner, Connection)
            await outer.run_sync(store.dialect.begin)
            for target in (outer, inner):
                with current.entered(store, target):
                    async with Transaction(store) as session:
                        await session.execute(
                            insert(Order).values(number=id(target) % 997, customer="a")
                        )
                        publish_here(store, "a")
            await outer.commit()

    run(bridge, work)
    assert (stored(store), orders(store)) == (["a", "a"], 2)


@async_drivers
def test_async_sessions_come_from_the_applications_factory(bridge):
    class Own(AsyncSession):
        pass

    factory = async_sessionmaker(bridge.store.async_engine, class_=Own)
    own = Store(async_engine=bridge.store.async_engine, async_session_factory=factory)

    async def work() -> None:
        async with Transaction(own) as session:
            assert isinstance(session, Own)
            publish_here(own, "a")

    run(bridge, work)
    assert stored(bridge.store) == ["a"]
    own.dispose()


@async_drivers
def test_many_tasks_each_have_their_own_transaction(bridge):
    store = bridge.store

    async def one(number: int) -> None:
        async with Transaction(store) as session:
            session.add(Order(number=number, customer="ann"))
            await asyncio.sleep(0.01)
            publish_here(store, str(number))
            if number % 2:
                await session.rollback()

    async def work() -> None:
        done = await asyncio.gather(*map(one, range(10)), return_exceptions=True)
        assert [error for error in done if error] == []

    run(bridge, work)
    assert sorted(stored(store)) == ["0", "2", "4", "6", "8"]
    assert orders(store) == 5


@async_drivers
def test_the_two_kinds_do_not_mix(bridge):
    store = bridge.store

    async def work() -> None:
        with pytest.raises(RuntimeError, match="async with"), Transaction(store):
            pass
        async with Transaction(store):
            with pytest.raises(RuntimeError, match="asynchronous"):
                await asyncio.to_thread(Transaction(store).__enter__)

    run(bridge, work)

    def within_sync() -> None:
        async def enter() -> None:
            async with Transaction(store):
                pass

        with Transaction(store), pytest.raises(RuntimeError, match="synchronous"):
            asyncio.run(enter())

    contextvars.Context().run(within_sync)


@async_drivers
def test_preparing_does_not_block_the_loop(bridge):
    threads: list[int] = []

    async def work() -> None:
        def prepare() -> None:
            threads.append(threading.get_ident())

        async with Transaction(bridge.store, prepare=prepare):
            assert threads != [threading.get_ident()]

    run(bridge, work)
    assert len(threads) == 1
