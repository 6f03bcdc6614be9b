from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
from sqlalchemy import Connection, event, select, update
from sqlalchemy.exc import OperationalError

from reliable_mq.adapter import AdapterContext, Received
from reliable_mq.errors import TransportError
from reliable_mq.store import Store
from reliable_mq_sql import open_adapter
from reliable_mq_sql.subscription import SqlSubscription
from tests.adapters.sql.conftest import Open, declare, publish


def take(subscription: SqlSubscription, count: int) -> list[Received]:
    taken: list[Received] = []
    for _ in range(200):
        taken += subscription.receive(count - len(taken), 0.1).deliveries
        if len(taken) == count:
            return taken
    raise AssertionError(f"{len(taken)} of {count} deliveries")


def bodies(deliveries: list[Received]) -> list[bytes]:
    return [delivery.raw.body for delivery in deliveries]


def cursor_of(store: Store, group: str) -> int:
    cursor = store.tables.topic_cursor
    with store.engine.connect() as connection:
        query = select(cursor.c.log_offset).where(cursor.c.consumer_group == group)
        return int(connection.execute(query).scalar_one())


def expire_all_leases(connection: Connection, store: Store) -> None:
    connection.execute(update(store.tables.lease).values(expires_at=0))


def test_an_owner_whose_lease_expired_cannot_move_the_cursor(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing")
    publish(adapter, 0, 1, 2)
    stale = adapter.subscribe(["orders"], "billing", prefetch=10, ordered=True)
    held = take(stale, 3)
    with store.transaction() as connection:
        expire_all_leases(connection, store)
    heir = opened(store).subscribe(["orders"], "billing", prefetch=10, ordered=True)
    assert bodies(take(heir, 3)) == [b"0", b"1", b"2"]
    stale.ack(held)
    with pytest.raises(TransportError, match="lost before"):
        stale.flush()
    assert cursor_of(store, "billing") == 0
    assert [one.partition for one in stale.receive(10, 5).lost] == ["orders/0"]


def test_acks_are_committed_while_idle_and_at_the_latest_with_flush(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing")
    publish(adapter, *range(10))
    subscription = adapter.subscribe(["orders"], "billing", prefetch=10, ordered=True)
    held = take(subscription, 10)
    subscription.ack(held[:4])
    subscription.flush()
    assert cursor_of(store, "billing") == 4
    subscription.ack(held[4:])
    subscription.receive(10, 0)
    assert cursor_of(store, "billing") == 10


def test_a_hole_in_the_acks_keeps_the_cursor_before_it(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing")
    publish(adapter, *range(5))
    subscription = adapter.subscribe(["orders"], "billing", prefetch=10, ordered=False)
    held = take(subscription, 5)
    subscription.ack([held[0], held[1], held[3], held[4]])
    subscription.flush()
    assert cursor_of(store, "billing") == 2
    assert adapter.lag("orders", "billing") == 3
    subscription.ack([held[2]])
    subscription.flush()
    assert cursor_of(store, "billing") == 5


def test_two_subscriptions_of_one_adapter_are_two_members(store: Store, opened: Open):
    adapter = opened(store, lease=3.0)
    declare(adapter, "billing", partitions=2)
    members = [
        adapter.subscribe(["orders"], "billing", prefetch=10, ordered=True) for _ in range(2)
    ]
    shares = [0, 0]
    for _ in range(200):
        for member in members:
            member.receive(0, 0.02)
        shares = [sum(len(share.owned) for share in member._shares) for member in members]
        if shares == [1, 1]:
            break
    assert shares == [1, 1]


def test_a_long_instance_name_still_makes_an_owner(store: Store):
    adapter = open_adapter("sql://", AdapterContext(instance="x" * 300, store=store))
    declare(adapter, "billing")
    publish(adapter, 1)
    subscription = adapter.subscribe(["orders"], "billing", prefetch=10, ordered=True)
    assert bodies(take(subscription, 1)) == [b"1"]
    adapter.close()


def test_a_receive_larger_than_one_read_goes_on_where_it_stopped(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing")
    publish(adapter, *range(500))
    subscription = adapter.subscribe(["orders"], "billing", prefetch=1000, ordered=True)
    assert bodies(take(subscription, 500)) == [str(number).encode() for number in range(500)]


def test_a_read_that_fails_half_way_loses_nothing(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing", partitions=4)
    publish(adapter, *range(40), keys=20)
    subscription = adapter.subscribe(["orders"], "billing", prefetch=100, ordered=True)
    subscription.receive(0, 0)
    reads = itertools.count(1)

    def fail(connection: Connection, cursor: object, statement: str, *rest: object) -> None:
        if "topic_log" in statement and "LIMIT" in statement and next(reads) == 2:
            raise OperationalError(statement, None, Exception("connection lost"))

    event.listen(store.engine, "before_cursor_execute", fail)
    with pytest.raises(TransportError):
        subscription.receive(100, 5)
    event.remove(store.engine, "before_cursor_execute", fail)
    assert sorted(map(int, bodies(take(subscription, 40)))) == list(range(40))


@pytest.mark.parametrize(("partitions", "statements"), [(1, 1), (4, 2)])
def test_a_look_at_one_new_entry_takes_a_statement_and_with_several_partitions_two(
    store: Store, opened: Open, partitions: int, statements: int
):
    adapter = opened(store)
    declare(adapter, "billing", partitions=partitions)
    subscription = adapter.subscribe(["orders"], "billing", prefetch=10, ordered=True)
    subscription.receive(0, 0)
    publish(adapter, 1)
    seen: list[str] = []

    def note(connection: Connection, cursor: object, statement: str, *rest: object) -> None:
        if store.dialect.name == "postgresql":
            pooled: Any = connection.connection
            assert pooled.driver_connection.info.transaction_status.name == "IDLE", (
                "it began a transaction"
            )
        seen.append(statement)

    event.listen(store.engine, "after_cursor_execute", note)
    deliveries = subscription._read(10)
    event.remove(store.engine, "after_cursor_execute", note)
    assert bodies(deliveries) == [b"1"]
    assert len(seen) == statements, seen


def test_a_cursor_moved_by_hand_is_where_the_owner_goes_on(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing")
    publish(adapter, *range(10))
    subscription = adapter.subscribe(["orders"], "billing", prefetch=10, ordered=True)
    held = take(subscription, 5)
    with store.transaction() as connection:
        connection.execute(update(store.tables.topic_cursor).values(log_offset=8))
    subscription.ack(held)
    with pytest.raises(TransportError, match="lost before"):
        subscription.flush()
    assert bodies(take(subscription, 2)) == [b"8", b"9"]
    subscription.flush()


def test_a_closed_subscription_refuses_to_receive_and_ignores_the_rest(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing")
    publish(adapter, 1)
    subscription = adapter.subscribe(["orders"], "billing", prefetch=10, ordered=True)
    held = take(subscription, 1)
    adapter.close()
    for call in (subscription.ack, subscription.release, subscription.keep_alive):
        call(held)
    subscription.flush()
    subscription.hand_over("orders/0")
    with pytest.raises(TransportError, match="closed"):
        subscription.receive(1, 0)
    assert cursor_of(store, "billing") == 0


def test_closing_the_adapter_ends_a_receive_on_another_thread(store: Store, opened: Open):
    adapter = opened(store)
    declare(adapter, "billing")
    subscription = adapter.subscribe(["orders"], "billing", prefetch=10, ordered=True)
    subscription.receive(0, 0)
    ended = threading.Event()

    def wait() -> None:
        with pytest.raises(TransportError, match="closed"):
            subscription.receive(1, 60)
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    adapter.close()
    assert ended.wait(20)
    thread.join()
    lease = store.tables.lease
    with store.engine.connect() as connection:
        owners = connection.execute(select(lease.c.owner)).scalars().all()
    assert owners == [None]
