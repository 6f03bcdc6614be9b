"""Rows of the inbox, and transactions of a dialect's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection

from reliable_mq.store import Store
from tests.store.conftest import Bridge

SERVERS = ["psycopg", "psycopg_async", "asyncpg", "pymysql", "asyncmy"]
on_servers = pytest.mark.parametrize("bridge", SERVERS, indirect=True)


def row(store: Store, message_id: str, *, done: bool = True) -> dict[str, Any]:
    return {
        "consumer_group": "billing",
        "topic": "orders",
        "message_id": message_id,
        "fingerprint": b"\x00\xff" * 8,
        "received_at": store.now(),
        "done_at": store.now() if done else None,
    }


def claim(store: Store, connection: Connection, *ids: str, lock_timeout: float = 5.0) -> set[str]:
    """Claim *ids*, one alone in the way that there is for one; return the new ones."""
    rows = [row(store, message_id) for message_id in sorted(ids)]
    if len(rows) > 1:
        inbox = store.tables.inbox
        return store.dialect.claim(connection, inbox, rows, lock_timeout=lock_timeout)
    claimed = store.dialect.claim_one(
        connection, store.tables, rows[0], key=None, lock_timeout=lock_timeout
    )
    return set(ids) if claimed.new else set()


def in_begun(bridge: Bridge, work: Callable[[Connection], Any], **options: Any) -> Any:
    """Run *work* in a transaction of the dialect's own and commit it."""
    dialect = bridge.store.dialect

    def run() -> Any:
        with dialect.writing(bridge.engine), bridge.engine.connect() as connection:
            dialect.begin(connection, **options)
            result = work(connection)
            connection.commit()
            dialect.finish(connection)
            return result

    return bridge.run(run)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)
