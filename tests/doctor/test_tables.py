"""The library's tables, on each kind of database."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from sqlalchemy import literal, text

from reliable_mq.adapter import Severity
from reliable_mq.store import Store
from reliable_mq.store.inspection import Expected, inspect_store
from reliable_mq.store.times import duration_micros

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO

# The test servers are set up to be fast: what is said of that is no subject here.
_OF_THE_SERVER = ("postgresql-", "mariadb-")


def seen(store: Store) -> dict[str, Severity]:
    findings = inspect_store(store, Expected(embedded=True)).findings
    return {one.code: one.severity for one in findings if not one.code.startswith(_OF_THE_SERVER)}


def execute(store: Store, *statements: str) -> None:
    with store.transaction() as connection:
        for statement in statements:
            connection.execute(text(statement))


@pytest.fixture
def fresh(store_url: str) -> Iterator[Store]:
    """A database without our tables; the file of SQLite is there."""
    store = Store(database_url=store_url)
    with store.engine.connect() as connection:
        connection.execute(text("CREATE TABLE things (id INTEGER)"))
        connection.commit()
    yield store
    store.dispose()


@pytest.fixture
def store(fresh: Store) -> Store:
    fresh.create()
    return fresh


def test_a_database_without_tables_is_one_error(fresh: Store) -> None:
    assert seen(fresh) == {"tables-missing": ERROR}
    assert not inspect_store(fresh, Expected()).complete


def test_what_declare_makes_is_complete(store: Store) -> None:
    assert seen(store) == {}
    assert inspect_store(store, Expected()).complete


def test_each_table_and_index_that_is_missing_is_named(store: Store) -> None:
    index = "DROP INDEX reliable_mq_inbox_done"
    if store.dialect.name == "mysql":
        index += " ON reliable_mq_inbox"
    execute(store, index)
    assert seen(store) == {"index-missing": WARNING}
    execute(store, "DROP TABLE reliable_mq_dead_letter")
    report = inspect_store(store, Expected())
    assert "table reliable_mq_dead_letter is missing" in [one.what for one in report.findings]
    assert seen(store) == {"index-missing": WARNING, "tables-incomplete": ERROR}
    assert not report.complete


def test_tables_without_their_version_row_are_an_error(store: Store) -> None:
    execute(store, "DELETE FROM reliable_mq_version")
    assert seen(store) == {"tables-undeclared": ERROR}


@pytest.mark.parametrize(
    "change", ["schema_version = 7", "adapter = 'kafka'"], ids=["schema", "broker"]
)
def test_tables_of_another_version_or_broker_are_an_error(store: Store, change: str) -> None:
    execute(store, f"UPDATE reliable_mq_version SET {change}")
    assert seen(store) == {"tables-foreign": ERROR}


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_a_clock_that_differs_is_a_warning(store: Store, skew: float) -> None:
    now = literal(duration_micros(time.time() + skew))
    skewed = Store(engine=store.engine, now=now)
    (finding,) = (
        one for one in inspect_store(skewed, Expected()).findings if one.code == "clock-skew"
    )
    assert finding.severity is WARNING
    assert f"s {'ahead' if skew > 0 else 'behind'} of" in finding.what


def test_a_database_that_does_not_answer_is_one_error_without_the_password(store_url: str) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("a file does not go away")
    kind = store_url.partition("://")[0]
    store = Store(database_url=f"{kind}://app:canary@127.0.0.1:1/app")
    report = inspect_store(store, Expected())
    store.dispose()
    (finding,) = report.findings
    assert (finding.code, finding.severity) == ("database-unreachable", ERROR)
    assert not report.reachable
    assert "canary" not in str(report)


def test_a_wrong_password_is_an_error_that_does_not_show_it(store_url: str) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("a file has no password")
    store = Store(database_url=store_url.replace("app:app@", "app:canary@"))
    (finding,) = inspect_store(store, Expected()).findings
    store.dispose()
    assert (finding.code, finding.severity) == ("database-unreachable", ERROR)
    assert "canary" not in str(finding)
