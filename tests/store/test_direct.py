"""What goes past SQLAlchemy: its errors, what becomes of the connection, and who would notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    NullPool,
    Table,
    bindparam,
    create_engine,
    event,
    insert,
    literal_column,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.util import greenlet_spawn

from reliable_mq.store.dialects import Trouble
from reliable_mq.store.direct import Direct, is_watched
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


# --- what is written ----------------------------------------------------------------------------

NUMBERS = Table("numbers", MetaData(), Column("n", Integer, primary_key=True))
INSERTION = Direct(insert(NUMBERS).inline(), ["n"])


@pytest.fixture
def engine(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'numbers.db'}")
    NUMBERS.create(engine)
    yield engine
    engine.dispose()


def _nothing(*_: Any) -> None:
    pass


def _watched(engine: Engine) -> bool:
    with engine.connect() as connection:
        return is_watched(connection)


def test_an_engine_is_watched_only_by_those_who_see_statements(engine):
    assert not _watched(engine)
    event.listen(engine, "commit", _nothing)
    assert not _watched(engine)
    part = engine.execution_options(of="another part of the application")
    event.listen(part, "after_cursor_execute", _nothing)
    assert (_watched(part), _watched(engine)) == (True, False)


@pytest.mark.parametrize(
    "watch",
    [
        lambda engine: event.listen(engine, "before_cursor_execute", _nothing, retval=True),
        lambda engine: event.listen(engine, "after_cursor_execute", _nothing),
        lambda engine: event.listen(engine, "handle_error", _nothing),
        lambda engine: event.listen(engine, "do_execute", _nothing),
        lambda engine: setattr(engine, "echo", True),
        lambda engine: setattr(engine.dialect, "do_execute", _nothing),
    ],
    ids=["before", "after", "errors", "instead", "log", "patched"],
)
def test_whoever_sees_statements_or_errors_of_an_engine_watches_it(
    engine, watch: Callable[[Engine], None]
):
    watch(engine)
    assert _watched(engine)


def test_a_listener_of_one_connection_or_of_all_engines_watches_too(engine, monkeypatch):
    with engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", _nothing, retval=True)
        assert is_watched(connection)
    # What SQLAlchemy sets there it does not take back when the listener goes.
    monkeypatch.setattr(Engine, "_has_events", Engine._has_events)
    event.listen(Engine, "after_cursor_execute", _nothing)
    try:
        assert _watched(engine)
    finally:
        event.remove(Engine, "after_cursor_execute", _nothing)


@pytest.mark.parametrize("is_seen", [False, True], ids=["unseen", "seen"])
def test_a_row_is_written_in_the_transaction_and_its_hooks_see_it(engine, is_seen: bool):
    seen: list[str] = []
    if is_seen:
        event.listen(engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    for end in ("rollback", "commit"):
        with engine.connect() as connection, connection.begin() as transaction:
            INSERTION.execute(connection, [{"n": 1}])
            getattr(transaction, end)()
    with engine.connect() as connection:
        assert connection.execute(select(NUMBERS.c.n)).scalars().all() == [1]
    assert len([statement for statement in seen if statement.startswith("INSERT")]) == 2 * is_seen


@pytest.mark.parametrize("is_seen", [False, True], ids=["unseen", "seen"])
def test_a_row_that_is_refused_is_an_error_of_sqlalchemy(engine, is_seen: bool):
    if is_seen:
        event.listen(engine, "after_cursor_execute", _nothing)
    with engine.begin() as connection:
        INSERTION.execute(connection, [{"n": 1}])
        with pytest.raises(IntegrityError):
            INSERTION.execute(connection, [{"n": 1}])
        INSERTION.execute(connection, [{"n": 2}, {"n": 3}])
    with engine.connect() as connection:
        assert connection.execute(select(NUMBERS.c.n)).scalars().all() == [1, 2, 3]


@pytest.mark.parametrize("is_seen", [False, True], ids=["unseen", "seen"])
@pytest.mark.parametrize("inner", [False, True], ids=["transaction", "savepoint"])
def test_behind_the_end_of_a_transaction_nothing_is_written(engine, is_seen: bool, inner: bool):
    if is_seen:
        event.listen(engine, "after_cursor_execute", _nothing)
    with engine.connect() as connection:
        with (
            connection.begin() as transaction,
            connection.begin_nested() if inner else nullcontext(transaction) as ended,
        ):
            ended.rollback()
            with pytest.raises(InvalidRequestError):
                INSERTION.execute(connection, [{"n": 1}])
        assert connection.execute(select(NUMBERS.c.n)).all() == []
