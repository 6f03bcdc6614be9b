"""Publishing into a plain Connection: the same promises, without an ORM session."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine, create_engine, insert
from sqlalchemy.exc import DBAPIError, IntegrityError

from reliable_mq.errors import ConfigurationError, NoTransactionError
from reliable_mq.store import Store, outbox
from tests.e2e.waiting import until
from tests.store.shop import Order, inserts, message, orders, publish, stored


def test_a_message_is_stored_with_the_business_row(store, shop):
    with shop.begin() as connection:
        connection.execute(insert(Order).values(number=1, customer="ann"))
        publish(store, connection, "a", "b")
        assert stored(store) == []
    assert (stored(store), orders(store)) == (["a", "b"], 1)


def test_nothing_is_stored_when_the_transaction_is_rolled_back(store, shop):
    with shop.connect() as connection:
        connection.execute(insert(Order).values(number=1, customer="ann"))
        publish(store, connection, "a")
        connection.rollback()

        def work() -> None:
            with connection.begin():
                publish(store, connection, "b")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            work()
        with connection.begin():
            publish(store, connection, "c")
    assert (stored(store), orders(store)) == (["c"], 0)


def test_nothing_is_stored_when_the_connection_is_closed_without_a_commit(store, shop):
    with shop.connect() as connection:
        connection.begin()
        publish(store, connection, "a")
    assert stored(store) == []


def test_a_commit_writes_all_messages_by_one_insert(store, shop):
    names = [f"{n:04}" for n in range(200)]
    with inserts(shop, store) as seen, shop.begin() as connection:
        publish(store, connection, *names)
    assert seen == [200]
    assert stored(store) == names


def test_a_connection_that_was_open_before_the_first_publish_on_its_engine_works(store, shop):
    with shop.connect() as connection:
        connection.begin()
        publish(store, connection, "a")
        connection.commit()
        connection.begin()
        publish(store, connection, "b")
        connection.commit()
    assert stored(store) == ["a", "b"]


def test_a_transaction_is_needed(store, shop):
    with shop.connect() as connection:
        with pytest.raises(NoTransactionError, match="no transaction"):
            publish(store, connection, "a")
        with connection.begin():
            publish(store, connection, "b")
        with pytest.raises(NoTransactionError, match="no transaction"):
            publish(store, connection, "c")
    assert stored(store) == ["b"]


@pytest.mark.parametrize("where", ["engine", "options", "connection"])
def test_autocommit_mode_is_refused(store, shop, where):
    engine = shop
    if where == "engine":
        engine = create_engine(shop.url, isolation_level="AUTOCOMMIT")
    if where == "options":
        engine = shop.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if where == "connection":
            connection.execution_options(isolation_level="AUTOCOMMIT")
        with connection.begin(), pytest.raises(NoTransactionError, match="AUTOCOMMIT"):
            publish(store, connection, "a")
    assert stored(store) == []
    engine.dispose()


def test_an_engine_with_options_of_its_own_works(store, shop):
    engine = shop.execution_options(logging_token="orders")
    with engine.begin() as connection:
        publish(store, connection, "a")
    with shop.begin() as connection:
        publish(store, connection, "b")
    assert stored(store) == ["a", "b"]


# --- savepoints -----------------------------------------------------------------------------------


def test_savepoints_keep_or_drop_their_messages(store, shop):
    with shop.begin() as connection:
        publish(store, connection, "a")
        with connection.begin_nested():
            publish(store, connection, "b")
        savepoint = connection.begin_nested()
        publish(store, connection, "c")
        savepoint.rollback()
        publish(store, connection, "d")
    assert stored(store) == ["a", "b", "d"]


def test_an_outer_savepoint_rolled_back_takes_the_inner_ones_messages(store, shop):
    with shop.begin() as connection:
        publish(store, connection, "a")
        outer = connection.begin_nested()
        with connection.begin_nested():
            publish(store, connection, "b")
        inner = connection.begin_nested()
        publish(store, connection, "c")
        inner.rollback()
        publish(store, connection, "d")
        outer.rollback()
        publish(store, connection, "e")
        with connection.begin_nested():
            publish(store, connection, "f")
    assert stored(store) == ["a", "e", "f"]


@pytest.mark.filterwarnings("ignore:nested transaction already deassociated")
def test_an_outer_savepoint_rolled_back_over_an_open_inner_one_takes_both(store, shop):
    with shop.begin() as connection:
        outer = connection.begin_nested()
        publish(store, connection, "a")
        connection.begin_nested()
        publish(store, connection, "b")
        outer.rollback()
        publish(store, connection, "c")
    assert stored(store) == ["c"]


def test_savepoints_opened_before_the_first_message_count_too(store, shop):
    with shop.begin() as connection:
        outer = connection.begin_nested()
        inner = connection.begin_nested()
        publish(store, connection, "a")
        inner.commit()
        outer.rollback()
        publish(store, connection, "b")
    assert stored(store) == ["b"]


def test_an_error_inside_a_savepoint_takes_only_its_messages(store, shop):
    with shop.begin() as connection:
        connection.execute(insert(Order).values(number=1, customer="ann"))
        publish(store, connection, "a")

        def work() -> None:
            with connection.begin_nested():
                publish(store, connection, "b")
                connection.execute(insert(Order).values(number=1, customer="bob"))

        with pytest.raises(IntegrityError):
            work()
        publish(store, connection, "c")
    assert stored(store) == ["a", "c"]


# --- many messages ------------------------------------------------------------------------------


def test_more_than_a_thousand_messages_are_written_as_they_come(store, shop):
    names = [f"{n:05}" for n in range(1200)]
    with inserts(shop, store) as seen, shop.begin() as connection:
        publish(store, connection, *names)
        assert seen == [1000]
    assert stored(store) == names


def test_an_outer_message_survives_a_savepoint_with_very_many(store, shop):
    many = [f"{n:04}" for n in range(1200)]
    with shop.begin() as connection:
        publish(store, connection, "a")
        savepoint = connection.begin_nested()
        publish(store, connection, *many)
        savepoint.rollback()
        with connection.begin_nested():
            publish(store, connection, *many)
        publish(store, connection, "z")
    assert stored(store) == ["a", *many, "z"]


def test_a_savepoint_behind_very_many_messages_takes_only_its_own(store, shop):
    many = [f"{n:04}" for n in range(1200)]
    with shop.begin() as connection:
        publish(store, connection, *many)
        for name in "xy":
            savepoint = connection.begin_nested()
            publish(store, connection, name)
            savepoint.rollback()
        publish(store, connection, "z")
    assert stored(store) == [*many, "z"]


def test_what_a_savepoint_wrote_early_is_rolled_back_with_it(store, shop):
    with shop.begin() as connection:
        outer = connection.begin_nested()
        with connection.begin_nested():
            publish(store, connection, *map(str, range(1200)))
        publish(store, connection, "x")
        outer.rollback()
        publish(store, connection, "a")
    assert stored(store) == ["a"]


# --- the rest -----------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["mariadb"], indirect=True)  # the others want settings for it
def test_a_two_phase_commit_stores_the_message(store, shop):
    with shop.connect() as connection:
        transaction = connection.begin_twophase()
        publish(store, connection, "a")
        transaction.prepare()
        transaction.commit()
        transaction = connection.begin_twophase()
        publish(store, connection, "b")
        transaction.commit()
        transaction = connection.begin_twophase()
        publish(store, connection, "c")
        transaction.prepare()
        transaction.rollback()
        connection.begin_twophase()
        publish(store, connection, "d")
        connection.rollback()
    assert stored(store) == ["a", "b"]


def test_pending_messages_can_be_looked_at(store, shop):
    with shop.begin() as connection:
        assert outbox.pending(connection) == []
        publish(store, connection, "a")
        savepoint = connection.begin_nested()
        publish(store, connection, "b")
        assert [found.id for found in outbox.pending(connection)] == ["a", "b"]
        savepoint.rollback()
        assert [found.id for found in outbox.pending(connection)] == ["a"]
    with shop.connect() as connection:
        assert outbox.pending(connection) == []


def test_messages_can_be_written_before_the_commit_in_their_order(store, shop):
    with inserts(shop, store) as seen, shop.begin() as connection:
        outbox.flush(connection)
        publish(store, connection, "a")
        savepoint = connection.begin_nested()
        publish(store, connection, "b")
        outbox.flush(connection)  # "a" would be lost with the savepoint
        assert seen == []
        savepoint.rollback()
        outbox.flush(connection)
        assert seen == [1]
        publish(store, connection, "c")
    assert seen == [1, 1]
    assert stored(store) == ["a", "c"]


def test_listeners_are_told_after_the_commit_and_only_then(store, shop):
    seen: list[list[str]] = []
    store.on_appended.append(lambda: seen.append(stored(store)))
    with shop.connect() as connection:
        connection.begin()
        publish(store, connection, "a")
        connection.rollback()
        connection.begin()
        publish(store, connection, "b")
        connection.commit()
    assert seen == [["b"]]
    with shop.begin() as connection:
        publish(store, connection, "c")
        assert seen == [["b"]]
    assert seen == [["b"], ["b", "c"]]
    with shop.begin() as connection:
        connection.execute(insert(Order).values(number=1, customer="ann"))
    assert len(seen) == 2


def test_listeners_are_told_of_a_connection_that_stays_open_by_its_next_transaction(store, shop):
    seen: list[list[str]] = []
    store.on_appended.append(lambda: seen.append(stored(store)))
    with shop.connect() as connection:
        for name in "ab":
            connection.begin()
            publish(store, connection, name)
            connection.commit()
        assert seen == [["a"]]
    assert seen == [["a"], ["a", "b"]]


@pytest.mark.parametrize(
    ("store", "twophase"),
    [("sqlite", False), ("postgresql", False), ("mariadb", False), ("mariadb", True)],
    indirect=["store"],
)
def test_a_commit_that_could_not_write_the_message_leaves_nothing_to_commit(
    store, shop, monkeypatch, twophase
):
    with shop.connect() as connection:
        begin = connection.begin_twophase if twophase else connection.begin
        transaction = begin()
        connection.execute(insert(Order).values(number=1, customer="ann"))
        publish(store, connection, "a")
        with monkeypatch.context() as patch:
            patch.setattr(store, "verify", fail)
            with pytest.raises(ZeroDivisionError):
                transaction.commit()
        transaction.rollback()
        transaction = begin()
        connection.execute(insert(Order).values(number=2, customer="bob"))
        publish(store, connection, "b")
        transaction.commit()
    assert (stored(store), orders(store)) == (["b"], 1)


def fail(connection: Connection) -> None:
    raise ZeroDivisionError


_SESSION = {
    "postgresql": (
        "SELECT pg_backend_pid()",
        "SELECT pg_terminate_backend({})",
        "pg_stat_activity",
    ),
    "mysql": ("SELECT connection_id()", "KILL {}", "information_schema.processlist"),
}


def _ask(shop: Engine, statement: str) -> str | None:
    """Return the first value, if any; in a transaction of its own, which sees what is new."""
    with shop.connect() as connection:
        result = connection.exec_driver_sql(statement)
        return str(result.scalar()) if result.returns_rows else None


@pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)
def test_a_connection_that_was_lost_before_the_commit_is_told_as_such(store, shop):
    which, kill, sessions = _SESSION[store.dialect.name]
    column = "pid" if store.dialect.name == "postgresql" else "id"
    with shop.connect() as connection:
        connection.begin()
        number = connection.exec_driver_sql(which).scalar_one()
        publish(store, connection, "a")
        _ask(shop, kill.format(number))
        query = f"SELECT count(*) FROM {sessions} WHERE {column} = {number}"
        until(lambda: _ask(shop, query) == "0")
        with pytest.raises(DBAPIError) as caught:
            connection.commit()
        assert caught.value.connection_invalidated
    with shop.begin() as connection:
        publish(store, connection, "b")
    assert stored(store) == ["b"]


def test_a_database_without_our_tables_is_named_at_the_commit(sqlite_url):
    store = Store(database_url=sqlite_url)
    with store.engine.connect() as connection:
        connection.begin()
        outbox.append(store, connection, message("a"))
        with pytest.raises(ConfigurationError, match=r"declare\(\)"):
            connection.commit()
    store.dispose()
