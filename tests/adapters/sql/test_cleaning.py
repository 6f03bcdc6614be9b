from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from reliable_mq.adapter import GroupSpec
from reliable_mq.store import Store
from reliable_mq_sql import SqlAdapter, cleaner
from reliable_mq_sql.cleaner import Cleaner
from reliable_mq_sql.database import Database
from tests.adapters.sql.conftest import Open, declare, publish
from tests.adapters.sql.test_consuming import bodies, take


def entries(store: Store) -> int:
    with store.engine.connect() as connection:
        query = select(func.count()).select_from(store.tables.topic_log)
        return int(connection.execute(query).scalar_one())


def clean(store: Store, *partitions: int) -> None:
    Cleaner(Database(store)).clean("orders", partitions or (0,))


def make_old(store: Store, below: int, seconds: int) -> None:
    log = store.tables.topic_log
    with store.transaction() as connection:
        connection.execute(
            update(log)
            .where(log.c.log_offset < below)
            .values(created_at=log.c.created_at - seconds * 1_000_000)
        )


def consume(adapter: SqlAdapter, group: str, count: int) -> None:
    subscription = adapter.subscribe(["orders"], group, prefetch=100, ordered=True)
    subscription.ack(take(subscription, count))
    subscription.close()


def test_an_entry_goes_once_every_group_has_acknowledged_it(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing", "audit")
    publish(adapter, *range(10))
    consume(adapter, "billing", 8)
    clean(store)
    assert entries(store) == 10
    consume(adapter, "audit", 5)
    clean(store)
    assert entries(store) == 5
    assert adapter.lag("orders", "billing") == 2


def test_a_topic_without_groups_keeps_everything(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter)
    publish(adapter, *range(10))
    clean(store)
    assert entries(store) == 10
    adapter.declare([], [GroupSpec(topic="orders", group="late")])
    subscription = adapter.subscribe(["orders"], "late", prefetch=100, ordered=True)
    assert len(take(subscription, 10)) == 10


def test_a_late_group_starts_at_the_earliest_entry_that_is_left(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing")
    publish(adapter, *range(10))
    consume(adapter, "billing", 6)
    clean(store)
    adapter.declare([], [GroupSpec(topic="orders", group="late")])
    assert adapter.lag("orders", "late") == 4
    subscription = adapter.subscribe(["orders"], "late", prefetch=100, ordered=True)
    assert bodies(take(subscription, 4)) == [b"6", b"7", b"8", b"9"]


def test_retention_removes_what_is_old_acknowledged_or_not(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing", retention=3600)
    publish(adapter, *range(10))
    make_old(store, below=7, seconds=7200)
    clean(store)
    assert entries(store) == 3
    assert adapter.lag("orders", "billing") == 3
    subscription = adapter.subscribe(["orders"], "billing", prefetch=100, ordered=True)
    assert bodies(take(subscription, 3)) == [b"7", b"8", b"9"]


def test_a_publish_expires_what_nobody_consumes(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, retention=3600)
    publish(adapter, *range(10))
    make_old(store, below=10, seconds=7200)
    publish(opened(store), 10)
    assert entries(store) == 1


def test_more_than_fits_one_transaction_goes_in_rounds(
    store: Store, opened: Open, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cleaner, "_AT_ONCE", 3)
    adapter = opened(store)
    declare(adapter, "billing")
    publish(adapter, *range(10))
    consume(adapter, "billing", 10)
    mine = Cleaner(Database(store))
    left = []
    for _ in range(4):
        mine.clean("orders", [0])
        left.append(entries(store))
    assert left == [7, 4, 1, 0]


def test_a_consumer_cleans_what_it_has_acknowledged(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing")
    publish(adapter, *range(10))
    subscription = adapter.subscribe(["orders"], "billing", prefetch=100, ordered=True)
    subscription.ack(take(subscription, 10))
    for _ in range(100):
        subscription.receive(10, 0.1)
        if entries(store) == 0:
            break
    assert entries(store) == 0


def test_a_group_that_joins_while_entries_are_cleaned_sees_no_gap(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing")
    stop = threading.Event()
    errors: list[BaseException] = []

    def publish_consume_and_clean() -> None:
        try:
            own = opened(store)
            subscription = own.subscribe(["orders"], "billing", prefetch=100, ordered=True)
            number = 0
            while not stop.is_set():
                publish(own, *range(number, number + 5))
                number += 5
                subscription.ack(take(subscription, 5))
                subscription.flush()
                clean(store)
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            errors.append(error)

    thread = threading.Thread(target=publish_consume_and_clean)
    thread.start()
    part, cursor = store.tables.topic_partition, store.tables.topic_cursor
    for index in range(30):
        group = f"late_{index}"
        adapter.declare([], [GroupSpec(topic="orders", group=group)])
        with store.engine.connect() as connection:
            begin, first = connection.execute(
                select(cursor.c.log_offset, part.c.first_offset).where(
                    cursor.c.consumer_group == group, part.c.topic == cursor.c.topic
                )
            ).one()
        assert first <= begin, "what the group has not seen is gone"
        with store.transaction() as connection:
            connection.execute(cursor.delete().where(cursor.c.consumer_group == group))
    stop.set()
    thread.join()
    assert not errors


def test_the_redelivery_bound_is_the_longest_retention_or_none(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, retention=timedelta(hours=1))
    assert adapter.redelivery_bound(["orders"]) == timedelta(hours=1)
    assert adapter.redelivery_bound(["orders", "unknown"]) is None
