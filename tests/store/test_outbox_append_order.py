"""Several publish into one transaction: rows get their numbers in the order of the calls."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from reliable_mq.store import Store, outbox
from tests.store.conftest import Bridge
from tests.store.shop import Order, inserts, orders, publish, stored

modes = pytest.mark.parametrize("mode", ["rollback_only", "create_savepoint"])


def session_on(connection: Connection, mode: Any = "create_savepoint") -> Session:
    return Session(connection, join_transaction_mode=mode)


@modes
def test_what_a_joined_session_publishes_stays_behind_what_its_connection_did(store, shop, mode):
    with shop.begin() as connection:
        publish(store, connection, "a")
        with session_on(connection, mode) as session, session.begin():
            session.add(Order(number=1, customer="ann"))
            publish(store, session, "b")
        publish(store, connection, "c")
    assert (stored(store), orders(store)) == (["a", "b", "c"], 1)


@modes
def test_what_its_connection_publishes_stays_behind_what_an_open_session_did(store, shop, mode):
    with shop.begin() as connection, session_on(connection, mode) as session:
        publish(store, session, "a")
        publish(store, connection, "b")
        publish(store, session, "c")
        session.commit()
    assert stored(store) == ["a", "b", "c"]


def test_sessions_on_one_connection_keep_the_order_of_their_calls(store, shop):
    with shop.begin() as connection, session_on(connection, "rollback_only") as outer:
        publish(store, outer, "a")
        with session_on(connection) as inner, inner.begin():
            publish(store, inner, "b")
            with inner.begin_nested():
                publish(store, inner, "c")
        publish(store, outer, "d")
        outer.commit()
    assert stored(store) == ["a", "b", "c", "d"]


def test_a_session_and_the_connection_it_took_from_its_engine_keep_their_order(store, shop):
    with Session(shop) as session, session.begin():
        publish(store, session, "a")
        publish(store, session.connection(), "b")
        publish(store, session, "c")
        publish(store, session.connection(), "d")
    assert stored(store) == ["a", "b", "c", "d"]


def test_a_joined_session_that_is_rolled_back_takes_only_its_own_messages(store, shop):
    with shop.begin() as connection:
        publish(store, connection, "a")
        with session_on(connection) as session:
            publish(store, session, "b")
            session.connection()
            publish(store, connection, "c")
            session.rollback()
            publish(store, session, "d")
            session.commit()
        publish(store, connection, "e")
    assert stored(store) == ["a", "d", "e"]


def test_a_savepoint_around_a_joined_session_takes_what_it_committed(store, shop):
    with shop.begin() as connection:
        publish(store, connection, "a")
        savepoint = connection.begin_nested()
        with session_on(connection) as session, session.begin():
            publish(store, session, "b")
        savepoint.rollback()
        with connection.begin_nested(), session_on(connection) as session, session.begin():
            publish(store, session, "c")
    assert stored(store) == ["a", "c"]


def test_a_message_that_nothing_comes_before_is_written_when_its_session_commits(store, shop):
    """So that a test which never commits its connection finds the row there."""
    ids = select(store.tables.outbox.c.message_id).order_by(store.tables.outbox.c.id)
    with shop.connect() as connection, connection.begin() as transaction:
        with session_on(connection) as session:
            for name in "ab":
                publish(store, session, name)
                session.commit()
        assert list(connection.scalars(ids)) == ["a", "b"]
        transaction.rollback()


def test_a_message_that_waits_for_its_connection_is_seen_among_its_messages(store, shop):
    with shop.begin() as connection, session_on(connection, "rollback_only") as outer:
        publish(store, outer, "a")
        publish(store, connection, "b")
        with session_on(connection) as inner, inner.begin():
            publish(store, inner, "c")
        outer.commit()
        assert [found.id for found in outbox.pending(connection)] == ["a", "b", "c"]


def test_very_many_messages_wait_for_an_earlier_one_of_a_session(store, shop):
    many = [f"{n:04}" for n in range(1200)]
    with inserts(shop, store) as seen, shop.begin() as connection:
        with session_on(connection) as session:
            publish(store, session, "a")
            publish(store, connection, *many)
            assert seen == []
            session.commit()
        publish(store, connection, "z")
    assert stored(store) == ["a", *many, "z"]


def test_very_many_messages_wait_for_one_that_its_session_held_before_it_had_a_connection(
    store, shop
):
    many = [f"{n:04}" for n in range(1200)]
    with Session(shop) as session, session.begin():
        publish(store, session, "a")
        publish(store, session.connection(), *many)
        publish(store, session, "z")
    assert stored(store) == ["a", *many, "z"]


def test_very_many_messages_of_a_session_wait_for_an_earlier_one_of_its_connection(store, shop):
    many = [f"{n:04}" for n in range(1200)]
    with shop.begin() as connection:
        publish(store, connection, "a")
        with session_on(connection) as session, session.begin():
            publish(store, session, *many)
            with session.begin_nested() as savepoint:
                publish(store, session, *map(str, range(1200)))
                savepoint.rollback()
        publish(store, connection, "z")
    assert stored(store) == ["a", *many, "z"]


def test_the_messages_of_two_stores_keep_their_order(store, shop):
    other = Store(engine=shop, table_prefix="ordered_")
    other.create()
    with shop.begin() as connection:
        connection.execute(other.tables.outbox.delete())
        publish(store, connection, "a")
        with session_on(connection) as session, session.begin():
            publish(other, session, "b")
            publish(store, session, "c")
        publish(other, connection, "d")
    assert (stored(store), stored(other)) == (["a", "c"], ["b", "d"])


def test_listeners_are_told_once_of_a_message_that_waited(store, shop):
    seen: list[list[str]] = []
    store.on_appended.append(lambda: seen.append(stored(store)))
    with shop.begin() as connection:
        publish(store, connection, "a")
        with session_on(connection) as session, session.begin():
            publish(store, session, "b")
        assert seen == []
    assert seen == [["a", "b"]]


@pytest.mark.parametrize(
    "bridge", ["aiosqlite", "psycopg_async", "asyncpg", "asyncmy"], indirect=True
)
@modes
def test_an_async_session_and_its_connection_keep_their_order(bridge: Bridge, mode: Any) -> None:
    store = bridge.store

    async def work() -> None:
        async with store.async_engine.begin() as connection:
            publish(store, connection, "a")
            async with AsyncSession(connection, join_transaction_mode=mode) as session:
                publish(store, session, "b")
                publish(store, connection, "c")
                publish(store, session, "d")
                await session.commit()
            publish(store, connection, "e")

    bridge.runner.run(work())
    assert stored(store) == list("abcde")


def test_a_session_leaves_an_engine_alone_that_nobody_publishes_into_otherwise(
    store: Store, shop: Engine
) -> None:
    """Events of an engine cost each of its statements time."""
    with Session(shop) as session, session.begin():
        publish(store, session, "a")
    assert not shop._has_events
