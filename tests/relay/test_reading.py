"""What one read brings: in order, bounded, fair, and not slower for what waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError

from reliable_mq.store import Store
from reliable_mq.store.dialects.base import OURS
from reliable_mq.store.outbox import reading
from reliable_mq.store.outbox.reading import Excluded, Reader, fair_quotas
from reliable_mq.store.tables import OUTBOX_SLOTS, slot_of
from reliable_mq.store.walking import walking
from tests.relay.support import (
    ADAPTER,
    ALL_SLOTS,
    REFUSED,
    UNROUTABLE,
    ScriptedBroker,
    commit,
    drain,
    execute,
    make_relay,
    message,
    put,
    read,
    watch_statements,
)


def ids(rows):
    return [row.message_id for row in rows]


def test_rows_come_in_the_order_of_their_numbers(store):
    commit(store, *(message(f"m{n}", f"k{n % 7}") for n in range(50)))
    assert ids(read(store)) == [f"m{n}" for n in range(50)]


def test_only_the_slots_asked_for_are_read(store):
    commit(store, *(message(f"m{n}", f"k{n}") for n in range(50)))
    slots = set(range(0, OUTBOX_SLOTS, 2))
    found = Reader(store, rows=2000).read(slots, Excluded())
    expected = [f"m{n}" for n in range(50) if slot_of(f"k{n}", "", OUTBOX_SLOTS) in slots]
    assert ids(found) == expected
    assert Reader(store, rows=2000).read([], Excluded()) == []


def test_a_share_of_the_slots_that_is_over_leaves_nothing_in_memory(store):
    """Compiled, a read of many slots takes megabytes on MariaDB."""
    kept = store.walking_engine._compiled_cache
    reader = Reader(store, rows=2000)
    reader.read(range(5), Excluded())
    before = len(kept)
    for count in range(1, 30):
        reader.read(range(count), Excluded())
        reader.read(range(count), Excluded(topics=["other"]))
    assert len(kept) == before


def test_no_more_rows_than_asked_for(store):
    commit(store, *(message(f"m{n}", f"k{n}") for n in range(100)))
    assert len(read(store, rows=10)) == 10


def test_excluded_topics_keys_and_rows_are_left_out(store):
    commit(
        store,
        message("a", "k1"),
        message("b", "k1", topic="other"),
        message("c", "k2"),
        message("d", None),
        message("e", None),
    )
    number = {row.message_id: row.id for row in read(store)}
    assert ids(read(store, Excluded(topics=["other"]))) == ["a", "c", "d", "e"]
    assert ids(read(store, Excluded(keys=[("orders", b"k1")]))) == ["b", "c", "d", "e"]
    assert ids(read(store, Excluded(rows=[number["d"]]))) == ["a", "b", "c", "e"]
    everything = Excluded(["other"], [("orders", b"k1"), ("orders", b"k2")], [number["e"]])
    assert ids(read(store, everything)) == ["d"]


def test_keys_that_differ_only_in_case_or_spaces_are_different(store):
    """The collation of a column must not make one key of two."""
    commit(store, message("a", "k"), message("b", "K"), message("c", "k "))
    assert ids(read(store, Excluded(keys=[("orders", b"k")]))) == ["b", "c"]
    assert ids(read(store, Excluded(topics=["ORDERS"]))) == ["a", "b", "c"]


def test_a_read_is_bounded_in_bytes_and_brings_one_row_at_least(store, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 100_000)
    body = b"x" * 30_000
    commit(store, *(message(f"m{n}", f"k{n % 3}", body=body) for n in range(10)))
    found = read(store, rows=256)
    assert ids(found) == ["m0", "m1", "m2"]
    assert all(row.message().body == body for row in found)
    commit(store, message("large", "z", body=b"y" * 300_000))
    only = Excluded(keys=[("orders", f"k{n}".encode()) for n in range(3)])
    assert [len(row.message().body) for row in read(store, only, rows=256)] == [300_000]


def test_large_and_small_bodies_and_headers_come_in_one_order(store, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 10_000_000)  # inline: up to 39 kB of each row
    commit(
        store,
        message("small", "k"),
        message("large", "k", body=b"x" * 50_000),
        message("headers", "k", headers={"h": "y" * 50_000}),
        message("last", "k"),
    )
    found = read(store, rows=256)
    assert ids(found) == ["small", "large", "headers", "last"]
    assert len(found[1].message().body) == 50_000
    assert len(found[2].message().headers["h"]) == 50_000


def test_a_batch_of_large_messages_never_holds_more_than_the_bound(store, monkeypatch, broker):
    monkeypatch.setattr(reading, "MAX_BYTES", 500_000)
    commit(store, *(message(f"m{n}", f"k{n % 5}", body=b"x" * 100_000) for n in range(20)))
    assert drain(make_relay(store, broker)) == 20
    assert max(broker.sizes) <= 500_000
    assert len(broker.calls) == 5


def test_what_vanished_between_two_statements_takes_its_followers_along(store, monkeypatch):
    """Another relay holds it, or has sent it, and what follows it is that one's business."""
    monkeypatch.setattr(reading, "MAX_BYTES", 1_000_000)
    commit(
        store,
        message("k1", "k", body=b"x" * 50_000),
        message("k2", "k"),
        message("x1", "x", body=b"x" * 50_000),
    )
    first = read(store)[0].id
    reader = Reader(store, rows=256)
    fetch = reader._fetch

    def fetch_without_the_first(connection, ids):
        return {id_: found for id_, found in fetch(connection, ids).items() if id_ != first}

    monkeypatch.setattr(reader, "_fetch", fetch_without_the_first)
    assert ids(reader.read(ALL_SLOTS, Excluded())) == ["x1"]


def test_trap_17_one_hot_key_fills_whole_batches(store, broker):
    commit(store, *(message(f"m{n}", "hot") for n in range(3000)))
    assert drain(make_relay(store, broker, batch_size=500)) == 3000
    assert broker.log == [f"m{n}" for n in range(3000)]
    assert len(broker.calls) <= 9


def test_a_hot_key_with_a_backlog_does_not_keep_the_others_waiting(server_store, broker):
    commit(server_store, *(message(f"hot{n}", "hot") for n in range(3000)))
    relay = make_relay(server_store, broker, batch_size=500)
    relay.step()  # by now it knows that one slot has much
    commit(server_store, *(message(f"m{n}", f"k{n}") for n in range(40)))
    relay.step()
    assert sum(name.startswith("m") for name in broker.log) == 40
    assert sum(name.startswith("hot") for name in broker.log) < 3000


def test_topics_that_wait_do_not_block_others_however_many_rows_they_have(
    timed_store, clock, broker
):
    broker.topics["nobody"] = UNROUTABLE
    commit(timed_store, *(message(f"n{n}", f"k{n}", topic="nobody") for n in range(3000)))
    commit(timed_store, *(message(f"m{n}", f"k{n}") for n in range(10)))
    relay = make_relay(timed_store, broker, clock=clock)
    relay.step()
    drain(relay)
    assert len(broker.log) == 10
    assert sum(map(len, broker.calls)) < 1000, "it tried the waiting topic again and again"


def test_keys_that_wait_do_not_block_others_however_many_rows_they_have(store, broker):
    broker.answer("n0", REFUSED)
    commit(store, *(message(f"n{n}", "held") for n in range(3000)))
    commit(store, *(message(f"m{n}", f"k{n}") for n in range(10)))
    relay = make_relay(store, broker)
    relay.step()
    drain(relay)
    assert len(broker.log) == 10
    assert relay.sendable() == 0


def test_the_reading_statement_sees_rows_and_held_rows_at_one_moment(store):
    """Asked in two statements, a key could be neither held nor complete: see test_held."""
    statements = []
    commit(store, message("m"))
    watch_statements(store, lambda driver, statement, parameters: statements.append(statement))
    read(store)
    reads = [text for text in statements if store.tables.outbox.name in text]
    assert len(reads) == 1
    assert store.tables.outbox_held.name in reads[0]


@pytest.fixture
def given_store(postgresql_url: str) -> Iterator[Store]:
    """On PostgreSQL, by an engine of the application's."""
    engine = create_engine(postgresql_url)
    store = Store(engine=engine, adapter=ADAPTER)
    store.create()
    yield store
    engine.dispose()


@pytest.mark.parametrize("by", ["postgresql_store", "given_store"])
def test_on_postgresql_reading_and_deleting_never_scan_the_table(by, request):
    """Whatever the planner was told about the table: it may have been empty a minute ago."""
    store = request.getfixturevalue(by)
    plans = []

    def explain(driver, statement, parameters):
        if store.tables.outbox.name in statement and statement.startswith(("SELECT", "DELETE")):
            plans.append(plan_of(driver, statement, parameters))

    watch_statements(store, explain)
    relay = make_relay(store, ScriptedBroker())
    with store.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text(f"ANALYZE {store.tables.outbox.name}"))
    relay.step()
    with store.transaction() as connection:
        put(store, connection, *(message(f"m{n}", f"k{n}") for n in range(20)))
    plans.clear()
    relay.step()
    assert len(plans) >= 2
    for plan in plans:
        assert "Seq Scan" not in plan
        assert "Sort" not in plan


def test_on_postgresql_what_was_sent_is_deleted_by_one_statement(postgresql_store):
    """A round trip instead of five, and nothing stays locked in a process that is stopped."""
    statements: list[str] = []
    watch_statements(
        postgresql_store, lambda driver, statement, parameters: statements.append(statement)
    )
    relay = make_relay(postgresql_store, ScriptedBroker())
    relay.step()
    commit(postgresql_store, *(message(f"m{n}", f"k{n}") for n in range(20)))
    statements.clear()
    assert relay.step().sent == 20
    assert [text.split()[0] for text in statements] == ["SELECT", "DELETE"]


def plan_of(driver: Any, statement: str, parameters: Any) -> str:
    found = driver.execute("EXPLAIN " + statement, parameters, prepare=False)
    return "\n".join(line for (line,) in found)


def test_on_postgresql_a_read_goes_past_sqlalchemy(postgresql_store):
    """By itself and not as the way out that :class:`Direct` has: it takes half of the time."""
    seen = []
    commit(postgresql_store, message("m"))
    for engine in (postgresql_store.engine, postgresql_store.walking_engine):
        event.listen(engine, "before_cursor_execute", lambda *a: seen.append(a[2]))
    assert ids(read(postgresql_store)) == ["m"]
    assert seen == []


def test_on_postgresql_the_reading_statement_is_planned_a_few_times_only(postgresql_store):
    reader = Reader(postgresql_store, rows=2000)
    for _ in range(20):
        reader.read(ALL_SLOTS, Excluded())
    with walking(postgresql_store) as connection:
        plans = connection.execute(
            text(
                "SELECT generic_plans, custom_plans FROM pg_prepared_statements "
                "WHERE statement LIKE '%LATERAL%'"
            )
        ).all()
    assert [tuple(one) for one in plans] == [(10, 5)]


def test_on_postgresql_a_read_on_the_librarys_own_engine_is_one_round_trip(postgresql_store):
    commit(postgresql_store, message("m"))
    read(postgresql_store)
    statements = []
    watch_statements(
        postgresql_store, lambda driver, statement, parameters: statements.append(statement)
    )
    assert ids(read(postgresql_store)) == ["m"]
    assert len(statements) == 1


def test_on_postgresql_a_few_busy_keys_do_not_lead_the_planner_to_another_index(postgresql_store):
    """In the index of the ids it would walk through the whole outbox, once for each slot."""
    store = postgresql_store
    plans = []
    with store.transaction() as connection:
        put(store, connection, *(message(f"m{n}", f"k{n % 3}") for n in range(3000)))
    with store.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text(f"ANALYZE {store.tables.outbox.name}"))

    def explain(driver, statement, parameters):
        if statement.startswith("SELECT") and store.tables.outbox.name in statement:
            plans.append(plan_of(driver, statement, parameters))

    watch_statements(store, explain)
    read(store)
    assert len(plans) == 1
    assert f"Index Scan using {store.tables.outbox.name}_pkey" in plans[0]


def test_on_sqlite_reading_follows_the_table_and_sorts_nothing(sqlite_url):
    store = Store(database_url=sqlite_url)
    store.create()
    plans = []

    @event.listens_for(store.engine, "before_cursor_execute")
    def explain(connection, cursor, statement, parameters, context, many):
        driver = connection.connection.driver_connection
        found = driver.execute("EXPLAIN QUERY PLAN " + statement, parameters)
        plans.append(" | ".join(row[3] for row in found))

    read(store)
    assert len(plans) == 1
    assert plans[0].startswith(f"SCAN {store.tables.outbox.name} ")
    assert "TEMP B-TREE" not in plans[0]
    assert f"SEARCH {store.tables.outbox_held.name}" in plans[0]
    store.dispose()


@pytest.mark.parametrize("kind", ["headers", "attempts"])
def test_numbers_and_headers_of_any_kind_are_read(sqlite_url, kind):
    store = Store(database_url=sqlite_url)
    store.create()
    commit(store, message("m"))
    execute(store, f"UPDATE {store.tables.outbox.name} SET {kind} = 'no such thing'")
    assert len(read(store)) == 1
    store.dispose()


QUOTAS = st.dictionaries(st.integers(0, 63), st.integers(0, 3000), min_size=1)


@given(QUOTAS, st.integers(64, 40_000))
def test_quotas_leave_nobody_out_and_ask_for_about_what_is_wanted(waiting, rows):
    slots = sorted(waiting)
    quotas = fair_quotas(slots, {}, {}, rows)
    for _ in range(4):
        found = {slot: min(quotas[slot], waiting[slot]) for slot in slots}
        quotas = fair_quotas(slots, quotas, found, rows)
        assert set(quotas) == set(slots)
        assert min(quotas.values()) >= 1
        assert sum(quotas.values()) <= rows + len(slots)


def test_a_single_full_slot_soon_gets_most_of_the_read():
    slots = range(64)
    quotas = fair_quotas(slots, {}, {}, 2000)
    assert set(quotas.values()) == {31}
    quotas = fair_quotas(slots, quotas, Counter({7: 31}), 2000)
    assert quotas[7] > 1500
    assert quotas[8] == 7
    assert fair_quotas(slots, quotas, Counter(), 2000) == dict.fromkeys(slots, 31)


@pytest.mark.parametrize("is_ours", [False, True])
def test_a_read_that_fails_leaves_a_connection_that_the_next_one_can_use(postgresql_url, is_ours):
    engine = create_engine(
        postgresql_url,
        connect_args={"options": "-c lock_timeout=50"},
        pool_size=1,
        max_overflow=0,
        pool_timeout=5,
        pool_reset_on_return=None,
        skip_autocommit_rollback=True,
    )
    if is_ours:
        event.listen(engine, "connect", lambda _, record: record.info.update({OURS: True}))
    store = Store(engine=engine)
    store.create()
    commit(store, message("m", "k"))
    migrating = create_engine(postgresql_url)
    with migrating.connect() as migration:
        migration.execute(text("LOCK TABLE reliable_mq_outbox IN ACCESS EXCLUSIVE MODE"))
        for _ in range(3):
            with pytest.raises(OperationalError, match="lock timeout"):
                read(store)
    assert ids(read(store)) == ["m"]
    for closed in (engine, migrating):
        closed.dispose()


def test_the_application_may_have_cursors_without_a_binary_format(postgresql_url):
    engine = create_engine(postgresql_url, connect_args={"cursor_factory": psycopg.ClientCursor})
    store = Store(engine=engine)
    store.create()
    commit(store, message("a", "k1"), message("b", "k2", topic="other"))
    assert ids(read(store)) == ["a", "b"]
    assert ids(read(store, Excluded(topics=["other"]))) == ["a"]
    engine.dispose()


def test_bodies_come_in_binary_on_an_engine_of_the_application_too(postgresql_url):
    engine = create_engine(postgresql_url)
    store = Store(engine=engine)
    store.create()
    commit(store, message("a", "k1"))
    formats = []

    @event.listens_for(engine, "after_cursor_execute")
    def look(connection, cursor, statement, *_):
        if "octet_length" in statement:
            formats.append(cursor.format)

    assert ids(read(store)) == ["a"]
    assert formats == [psycopg.pq.Format.BINARY]
    engine.dispose()


@pytest.mark.parametrize("ours", [True, False])
def test_large_bodies_come_in_binary_too(postgresql_url, ours):
    engine = create_engine(postgresql_url)
    store = Store(database_url=postgresql_url) if ours else Store(engine=engine)
    store.create()
    commit(store, *(message(f"m{n}", "k", body=b"x" * 5000) for n in range(3)))
    formats = []

    @event.listens_for(store.walking_engine, "after_cursor_execute")
    def look(connection, cursor, statement, parameters, *_):
        if "body" in statement and "octet_length" not in statement:
            formats.append((cursor.format, len(parameters)))

    assert [len(row.message().body) for row in read(store)] == [5000] * 3
    assert formats == [(psycopg.pq.Format.BINARY, 1)]
    store.dispose()
    engine.dispose()


def test_on_mariadb_a_read_waits_for_no_lock_whatever_level_the_engine_has(mariadb_url):
    engine = create_engine(
        mariadb_url,
        isolation_level="SERIALIZABLE",
        connect_args={"init_command": "SET SESSION innodb_lock_wait_timeout = 1"},
    )
    store = Store(engine=engine)
    store.create()
    commit(store, message("a", "k1"), message("b", "k2"))
    with store.transaction() as connection:
        connection.execute(text(f"DELETE FROM {store.tables.outbox.name} WHERE message_id = 'a'"))
        assert ids(read(store)) == ["a", "b"]
    assert ids(read(store)) == ["b"]
    engine.dispose()
