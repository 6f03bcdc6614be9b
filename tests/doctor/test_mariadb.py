"""MariaDB: silent on what docs/stores.md recommends, and each fault is seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text

from reliable_mq.adapter import Severity
from reliable_mq.doctor import diagnose
from reliable_mq.store import Store
from reliable_mq.store.inspection import Expected, inspect_store, mysql
from tests.brokers import Server
from tests.brokers.databases import fresh_database
from tests.doctor.conftest import OpenMQ, codes, ignore, seen, started, worse_than_info

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
SOUND = {
    "innodb-flush-log-at-trx-commit": "1",
    "log-bin": "binlog",
    "binlog-format": "ROW",
    "sync-binlog": "1",
}
BAD = {
    "innodb-flush-log-at-trx-commit": "0",
    "innodb-flush-method": "nosync",
    "innodb-doublewrite": "OFF",
    "log-bin": "binlog",
    "binlog-format": "STATEMENT",
    "sync-binlog": "0",
    "sql-mode": "",
    "max-statement-time": "2",
    "max-allowed-packet": "1M",
    "wait-timeout": "20",
    "transaction-isolation": "SERIALIZABLE",
    "max-connections": "12",
}

Admin = Callable[[str], None]


@pytest.fixture(scope="module")
def sound_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """What docs/stores.md recommends."""
    with started(request, "mariadb", SOUND) as server:
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
def admin(url: str) -> Iterator[Admin]:
    """Execute with all privileges, in the database of the test."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)

    def execute(statement: str) -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    yield execute
    engine.dispose()


@pytest.fixture
def shop_url(url: str, store: Store, admin: Admin, unique: str) -> Iterator[str]:
    """The database as a user who may do no more than docs/stores.md says."""
    user = f"{unique}@'127.0.0.1'"
    admin(f"CREATE USER {user} IDENTIFIED BY 'secret'")
    admin(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {unique}.* TO {user}")
    yield make_url(url).set(username=unique, password="secret").render_as_string(False)
    admin(f"DROP USER {user}")


def test_the_recommended_server_with_the_least_rights_has_no_finding(
    shop_url: str, open_mq: OpenMQ
) -> None:
    assert worse_than_info(diagnose(open_mq(database_url=shop_url))) == []


def test_what_needs_more_than_the_least_rights_is_said(shop_url: str) -> None:
    store = Store(database_url=shop_url)
    (finding,) = inspect_store(store, Expected()).findings
    store.dispose()
    assert (finding.code, finding.severity) == ("not-checked", INFO)
    assert "PROCESS" in finding.what
    assert finding.remedy.startswith("GRANT PROCESS")


def test_every_fault_of_a_server_is_seen(request: pytest.FixtureRequest, open_mq: OpenMQ) -> None:
    with started(request, "mariadb", BAD) as server:
        mq = open_mq(database_url=server.url, broker_url="memory://", group="billing")
        mq.handler("orders", concurrency=20)(ignore)
        store = Store(database_url=server.url, adapter="memory")
        # The tables by themselves: this server refuses what declare() writes into them.
        store.tables.metadata.create_all(store.engine)
        store.dispose()
        found = codes(mq)
        mq.close()
    assert {code: found[code] for code in sorted(found) if code.startswith("mariadb")} == {
        "mariadb-binlog-format": ERROR,
        "mariadb-connections": WARNING,
        "mariadb-innodb-doublewrite": WARNING,
        "mariadb-innodb-flush-log-at-trx-commit": ERROR,
        "mariadb-innodb-flush-method": ERROR,
        "mariadb-isolation": INFO,
        "mariadb-max-allowed-packet": ERROR,
        "mariadb-max-statement-time": WARNING,
        "mariadb-sql-mode": WARNING,
        "mariadb-sync-binlog": WARNING,
        "mariadb-wait-timeout": WARNING,
    }


def test_a_server_that_syncs_late_is_a_warning(mariadb_server: Server, mariadb_url: str) -> None:
    if "external" in type(mariadb_server).__name__.lower():
        pytest.skip("needs the test server's own settings")
    store = Store(database_url=mariadb_url)
    store.create()
    assert seen(store) == {"mariadb-innodb-flush-log-at-trx-commit": WARNING}
    store.dispose()


def test_packets_are_measured_by_the_largest_message(store: Store) -> None:
    assert seen(store, max_message_bytes=7_000_000) == {}
    assert seen(store, max_message_bytes=9_000_000) == {"mariadb-max-allowed-packet": ERROR}
    (finding,) = inspect_store(store, Expected(max_message_bytes=9_000_000)).findings
    assert "lacks its body as a dead letter" in finding.why


def test_a_server_that_is_read_only_is_an_error(store: Store, admin: Admin) -> None:
    admin("SET GLOBAL read_only = ON")
    try:
        assert seen(store) == {"database-read-only": ERROR}
    finally:
        admin("SET GLOBAL read_only = OFF")


@pytest.mark.parametrize(("engine", "severity"), [("MyISAM", ERROR), ("Aria", ERROR)])
def test_a_table_that_knows_no_transactions_is_an_error(
    engine: str, severity: Severity, store: Store, admin: Admin
) -> None:
    admin(f"ALTER TABLE reliable_mq_version ENGINE = {engine}")
    (finding,) = inspect_store(store, Expected()).findings
    assert (finding.code, finding.severity) == ("table-engine", severity)
    assert finding.subject == "table reliable_mq_version"


def test_another_character_set_of_the_connection_is_a_warning(url: str, store: Store) -> None:
    other = Store(database_url=f"{url}?charset=latin1")
    assert seen(other) == {"mariadb-character-set-client": WARNING}
    other.dispose()


def test_rights_that_lack_are_named(url: str, store: Store, admin: Admin, unique: str) -> None:
    user = f"{unique[:20]}r@'127.0.0.1'"
    admin(f"CREATE USER {user} IDENTIFIED BY 'secret'")
    admin(f"GRANT SELECT, INSERT ON {unique}.* TO {user}")
    reader = Store(
        database_url=make_url(url)
        .set(username=f"{unique[:20]}r", password="secret")
        .render_as_string(False)
    )
    report = inspect_store(reader, Expected())
    reader.dispose()
    admin(f"DROP USER {user}")
    lacking = [one for one in report.findings if one.code == "table-rights"]
    assert len(lacking) == 6
    assert all(one.severity is ERROR for one in lacking)
    assert all(one.what.startswith("this user may not update or delete: ") for one in lacking)


def test_an_old_transaction_is_named(url: str, store: Store) -> None:
    def old() -> list[str]:
        report = inspect_store(store, Expected(old_transaction=0.2))
        return [one.subject for one in report.findings if one.code == "old-transaction"]

    engine = create_engine(url)
    assert old() == []
    with engine.begin() as connection:
        thread = connection.execute(text("SELECT CONNECTION_ID()")).scalar_one()
        connection.execute(text("SELECT * FROM reliable_mq_outbox")).all()
        wait_for(old, "the transaction to become old")
        assert old() == [f"MariaDB connection {thread}"]
        assert seen(store) == {}
    engine.dispose()


def test_a_clock_that_is_an_hour_behind_is_a_warning(shop_url: str, admin: Admin) -> None:
    # For each session of a user without special rights; what the library calls the database's
    # clock is read from it.
    admin("SET GLOBAL init_connect = 'SET timestamp = UNIX_TIMESTAMP() - 3600'")
    store = Store(database_url=shop_url)
    try:
        found = {one.code: one for one in inspect_store(store, Expected()).findings}
    finally:
        admin("SET GLOBAL init_connect = ''")
        store.dispose()
    assert found["clock-skew"].severity is WARNING
    assert "s behind" in found["clock-skew"].what


def test_a_server_too_old_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql, "_OLDEST", {True: (99, 0), False: (99, 0)})
    assert seen(store) == {"mariadb-version": ERROR}


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_database_that_holds_the_topics_too_is_judged_by_the_applications_settings(
    mariadb_url: str, open_mq: OpenMQ
) -> None:
    short = {"init_command": "SET SESSION wait_timeout = 30"}
    engine = create_engine(mariadb_url, connect_args=short)
    found = codes(open_mq(engine=engine, consumer={"idle_in_transaction": 10}))
    assert "mariadb-wait-timeout" not in found
    assert "mariadb-wait-timeout" in codes(open_mq(engine=engine))
    engine.dispose()
