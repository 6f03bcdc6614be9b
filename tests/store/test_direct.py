"""What is fetched past SQLAlchemy: its errors, and what becomes of the connection."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import (
    Connection,
    NullPool,
    bindparam,
    create_engine,
    event,
    literal_column,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from reliable_mq.store.dialects import Trouble
from reliable_mq.store.direct import Direct
from reliable_mq.testing.contract.waiting import wait_for
from tests.store.claims import in_begun

pytestmark = pytest.mark.timeout(60)

_QUOTIENT: Any = select(literal_column("10") / bindparam("by"), bindparam("by"))
DIVISION = Direct(_QUOTIENT, ["by"])


@pytest.fixture(autouse=True)
def _postgresql(request):
    if "bridge" not in request.fixturenames:
        return
    bridge = request.getfixturevalue("bridge")
    if bridge.store.dialect.name != "postgresql":
        pytest.skip("only PostgreSQL's claim goes past SQLAlchemy")


def test_the_first_row_is_returned(bridge):
    assert tuple(in_begun(bridge, lambda c: DIVISION.fetch(c, {"by": 5}))) == (2, 5)


def test_an_error_is_one_of_sqlalchemy_and_leaves_the_connection(bridge):
    def work(connection: Connection) -> Any:
        with pytest.raises(DBAPIError, match="division by zero") as caught:
            DIVISION.fetch(connection, {"by": 0})
        trouble = bridge.store.dialect.classify(caught.value, connection)
        return trouble, caught.value.connection_invalidated, connection.invalidated

    assert in_begun(bridge, work) == (Trouble.OTHER, False, False)


def test_a_lost_connection_takes_those_of_its_pool_with_it(bridge):
    def work() -> Any:
        with bridge.engine.connect() as other:
            other_backend = _backend(other)
        with bridge.engine.connect() as connection:
            bridge.store.dialect.begin(connection)
            with bridge.store.engine.begin() as killer:
                ours = {"ours": _backend(connection)}
                killer.execute(text("SELECT pg_terminate_backend(:ours, 10000)"), ours)
            with pytest.raises(DBAPIError) as caught:
                DIVISION.fetch(connection, {"by": 5})
            trouble = bridge.store.dialect.classify(caught.value, connection)
            told = trouble, caught.value.connection_invalidated, connection.invalidated
        with bridge.engine.connect() as fresh:
            return told, _backend(fresh) == other_backend

    assert bridge.run(work) == ((Trouble.GONE, True, True), False)


def _sleeps(url: str) -> bool:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    others = "query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()"
    with engine.connect() as connection:
        active = f"SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND {others}"
        return bool(connection.exec_driver_sql(active.replace("%", "%%")).scalar_one())


def test_a_cancelled_one_gives_its_connection_up(bridge):
    if not bridge.is_async:
        pytest.skip("a thread cannot be cancelled")
    forever: Any = select(literal_column("pg_sleep(60)"), literal_column("10") / bindparam("by"))
    sleep = Direct(forever, ["by"])
    seen: list[bool] = []

    def work() -> None:
        with bridge.engine.connect() as connection:
            bridge.store.dialect.begin(connection)
            try:
                sleep.fetch(connection, {"by": 1})
            finally:
                seen.append(connection.invalidated)

    async def cancel() -> None:
        task = asyncio.ensure_future(greenlet_spawn(work))
        await asyncio.to_thread(wait_for, lambda: _sleeps(bridge.url), "the server at work")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    bridge.runner.run(cancel())
    assert seen == [True]


def _backend(connection: Connection) -> int:
    return int(connection.scalar(text("SELECT pg_backend_pid()")))


def test_hooks_of_the_application_on_its_engine_see_statement_and_error(postgresql_url):
    engine = create_engine(postgresql_url)
    seen: list[str] = []
    errors: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def on_execute(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    @event.listens_for(engine, "handle_error")
    def on_error(context: Any) -> None:
        errors.append(type(context.original_exception).__name__)
        context.is_disconnect = True

    with engine.connect() as connection:
        assert tuple(DIVISION.fetch(connection, {"by": 5})) == (2, 5)
        assert [tuple(row) for row in DIVISION.fetch_all(connection, {"by": 2})] == [(5, 2)]
        with pytest.raises(DBAPIError):
            DIVISION.fetch(connection, {"by": 0})
        assert connection.invalidated
    engine.dispose()
    assert len(seen) == 3
    assert errors == ["DivisionByZero"]
