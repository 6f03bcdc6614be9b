"""Claims: who takes responsibility for a message, when several try at once."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, event, select, text
from sqlalchemy.exc import DBAPIError

from reliable_mq.message import Message
from reliable_mq.store.dialects import Claimed, Trouble
from reliable_mq.store.direct import Direct, Values
from reliable_mq.store.retries import Retries
from tests.store.claims import claim, in_begun, on_servers, row

pytestmark = pytest.mark.timeout(60)


# SQLite has one writer at a time and no limits.
def test_a_claim_names_the_rows_that_were_new(bridge):
    assert in_begun(bridge, lambda c: claim(bridge.store, c, "a")) == {"a"}
    assert in_begun(bridge, lambda c: claim(bridge.store, c, "a")) == set()
    assert in_begun(bridge, lambda c: claim(bridge.store, c, "a", "b", "ä", "A")) == {"b", "ä", "A"}


def test_a_claim_writes_every_column(bridge):
    store = bridge.store

    now = round(time.time() * 1e6)  # this machine's clock is the server's

    def work(connection: Connection) -> Any:
        rows = {
            "waiting": row(store, "waiting", done=False),
            "done": row(store, "done"),
            "fixed": row(store, "fixed") | {"received_at": now, "done_at": now},
        }
        for name, one in rows.items():
            tables = store.tables
            store.dialect.claim(connection, tables.inbox, [one], lock_timeout=1)
            alone = {**one, "message_id": f"{name} alone"}
            store.dialect.claim_one(connection, tables, alone, key=b"k", lock_timeout=1)
        return {
            found.message_id: (
                found.consumer_group,
                found.topic,
                bytes(found.fingerprint),
                found.received_at if "fixed" in found.message_id else found.received_at > now,
                found.done_at is not None,
            )
            for found in connection.execute(select(store.tables.inbox))
        }

    common = ("billing", "orders", b"\x00\xff" * 8)
    written = {
        "waiting": (*common, True, False),
        "done": (*common, True, True),
        "fixed": (*common, now, True),
    }
    alone = {f"{name} alone": columns for name, columns in written.items()}
    assert in_begun(bridge, work) == written | alone


def test_a_claim_may_tell_whether_a_message_of_its_key_waits(bridge):
    store = bridge.store
    key = uuid4().hex  # the table of retries outlives this test
    tells = store.dialect.name == "postgresql"

    def claimed(message_id: str, key: str | None) -> Claimed:
        found: Claimed = in_begun(
            bridge,
            lambda connection: store.dialect.claim_one(
                connection,
                store.tables,
                row(store, message_id),
                key=None if key is None else key.encode(),
                lock_timeout=1,
            ),
        )
        return found

    def wait(connection: Connection) -> None:
        message = Message(id=key, topic="orders", key=key, body=b"", time=datetime.now(UTC))
        Retries(store).add(connection, "billing", message, [], attempt=1)

    none_waits, one_waits = (False, True) if tells else (None, None)
    assert claimed("a", None) == Claimed(new=True, waits=None)
    assert claimed("b", key) == Claimed(new=True, waits=none_waits)
    in_begun(bridge, wait)
    assert claimed("c", key) == Claimed(new=True, waits=one_waits)
    assert claimed("d", "another") == Claimed(new=True, waits=none_waits)
    known = b"\x00\xff" * 8 if tells else None
    assert claimed("d", key) == Claimed(new=False, waits=one_waits, known=known)
    assert claimed("d", None) == Claimed(new=False, known=known)


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
            go_on.wait(40)  # no other limit is as short
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
            assert time.monotonic() - began > 0.5
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

        bridge.run(waited, 1.0)
        assert bridge.run(waited, 3.0) > 1.9


def test_a_claim_is_one_statement(bridge, monkeypatch):
    if bridge.driver in {"pymysql", "asyncmy"} and not bridge.store.engine.dialect.is_mariadb:
        pytest.skip("MySQL has no SET STATEMENT")
    statements: list[Any] = []
    fetch = Direct.fetch

    def fetched(direct: Direct, connection: Connection, row: Values) -> Any:
        statements.append(direct)
        return fetch(direct, connection, row)

    # The events of SQLAlchemy see nothing of it.
    monkeypatch.setattr(Direct, "fetch", fetched)

    def work(connection: Connection) -> int:
        event.listen(connection, "before_cursor_execute", lambda *a: statements.append(a[2]))
        claim(bridge.store, connection, "a")
        claim(bridge.store, connection, "b", "c")
        return len(statements)

    assert in_begun(bridge, work) == 2
