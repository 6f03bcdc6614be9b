"""Creating the tables, and whose they are."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from sqlalchemy import Integer, MetaData, event, inspect, select, text, update
from sqlalchemy.dialects import mysql

from reliable_mq.errors import ConfigurationError
from reliable_mq.store import Store
from reliable_mq.store.tables import SCHEMA_VERSION
from tests.store.shop import publish


@pytest.fixture
def fresh(store_url: str) -> Store:
    """A store on an empty database."""
    return Store(database_url=store_url)


def change_version(store: Store, **values: Any) -> None:
    with store.transaction() as connection:
        connection.execute(update(store.tables.version).values(**values))


# --- creating -----------------------------------------------------------------------------------


def test_create_leaves_nothing_to_find_and_keeps_the_store_id(fresh, store_url):
    assert fresh.check() == [f"table {table.fullname} is missing" for table in fresh.tables.all()]
    fresh.create()
    assert fresh.check() == []
    again = Store(database_url=store_url)
    again.create()
    assert again.store_id == fresh.store_id
    again.dispose()
    fresh.dispose()


_CREATE = """
import sys
from reliable_mq.store import Store

store = Store(database_url=sys.argv[1])
sys.stdin.readline()
store.create()
print(store.store_id)
"""


def test_processes_that_create_at_once_all_succeed_and_agree(fresh, store_url):
    command = [sys.executable, "-c", _CREATE, store_url]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outcomes = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outcomes
    assert len({out for out, _ in outcomes}) == 1
    assert fresh.check() == []
    fresh.dispose()


def test_tables_that_were_made_anew_are_another_store(fresh):
    fresh.create()
    before = fresh.store_id
    fresh.tables.metadata.drop_all(fresh.engine)
    fresh.create()
    assert fresh.store_id != before
    with fresh.engine.begin() as connection:
        publish(fresh, connection, "a")
    fresh.dispose()


def test_a_missing_table_and_index_are_created_later(fresh):
    fresh.create()
    with fresh.engine.begin() as connection:
        fresh.tables.dead_letter.drop(connection)
        for index in fresh.tables.inbox.indexes:
            index.drop(connection)
    found = fresh.check()
    assert "table reliable_mq_dead_letter is missing" in found
    assert any("reliable_mq_inbox_done" in text for text in found)
    fresh.create()
    assert fresh.check() == []
    fresh.dispose()


def test_a_table_of_our_name_that_is_not_ours_is_refused_and_left_alone(fresh):
    with fresh.engine.begin() as connection:
        connection.execute(text("CREATE TABLE reliable_mq_inbox (id INTEGER)"))
    with pytest.raises(ConfigurationError, match=r"reliable_mq_inbox\.message_id is missing"):
        fresh.create()
    with fresh.engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["reliable_mq_inbox"]
    fresh.dispose()


def test_a_missing_key_is_found(fresh):
    fresh.create()
    names = ", ".join(f"{column.name} INTEGER" for column in fresh.tables.lease.columns)
    with fresh.engine.begin() as connection:
        fresh.tables.lease.drop(connection)
        connection.execute(text(f"CREATE TABLE reliable_mq_lease ({names})"))
    assert fresh.check() == ["primary key on reliable_mq_lease(kind, name) is missing"]
    fresh.dispose()


def test_two_prefixes_are_two_stores_in_one_database(fresh, store_url):
    other = Store(database_url=store_url, table_prefix="other_", adapter="kafka")
    fresh.create()
    other.create()
    assert fresh.check() == other.check() == []
    assert fresh.store_id != other.store_id
    other.dispose()
    fresh.dispose()


def test_the_ddl_creates_what_create_does(fresh):
    with fresh.engine.begin() as connection:
        for statement in fresh.ddl().split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    assert fresh.check() == ["the version row is missing: run declare()"]
    fresh.create()
    assert fresh.check() == []
    fresh.dispose()


def test_tables_can_be_part_of_the_applications_metadata(fresh):
    metadata = MetaData()
    fresh.include_tables(metadata)
    metadata.create_all(fresh.engine)
    fresh.create()
    assert fresh.check() == []
    fresh.dispose()


def test_tables_can_live_in_a_schema(postgresql_url):
    store = Store(database_url=postgresql_url, db_schema="messaging")
    with store.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA messaging"))
    store.create()
    store.create()
    assert store.check() == []
    with store.engine.begin() as connection:
        publish(store, connection, "a")
    elsewhere = Store(database_url=postgresql_url)
    assert elsewhere.check()[0] == "table reliable_mq_outbox is missing"
    elsewhere.dispose()
    store.dispose()


def test_identifiers_compare_by_bytes(fresh):
    fresh.create()
    names = ["abc", "ABC", "abc ", "äbc", "abç", "abc\u0301"]
    lease = fresh.tables.lease
    with fresh.transaction() as connection:
        for name in names:
            connection.execute(lease.insert().values(kind="k", name=name))
        found = connection.execute(select(lease.c.name).order_by(lease.c.name)).scalars().all()
        assert found == sorted(names, key=str.encode)
        one = connection.execute(select(lease.c.name).where(lease.c.name == "abc")).scalars()
        assert one.all() == ["abc"]
    fresh.dispose()


def test_on_mariadb_no_column_depends_on_a_collation(mariadb_url):
    store = Store(database_url=mariadb_url)
    store.create()
    with store.engine.connect() as connection:
        for table in store.tables.all():
            for column in inspect(connection).get_columns(table.name):
                if column["name"] != "cause":
                    kind = (mysql.VARBINARY, mysql.LONGBLOB, Integer)
                    assert isinstance(column["type"], kind), (table.name, column["name"])
    store.dispose()


# --- whose tables they are ------------------------------------------------------------------------


def test_another_schema_version_is_refused(fresh, store_url):
    fresh.create()
    for version, remedy in ((SCHEMA_VERSION + 1, "upgrade"), (SCHEMA_VERSION - 1, "migrate")):
        change_version(fresh, schema_version=version)
        other = Store(database_url=store_url)
        with pytest.raises(ConfigurationError, match=remedy):
            other.create()
        assert any(remedy in text for text in other.check())
        with (
            pytest.raises(ConfigurationError, match=remedy),
            other.engine.connect() as connection,
        ):
            other.verify(connection)
        other.dispose()
    fresh.dispose()


def test_two_brokers_on_one_prefix_are_refused_at_the_first_append(fresh, store_url):
    fresh.create()
    other = Store(database_url=store_url, adapter="kafka")
    with other.engine.connect() as connection:
        connection.begin()
        publish(other, connection, "a")
        with pytest.raises(ConfigurationError, match=r"'sql'.*'kafka'.*table_prefix"):
            connection.commit()
    assert any("kafka" in text for text in other.check())
    other.dispose()
    fresh.dispose()


def test_an_empty_outbox_that_nobody_uses_moves_to_another_broker(fresh, store_url):
    fresh.create()
    other = Store(database_url=store_url, adapter="kafka")
    other.create()
    assert other.check() == []
    assert other.store_id == fresh.store_id
    assert any("belong to the broker 'kafka'" in text for text in fresh.check())
    other.dispose()
    fresh.dispose()


def test_an_outbox_with_messages_does_not_move(fresh, store_url):
    fresh.create()
    with fresh.engine.begin() as connection:
        publish(fresh, connection, "a")
    other = Store(database_url=store_url, adapter="kafka")
    with pytest.raises(ConfigurationError, match="1 messages in the outbox"):
        other.create()
    with fresh.transaction() as connection:
        row = connection.execute(select(fresh.tables.outbox)).one()._asdict()
        del row["try_at"]
        connection.execute(fresh.tables.outbox_held.insert().values(**row, held_at=1))
        connection.execute(fresh.tables.outbox.delete())
    with pytest.raises(ConfigurationError, match="1 messages are held"):
        other.create()
    other.dispose()
    fresh.dispose()


def test_an_outbox_that_another_process_works_on_does_not_move(fresh, store_url):
    fresh.create()
    soon = round((time.time() + 60) * 1e6)
    with fresh.transaction() as connection:
        lease = {"kind": "relay", "name": "1", "owner": "me", "expires_at": soon}
        connection.execute(fresh.tables.lease.insert().values(**lease))
    other = Store(database_url=store_url, adapter="kafka")
    with pytest.raises(ConfigurationError, match="another process"):
        other.create(instance="you")
    other.create(instance="me")
    with fresh.transaction() as connection:
        connection.execute(update(fresh.tables.lease).values(expires_at=1))
    third = Store(database_url=store_url, adapter="amqp")
    third.create()
    for store in (fresh, other, third):
        store.dispose()


def test_the_version_row_is_read_once_per_engine(fresh, store_url):
    fresh.create()
    store = Store(database_url=store_url)
    reads: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if store.tables.version.name in statement:
            reads.append(statement)

    event.listen(store.engine, "before_cursor_execute", note)
    for _ in range(3):
        with store.engine.begin() as connection:
            publish(store, connection, "a")
    with store.engine.execution_options(logging_token="x").begin() as connection:
        publish(store, connection, "a")
    assert len(reads) == 1
    store.dispose()
    fresh.dispose()


def test_tables_without_a_version_row_ask_for_declare(fresh):
    metadata = MetaData()
    fresh.include_tables(metadata)
    metadata.create_all(fresh.engine)
    with fresh.engine.connect() as connection, pytest.raises(ConfigurationError, match="declare"):
        fresh.verify(connection)
    fresh.dispose()
