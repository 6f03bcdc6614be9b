"""PostgreSQL: silent on what docs/stores.md recommends, and each fault is seen."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, event, make_url, text

from reliable_mq.adapter import Severity
from reliable_mq.doctor import diagnose
from reliable_mq.store import Store
from reliable_mq.store.inspection import Expected, inspect_store, postgresql
from tests.brokers import PgBouncer, Server
from tests.brokers.databases import fresh_database
from tests.conftest import OwnServer
from tests.conftest import started as one_started
from tests.doctor.conftest import OpenMQ, codes, ignore, seen, started, worse_than_info

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
SOUND = {"fsync": "on", "full_page_writes": "on"}


@pytest.fixture(scope="module")
def sound_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """What docs/stores.md recommends, with one thing more that is off by default."""
    with started(request, "postgresql", {**SOUND, "max_prepared_transactions": "2"}) as server:
        yield server


@pytest.fixture
def url(sound_server: Server, unique: str) -> Iterator[str]:
    with fresh_database(sound_server.url, unique) as url:
        yield url


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(database_url=url)
    store.create()
    yield store
    store.dispose()


@pytest.fixture
def gone(sound_server: Server) -> Iterator[Callable[[str], None]]:
    """Wait until no session is left of those that a condition picks.

    A session ends some time after its client closed it, and one of another user is a finding.
    Looks from another database, whose sessions the doctor does not count.
    """
    url = sound_server.url
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)

    def left(condition: str) -> int:
        with engine.connect() as connection:
            query = f"SELECT count(*) FROM pg_stat_activity WHERE {condition}"
            return int(connection.execute(text(query)).scalar_one())

    yield lambda condition: wait_for(lambda: left(condition) == 0, f"the end of {condition}")
    engine.dispose()


@pytest.fixture
def admin(url: str, gone: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Execute as superuser, in the database of the test."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)

    def execute(statement: str) -> None:
        with engine.connect() as connection:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            connection.execute(text(statement))
        gone(f"pid = {pid}")

    yield execute
    engine.dispose()


@pytest.fixture
def shop_url(
    url: str,
    store: Store,
    admin: Callable[[str], None],
    gone: Callable[[str], None],
    unique: str,
) -> Iterator[str]:
    """The database as a user who may do no more than docs/stores.md says."""
    store.dispose()  # its sessions are another user's
    gone(f"datname = '{unique}' AND backend_type = 'client backend'")
    admin(f"CREATE ROLE {unique} LOGIN PASSWORD 'secret'")
    admin(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {unique}")
    yield make_url(url).set(username=unique, password="secret").render_as_string(False)
    admin(f"DROP OWNED BY {unique}")
    admin(f"DROP ROLE {unique}")


def test_the_recommended_server_with_the_least_rights_has_no_finding(
    shop_url: str, open_mq: OpenMQ
) -> None:
    mq = open_mq(database_url=shop_url)
    assert worse_than_info(diagnose(mq)) == []


def test_a_server_that_does_not_sync_is_an_error(
    postgresql_server: Server, postgresql_url: str
) -> None:
    if "external" in type(postgresql_server).__name__.lower():
        pytest.skip("needs the test server's own settings")
    store = Store(database_url=postgresql_url)
    store.create()
    assert seen(store) == {"postgresql-fsync": ERROR, "postgresql-full-page-writes": ERROR}
    store.dispose()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("synchronous_commit = off", {"postgresql-synchronous-commit": ERROR}),
        ("statement_timeout = 500", {"postgresql-statement-timeout": WARNING}),
        (
            "default_transaction_isolation = serializable",
            {"postgresql-default-transaction-isolation": INFO},
        ),
        ("default_transaction_read_only = on", {"database-read-only": ERROR}),
    ],
)
def test_a_setting_of_the_role_is_seen_as_the_application_gets_it(
    setting: str,
    expected: dict[str, Severity],
    shop_url: str,
    admin: Callable[[str], None],
    unique: str,
) -> None:
    store = Store(database_url=shop_url)
    assert seen(store) == {}
    store.dispose()
    admin(f"ALTER ROLE {unique} SET {setting}")
    assert seen(store) == expected
    store.dispose()


def test_autovacuum_that_is_off_is_seen_on_the_server_and_on_a_table(
    store: Store, admin: Callable[[str], None]
) -> None:
    admin("ALTER TABLE reliable_mq_inbox SET (autovacuum_enabled = false)")
    assert seen(store) == {"table-not-vacuumed": WARNING}
    admin("ALTER SYSTEM SET autovacuum = off")
    try:
        admin("SELECT pg_reload_conf()")
        wait_for(lambda: "postgresql-autovacuum" in seen(store), "the server to read it")
    finally:
        admin("ALTER SYSTEM RESET autovacuum")
        admin("SELECT pg_reload_conf()")


def test_unlogged_tables_and_cached_numbers_are_errors(
    store: Store, admin: Callable[[str], None]
) -> None:
    admin("ALTER TABLE reliable_mq_inbox SET UNLOGGED")
    admin("ALTER SEQUENCE reliable_mq_outbox_id_seq CACHE 32")
    assert seen(store) == {"table-not-durable": ERROR, "table-numbers-cached": ERROR}


def test_a_table_in_a_schema_of_its_own_is_looked_at_there(
    url: str, admin: Callable[[str], None]
) -> None:
    admin("CREATE SCHEMA mq")
    store = Store(database_url=url, db_schema="mq")
    store.create()
    assert seen(store) == {}
    admin("ALTER TABLE mq.reliable_mq_outbox SET UNLOGGED")
    assert seen(store) == {"table-not-durable": ERROR}
    store.dispose()


def test_a_database_that_cannot_hold_every_character_is_a_warning(
    sound_server: Server, unique: str
) -> None:
    engine = create_engine(sound_server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            text(f"CREATE DATABASE {unique} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        )
    url = make_url(sound_server.url).set(database=unique).render_as_string(False)
    store = Store(database_url=url)
    store.create()
    assert seen(store) == {"postgresql-encoding": WARNING}
    store.dispose()
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {unique}"))
    engine.dispose()


@pytest.mark.parametrize(("ours", "severity"), [(True, WARNING), (False, INFO)])
def test_a_pooler_is_seen_and_is_worse_for_an_engine_that_prepares_statements(
    request: pytest.FixtureRequest, url: str, ours: bool, severity: Severity
) -> None:
    for pooler in one_started(request, PgBouncer(url, sessions=1)):
        engine = create_engine(pooler.url, connect_args={"prepare_threshold": None})
        store = Store(database_url=pooler.url) if ours else Store(engine=engine)
        store.create()
        assert seen(store)["postgresql-pooler"] is severity
        with engine.connect() as connection:
            kept = connection.execute(text("SHOW lock_timeout")).scalar_one()
        assert kept == "0", "what others get with this session"
        store.dispose()
        engine.dispose()


def test_more_concurrency_than_the_role_has_connections_is_a_warning(
    shop_url: str, admin: Callable[[str], None], unique: str, open_mq: OpenMQ
) -> None:
    admin(f"ALTER ROLE {unique} CONNECTION LIMIT 30")
    mq = open_mq(database_url=shop_url, group="billing")
    mq.handler("orders", concurrency=20)(ignore)
    assert "postgresql-connections" not in codes(mq)
    mq.handler("bills", concurrency=20)(ignore)
    assert codes(mq)["postgresql-connections"] is WARNING


def test_rights_that_lack_are_named(
    shop_url: str, admin: Callable[[str], None], unique: str
) -> None:
    admin(f"REVOKE DELETE, UPDATE ON reliable_mq_outbox FROM {unique}")
    store = Store(database_url=shop_url)
    (finding,) = inspect_store(store, Expected()).findings
    store.dispose()
    assert (finding.code, finding.severity) == ("table-rights", ERROR)
    assert finding.what.startswith("this user may not update or delete: permission denied")
    assert "UPDATE, DELETE" in finding.remedy


def test_a_locked_table_does_not_keep_the_doctor_waiting(url: str, store: Store) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE reliable_mq_inbox"))
        (finding,) = inspect_store(store, Expected()).findings
    engine.dispose()
    assert "lock timeout" in finding.what


def test_an_engine_that_forces_another_isolation_level_is_an_error(url: str, store: Store) -> None:
    engine = create_engine(url)

    @event.listens_for(engine, "begin")
    def force(connection) -> None:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")

    forced = Store(engine=engine)
    assert seen(forced) == {"database-isolation": ERROR}
    engine.dispose()


def test_a_replica_cannot_be_the_store(own_server: OwnServer) -> None:
    server = own_server("postgresql", SOUND)
    store = Store(database_url=server.url)
    store.create()
    store.dispose()
    server.terminate()
    (server.folder / "data" / "standby.signal").touch()
    server.restart()
    assert seen(store) == {"database-read-only": ERROR}
    store.dispose()


def test_replicas_that_no_commit_waits_for_are_said(
    url: str, sound_server: Server, store: Store, tmp_path: Path
) -> None:
    login = make_url(sound_server.url)
    receiver = subprocess.Popen(
        ["pg_receivewal", "-D", tmp_path, "-h", "127.0.0.1", "-p", str(login.port), "-U", "app"],
        env={**os.environ, "PGPASSWORD": "app"},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: "postgresql-asynchronous-replicas" in seen(store), "the receiver")
        assert seen(store) == {"postgresql-asynchronous-replicas": INFO}
    finally:
        receiver.send_signal(signal.SIGKILL)
        receiver.wait()


def test_an_old_transaction_that_holds_rows_back_is_named(url: str, store: Store) -> None:
    def old() -> list[str]:
        report = inspect_store(store, Expected(old_transaction=0.2))
        return [one.subject for one in report.findings if one.code == "old-transaction"]

    engine = create_engine(url, isolation_level="REPEATABLE READ")
    assert old() == []
    with engine.begin() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        wait_for(old, "the transaction to become old")
        assert old() == [f"PostgreSQL session {pid}"]
        assert seen(store) == {}
    engine.dispose()


def test_a_transaction_that_read_only_what_is_committed_holds_nothing_back(
    url: str, store: Store
) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        # Without parameters: an extended query keeps its snapshot until the next one.
        old = text("SELECT clock_timestamp() - now() > interval '0.2 s'")
        wait_for(lambda: connection.execute(old).scalar_one(), "the transaction to become old")
        assert inspect_store(store, Expected(old_transaction=0.1)).findings == []
    engine.dispose()


def test_a_prepared_transaction_that_was_left_behind_is_named(
    store: Store, admin: Callable[[str], None], unique: str
) -> None:
    engine = store.engine
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE things (id int)"))
        connection.commit()
        connection.execute(text("INSERT INTO things VALUES (1)"))
        connection.execute(text(f"PREPARE TRANSACTION '{unique}'"))
        connection.rollback()
    wait_for(lambda: seen(store, old_transaction=0.1), "the transaction to become old")
    (finding,) = inspect_store(store, Expected(old_transaction=0.1)).findings
    assert finding.subject == f"PostgreSQL prepared transaction {unique}"
    admin(f"ROLLBACK PREPARED '{unique}'")


def test_sessions_that_cannot_be_looked_into_are_said(shop_url: str, url: str) -> None:
    store = Store(database_url=shop_url)
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        report = inspect_store(store, Expected())
    engine.dispose()
    store.dispose()
    (finding,) = report.findings
    assert (finding.code, finding.severity) == ("not-checked", INFO)
    assert "pg_read_all_stats" in finding.remedy


@pytest.fixture
def eager_vacuum(admin: Callable[[str], None]) -> Iterator[None]:
    """Autovacuum looks at the server's databases every second."""
    admin("ALTER SYSTEM SET autovacuum_naptime = '1s'")
    admin("SELECT pg_reload_conf()")
    yield
    admin("ALTER SYSTEM RESET autovacuum_naptime")
    admin("SELECT pg_reload_conf()")


def test_a_worker_of_autovacuum_is_neither_hidden_nor_an_old_transaction(
    shop_url: str,
    url: str,
    admin: Callable[[str], None],
    gone: Callable[[str], None],
    unique: str,
    eager_vacuum: None,
) -> None:
    # Ten of its pages a second, so that it is at work for as long as it is needed.
    slow = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1"
    due = "autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0"
    admin(f"CREATE TABLE litter WITH ({slow}, {due}) AS SELECT generate_series(1, 300000) AS n")
    admin("DELETE FROM litter WHERE n % 2 = 0")
    engine = create_engine(url, poolclass=NullPool)
    worker = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = 'autovacuum worker'"
        " AND backend_xmin IS NOT NULL AND clock_timestamp() - xact_start > interval '1.5 s'"
    )

    def vacuums() -> bool:
        with engine.connect() as connection:
            return bool(connection.execute(worker).scalar_one())

    wait_for(vacuums, "autovacuum to be at work")
    for user in (url, shop_url):
        gone(f"datname = '{unique}' AND backend_type = 'client backend'")
        store = Store(database_url=user)
        assert seen(store, old_transaction=1) == {}
        store.dispose()
    assert vacuums()
    admin("DROP TABLE litter")


def test_a_server_too_old_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "_OLDEST", (99,))
    assert seen(store) == {"postgresql-version": ERROR}


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
