"""The connections that the relay reads on, on PostgreSQL: their plans, errors and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from reliable_mq.store import Store, engines
from reliable_mq.store.walking import walking, walking_alone
from tests.brokers import PgBouncer
from tests.conftest import started

PLANNER = text("SELECT setting FROM pg_settings WHERE name IN ('enable_seqscan', 'enable_sort')")


@pytest.fixture
def elsewhere(postgresql_url: str) -> Iterator[Engine]:
    """Another process's way to the database."""
    engine = create_engine(postgresql_url)
    yield engine
    engine.dispose()


@pytest.fixture(params=["ours", "given"])
def store(request: pytest.FixtureRequest, postgresql_url: str) -> Iterator[Store]:
    # One of the application's, whose pool puts nothing right.
    as_it_is = {"pool_reset_on_return": None, "skip_autocommit_rollback": True}
    engine = create_engine(postgresql_url, **as_it_is)
    store = Store(database_url=postgresql_url) if request.param == "ours" else Store(engine=engine)
    store.create()
    yield store
    store.dispose()
    engine.dispose()


def planner(connection: Connection) -> set[str]:
    return set(connection.execute(PLANNER).scalars())


def test_no_other_statement_has_the_plans_of_a_read(store: Store) -> None:
    with walking(store) as connection:
        assert planner(connection) == {"off"}
    for _ in range(3):
        with store.engine.connect() as connection:
            assert planner(connection) == {"on"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_read_that_failed_leaves_no_transaction(store: Store, error: type[BaseException]) -> None:
    def fail() -> None:
        with walking(store) as connection:
            planner(connection)
            raise error

    with pytest.raises(error):
        fail()
    with store.walking_engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        assert driver.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    with walking(store) as connection:
        assert planner(connection) == {"off"}


@pytest.mark.parametrize("way", [walking, Store.reading])
def test_a_migration_fails_one_read_and_not_all_that_come_after_it(
    store: Store, elsewhere: Engine, way: Callable[[Store], AbstractContextManager[Connection]]
) -> None:
    """For what psycopg has prepared the new type of a column is an error, each time."""
    attempts = text(f"SELECT attempts FROM {store.tables.outbox.name}")

    def read() -> None:
        with way(store) as connection:
            connection.execute(attempts).all()

    for _ in range(10):
        read()
    with elsewhere.begin() as connection:
        column = f"{store.tables.outbox.name} ALTER attempts TYPE bigint"
        connection.execute(text(f"ALTER TABLE {column}"))
    with pytest.raises(DBAPIError, match="cached plan must not change result type"):
        read()
    read()


def test_a_connection_that_died_while_it_was_idle_is_replaced(
    postgresql_url: str, elsewhere: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_IDLE_CHECK", 0.0)
    store = Store(database_url=postgresql_url)
    with walking(store) as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with elsewhere.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
    with walking(store) as connection:
        assert planner(connection) == {"off"}
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() != pid
    store.dispose()


def test_behind_a_pooler_no_session_that_others_get_keeps_the_plans_of_a_read(
    postgresql_url: str, request: pytest.FixtureRequest
) -> None:
    """The mistake that docs/stores.md names: it must cost the others as little as it says."""
    for pooler in started(request, PgBouncer(postgresql_url, sessions=1)):
        store = Store(database_url=pooler.url)
        with walking(store) as connection:
            assert planner(connection) == {"off"}
        with walking_alone(store) as none:
            assert none is None
        other = create_engine(pooler.url, connect_args={"prepare_threshold": None})
        with other.connect() as connection:
            assert planner(connection) == {"on"}
        other.dispose()
        store.dispose()
