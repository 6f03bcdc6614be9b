"""What an operator does with held messages, while relays run."""

from __future__ import annotations

import threading

import pytest

from reliable_mq.store import Store
from reliable_mq.store.outbox.held import DiscardTooEarlyError, OutboxDesk, outbox_status
from reliable_mq.store.outbox.sending import Unfit, hold
from tests.relay.support import (
    REFUSED,
    commit,
    deadlocks,
    drain,
    execute,
    held,
    make_relay,
    make_sleepy_relay,
    message,
    put,
    read,
    row_of,
    running,
    waiting,
)


@pytest.fixture
def desk(store: Store) -> OutboxDesk:
    return OutboxDesk(store, discard_after=0.0)


def hold_first(store: Store, broker, *names: str) -> int:
    """Commit messages of one key, have the first refused; return its number."""
    broker.answer(names[0], REFUSED)
    commit(store, *(message(name) for name in names))
    relay = make_relay(store, broker)
    drain(relay)
    relay.close()
    number: int = row_of(store, names[0], is_held=True).id
    return number


def test_a_retried_message_goes_out_before_those_that_waited_for_it(store, broker, desk):
    number = hold_first(store, broker, "k1", "k2", "k3")
    commit(store, message("k4"))
    assert desk.retry(number)
    assert waiting(store) == ["k1", "k2", "k3", "k4"]
    assert held(store) == []
    drain(make_relay(store, broker))
    assert broker.log == ["k1", "k2", "k3", "k4"]


def test_a_retried_message_keeps_its_place_and_content_and_begins_anew(store, broker, desk):
    broker.answer("m", REFUSED)
    commit(store, message("m", body=b"\x00body", headers={"a": b"\xff"}))
    (before,) = read(store)
    relay = make_relay(store, broker)
    drain(relay)
    assert desk.retry(before.id)
    (after,) = read(store)
    assert after == before
    row = row_of(store, "m")
    assert (row.attempts, row.cause, row.try_at) == (0, None, None)


@pytest.mark.parametrize("act", ["retry", "discard"])
def test_an_operators_deadlock_with_a_relay_is_tried_again(store, broker, desk, act):
    number = hold_first(store, broker, "k1", "k2")
    failures = deadlocks(store, "DELETE", 2)
    assert getattr(desk, act)(number)
    assert not failures
    assert waiting(store) == (["k1", "k2"] if act == "retry" else ["k2"])
    assert held(store) == []


def test_a_message_refused_again_is_held_again(store, broker, desk):
    number = hold_first(store, broker, "k1", "k2")
    broker.answer("k1", REFUSED)
    desk.retry(number)
    drain(make_relay(store, broker))
    assert (held(store), waiting(store), broker.log) == (["k1"], ["k2"], [])


def test_a_discarded_message_lets_its_key_go_on(store, broker, desk):
    number = hold_first(store, broker, "k1", "k2")
    assert desk.discard(number)
    drain(make_relay(store, broker))
    assert (held(store), waiting(store), broker.log) == ([], [], ["k2"])


def test_what_is_not_held_can_be_neither_retried_nor_discarded(store, broker, desk):
    number = hold_first(store, broker, "k1", "k2")
    assert not desk.retry(number + 1)
    assert not desk.discard(number + 1)
    assert desk.discard(number)
    assert not desk.retry(number)
    assert not desk.discard(number)


def test_a_discard_is_refused_while_a_stopped_relay_may_still_send(timed_store, clock, broker):
    number = hold_first(timed_store, broker, "k1", "k2")
    desk = OutboxDesk(timed_store, discard_after=50.0)
    clock.advance(49.0)
    with pytest.raises(DiscardTooEarlyError, match=f"message {number} .* in 1 s") as caught:
        desk.discard(number)
    assert caught.value.wait == pytest.approx(1.0, abs=0.01)
    assert held(timed_store) == ["k1"]
    clock.advance(1.0)
    assert desk.discard(number)


def test_a_retry_wakes_the_relay(store, broker, desk):
    number = hold_first(store, broker, "k1", "k2")
    with running(make_sleepy_relay(store, broker, instance="two")):
        desk.retry(number)
        broker.wait_for(lambda: broker.log == ["k1", "k2"], "the relay was not woken")


@pytest.mark.parametrize("act", ["retry", "discard"])
def test_of_several_operators_one_wins(server_store, broker, act):
    store = server_store
    desk = OutboxDesk(store, discard_after=0.0)
    number = hold_first(store, broker, "k1", "k2")
    results = []
    start = threading.Barrier(4)

    def operate():
        start.wait()
        results.append(getattr(desk, act)(number))

    operators = [threading.Thread(target=operate) for _ in range(4)]
    for one in operators:
        one.start()
    for one in operators:
        one.join()
    assert sorted(results) == [False, False, False, True]


def test_a_follower_never_overtakes_while_an_operator_retries(server_store, broker):
    """A relay reads all the time; it must see the message held, or back, but never neither."""
    store = server_store
    desk = OutboxDesk(store, discard_after=0.0)
    relay = make_relay(store, broker)
    for n in range(10):
        number = hold_first(store, broker, f"{n}a", f"{n}b")
        with running(relay):
            assert desk.retry(number)
            broker.wait_for(lambda n=n: f"{n}b" in broker.log, "not sent")
        assert broker.log[-2:] == [f"{n}a", f"{n}b"]


def test_a_retry_and_a_hold_of_the_same_row_leave_it_in_one_place(store, broker, desk):
    number = hold_first(store, broker, "k1", "k2")
    relay = make_relay(store, broker, instance="two")
    relay.step()
    desk.retry(number)
    row = next(row for row in read(store) if row.id == number)
    assert [item.row.id for item in hold(store, [Unfit(row, "x")], relay._leases)] == [number]
    assert hold(store, [Unfit(row, "x")], relay._leases) == []
    assert desk.retry(number)
    assert waiting(store) == ["k1", "k2"]


def test_entries_are_what_waits_and_what_is_held_by_number(store, broker, desk):
    number = hold_first(store, broker, "k1", "k2")
    commit(store, message("x", None, topic="invoices"))
    entries = desk.entries()
    assert [(e.message_id, e.key, e.held) for e in entries] == [
        ("k1", "k", True),
        ("k2", "k", False),
        ("x", None, False),
    ]
    assert entries[0].cause == "too large"
    assert entries[0].held_at is not None
    assert [e.message_id for e in desk.entries(held=True)] == ["k1"]
    assert [e.message_id for e in desk.entries(held=False)] == ["k2", "x"]
    assert [e.message_id for e in desk.entries(topic="invoices")] == ["x"]
    assert [e.message_id for e in desk.entries(limit=1)] == ["k1"]
    assert [e.message_id for e in desk.entries(limit=1, after=number)] == ["k2"]


def test_show_brings_body_and_headers(store, broker, desk):
    broker.answer("k1", REFUSED)
    commit(store, message("k1", body=b"\x00\xff", headers={"a": "b"}))
    drain(make_relay(store, broker))
    content = desk.show(row_of(store, "k1", is_held=True).id)
    assert (content.body, content.headers, content.entry.held) == (b"\x00\xff", {"a": "b"}, True)
    assert desk.show(10**9) is None


def test_show_and_entries_bear_a_row_that_cannot_be_read(store, broker, desk):
    commit(store, message("m"))
    execute(store, f"UPDATE {store.tables.outbox.name} SET headers = :bad", bad=b"no json")
    drain(make_relay(store, broker))
    (entry,) = desk.entries()
    assert entry.held
    assert desk.show(entry.id).headers is None


def test_the_status_counts_what_waits_and_what_is_held(timed_store, clock, broker):
    with timed_store.engine.connect() as connection:
        empty = outbox_status(connection, timed_store)
    assert (empty.pending, empty.oldest_age, empty.held, empty.unroutable) == (0, None, 0, 0)
    hold_first(timed_store, broker, "k1", "k2", "k3")
    clock.advance(5.0)
    with timed_store.engine.connect() as connection:
        status = outbox_status(connection, timed_store)
    assert (status.pending, status.held, status.unroutable) == (2, 1, 0)
    assert status.oldest_age == pytest.approx(5.0, abs=0.01)


def test_the_number_of_a_held_message_is_not_given_again(store, broker, desk):
    """Else a retry would find its place taken."""
    number = hold_first(store, broker, "k1")
    assert waiting(store) == []
    commit(store, message("new", "x"))
    assert row_of(store, "new").id > number
    assert desk.retry(number)


def test_a_transaction_that_is_still_open_behind_a_held_key_waits_when_it_commits(
    server_store, broker
):
    store = server_store
    late = store.engine.connect()
    put(store, late, message("k0"))
    hold_first(store, broker, "k1")
    late.commit()
    late.close()
    drain(make_relay(store, broker))
    assert (broker.log, waiting(store), held(store)) == ([], ["k0"], ["k1"])
