from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, func, select

from reliable_mq.adapter import SENT, Outcome, Refused, Unknown, Unroutable
from reliable_mq.message import Message
from reliable_mq.store import Store
from reliable_mq_sql import database, publisher
from reliable_mq_sql.subscription import Poll
from tests.adapters.sql.conftest import Open, declare, order, publish
from tests.conftest import OwnServer
from tests.relay.support import watch_statements


def test_the_order_of_offsets_is_the_order_of_commits(store: Store, opened: Open):
    """A reader that saw offset n has, or never will have, everything before n."""
    adapter = opened(store)
    declare(adapter, "billing")
    done = threading.Event()
    errors: list[BaseException] = []

    def keep_publishing(start: int) -> None:
        try:
            for number in range(start, start + 30):
                publish(adapter, number)
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            errors.append(error)

    threads = [threading.Thread(target=keep_publishing, args=(i * 1000,)) for i in range(4)]
    log = store.tables.topic_log
    for thread in threads:
        thread.start()
    seen: list[int] = []
    while not done.is_set():
        if not any(thread.is_alive() for thread in threads):
            done.set()
        begin = seen[-1] + 1 if seen else 0
        with store.engine.connect() as connection:
            seen += connection.execute(
                select(log.c.log_offset).where(log.c.log_offset >= begin).order_by(log.c.log_offset)
            ).scalars()
    for thread in threads:
        thread.join()
    assert not errors
    assert seen == list(range(120))


@pytest.mark.parametrize(
    "message",
    [
        Message(id="x" * 256, topic="orders"),
        Message(id="a\x00b", topic="orders"),
        Message(id="a\ud800", topic="orders"),
        Message(id="1", topic="orders", key="k" * 1025),
        Message(id="1", topic="orders", content_type="t" * 256),
        Message(id="1", topic="orders", headers={"name": "\ud800"}),
        Message(id="1", topic="orders", time=datetime(1969, 1, 1, tzinfo=UTC)),
    ],
    ids=["long id", "NUL", "surrogate", "long key", "long content type", "header", "time"],
)
def test_what_no_row_can_hold_is_refused_and_its_neighbours_are_sent(
    store: Store, opened: Open, message: Message
):
    adapter = opened(store)
    declare(adapter, "billing")
    outcomes = adapter.publish([order(1), message, order(2)], 20)
    assert [type(one) for one in outcomes] == [type(SENT), Refused, type(SENT)]
    assert adapter.lag("orders", "billing") == 2


def test_a_message_the_database_refuses_is_found_among_its_neighbours(
    sqlite_store: Store, opened: Open
):
    @event.listens_for(sqlite_store.engine, "connect")
    def limit(connection: sqlite3.Connection, record: object) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)

    sqlite_store.engine.dispose()
    adapter = opened(sqlite_store)
    declare(adapter, "billing")
    large = Message(id="large", topic="orders", key="bob", body=bytes(20_000))
    follower = Message(id="follower", topic="orders", key="bob")
    outcomes = adapter.publish([order(1), large, follower, order(2)], 20)
    assert [type(one) for one in outcomes] == [type(SENT), Refused, Unknown, type(SENT)]
    assert adapter.lag("orders", "billing") == 2


def test_a_message_for_which_mariadb_has_no_packet_is_refused_and_its_neighbours_are_sent(
    mariadb_url: str, opened: Open
):
    """It closes the connection without a word: an unknown outcome, again and again."""
    store = Store(database_url=mariadb_url)
    store.create()
    adapter = opened(store, max_message_bytes=100_000_000)
    declare(adapter, "billing")
    large = Message(id="large", topic="orders", key="bob", body=bytes(20_000_000))
    refused = adapter.publish([order(1), large, order(2)], 20)
    store.dispose()
    assert [type(one) for one in refused] == [type(SENT), Refused, type(SENT)]
    assert "max_allowed_packet" in getattr(refused[1], "cause", "")


def test_a_topic_that_was_dropped_is_unroutable_although_it_was_known(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing")
    publish(adapter, 1)
    with store.transaction() as connection:
        connection.execute(store.tables.topic_partition.delete())
    (outcome,) = adapter.publish([order(2)], 20)
    assert isinstance(outcome, Unroutable)


def test_a_publish_wakes_a_subscription_of_the_same_process_at_once(
    store: Store, opened: Open, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Poll, "next", lambda self: 60.0)
    adapter = opened(store)
    declare(adapter, "billing")
    subscription = adapter.subscribe(["orders"], "billing", prefetch=10, ordered=True)
    subscription.receive(10, 0)
    publisher = threading.Timer(0.2, publish, (adapter, 1))
    publisher.start()
    batch = subscription.receive(10, 60.0)
    publisher.join()
    assert [one.raw.body for one in batch.deliveries] == [b"1"]


def test_a_failed_publish_stores_nothing(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing")

    def fail(connection: Connection, *arguments: object) -> None:
        if "topic_log" in str(arguments[1]) and "INSERT" in str(arguments[1]):
            raise RuntimeError("the process dies here")

    event.listen(store.engine, "before_cursor_execute", fail)
    with pytest.raises(RuntimeError):
        adapter.publish([order(0), order(1)], 20)
    event.remove(store.engine, "before_cursor_execute", fail)
    publish(adapter, 2)
    log = store.tables.topic_log
    with store.engine.connect() as connection:
        rows = connection.execute(select(log.c.message_id, log.c.log_offset)).all()
    assert [tuple(row) for row in rows] == [("order-2", 0)]


@pytest.mark.parametrize("engine", ["ours", "given"])
def test_on_postgresql_a_message_that_comes_alone_is_one_statement(
    postgresql_url: str, opened: Open, engine: str
):
    """Its transaction is three round trips: it is what others, and a reader, wait for."""
    given = create_engine(postgresql_url)
    store = Store(engine=given) if engine == "given" else Store(database_url=postgresql_url)
    store.create()
    adapter = opened(store)
    declare(adapter)
    publish(adapter, 1)
    seen: list[str] = []
    watch_statements(store, lambda driver, statement, parameters: seen.append(statement))
    publish(adapter, 2)
    assert len([one for one in seen if "pg_notify" not in one]) == 1
    adapter.close()
    store.dispose()
    given.dispose()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {
            "key": "bob \N{SNOWMAN}",
            "body": bytes(range(256)),
            "headers": {"name": "value", "bytes": b"\x00\xff"},
            "content_type": "text/plain",
            "time": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        },
    ],
    ids=["nothing", "everything"],
)
def test_a_message_is_stored_alone_as_it_is_among_others(
    store: Store, opened: Open, content: dict[str, Any]
):
    adapter = opened(store)
    declare(adapter)
    content = {"time": datetime(2026, 1, 1, tzinfo=UTC), **content}
    one, two, three = (Message(id=f"m{n}", topic="orders", **content) for n in range(3))
    assert adapter.publish([one], 20) == [SENT]
    assert adapter.publish([two, three], 20) == [SENT] * 2
    log = store.tables.topic_log
    with store.engine.connect() as connection:
        rows = connection.execute(select(log).order_by(log.c.log_offset)).mappings().all()
    assert [(row["message_id"], row["log_offset"]) for row in rows] == [
        ("m0", 0),
        ("m1", 1),
        ("m2", 2),
    ]
    assert rows[0]["created_at"] <= rows[1]["created_at"]
    own = {"message_id", "log_offset", "created_at"}
    rest = [{name: value for name, value in row.items() if name not in own} for row in rows]
    assert rest[0] == rest[1]


@pytest.mark.parametrize(
    "numbers", [[1], [1, 2], range(1, 9)], ids=["one", "one partition", "several partitions"]
)
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_publisher_that_stops_in_its_transaction_blocks_others_only_for_a_while(
    kind: str,
    numbers: Sequence[int],
    opened: Open,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
):
    monkeypatch.setattr(database, "_IDLE", 1.0)
    store = Store(database_url=request.getfixturevalue(f"{kind}_url"))
    store.create()
    stopped, adapter = opened(store), opened(store)
    declare(adapter, "billing", partitions=8 if len(numbers) > 2 else 1)
    reached, go_on = threading.Event(), threading.Event()

    def stop(point: str) -> None:
        if point == "publish.unconfirmed" and not reached.is_set():
            reached.set()
            assert go_on.wait(60)

    monkeypatch.setattr(publisher, "crash_point", stop)
    batch = [order(number, key=f"key-{number}") for number in numbers]
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.extend(stopped.publish(batch, 50)))
    thread.start()
    assert reached.wait(20)
    assert adapter.publish(batch, 20) == [SENT] * len(batch)
    go_on.set()
    thread.join()
    assert {type(one) for one in outcomes} == {Unknown}
    assert adapter.lag("orders", "billing") == len(batch)
    store.dispose()


@pytest.mark.parametrize("numbers", [[1], [1, 2]], ids=["one", "two"])
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_what_was_not_stored_in_time_is_not_stored_later(
    kind: str, numbers: Sequence[int], opened: Open, request: pytest.FixtureRequest
):
    """The end of the partition is locked by somebody until the time is up."""
    store = Store(database_url=request.getfixturevalue(f"{kind}_url"))
    store.create()
    adapter = opened(store)
    declare(adapter, "billing")
    batch = [order(number) for number in numbers]
    before = set(threading.enumerate())
    with store.transaction() as connection:
        connection.execute(select(store.tables.topic_partition).with_for_update())
        outcomes = adapter.publish(batch, 0.5)
    assert {type(one) for one in outcomes} == {Unknown}
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()
    assert adapter.lag("orders", "billing") == 0
    store.dispose()


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_calls_on_a_stopped_server_return_in_time_and_leave_no_thread_when_it_goes_on(
    kind: str, opened: Open, own_server: OwnServer
):
    server = own_server(kind)
    store = Store(database_url=server.url)
    store.create()
    before = set(threading.enumerate())
    adapter = opened(store)
    declare(adapter, "billing")
    subscription = adapter.subscribe(["orders"], "billing", prefetch=10, ordered=True)
    subscription.receive(1, 0)
    publish(adapter, 1)
    server.pause()
    try:
        begin = time.monotonic()
        first = adapter.publish([order(2)], 1.0)
        second = adapter.publish([order(2)], 1.0)
        subscription.close()
        assert time.monotonic() - begin < 20
        assert [type(one) for one in first + second] == [Unknown, Unknown]
    finally:
        server.resume()
    adapter.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()
    publish(opened(store), 3)
    store.dispose()


def test_the_number_of_rows_is_the_number_of_messages_sent(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, partitions=4)
    batch = [order(number, key=None if number % 2 else f"key-{number}") for number in range(100)]
    assert adapter.publish(batch, 20) == [SENT] * 100
    log, part = store.tables.topic_log, store.tables.topic_partition
    with store.engine.connect() as connection:
        rows = connection.execute(select(func.count()).select_from(log)).scalar_one()
        ends = connection.execute(select(part.c.next_offset)).scalars().all()
    assert rows == sum(ends) == 100
    assert all(ends)


def test_offsets_follow_each_other_whether_a_publish_goes_to_one_partition_or_to_several(
    store: Store, opened: Open
):
    adapter = opened(store)
    declare(adapter, partitions=3)
    publish(adapter, 0)
    publish(adapter, *range(1, 4))
    publish(adapter, *range(4, 24), keys=12)
    publish(adapter, *range(24, 27))
    log, part = store.tables.topic_log.c, store.tables.topic_partition.c
    with store.engine.connect() as connection:
        rows = connection.execute(select(log.partition, log.log_offset)).all()
        ends = connection.execute(select(part.partition, part.next_offset)).all()
    assert len(rows) == 27
    assert sorted(tuple(row) for row in rows) == [
        (partition, offset) for partition, end in sorted(map(tuple, ends)) for offset in range(end)
    ]
