"""How large a row each database takes through each driver, and what becomes of a larger message."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, delete, insert, select

from reliable_mq.errors import MessageTooLargeError
from reliable_mq.message import Message
from reliable_mq.store import Store, outbox
from reliable_mq.store.dialects import Room
from reliable_mq.store.outbox.writing import outbox_row
from reliable_mq.store.room import shortage
from tests.store.claims import in_begun
from tests.store.conftest import Bridge
from tests.store.shop import message, stored

LIMIT = 16 * 1024 * 1024
PLAIN, ESCAPED = b"a", b"\\"

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def bridge(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bridge]:
    """MariaDB's limit is its own; a gigabyte, which the others take, is too much for a test."""
    dialect = bridge.store.dialect
    if dialect.name != "mysql":
        size = 2 * LIMIT if dialect.name == "postgresql" else LIMIT
        monkeypatch.setattr(dialect, "room", lambda connection: Room(size, "a test"))
    yield bridge
    table = bridge.store.tables.outbox
    with bridge.store.transaction() as connection:
        connection.execute(delete(table))


def body_for(store: Store, connection: Connection, kind: bytes, beside: int) -> bytes:
    room = store.dialect.room(connection).size
    if room > 4 * LIMIT:
        pytest.skip(f"the server takes {room} bytes")
    sample = 1024
    each = store.dialect.size_of(connection, kind * sample) // sample
    return kind * ((room - beside) // each - 32)  # quotes and the like


@pytest.mark.parametrize("kind", [PLAIN, ESCAPED], ids=["plain", "escaped"])
def test_the_largest_row_that_is_said_to_fit_is_taken(bridge: Bridge, kind: bytes) -> None:
    store = bridge.store

    def work(connection: Connection) -> tuple[bool, bool, int]:
        body = body_for(store, connection, kind, 16_384)
        row = outbox_row(Message(id="a", topic="t", body=body))
        fits = shortage(store, connection, body=body, headers=b"", beside=16_384) is None
        more = shortage(store, connection, body=body + kind * 64, headers=b"", beside=16_384)
        connection.execute(insert(store.tables.outbox).values(row | {"created_at": 0}))
        kept = connection.execute(select(store.tables.outbox.c.body)).scalar_one()
        return fits, more is not None, len(kept) - len(body)

    assert in_begun(bridge, work) == (True, True, 0)


def test_publishing_a_larger_one_is_a_typed_error_in_the_transaction_of_the_application(
    bridge: Bridge,
) -> None:
    """And not one that looks like a lost connection, which nobody could tell from an outage."""
    store = bridge.store
    engine = bridge.engine_of_the_application()

    def publish(body: bytes | None) -> Any:
        with engine.connect() as connection, connection.begin():
            body = body or body_for(store, connection, PLAIN, 0)
            outbox.append(store, connection, message("before"))
            outbox.append(store, connection, message("large", body=body))
            outbox.flush(connection)

    try:
        with pytest.raises(MessageTooLargeError, match="'large' of 'orders' does not fit"):
            bridge.run(publish, None)
        assert stored(store) == []
        bridge.run(publish, b"small")
        assert stored(store) == ["before", "large"]
    finally:
        bridge.run(engine.dispose)


def test_of_a_row_that_does_not_fit_the_larger_part_is_left_out_and_both_if_need_be(
    bridge: Bridge,
) -> None:
    def parts(connection: Connection, body: int, headers: int) -> tuple[str, ...]:
        found = shortage(
            bridge.store, connection, body=os.urandom(body), headers=b"x" * headers, beside=0
        )
        return () if found is None else found.parts

    def work(connection: Connection) -> list[tuple[str, ...]]:
        room = bridge.store.dialect.room(connection).size
        assert room >= LIMIT
        more = room + 1
        return [
            parts(connection, 1_000_000, 1_000_000),
            parts(connection, more, 10),
            parts(connection, 10, more),
            parts(connection, more, more),
        ]

    assert in_begun(bridge, work) == [(), ("body",), ("headers",), ("body", "headers")]


def test_a_small_row_needs_no_question_to_the_database(store: Store) -> None:
    connection: Any = None
    assert shortage(store, connection, body=b"a" * 30_000, headers=b"[]", beside=0) is None
