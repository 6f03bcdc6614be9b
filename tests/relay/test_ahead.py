"""Reading ahead: what follows is read while the last batches are sent, and nothing else changes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy.exc import OperationalError

from reliable_mq.relay import supply
from reliable_mq.store.outbox import reading
from reliable_mq.store.outbox.in_flight import InFlight
from reliable_mq.store.outbox.reading import Excluded, Reader
from tests.relay.support import (
    ALL_SLOTS,
    DEADLINE,
    NEVER,
    REFUSED,
    UNKNOWN,
    before_execution,
    commit,
    eventually,
    execute,
    held,
    make_relay,
    message,
    put,
    running,
    waiting,
)

BATCH = 2
READ = 4 * BATCH


class Watch:
    """Sees what each read of a relay brought; calls ``before`` when one ahead begins."""

    def __init__(self, relay, monkeypatch):
        self.reads: list[list[str]] = []
        self.ahead: list[list[str]] = []
        self.began = threading.Event()
        self.ended = threading.Event()
        self.before: Callable[[], object] = lambda: None
        real = relay._supply._reader.read

        def read(slots, excluded, *in_flight):
            if in_flight:
                self.began.set()
                before, self.before = self.before, lambda: None
                before()
            rows = real(slots, excluded, *in_flight)
            self.reads.append([row.message_id for row in rows])
            if in_flight:
                self.ahead.append(self.reads[-1])
                self.ended.set()
            return rows

        monkeypatch.setattr(relay._supply._reader, "read", read)


def fill(store, count, *, first=0, keys=5):
    commit(store, *(message(f"m{n:03}", f"k{n % keys}") for n in range(first, first + count)))


def of_key(log, key, keys=5):
    return [name for name in log if int(name[1:]) % keys == key]


def make_ready(store, broker, **options):
    """A relay that reads ahead from the first read on, however long a machine stands still.

    With leases that are soon due for renewal it does not: what it read would be dropped.
    """
    return make_relay(store, broker, lease=3 * NEVER, **options)


def at_publish(broker, number, act):
    """Do *act* when the *number*-th publish begins (from 1)."""
    calls = []

    def gate(messages):
        calls.append(1)
        if len(calls) == number:
            act()

    broker.gate = gate


def drained(store, broker, relay, count):
    with running(relay):
        eventually(lambda: not waiting(store), "not everything was sent")
    assert len(set(broker.log)) == count


def test_the_next_read_begins_while_the_last_batches_are_sent(server_store, broker, monkeypatch):
    fill(server_store, 3 * READ)
    relay = make_ready(server_store, broker, batch_size=BATCH)
    watch = Watch(relay, monkeypatch)
    at_publish(broker, 4, lambda: watch.ended.wait(DEADLINE) or pytest.fail("it was not begun"))
    drained(server_store, broker, relay, 3 * READ)
    assert broker.log == [f"m{n:03}" for n in range(3 * READ)]


def test_everything_goes_out_once_and_in_order(server_store, broker, monkeypatch):
    fill(server_store, 300, keys=7)
    relay = make_ready(server_store, broker, batch_size=BATCH)
    watch = Watch(relay, monkeypatch)
    drained(server_store, broker, relay, 300)
    assert len(broker.log) == 300
    for key in range(7):
        assert of_key(broker.log, key, 7) == sorted(of_key(broker.log, key, 7))
    assert len(watch.ahead) > 20


def test_what_is_being_deleted_is_not_sent_again(server_store, broker, monkeypatch):
    """The batch before is confirmed, and its rows are still there when the read ahead begins."""
    store = server_store
    fill(store, 3 * READ)
    relay = make_ready(store, broker, batch_size=BATCH)
    watch = Watch(relay, monkeypatch)
    deletions = []

    @before_execution(store)
    def wait(connection, cursor, statement, parameters, context, many):
        if statement.startswith("DELETE"):
            deletions.append(statement)
            if len(deletions) == 2:
                assert watch.ended.wait(DEADLINE), "nothing was read meanwhile"

    drained(store, broker, relay, 3 * READ)
    assert len(broker.log) == 3 * READ


def test_where_little_waits_nothing_is_read_ahead(server_store, broker, monkeypatch):
    fill(server_store, 3)
    relay = make_ready(server_store, broker)
    watch = Watch(relay, monkeypatch)
    drained(server_store, broker, relay, 3)
    assert watch.ahead == []


def test_a_step_reads_once(server_store, broker):
    fill(server_store, 3 * READ)
    relay = make_ready(server_store, broker, batch_size=BATCH)
    assert relay.step().sent == READ
    assert len(broker.log) == READ


def test_a_late_commit_with_a_lower_id_than_those_in_flight_is_sent_before_its_follower(
    server_store, broker, monkeypatch
):
    """A read behind the last id in flight would bring the follower alone."""
    store = server_store
    late = store.engine.connect()
    put(store, late, message("late", "k0"))
    fill(store, 3 * READ, keys=1)  # of the same key, and so of the same slot
    relay = make_ready(store, broker, batch_size=BATCH)
    watch = Watch(relay, monkeypatch)

    def commit_late():
        late.commit()
        late.close()
        commit(store, message("follower", "k0"))

    watch.before = commit_late
    with running(relay):
        eventually(lambda: not waiting(store), "not everything was sent")
    assert watch.ahead[0][0] == "late"
    assert broker.log.index("late") < broker.log.index("follower")
    assert broker.log.count("late") == 1
    assert len(broker.log) == 3 * READ + 2


def test_what_had_no_confirmation_is_sent_again_before_what_was_read_ahead_of_its_key(
    server_store, broker, monkeypatch
):
    store = server_store
    fill(store, 2 * READ, keys=1)
    relay = make_ready(store, broker, batch_size=BATCH)
    watch = Watch(relay, monkeypatch)
    broker.answer("m003", UNKNOWN)  # the last one of the first read: four of a slot
    at_publish(broker, 2, lambda: watch.ended.wait(DEADLINE) or pytest.fail("nothing was ahead"))
    drained(store, broker, relay, 2 * READ)
    assert watch.ahead[0][0] == "m004"
    assert broker.log == [f"m{n:03}" for n in range(2 * READ)]


def test_what_was_read_ahead_behind_a_refused_message_waits(server_store, broker, monkeypatch):
    store = server_store
    fill(store, 2 * READ, keys=1)
    relay = make_ready(store, broker, batch_size=BATCH)
    watch = Watch(relay, monkeypatch)
    broker.answer("m003", REFUSED)
    at_publish(broker, 2, lambda: watch.ended.wait(DEADLINE) or pytest.fail("nothing was ahead"))
    with running(relay):
        eventually(lambda: held(store) == ["m003"], "it was not held")
        eventually(lambda: len(watch.reads) > len(watch.ahead) + 1, "it did not read again")
    assert watch.ahead[0][0] == "m004"
    assert broker.log == ["m000", "m001", "m002"]
    assert waiting(store) == [f"m{n:03}" for n in range(4, 2 * READ)]


def test_what_was_read_ahead_is_dropped_where_the_slots_may_have_moved(
    server_store, broker, monkeypatch
):
    """Whoever had a slot meanwhile has sent its rows, or has them held."""
    store = server_store
    fill(store, 3 * READ)
    relay = make_ready(store, broker, batch_size=BATCH)
    watch = Watch(relay, monkeypatch)
    gone = f"m{READ:03}"

    def move():
        assert watch.ended.wait(DEADLINE)
        relay._renew_at = float("-inf")
        execute(
            store,
            f"DELETE FROM {store.tables.outbox.name} WHERE message_id = :name",
            name=gone if store.dialect.name == "postgresql" else gone.encode(),
        )

    at_publish(broker, 4, move)
    drained(store, broker, relay, 3 * READ - 1)
    assert gone in watch.ahead[0]
    assert gone not in broker.log


def test_a_read_ahead_that_fails_is_repeated_and_nothing_is_sent_twice(
    server_store, broker, monkeypatch, caplog
):
    fill(server_store, 3 * READ)
    relay = make_ready(server_store, broker, batch_size=BATCH)
    watch = Watch(relay, monkeypatch)

    def fail():
        raise OperationalError("SELECT", {}, Exception("gone"))

    watch.before = fail
    drained(server_store, broker, relay, 3 * READ)
    assert broker.log == [f"m{n:03}" for n in range(3 * READ)]
    assert "the relay waits" in caplog.text


def test_what_failed_unneeded_is_not_complained_of_again(server_store, broker, monkeypatch):
    """The database is away for a moment, for the read ahead and for the settling before it."""
    store = server_store
    fill(store, 3 * READ)
    relay = make_ready(store, broker, batch_size=BATCH)
    watch = Watch(relay, monkeypatch)
    complaints: list[Exception] = []
    deletions: list[str] = []
    monkeypatch.setattr(relay, "_complain", complaints.append)

    def fail():
        raise OperationalError("SELECT", {}, Exception("gone"))

    @before_execution(store)
    def refuse(connection, cursor, statement, parameters, context, many):
        if statement.startswith("DELETE"):
            deletions.append(statement)
            if len(deletions) == 3:
                raise OperationalError("DELETE", {}, Exception("gone"))

    watch.before = fail
    drained(store, broker, relay, 3 * READ)
    assert watch.began.is_set()
    assert len(complaints) == 1
    assert broker.log == [f"m{n:03}" for n in range(3 * READ)]


def test_nothing_is_read_ahead_that_would_be_dropped_for_the_leases(
    server_store, broker, monkeypatch
):
    fill(server_store, 2 * READ)
    relay = make_ready(server_store, broker, batch_size=BATCH)
    watch = Watch(relay, monkeypatch)
    calls: list[bool] = []

    def gate(messages):
        calls.append(watch.began.is_set())
        if len(calls) == 2:
            relay._renew_at = float("-inf")

    broker.gate = gate
    drained(server_store, broker, relay, 2 * READ)
    assert calls[:4] == [False] * 4


def test_no_connection_is_in_use_while_it_waits_for_the_broker(server_store, broker, monkeypatch):
    """What runs beside ends by itself: neither waits for what the broker answers."""
    store = server_store
    fill(store, 3 * READ)
    relay = make_ready(store, broker, batch_size=BATCH)
    watch = Watch(relay, monkeypatch)

    def wait():
        assert watch.ended.wait(DEADLINE)
        eventually(lambda: store.engine.pool.checkedout() == 0, "a connection is in use")

    at_publish(broker, 4, wait)
    drained(store, broker, relay, 3 * READ)


def test_an_end_does_not_wait_for_a_read_that_hangs(server_store, broker, monkeypatch):
    monkeypatch.setattr(supply, "_PATIENCE", 0.1)
    fill(server_store, 2 * READ)
    relay = make_ready(server_store, broker, batch_size=BATCH)
    watch = Watch(relay, monkeypatch)
    go_on = threading.Event()
    watch.before = lambda: go_on.wait(DEADLINE)
    with running(relay) as (one,):
        assert watch.began.wait(DEADLINE)
        one.stop.set()
        relay.wake()
        eventually(lambda: not one.alive, "it waits for the read")
    assert not relay._leases.held
    go_on.set()
    assert watch.ended.wait(DEADLINE)
    assert len(broker.log) + len(waiting(server_store)) == 2 * READ


@pytest.mark.parametrize("way", ["take", "drop"])
def test_an_end_interrupts_the_wait_for_a_read_that_hangs(server_store, broker, monkeypatch, way):
    """A read that is wanted, and one that is of no use since the last message had no answer."""
    monkeypatch.setattr(supply, "_PATIENCE", 0.1)
    fill(server_store, 2 * READ)
    relay = make_ready(server_store, broker, batch_size=BATCH)
    watch = Watch(relay, monkeypatch)
    go_on, entered = threading.Event(), threading.Event()
    watch.before = lambda: go_on.wait(2 * DEADLINE)
    waits = getattr(relay._supply, way)

    def enter(stop: threading.Event) -> object:
        if watch.began.is_set():
            entered.set()
        return waits(stop)

    monkeypatch.setattr(relay._supply, way, enter)
    if way == "drop":
        broker.answer(f"m{READ - 1:03}", UNKNOWN)
    with running(relay) as (one,):
        assert entered.wait(DEADLINE)
        one.stop.set()
        relay.wake()
        eventually(lambda: not one.alive, "it waits for the read")
    go_on.set()
    assert watch.ended.wait(DEADLINE)
    assert len(waiting(server_store)) == READ + (way == "drop")


# --- the reader's part ---------------------------------------------------------------------------


def test_what_is_in_flight_is_left_out_and_room_is_made_for_as_many(store):
    fill(store, 900, keys=3)
    reader = Reader(store, rows=256)
    first = reader.read(ALL_SLOTS, Excluded())
    second = reader.read(ALL_SLOTS, Excluded(), InFlight.of(first))
    third = reader.read(ALL_SLOTS, Excluded(), InFlight.of([*first, *second]))
    seen = [row.message_id for row in [*first, *second, *third]]
    assert len(set(seen)) == len(seen)
    assert len(third) >= 150  # by then it knows where the rows are
    for key in range(3):
        names = [name for name in seen if int(name[1:]) % 3 == key]
        assert names == [f"m{n:03}" for n in range(key, 900, 3)][: len(names)]


def test_the_bound_in_bytes_holds_for_a_read_ahead_and_bodies_are_whole(store, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 100_000)
    body = b"x" * 30_000
    late, names = "late", [f"m{n}" for n in range(8)]
    commit(store, message(late, "k", body=b"y" * 200))
    commit(store, *(message(name, "k", body=body) for name in names))
    reader = Reader(store, rows=256)
    in_flight = InFlight.of(reader.read(ALL_SLOTS, Excluded())[1:])
    found = reader.read(ALL_SLOTS, Excluded(), in_flight)
    assert [row.message_id for row in found] == [late, "m3", "m4", "m5"]
    assert [len(row.message().body) for row in found] == [200, 30_000, 30_000, 30_000]
