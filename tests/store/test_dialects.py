"""What the rest of the library may rely on, on every database and through every driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from reliable_mq.errors import ConfigurationError
from reliable_mq.store import Store
from reliable_mq.store.dialects import Trouble, dialect_of
from reliable_mq.store.dialects.sqlite import in_transaction
from tests.store.conftest import Bridge

pytestmark = pytest.mark.timeout(60)

# SQLite has one writer at a time and no limits.
SERVERS = ["psycopg", "psycopg_async", "asyncpg", "pymysql", "asyncmy"]
on_servers = pytest.mark.parametrize("bridge", SERVERS, indirect=True)


def row(store: Store, message_id: str, *, done: bool = True) -> dict[str, Any]:
    return {
        "consumer_group": "billing",
        "topic": "orders",
        "message_id": message_id,
        "fingerprint": b"\x00\xff" * 8,
        "received_at": store.now(),
        "done_at": store.now() if done else None,
    }


def claim(store: Store, connection: Connection, *ids: str, lock_timeout: float = 5.0) -> set[str]:
    rows = [row(store, message_id) for message_id in sorted(ids)]
    inbox = store.tables.inbox
    return store.dialect.claim(connection, inbox, rows, lock_timeout=lock_timeout)


def in_begun(bridge: Bridge, work: Callable[[Connection], Any], **options: Any) -> Any:
    """Run *work* in a transaction of the dialect's own and commit it."""
    dialect = bridge.store.dialect

    def run() -> Any:
        with dialect.writing(bridge.engine), bridge.engine.connect() as connection:
            dialect.begin(connection, **options)
            result = work(connection)
            connection.commit()
            dialect.finish(connection)
            return result

    return bridge.run(run)


# --- the clock ----------------------------------------------------------------------------------


def test_now_is_utc_in_microseconds_whatever_the_time_zone_of_the_session(bridge):
    def ask(connection: Connection) -> Any:
        if bridge.store.dialect.name == "mysql":
            connection.exec_driver_sql("SET time_zone = '+09:00'")
        if bridge.store.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL TIME ZONE 'Asia/Tokyo'")
        return connection.execute(select(bridge.store.now())).scalar_one()

    assert abs(in_begun(bridge, ask) / 1e6 - time.time()) < 2


def test_now_moves_within_a_transaction(bridge):
    def ask_until_it_moves(connection: Connection) -> bool:
        ask = select(bridge.store.now())
        first = connection.execute(ask).scalar_one()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if connection.execute(ask).scalar_one() > first:
                return True
        return False

    assert in_begun(bridge, ask_until_it_moves)


# --- begin --------------------------------------------------------------------------------------


def sees_later_commits(bridge: Bridge, connection: Connection) -> bool:
    """Tell whether a second read in the transaction sees what another one committed meanwhile."""
    count = select(func.count()).select_from(bridge.store.tables.inbox)
    before = connection.execute(count).scalar_one()
    with bridge.store.engine.begin() as other:
        other.execute(insert(bridge.store.tables.inbox).values(row(bridge.store, "another")))
    return bool(connection.execute(count).scalar_one() > before)


@on_servers
def test_a_transaction_of_our_own_reads_what_is_committed_meanwhile(bridge):
    assert in_begun(bridge, lambda connection: sees_later_commits(bridge, connection))


@pytest.mark.parametrize("level", [None, "REPEATABLE READ", "AUTOCOMMIT"])
@on_servers
def test_on_an_engine_of_the_application_it_does_so_too_and_only_once(bridge, level):
    options = {} if level is None else {"isolation_level": level}
    engine = bridge.engine_of_the_application(pool_size=1, max_overflow=0, **options)
    dialect = bridge.store.dialect

    def run() -> tuple[bool, str, str]:
        with engine.connect() as connection:
            before = connection.get_isolation_level()
        with engine.connect() as connection:
            dialect.begin(connection, idle_timeout=30)
            seen = sees_later_commits(bridge, connection)
            assert claim(bridge.store, connection, "a") == {"a"}
            connection.rollback()
            dialect.finish(connection)
        with engine.connect() as connection:
            kept = connection.execute(select(bridge.store.tables.inbox.c.message_id)).scalars()
            assert "a" not in set(kept)
            after = connection.get_isolation_level()
        engine.dispose()
        return seen, before, after

    seen, before, after = bridge.run(run)
    assert seen
    assert before == after


@on_servers
def test_a_silent_transaction_is_ended_by_the_database_and_recognised(bridge):
    dialect = bridge.store.dialect

    def run() -> Any:
        with bridge.engine.connect() as connection:
            dialect.begin(connection, idle_timeout=1.0)
            claim(bridge.store, connection, "a")
            wait_until(lambda: claimable_elsewhere(bridge.store, "a"))
            with pytest.raises(DBAPIError) as caught:
                claim(bridge.store, connection, "b")
            return dialect.classify(caught.value, connection)

    assert bridge.run(run) is Trouble.IDLE


@on_servers
def test_a_commit_after_the_database_ended_the_transaction_fails_as_idle(bridge):
    dialect = bridge.store.dialect

    def run() -> Any:
        with bridge.engine.connect() as connection:
            dialect.begin(connection, idle_timeout=1.0)
            claim(bridge.store, connection, "a")
            wait_until(lambda: claimable_elsewhere(bridge.store, "a"))
            with pytest.raises(DBAPIError) as caught:
                connection.commit()
            return dialect.classify(caught.value, connection)

    assert bridge.run(run) is Trouble.IDLE


def claimable_elsewhere(store: Store, message_id: str) -> bool:
    with store.engine.connect() as connection:
        store.dialect.begin(connection)
        try:
            return message_id in claim(store, connection, message_id, lock_timeout=1.0)
        except DBAPIError:
            return False
        finally:
            connection.rollback()
            store.dialect.finish(connection)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)


def idle_limit(connection: Connection) -> str:
    name = {
        "postgresql": "current_setting('idle_in_transaction_session_timeout')",
        "mysql": "@@session.idle_transaction_timeout",
    }[connection.dialect.name.replace("mariadb", "mysql")]
    return str(connection.execute(text(f"SELECT {name}")).scalar_one())


@on_servers
def test_the_idle_limit_changes_with_each_transaction_and_spares_the_application(bridge):
    dialect = bridge.store.dialect

    def limits() -> list[str]:
        seen = []
        for seconds in (30, 60, 60, None, 30):
            with bridge.engine.connect() as connection:
                dialect.begin(connection, idle_timeout=seconds)
                seen.append(idle_limit(connection))
                connection.commit()
                dialect.finish(connection)
        with bridge.engine.connect() as connection, connection.begin():
            dialect.join(connection)
            seen.append(idle_limit(connection))
        return seen

    assert bridge.run(limits) in (
        ["30s", "1min", "1min", "0", "30s", "0"],
        ["30", "60", "60", "0", "30", "0"],
    )


@on_servers
def test_the_idle_limit_leaves_no_trace_on_an_engine_of_the_application(bridge):
    engine = bridge.engine_of_the_application(pool_size=1, max_overflow=0)

    def run() -> list[str]:
        seen = []
        with engine.connect() as connection:
            bridge.store.dialect.begin(connection, idle_timeout=30)
            seen.append(idle_limit(connection))
            connection.commit()
            bridge.store.dialect.finish(connection)
        with engine.connect() as connection:
            seen.append(idle_limit(connection))
        engine.dispose()
        return seen

    assert bridge.run(run) in (["30s", "0"], ["30", "0"])


# --- claims -------------------------------------------------------------------------------------


def test_a_claim_names_the_rows_that_were_new(bridge):
    assert in_begun(bridge, lambda c: claim(bridge.store, c, "a")) == {"a"}
    assert in_begun(bridge, lambda c: claim(bridge.store, c, "a")) == set()
    assert in_begun(bridge, lambda c: claim(bridge.store, c, "a", "b", "ä", "A")) == {"b", "ä", "A"}


def test_a_claim_writes_every_column(bridge):
    store = bridge.store

    def work(connection: Connection) -> Any:
        waiting = [row(store, "waiting", done=False)]
        store.dialect.claim(connection, store.tables.inbox, waiting, lock_timeout=1)
        claim(store, connection, "done")
        now = round(time.time() * 1e6)
        fixed = [row(store, "fixed") | {"received_at": now, "done_at": now}]
        store.dialect.claim(connection, store.tables.inbox, fixed, lock_timeout=1)
        return {
            found.message_id: (
                found.consumer_group,
                found.topic,
                bytes(found.fingerprint),
                abs(found.received_at / 1e6 - time.time()) < 2,
                found.done_at is not None,
            )
            for found in connection.execute(select(store.tables.inbox))
        }

    common = ("billing", "orders", b"\x00\xff" * 8, True)
    assert in_begun(bridge, work) == {
        "waiting": (*common, False),
        "done": (*common, True),
        "fixed": (*common, True),
    }


@pytest.mark.parametrize("ids", [("b",), ("a", "b", "c")], ids=["alone", "in a batch"])
@on_servers
def test_a_claim_waits_for_the_transaction_that_is_inserting_the_row(bridge, ids):
    store = bridge.store
    inserted, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with store.engine.connect() as connection:
            store.dialect.begin(connection)
            claim(store, connection, "b")
            inserted.set()
            go_on.wait(10)
            connection.rollback()

    thread = threading.Thread(target=other)
    thread.start()
    inserted.wait(10)

    def run() -> tuple[Trouble, set[str]]:
        with bridge.engine.connect() as connection:
            store.dialect.begin(connection)
            began = time.monotonic()
            with pytest.raises(DBAPIError) as caught:
                claim(store, connection, *ids, lock_timeout=1.0)
            assert 0.5 < time.monotonic() - began < 4
            assert store.dialect.is_lock_timeout(caught.value)
            trouble = store.dialect.classify(caught.value, connection)
            connection.rollback()
            store.dialect.begin(connection)
            threading.Timer(0.3, go_on.set).start()
            # The first one rolls back: the waiting claim wins.
            new = claim(store, connection, *ids, lock_timeout=10.0)
            connection.commit()
            store.dialect.finish(connection)
            return trouble, new

    trouble, new = bridge.run(run)
    thread.join()
    assert trouble is Trouble.BUSY
    assert new == set(ids)


@on_servers
def test_a_claim_that_waited_for_a_commit_finds_the_row_taken(bridge):
    store = bridge.store
    inserted = threading.Event()

    def other() -> None:
        with store.engine.connect() as connection:
            store.dialect.begin(connection)
            claim(store, connection, "b")
            inserted.set()
            time.sleep(0.3)
            connection.commit()

    thread = threading.Thread(target=other)
    thread.start()
    inserted.wait(10)
    assert in_begun(bridge, lambda c: claim(store, c, "b", lock_timeout=10.0)) == set()
    thread.join()


def lock_limit(connection: Connection) -> str:
    name = {
        "postgresql": "current_setting('lock_timeout')",
        "mysql": "@@session.innodb_lock_wait_timeout",
    }[connection.dialect.name.replace("mariadb", "mysql")]
    return str(connection.execute(text(f"SELECT {name}")).scalar_one())


@pytest.mark.parametrize("ids", [("a",), ("a", "b")], ids=["alone", "in a batch"])
@on_servers
def test_the_lock_limit_holds_for_the_claim_only(bridge, ids):

    def work(connection: Connection) -> list[str]:
        if bridge.store.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL lock_timeout = '17s'")
        else:
            connection.exec_driver_sql("SET SESSION innodb_lock_wait_timeout = 17")
        seen = []
        for _ in range(2):  # new the first time, known the second
            claim(bridge.store, connection, *ids, lock_timeout=3.0)
            seen.append(lock_limit(connection))
        return seen

    assert in_begun(bridge, work) in (["17s", "17s"], ["17", "17"])


@on_servers
def test_claims_with_different_limits_do_not_share_one(bridge):
    store = bridge.store
    with store.engine.connect() as other:
        store.dialect.begin(other)
        claim(store, other, "b")

        def waited(limit: float) -> float:
            with bridge.engine.connect() as connection:
                store.dialect.begin(connection)
                began = time.monotonic()
                with pytest.raises(DBAPIError):
                    claim(store, connection, "b", lock_timeout=limit)
                return time.monotonic() - began

        assert bridge.run(waited, 1.0) < 1.9
        assert bridge.run(waited, 3.0) > 1.9


def test_a_claim_is_one_statement(bridge):
    if bridge.driver in {"pymysql", "asyncmy"} and not bridge.store.engine.dialect.is_mariadb:
        pytest.skip("MySQL has no SET STATEMENT")
    statements: list[str] = []

    def work(connection: Connection) -> int:
        event.listen(connection, "before_cursor_execute", lambda *a: statements.append(a[2]))
        claim(bridge.store, connection, "a")
        claim(bridge.store, connection, "b", "c")
        return len(statements)

    assert in_begun(bridge, work) == 2


# --- errors -------------------------------------------------------------------------------------


def test_a_unique_violation_is_the_statements_own_fault(bridge):
    def work(connection: Connection) -> Any:
        statement = insert(bridge.store.tables.inbox).values(row(bridge.store, "a"))
        with connection.begin_nested():
            connection.execute(statement)
        with pytest.raises(IntegrityError) as caught, connection.begin_nested():
            connection.execute(statement)
        return bridge.store.dialect.classify(caught.value, connection)

    assert in_begun(bridge, work) is Trouble.OTHER


@on_servers
def test_a_deadlock_is_to_be_run_again(bridge):
    store = bridge.store
    troubles: list[Trouble] = []
    ready = threading.Barrier(2)

    def half(engine: Any, first: str, second: str) -> None:
        with engine.connect() as connection:
            store.dialect.begin(connection)
            claim(store, connection, first)
            ready.wait(10)
            try:
                claim(store, connection, second, lock_timeout=20)
            except DBAPIError as error:
                troubles.append(store.dialect.classify(error, connection))
            connection.rollback()
            store.dialect.finish(connection)

    other = threading.Thread(target=half, args=(store.engine, "b", "a"))
    other.start()
    bridge.run(half, bridge.engine, "a", "b")
    other.join()
    assert troubles == [Trouble.BUSY]


@on_servers
def test_a_connection_killed_by_the_server_is_gone(bridge):
    dialect = bridge.store.dialect

    def run() -> Any:
        with bridge.engine.connect() as connection:
            dialect.begin(connection, idle_timeout=600)
            kill(bridge.store, connection)
            with pytest.raises(DBAPIError) as caught:
                wait_until(lambda: not connection.execute(text("SELECT 1")))
            return dialect.classify(caught.value, connection)

    assert bridge.run(run) is Trouble.GONE


def kill(store: Store, connection: Connection) -> None:
    if store.dialect.name == "postgresql":
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        statement = f"SELECT pg_terminate_backend({backend}, 10000)"
    else:
        backend = connection.execute(text("SELECT CONNECTION_ID()")).scalar_one()
        statement = f"KILL {backend}"
    with store.engine.begin() as other:
        other.execute(text(statement))


def test_a_missing_table_is_recognised(bridge):
    def work() -> Any:
        with bridge.engine.connect() as connection:
            with pytest.raises(DBAPIError) as caught:
                connection.execute(text("SELECT 1 FROM no_such_table"))
            return bridge.store.dialect.is_missing_table(caught.value)

    assert bridge.run(work)


def test_an_insert_that_ignores_leaves_what_is_there(bridge):
    inbox = bridge.store.tables.inbox

    def work(connection: Connection) -> list[str]:
        statement = bridge.store.dialect.insert_ignoring(inbox)
        now = connection.execute(select(bridge.store.now())).scalar_one()
        values = [row(bridge.store, name) | {"received_at": now, "done_at": now} for name in "aab"]
        connection.execute(statement, values)
        return sorted(connection.execute(select(inbox.c.message_id)).scalars())

    assert in_begun(bridge, work) == ["a", "b"]


def test_an_unknown_database_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="oracle"):
        dialect_of("oracle")


# --- SQLite -------------------------------------------------------------------------------------


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Store:
    store = Store(database_url=sqlite_url)
    store.create()
    return store


def test_begin_takes_the_write_lock_at_once(sqlite_store):
    dialect = sqlite_store.dialect
    impatient = create_engine(sqlite_store.engine.url, connect_args={"timeout": 0.2})
    with sqlite_store.engine.connect() as first, impatient.connect() as second:
        dialect.begin(first)
        began = time.monotonic()
        with pytest.raises(DBAPIError) as caught:
            dialect.begin(second)
        assert 0.15 < time.monotonic() - began < 2
        assert dialect.classify(caught.value) is Trouble.BUSY
        assert not second.in_transaction()
        first.rollback()
        dialect.begin(second)
        assert in_transaction(second)
    impatient.dispose()


def test_begin_works_on_an_engine_that_emits_begin_by_itself(sqlite_store):
    engine = create_engine(sqlite_store.engine.url)

    @event.listens_for(engine, "connect")
    def no_begin_by_the_driver(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    dialect = sqlite_store.dialect
    impatient = create_engine(engine.url, connect_args={"timeout": 0})
    with engine.connect() as connection, impatient.connect() as other:
        dialect.begin(connection)
        with pytest.raises(DBAPIError):
            dialect.begin(other)
        claim(sqlite_store, connection, "a")
        connection.commit()
    assert "a" not in claims_now(sqlite_store, "a")
    engine.dispose()
    impatient.dispose()


def claims_now(store: Store, *ids: str) -> set[str]:
    with store.transaction() as connection:
        return claim(store, connection, *ids)


def test_a_transaction_that_ended_under_us_cannot_be_committed(sqlite_store):
    dialect = sqlite_store.dialect
    with sqlite_store.engine.connect() as connection:
        dialect.begin(connection)
        assert dialect.can_commit(connection)
        connection.exec_driver_sql("ROLLBACK")
        assert not dialect.can_commit(connection)
