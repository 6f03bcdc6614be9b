"""What becomes of a row after each answer of the broker."""

from __future__ import annotations

from itertools import pairwise

import pytest

from reliable_mq.adapter import SENT, Refused, Unknown
from reliable_mq.errors import TransportError
from reliable_mq.events import BrokerDown, BrokerUp, Events, MessageHeld, MessageSent
from reliable_mq.relay.waiting import MAX_DELAY
from reliable_mq.store import Store
from reliable_mq.store.outbox.held import outbox_status
from reliable_mq.store.outbox.sending import Unfit, hold
from tests.relay.support import (
    REFUSED,
    UNKNOWN,
    UNROUTABLE,
    Recorder,
    commit,
    drain,
    execute,
    held,
    make_relay,
    message,
    one_round,
    read,
    row_of,
    waiting,
)


def test_only_a_confirmed_message_leaves_the_outbox(store, broker):
    events = Events()
    recorder = Recorder(events)
    commit(store, message("m", headers={"text": "ä", "raw": b"\xff"}, body=b"\x00\xff"))
    drain(make_relay(store, broker, events=events))
    assert waiting(store) == []
    sent = recorder.of(MessageSent)
    assert [(event.topic, event.message_id) for event in sent] == [("orders", "m")]
    assert 0 <= sent[0].age < 60


def test_a_message_is_rebuilt_as_it_was_published(store):
    given = message("m", headers={"text": "ä", "raw": b"\xff"}, body=b"\x00\xff")
    commit(store, given)
    (row,) = read(store)
    assert row.message() == given


def test_trap_6_an_outage_deletes_nothing_and_is_told_once_each_way(store, broker):
    events = Events()
    recorder = Recorder(events)
    commit(store, message("k1"), message("x1", "x"), message("none", None))
    broker.everything = UNKNOWN
    relay = make_relay(store, broker, events=events)
    for _ in range(3):
        assert not relay.step().moved
    assert (relay.healthy, len(waiting(store))) == (False, 3)
    broker.everything = None
    assert drain(relay) == 3
    assert (relay.healthy, len(waiting(store))) == (True, 0)
    assert [event.cause for event in recorder.of(BrokerDown)] == [UNKNOWN.cause]
    assert len(recorder.of(BrokerUp)) == 1


def test_the_row_says_why_it_waits_and_how_often_it_was_tried(store, broker):
    commit(store, message("m"))
    broker.everything = UNKNOWN
    relay = make_relay(store, broker)
    relay.step()
    relay.step()
    row = row_of(store, "m")
    assert (row.attempts, row.cause) == (2, "unconfirmed: no answer in time")


def test_trap_6_a_topic_nobody_listens_to_stays_is_shown_and_is_tried_again(
    timed_store, clock, broker
):
    store = timed_store
    broker.topics["nobody"] = UNROUTABLE
    commit(store, *(message(f"n{n}", f"k{n}", topic="nobody") for n in range(3)))
    relay = make_relay(store, broker, clock=clock)
    relay.step()
    commit(store, message("n3", "k3", topic="nobody"), message("fine"))
    assert relay.sendable() == 1
    drain(relay)
    assert broker.log == ["fine"]
    assert relay.sendable() == 0
    with store.engine.connect() as connection:
        status = outbox_status(connection, store)
    assert (status.pending, status.unroutable, status.held) == (4, 4, 0)
    assert row_of(store, "n0").cause == "unroutable: nobody is bound to it"
    del broker.topics["nobody"]
    clock.advance(MAX_DELAY)
    assert relay.sendable() == 4
    assert drain(relay) == 4


def test_a_topic_without_a_route_is_tried_ever_more_rarely_up_to_a_limit(
    timed_store, clock, broker
):
    broker.topics["nobody"] = UNROUTABLE
    commit(timed_store, message("m", topic="nobody"))
    relay = make_relay(timed_store, broker, clock=clock)
    tried: list[int] = []
    for second in range(60):
        relay.step()
        if len(broker.calls) > len(tried):
            tried.append(second)
        clock.advance(1)
    gaps = [after - before for before, after in pairwise(tried)]
    assert gaps[:5] == [1, 1, 2, 4, 8]
    assert set(gaps[5:]) == {MAX_DELAY}


def test_the_delay_goes_on_growing_in_the_next_relay(timed_store, clock, broker):
    broker.topics["nobody"] = UNROUTABLE
    commit(timed_store, message("m", topic="nobody"))
    for instance in ("a", "b", "c"):
        relay = make_relay(timed_store, broker, clock=clock, instance=instance)
        relay.step()
        relay.close()
    row = row_of(timed_store, "m")
    assert row.attempts == 3
    assert row.try_at == pytest.approx(clock.now().timestamp() * 1e6 + 2e6, abs=10)


def test_of_a_topic_with_some_routes_only_the_keys_without_one_wait(timed_store, clock, broker):
    store = timed_store
    broker.answer("k1", *[UNROUTABLE] * 2)
    commit(store, message("k1"), message("x1", "x"))
    relay = make_relay(store, broker, clock=clock)
    relay.step()
    commit(store, message("x2", "x"), message("k2"))
    drain(relay)
    assert broker.log == ["x1", "x2"]
    with store.engine.connect() as connection:
        assert outbox_status(connection, store).unroutable == 1
    assert relay.sendable() == 0


def test_a_key_that_is_never_confirmed_does_not_slow_down_the_others(store, broker):
    broker.answer("k1", *[UNKNOWN] * 1000)
    relay = make_relay(store, broker)
    commit(store, message("k1"))
    for n in range(20):
        commit(store, message(f"x{n}", "x"))
        one_round(relay)
    assert broker.log == [f"x{n}" for n in range(20)]
    assert sum("k1" in call for call in broker.calls) < 10
    assert relay.healthy


def test_a_refused_message_is_held_with_its_cause(store, broker, caplog):
    events = Events()
    recorder = Recorder(events)
    broker.answer("m", REFUSED)
    commit(store, message("m", body=b"the body", headers={"a": "b"}))
    before = row_of(store, "m")
    drain(make_relay(store, broker, events=events))
    row = row_of(store, "m", is_held=True)
    assert (row.id, row.slot, row.body, row.created_at) == (
        before.id,
        before.slot,
        before.body,
        before.created_at,
    )
    assert (row.cause, row.attempts) == ("too large", 1)
    assert [event.message_id for event in recorder.of(MessageHeld)] == ["m"]
    assert "m for orders was refused and is held" in caplog.text
    assert waiting(store) == []


def test_a_row_that_is_gone_is_not_held(store, broker):
    """Another relay had it confirmed while this one was told that it is refused."""
    commit(store, message("m"))
    (row,) = read(store)
    relay = make_relay(store, broker)
    drain(relay)
    assert hold(store, [Unfit(row, "too large")], relay._leases) == []
    assert held(store) == []


@pytest.mark.parametrize("what", ["headers", "key", "time"])
def test_trap_10_a_row_that_cannot_be_read_is_held_and_blocks_nobody(store, broker, what):
    broken: dict[str, object] = {
        "headers": b'[["a"',
        "key": b"\xff\xfe",
        "time": 10**18,
    }
    column = {"headers": "headers", "key": "message_key", "time": "message_time"}[what]
    commit(store, message("broken", "b"), message("fine", "f"))
    table = store.tables.outbox.name
    execute(
        store,
        f"UPDATE {table} SET {column} = :value WHERE message_id = 'broken'",
        value=broken[what],
    )
    relay = make_relay(store, broker)
    drain(relay)
    assert broker.log == ["fine"]
    assert held(store) == ["broken"]
    assert "cannot be read" in row_of(store, "broken", is_held=True).cause


def test_a_row_that_cannot_be_read_is_held_only_when_its_turn_has_come(store, broker):
    """Held too early, it would stop the one before it, which only a network failure delayed."""
    broker.answer("k1", UNKNOWN)
    commit(store, message("k1"), message("broken"), message("k3"), message("x", "x"))
    execute(
        store,
        f"UPDATE {store.tables.outbox.name} SET headers = :bad WHERE message_id = 'broken'",
        bad=b"no json",
    )
    relay = make_relay(store, broker)
    relay.step()
    assert (broker.log, held(store)) == (["x"], [])
    drain(relay)
    assert (broker.log, held(store), waiting(store)) == (["x", "k1"], ["broken"], ["k3"])


@pytest.mark.parametrize("column", ["message_id", "topic", "content_type"])
@pytest.mark.parametrize("kind", ["sqlite", "mariadb"])
def test_trap_10_broken_text_in_one_row_does_not_break_the_reading_of_the_others(
    request, kind, column, broker
):
    store = Store(database_url=request.getfixturevalue(f"{kind}_url"), adapter=broker.name)
    store.create()
    commit(store, message("broken", "b"), message("fine", "f"))
    value = "CAST(x'fffe41' AS TEXT)" if kind == "sqlite" else "x'fffe41'"
    execute(
        store,
        f"UPDATE {store.tables.outbox.name} SET {column} = {value} WHERE message_id = 'broken'",
    )
    relay = make_relay(store, broker)
    drain(relay)
    assert broker.log == ["fine"]
    assert relay.sendable() == 0
    with store.engine.connect() as connection:
        status = outbox_status(connection, store)
    assert (status.pending, status.held) == (0, 1)
    store.dispose()


def test_trap_10_a_message_on_which_the_adapter_raises_stops_only_its_key(store, broker, caplog):
    broker.answer("poison", *[ValueError("no such header")] * 100)
    broker.answer("x2", UNKNOWN)
    commit(
        store,
        *(message(name, "p") for name in ("p0", "poison", "p2")),
        *(message(f"x{n}", "x") for n in range(4)),
    )
    relay = make_relay(store, broker)
    for _ in range(4):
        relay.step()
    assert [name for name in broker.log if name.startswith("x")] == ["x0", "x1", "x2", "x3"]
    assert waiting(store) == ["poison", "p2"]
    assert row_of(store, "poison").cause == "unconfirmed: ValueError: no such header"
    assert caplog.text.count("broke its contract") == 1


def test_an_adapter_that_always_raises_is_an_outage(store, broker):
    commit(store, message("a", "a"), message("b", "b"))
    relay = make_relay(store, broker)
    for error in (TransportError("gone"), RuntimeError("bug")):
        broker.everything = error
        assert not relay.step().moved
        assert not relay.healthy
    broker.everything = None
    assert drain(relay) == 2


def test_fewer_outcomes_than_messages_confirm_nothing(store, broker):
    class Forgetful:
        name = broker.name

        def publish(self, messages, timeout):
            return [SENT] * (len(messages) - 1)

    commit(store, message("a", "a"), message("b", "b"))
    assert drain(make_relay(store, Forgetful())) == 0
    assert len(waiting(store)) == 2


def test_in_an_outage_other_messages_get_their_try_too(store, broker):
    """If it is not the broker but the first messages' partition, the others are not held up."""
    for n in range(4):
        broker.answer(f"m{n}", *[UNKNOWN] * 1000)
    commit(store, *(message(f"m{n}", f"k{n}") for n in range(6)))
    relay = make_relay(store, broker, batch_size=4)
    one_round(relay)
    assert not relay.healthy
    one_round(relay)
    assert sorted(broker.log) == ["m4", "m5"]
    assert relay.healthy


def test_causes_that_no_database_would_take_are_cleaned(store, broker):
    broker.answer("later", Unknown("nul \x00 and \ud800" + "x" * 5000), SENT)
    broker.answer("never", Refused("nul \x00 and \ud800" + "x" * 5000))
    commit(store, message("later", "a"), message("never", "b"), message("fine", "c"))
    relay = make_relay(store, broker)
    relay.step()
    assert held(store) == ["never"]
    assert len(row_of(store, "never", is_held=True).cause.encode()) <= 1024
    drain(relay)
    assert waiting(store) == []
