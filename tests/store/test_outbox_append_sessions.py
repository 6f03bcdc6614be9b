"""Publishing into every kind of session, and where a message cannot be atomic."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, event, insert
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from reliable_mq.errors import ConfigurationError, NoTransactionError
from reliable_mq.store import Store
from tests.store.shop import Order, orders, publish, stored

# --- all kinds of sessions ----------------------------------------------------------------------


def test_a_scoped_session_is_the_session_of_this_thread(store, shop):
    scoped = scoped_session(sessionmaker(shop))
    scoped.add(Order(number=1, customer="ann"))
    publish(store, scoped, "a")
    scoped.commit()
    scoped.remove()
    assert (stored(store), orders(store)) == (["a"], 1)


def test_a_session_over_an_outer_transaction_follows_it(store, shop):
    with shop.connect() as connection:
        outer = connection.begin()
        # sqlite3 by itself begins at the first write, and not at a savepoint.
        connection.execute(insert(Order).values(number=1, customer="ann"))
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            publish(store, session, "a")
            session.commit()
            publish(store, session, "b")
            session.rollback()
        outer.rollback()
        assert stored(store) == []
        with (
            connection.begin(),
            Session(connection, join_transaction_mode="rollback_only") as session,
        ):
            publish(store, session, "c")
            session.commit()
            assert session.connection() is connection
        assert stored(store) == ["c"]


def test_a_session_that_joined_a_savepoint_of_its_connection_may_publish(store, shop):
    with shop.connect() as connection, connection.begin():
        with connection.begin_nested(), Session(connection) as session:
            publish(store, session, "a")
            session.commit()
        savepoint = connection.begin_nested()
        with Session(connection) as session:
            publish(store, session, "b")
            session.commit()
        savepoint.rollback()
    assert stored(store) == ["a"]


@pytest.mark.parametrize("store", ["mariadb"], indirect=True)  # the others want settings for it
def test_a_two_phase_commit_stores_the_message(store, shop):
    with Session(shop, twophase=True) as session:
        session.add(Order(number=1, customer="ann"))
        publish(store, session, "a")
        session.prepare()
        session.commit()
        publish(store, session, "b")
        session.prepare()
        session.rollback()
    assert stored(store) == ["a"]


def test_a_session_with_several_engines_writes_where_it_binds_the_outbox(store, shop, tmp_path):
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Order.metadata.create_all(other)
    with Session(binds={Order: other, store.tables.outbox: shop}) as session, session.begin():
        session.add(Order(number=1, customer="ann"))
        publish(store, session, "a")
    assert (stored(store), orders(store)) == (["a"], 0)
    other.dispose()


def test_a_session_that_routes_by_statement_sees_an_insert(store, shop):
    seen = []

    class Routing(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **_: Any) -> Any:
            seen.append(getattr(clause, "is_insert", False))
            return shop

    with Routing() as session, session.begin():
        publish(store, session, "a")
    assert stored(store) == ["a"]
    assert all(seen)


def test_two_stores_in_one_transaction_get_their_own_messages(store, shop):
    other = Store(engine=shop, table_prefix="other_")
    other.create()
    with Session(shop) as session, session.begin():
        publish(store, session, "a")
        publish(other, session, "b")
        publish(store, session, "c")
    assert (stored(store), stored(other)) == (["a", "c"], ["b"])


def test_what_is_no_session_is_refused_by_name(store):
    with pytest.raises(TypeError, match="Engine"):
        publish(store, store.engine, "a")


# --- where a message cannot be atomic ------------------------------------------------------------


def test_an_engine_in_autocommit_mode_is_refused_at_once(store, shop):
    for engine in (
        create_engine(shop.url, isolation_level="AUTOCOMMIT"),
        shop.execution_options(isolation_level="AUTOCOMMIT"),
    ):
        with Session(engine) as session, pytest.raises(NoTransactionError, match="AUTOCOMMIT"):
            publish(store, session, "a")
        engine.dispose()
    assert stored(store) == []


def test_a_connection_in_autocommit_mode_is_refused_at_once(store, shop):
    with Session(shop) as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        with pytest.raises(NoTransactionError, match="AUTOCOMMIT"):
            publish(store, session, "a")
    assert stored(store) == []


def test_a_connection_that_turns_to_autocommit_is_refused_at_the_commit(store, shop):
    with Session(shop) as session:
        publish(store, session, "a")
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        with pytest.raises(NoTransactionError, match="AUTOCOMMIT"):
            session.commit()
        session.rollback()
    assert stored(store) == []


def test_a_transaction_on_an_autocommit_engine_may_publish(store, shop):
    engine = create_engine(shop.url, isolation_level="AUTOCOMMIT")
    level = "SERIALIZABLE"
    with Session(engine) as session:
        session.connection(execution_options={"isolation_level": level})
        publish(store, session, "a")
        session.rollback()
        session.connection(execution_options={"isolation_level": level})
        publish(store, session, "b")
        session.commit()
    engine.dispose()
    assert stored(store) == ["b"]


def test_sqlites_own_recipe_for_begin_is_not_taken_for_autocommit(sqlite_url):
    store = Store(database_url=sqlite_url)
    store.create()
    engine = create_engine(sqlite_url)

    @event.listens_for(engine, "connect")
    def no_begin_by_the_driver(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    with Session(engine) as session, session.begin():
        publish(store, session, "a")
    with Session(engine) as session:
        publish(store, session, "b")
        session.rollback()
    assert stored(store) == ["a"]
    engine.dispose()
    store.dispose()


def test_a_session_on_a_database_without_our_tables_is_told_so(store, tmp_path):
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with Session(other) as session:
        publish(store, session, "a")
        with pytest.raises(ConfigurationError, match=r"declare\(\)"):
            session.commit()
        session.rollback()
    other.dispose()


def test_a_session_on_another_store_of_the_same_prefix_is_told_so(sqlite_url, tmp_path):
    store, elsewhere = (Store(database_url=f"{sqlite_url}{n}") for n in "12")
    store.create()
    elsewhere.create()
    with Session(elsewhere.engine) as session:
        publish(store, session, "a")
        with pytest.raises(ConfigurationError, match="another store"):
            session.commit()
        session.rollback()
    assert stored(elsewhere) == []
    elsewhere.dispose()
    store.dispose()


# --- the signal after the commit ------------------------------------------------------------------


def test_listeners_are_told_after_the_commit_and_only_then(store, shop):
    seen: list[list[str]] = []
    store.on_appended.append(lambda: seen.append(stored(store)))
    with Session(shop) as session:
        publish(store, session, "a")
        session.rollback()
        with session.begin_nested():
            publish(store, session, "b")
        assert seen == []
        session.commit()
        assert seen == [["b"]]
        session.add(Order(number=1, customer="ann"))
        session.commit()
    assert seen == [["b"]]


def test_listeners_are_told_after_the_outer_commit_of_a_joined_session(store, shop):
    seen: list[list[str]] = []
    store.on_appended.append(lambda: seen.append(stored(store)))
    with shop.connect() as connection:
        outer = connection.begin()
        session = Session(connection, join_transaction_mode="create_savepoint")
        publish(store, session, "a")
        session.commit()
        session.close()
        assert seen == []
        outer.commit()
    assert seen == [["a"]]


def test_a_listener_that_fails_fails_nobody_else(store, shop, caplog):
    seen: list[str] = []

    def broken() -> None:
        raise ZeroDivisionError

    store.on_appended += [broken, lambda: seen.append("told")]
    with Session(shop) as session, session.begin():
        publish(store, session, "a")
    assert seen == ["told"]
    assert "ZeroDivisionError" in caplog.text
