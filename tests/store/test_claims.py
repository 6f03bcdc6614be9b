"""Claims: who takes responsibility for a message, when several try at once."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from sqlalchemy import Connection, event, select, text
from sqlalchemy.exc import DBAPIError

from reliable_mq.store.dialects import Trouble
from tests.store.claims import claim, in_begun, on_servers, row

pytestmark = pytest.mark.timeout(60)


# SQLite has one writer at a time and no limits.
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
