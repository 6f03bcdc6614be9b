"""What the rest of the library may rely on, on every database and through every driver."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from reliable_mq.errors import ConfigurationError
from reliable_mq.store import Store
from reliable_mq.store.dialects import Trouble, dialect_of
from reliable_mq.store.dialects.sqlite import in_transaction
from tests.store.claims import claim, in_begun, on_servers, row, wait_until
from tests.store.conftest import Bridge
from tests.store.full import overfill, prepare

pytestmark = pytest.mark.timeout(60)

# SQLite has one writer at a time and no limits.
# --- the clock ----------------------------------------------------------------------------------


def test_now_is_utc_in_microseconds_whatever_the_time_zone_of_the_session(bridge):
    def ask(connection: Connection) -> Any:
        if bridge.store.dialect.name == "mysql":
            connection.exec_driver_sql("SET time_zone = '+09:00'")
        if bridge.store.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL TIME ZONE 'Asia/Tokyo'")
        return connection.execute(select(bridge.store.now())).scalar_one()

    before = time.time() - 0.001  # SQLite counts milliseconds
    assert before < in_begun(bridge, ask) / 1e6 < time.time()  # of the same machine


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
            # Long enough for a claim on a busy machine; the server ends it after that.
            dialect.begin(connection, idle_timeout=4.0)
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
            # Long enough for a claim on a busy machine; the server ends it after that.
            dialect.begin(connection, idle_timeout=4.0)
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
def test_whoever_is_stopped_in_a_transaction_of_our_own_frees_its_rows(bridge):
    def limit() -> str:
        with bridge.store.transaction() as connection:
            return idle_limit(connection)

    assert limit() in ("30s", "30")


@on_servers
def test_a_transaction_of_our_own_leaves_the_limit_of_handlers_as_it_is(bridge):
    def limits() -> list[str]:
        seen = []
        for _ in range(2):
            with bridge.engine.connect() as connection:
                bridge.store.dialect.begin_briefly(connection)
                seen.append(idle_limit(connection))
                connection.commit()
                bridge.store.dialect.finish(connection)
            with bridge.engine.connect() as connection:
                bridge.store.dialect.begin(connection, idle_timeout=60)
                seen.append(idle_limit(connection))
                connection.commit()
                bridge.store.dialect.finish(connection)
        return seen

    assert bridge.run(limits) in (["30s", "1min", "1min", "1min"], ["30", "60", "60", "60"])


@on_servers
def test_a_short_idle_limit_does_not_meet_a_plain_read_that_comes_later(bridge):
    dialect = bridge.store.dialect

    def limits() -> list[str]:
        with bridge.engine.connect() as connection:
            dialect.begin(connection, idle_timeout=10)
            seen = [idle_limit(connection)]
            connection.commit()
            dialect.finish(connection)
        with bridge.engine.connect() as connection:
            return [*seen, idle_limit(connection)]

    assert bridge.run(limits) in (["10s", "0"], ["10", "0"])


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


def test_what_found_no_room_on_the_disk_is_full(bridge):
    def run() -> Any:
        prepare(bridge.engine)
        with bridge.engine.connect() as connection:
            with pytest.raises(DBAPIError) as caught:
                overfill(connection)
            return bridge.store.dialect.classify(caught.value, connection)

    assert bridge.run(run) is Trouble.FULL


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (1021, "Disk full (/tmp/x); waiting for someone to free some space..."),
        (1026, 'Error writing file x (errno: 28 "No space left on device")'),
        (1030, "Got error 28 from storage engine"),
    ],
)
def test_mariadb_says_in_several_ways_that_the_disk_is_full(code, said):
    def failed(*arguments: object) -> DBAPIError:
        return OperationalError("INSERT", {}, Exception(*arguments))

    dialect = dialect_of("mysql")
    assert dialect.classify(failed(code, said)) is Trouble.FULL
    assert dialect.classify(failed(1030, "Got error 128 from storage engine")) is Trouble.OTHER


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
        assert time.monotonic() - began > 0.15
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
