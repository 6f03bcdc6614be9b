"""Which engines a store uses, and what it refuses before any connection is made."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool

from reliable_mq.errors import ConfigurationError, MissingExtraError
from reliable_mq.store import Store
from reliable_mq.store.urls import async_url, identity_of, parse_url, sync_url
from reliable_mq.store.walking import walking

SECRET = "s3cr3t"


# --- siblings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sync", "asynchronous"),
    [
        ("postgresql://u:p@h:1/d", "postgresql+psycopg", "postgresql+psycopg"),
        ("postgresql+psycopg://h/d?sslmode=require", "postgresql+psycopg", "postgresql+psycopg"),
        ("postgresql+psycopg_async://h/d?a=b", "postgresql+psycopg", "postgresql+psycopg_async"),
        ("postgresql+asyncpg://u:p@h:1/d", "postgresql+psycopg", "postgresql+asyncpg"),
        ("postgresql+asyncpg:///d?host=a:1&host=b:2", "postgresql+psycopg", "postgresql+asyncpg"),
        ("mysql://u:p@h/d", "mysql+pymysql", "mysql+asyncmy"),
        ("mysql+pymysql://u:p%40@h:1/d?charset=utf8mb4", "mysql+pymysql", "mysql+asyncmy"),
        ("mariadb+asyncmy://h/d", "mariadb+pymysql", "mariadb+asyncmy"),
        ("sqlite:///x.db?timeout=3", "sqlite", "sqlite+aiosqlite"),
        ("sqlite+aiosqlite:////a/x.db", "sqlite+pysqlite", "sqlite+aiosqlite"),
    ],
)
def test_each_driver_has_its_sibling_on_the_same_database(given, sync, asynchronous):
    url = parse_url(given)
    assert sync_url(url) == url.set(drivername=sync)
    assert not create_engine(sync_url(url)).dialect.is_async
    asynchronous_url = async_url(url)
    assert asynchronous_url.set(drivername="any") == url.set(drivername="any")
    assert asynchronous_url.drivername.startswith(asynchronous)
    assert create_async_engine(asynchronous_url).dialect.is_async


@pytest.mark.parametrize(
    ("given", "option", "side"),
    [
        ("postgresql+asyncpg://u:s3cr3t@h/d?ssl=require", "ssl", sync_url),
        ("mysql+pymysql://u:s3cr3t@h/d?ssl_ca=x.pem", "ssl_ca", async_url),
        ("mysql+asyncmy://u:s3cr3t@h/d?echo=1", "echo", sync_url),
    ],
)
def test_a_driver_option_that_cannot_be_carried_is_refused_by_name(given, option, side):
    with pytest.raises(ConfigurationError, match=f"'{option}'") as caught:
        side(parse_url(given))
    assert "async_engine=" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_an_option_that_one_side_never_needs_is_no_error():
    store = Store(database_url="mysql+pymysql://h/d?ssl_ca=x.pem")
    with pytest.raises(ConfigurationError, match="ssl_ca"):
        store.require_async()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("nonsense", "not a URL"),
        ("postgresql://h:port/d", "not a URL"),
        ("oracle://u:s3cr3t@h/d", "oracle"),
        ("postgresql+nothing://u:s3cr3t@h/d", "postgresql"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite+aiosqlite://", "in memory"),
        ("sqlite:///file:x?mode=memory&cache=shared&uri=true", "in memory"),
    ],
)
def test_an_unusable_url_is_refused_at_once_and_keeps_its_secret(given, expected):
    with pytest.raises(ConfigurationError, match=expected) as caught:
        Store(database_url=given)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "module", "command"),
    [
        ("postgresql://u:s3cr3t@h/d", "psycopg", "pip install 'reliable-mq[postgresql]'"),
        ("postgresql+asyncpg://u:s3cr3t@h/d", "psycopg", "pip install 'reliable-mq[postgresql]'"),
        ("mysql://u:s3cr3t@h/d", "pymysql", "pip install 'reliable-mq[mysql]'"),
    ],
)
def test_a_missing_driver_is_reported_with_the_command(monkeypatch, url, module, command):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as caught:
        Store(database_url=url)
    assert command in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "module"),
    [("mysql+pymysql://h/d", "asyncmy"), ("postgresql+psycopg://h/d", "psycopg")],
)
def test_a_missing_async_driver_is_reported_when_it_is_needed(monkeypatch, url, module):
    store = Store(database_url=url)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=module):
        store.require_async()


def test_a_store_needs_a_database():
    with pytest.raises(ConfigurationError, match="database_url"):
        Store()


# --- engines given by the application -----------------------------------------------------------


def test_a_given_engine_is_used_and_left_open(sqlite_url):
    engine = create_engine(sqlite_url)
    store = Store(engine=engine)
    assert store.engine is engine
    store.create()
    pool = engine.pool
    store.dispose()
    assert engine.pool is pool
    engine.dispose()


def test_the_connections_for_reads_of_the_outbox_are_closed_with_the_others(postgresql_url):
    store = Store(database_url=postgresql_url)
    with walking(store):
        pass
    assert store.walking_engine is not store.engine
    pool: Any = store.walking_engine.pool
    assert pool.checkedin() == 1
    store.dispose()
    assert pool.checkedin() == 0


def test_an_application_has_its_reads_of_the_outbox_on_its_own_engine(postgresql_url):
    engine = create_engine(postgresql_url)
    assert Store(engine=engine).walking_engine is engine


def test_a_given_async_engine_gets_a_sync_sibling_on_the_same_database(postgresql_url):
    url = make_url(postgresql_url).set(drivername="postgresql+asyncpg")
    store = Store(async_engine=create_async_engine(url))
    store.create()
    assert store.engine.driver == "psycopg"
    assert store.check() == []
    store.dispose()


def test_engines_on_two_databases_are_refused():
    with pytest.raises(ConfigurationError, match="different databases"):
        Store(
            engine=create_engine("postgresql+psycopg://u:s3cr3t@h/one"),
            async_engine=create_async_engine("postgresql+asyncpg://u:s3cr3t@h/two"),
        )


def test_nothing_is_connected_to_by_the_constructor():
    unreachable = "postgresql+psycopg://nobody@127.0.0.1:1/nowhere"
    store = Store(database_url=unreachable)
    store.require_async()
    assert store.tables.outbox.name == "reliable_mq_outbox"
    assert "CREATE TABLE reliable_mq_outbox" in store.ddl()


def test_threads_that_come_at_once_share_one_engine(sqlite_url):
    store = Store(database_url=sqlite_url)
    gate = threading.Barrier(8)
    seen: list[Any] = []

    def look() -> None:
        gate.wait()
        seen.append((store.engine, store.async_engine))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 1


# --- SQLite ---------------------------------------------------------------------------------------


def test_an_sqlite_file_of_ours_is_in_wal_mode_and_as_durable_as_sqlite_makes_it(sqlite_url):
    store = Store(database_url=sqlite_url)
    with store.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2
    store.dispose()


def test_the_mode_of_an_applications_sqlite_file_is_its_own(sqlite_url):
    engine = create_engine(sqlite_url)
    store = Store(engine=engine)
    store.create()
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "delete"
    engine.dispose()


def test_an_engine_in_memory_works_on_one_thread_and_refuses_a_second():
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    store = Store(engine=engine)
    store.create()
    assert store.check() == []
    caught: list[Exception] = []

    def use() -> None:
        try:
            store.check()
        except ConfigurationError as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert "threads cannot share" in str(caught[0])
    with pytest.raises(ConfigurationError, match="in memory"):
        store.require_async()
    engine.dispose()


def test_a_connection_that_is_in_use_already_is_not_rolled_back_under_its_user():
    engine = create_engine("sqlite://", poolclass=StaticPool)
    store = Store(engine=engine)
    store.create()
    with engine.connect() as connection, connection.begin():
        connection.execute(text("CREATE TABLE mine (id INTEGER)"))
        connection.execute(text("INSERT INTO mine VALUES (1)"))
        with pytest.raises(ConfigurationError, match="in a transaction already"):
            store.create()
    engine.dispose()


def test_the_same_file_is_one_database_however_it_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    spellings = [
        f"sqlite:///{tmp_path}/x.db",
        "sqlite:///x.db",
        "sqlite:///d/../x.db",
        "sqlite+aiosqlite:///x.db",
        f"sqlite:///file:{tmp_path}/x.db?uri=true",
    ]
    assert len({identity_of(make_url(spelling)) for spelling in spellings}) == 1
    assert identity_of(make_url("sqlite:///y.db")) != identity_of(make_url("sqlite:///x.db"))


def test_servers_are_told_apart_by_host_port_and_database_alone():
    same = [
        "postgresql://u:p@h/d",
        "postgresql+asyncpg://v@h:5432/d",
        "postgresql+psycopg://h/d?connect_timeout=3",
    ]
    assert len({identity_of(make_url(url)) for url in same}) == 1
    others = ["postgresql://h/e", "postgresql://i/d", "postgresql://h:1/d", "mysql://h/d"]
    assert len({identity_of(make_url(url)) for url in [same[0], *others]}) == 5


def test_engines_that_hide_where_they_connect_are_told_apart():
    one, other = (create_engine("postgresql+psycopg://", creator=lambda: None) for _ in range(2))
    assert Store(engine=one).identity == Store(engine=one).identity
    assert Store(engine=one).identity != Store(engine=other).identity


# --- pooled connections -----------------------------------------------------------------------


@pytest.mark.parametrize("bridge", ["psycopg", "asyncpg", "pymysql", "asyncmy"], indirect=True)
def test_a_pooled_connection_that_died_while_it_was_idle_is_replaced(bridge, monkeypatch):
    on_mysql = bridge.store.dialect.name == "mysql"
    ask = text("SELECT CONNECTION_ID()" if on_mysql else "SELECT pg_backend_pid()")
    end = "KILL {}" if on_mysql else "SELECT pg_terminate_backend({}, 10000)"

    def backend() -> Any:
        with bridge.engine.connect() as connection:
            return connection.execute(ask).scalar_one()

    first = bridge.run(backend)
    other = create_engine(bridge.store.engine.url)
    with other.begin() as connection:
        connection.execute(text(end.format(first)))
    other.dispose()
    later = time.monotonic() + 60
    monkeypatch.setattr("reliable_mq.store.engines.time.monotonic", lambda: later)
    assert bridge.run(backend) != first


def test_a_connection_in_steady_use_is_not_asked_whether_it_lives(postgresql_url, monkeypatch):
    store = Store(database_url=postgresql_url)
    asked: list[Any] = []
    monkeypatch.setattr(store.engine.dialect, "do_ping", asked.append)
    for _ in range(5):
        with store.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    assert not asked
    store.dispose()


@pytest.mark.parametrize("bridge", ["psycopg", "asyncpg", "pymysql", "asyncmy"], indirect=True)
def test_a_transaction_of_our_own_engine_needs_no_statement_to_begin(bridge):
    statements: list[str] = []

    def run() -> None:
        for _ in range(3):
            with bridge.engine.connect() as connection:
                bridge.store.dialect.begin(connection, idle_timeout=30)
                connection.commit()
                bridge.store.dialect.finish(connection)
        event.listen(
            bridge.engine, "before_cursor_execute", lambda *args: statements.append(args[2])
        )
        with bridge.engine.connect() as connection:
            bridge.store.dialect.begin(connection, idle_timeout=30)
            connection.commit()
            bridge.store.dialect.finish(connection)

    bridge.run(run)
    assert statements == []


_FORK = """
import os, sys
from sqlalchemy import text
from reliable_mq.store import Store
from reliable_mq.store.walking import walking

store = Store(database_url=sys.argv[1])
store.create()
ask = text(sys.argv[2])

def answers():
    found = []
    for way in (store.engine.connect, lambda: walking(store)):
        with way() as connection:
            found.append(connection.execute(ask).scalar_one())
    return found

parents = answers()
with store.dialect.writing(store.engine):
    child = os.fork()
    if child == 0:
        with store.transaction() as connection:
            own = connection.execute(ask).scalar_one()
        shared = {own, *answers()} & {*parents}
        os._exit(bool(shared) and "rowid" not in sys.argv[2])
    status = os.waitpid(child, 0)[1]
assert answers() == parents
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(
    ("kind", "ask"),
    [
        ("postgresql", "SELECT pg_backend_pid()"),
        ("mariadb", "SELECT CONNECTION_ID()"),
        ("sqlite", "SELECT count(rowid) FROM reliable_mq_outbox"),
    ],
)
def test_a_forked_child_uses_connections_and_turns_of_its_own(request, kind, ask):
    url = request.getfixturevalue(f"{kind}_url")
    command = [sys.executable, "-c", _FORK, url, ask]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
