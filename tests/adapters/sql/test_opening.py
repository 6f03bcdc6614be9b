from __future__ import annotations

import pytest

from reliable_mq.adapter import Adapter, AdapterContext, GroupSpec, Severity, TopicSpec, Unroutable
from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq.store import Store
from reliable_mq_sql import open_adapter
from tests.adapters.sql.conftest import Open, declare, order
from tests.brokers import MariaDB, PostgreSQL, Server
from tests.conftest import OwnServer


def test_the_adapter_fits_the_protocol(sqlite_store: Store, opened: Open):
    adapter: Adapter = opened(sqlite_store)
    assert isinstance(adapter, Adapter)


@pytest.mark.parametrize("url", ["sql://localhost", "sql:///file.db", "sql://?x=1"])
def test_a_url_with_more_than_its_scheme_is_refused(sqlite_store: Store, url: str):
    with pytest.raises(ConfigurationError, match="database_url"):
        open_adapter(url, AdapterContext(instance="test", store=sqlite_store))


def test_client_options_are_refused_by_name(sqlite_store: Store):
    context = AdapterContext(instance="test", store=sqlite_store, client_options={"acks": "all"})
    with pytest.raises(ConfigurationError, match="acks"):
        open_adapter("sql://", context)


def test_a_context_without_a_store_is_refused():
    with pytest.raises(ConfigurationError, match="store"):
        open_adapter("sql://", AdapterContext(instance="test"))


def test_without_tables_the_error_says_how_to_make_them(store_url: str, opened: Open):
    store = Store(database_url=store_url)
    adapter = opened(store)
    with pytest.raises(ConfigurationError, match=r"declare\(\)"):
        declare(adapter)
    with pytest.raises(ConfigurationError, match=r"declare\(\)"):
        adapter.lag("orders", "billing")
    (outcome,) = adapter.publish([order(1)], 20)
    assert isinstance(outcome, Unroutable)
    assert "declare()" in outcome.cause
    store.dispose()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_wrong_password_is_a_configuration_error_that_hides_it(
    kind: str, opened: Open, request: pytest.FixtureRequest
):
    url: str = request.getfixturevalue(f"{kind}_url")
    store = Store(database_url=url.replace(":app@", ":wr0ng-secret@"))
    adapter = opened(store)
    for call in (
        lambda: declare(adapter),
        lambda: adapter.lag("orders", "billing"),
        lambda: adapter.subscribe(["orders"], "b", prefetch=1, ordered=True).receive(1, 1),
    ):
        with pytest.raises(ConfigurationError) as caught:
            call()
        assert "wr0ng-secret" not in str(caught.value)
        assert "password" in str(caught.value)
    (outcome,) = adapter.publish([order(1)], 20)
    assert isinstance(outcome, Unroutable)
    assert "wr0ng-secret" not in outcome.cause
    store.dispose()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_dead_server_is_a_transport_error_that_names_it(
    kind: str, opened: Open, own_server: OwnServer
):
    server = own_server(kind)
    store = Store(database_url=server.url)
    store.create()
    adapter = opened(store)
    declare(adapter, "billing")
    server.kill()
    with pytest.raises(TransportError, match=r"127\.0\.0\.1") as caught:
        adapter.lag("orders", "billing")
    assert ":app@" not in str(caught.value)
    store.dispose()


def test_an_option_that_does_not_exist_is_refused(sqlite_store: Store, opened: Open):
    with pytest.raises(ConfigurationError, match=r"retenton.*retention"):
        declare(opened(sqlite_store), retenton=5)


@pytest.mark.parametrize("value", [0, -1, "5", True])
def test_a_retention_that_is_no_duration_is_refused(
    sqlite_store: Store, opened: Open, value: object
):
    with pytest.raises(ConfigurationError, match="positive number of seconds"):
        declare(opened(sqlite_store), retention=value)


def test_another_retention_than_the_existing_one_names_both(sqlite_store: Store, opened: Open):
    adapter = opened(sqlite_store)
    declare(adapter, retention=60)
    with pytest.raises(ConfigurationError, match=r"60 s.*90 s"):
        declare(adapter, retention=90)
    declare(adapter)


def test_a_group_of_an_unknown_topic_is_refused_and_nothing_is_created(
    sqlite_store: Store, opened: Open
):
    adapter = opened(sqlite_store)
    with pytest.raises(ConfigurationError, match="missing"):
        adapter.declare([TopicSpec(name="new")], [GroupSpec(topic="missing", group="billing")])
    assert isinstance(adapter.publish([order(1)], 20)[0], Unroutable)
    with pytest.raises(ConfigurationError, match="new"):
        adapter.lag("new", "billing")


def test_a_subscription_to_what_nobody_declared_is_refused(sqlite_store: Store, opened: Open):
    adapter = opened(sqlite_store)
    declare(adapter)
    with pytest.raises(ConfigurationError, match="billing"):
        adapter.subscribe(["orders"], "billing", prefetch=1, ordered=True).receive(1, 0)


def test_inspect_finds_a_postgresql_server_that_does_not_sync(
    postgresql_server: Server, postgresql_url: str, opened: Open
):
    if not isinstance(postgresql_server, PostgreSQL):
        pytest.skip("needs the test server's own settings")
    store = Store(database_url=postgresql_url)
    found = {one.code: one.severity for one in opened(store).inspect()}
    assert found["postgresql-fsync"] is Severity.ERROR
    store.dispose()


def test_inspect_finds_a_mariadb_server_that_syncs_late_or_takes_small_packets(
    mariadb_server: Server, mariadb_url: str, opened: Open
):
    if not isinstance(mariadb_server, MariaDB):
        pytest.skip("needs the test server's own settings")
    store = Store(database_url=mariadb_url)
    adapter = opened(store, max_message_bytes=50_000_000)
    found = {one.code: one.severity for one in adapter.inspect()}
    assert found["mariadb-innodb-flush-log-at-trx-commit"] is Severity.WARNING
    assert found["mariadb-max-allowed-packet"] is Severity.ERROR
    store.dispose()


def test_inspect_finds_nothing_in_a_fresh_sqlite_file(sqlite_store: Store, opened: Open):
    assert opened(sqlite_store).inspect() == []
