"""Several relays, dead relays, and relays that believe themselves alive."""

from __future__ import annotations

import threading

import pytest

from reliable_mq.adapter import SENT
from reliable_mq.relay import LEASE_KIND
from reliable_mq.store.tables import OUTBOX_SLOTS, slot_of
from tests.relay.support import (
    DEADLINE,
    REFUSED,
    ScriptedBroker,
    commit,
    drain,
    held,
    make_relay,
    message,
    waiting,
)

LEASE = 30.0


def slots_of(relay) -> set[str]:
    return set(relay._leases.held)


def balanced(*relays) -> None:
    """Let each see the others and take its share."""
    for relay in (*relays, *relays):
        relay._leases.renew()


@pytest.fixture
def two(timed_store, clock):
    """Two relays with a broker each, sharing the slots."""
    brokers = ScriptedBroker(), ScriptedBroker()
    relays = [
        make_relay(timed_store, broker, instance=name, clock=clock)
        for name, broker in zip(("one", "two"), brokers, strict=True)
    ]
    balanced(*relays)
    return relays, brokers


def test_two_relays_share_the_slots_and_each_message_goes_out_once(timed_store, two):
    relays, brokers = two
    assert len(slots_of(relays[0])) == len(slots_of(relays[1])) == OUTBOX_SLOTS // 2
    assert not slots_of(relays[0]) & slots_of(relays[1])
    commit(timed_store, *(message(f"m{n}", f"k{n % 40}") for n in range(200)))
    assert drain(*relays) == 200
    assert sorted(brokers[0].log + brokers[1].log) == sorted(f"m{n}" for n in range(200))
    assert brokers[0].log
    assert brokers[1].log


def test_the_messages_of_a_key_go_through_one_relay(timed_store, two):
    relays, brokers = two
    commit(timed_store, *(message(f"m{n}", "k") for n in range(50)))
    drain(*relays)
    assert sorted((brokers[0].log, brokers[1].log)) == [[], [f"m{n}" for n in range(50)]]


def test_a_dead_ones_slots_move_after_expiry_and_not_before(timed_store, clock, two):
    (alive, _), (broker, _) = two
    commit(timed_store, *(message(f"m{n}", f"k{n}") for n in range(100)))
    drain(alive)
    sent = len(broker.log)
    assert 0 < sent < 100
    clock.advance(LEASE / 2)
    drain(alive)
    assert len(broker.log) == sent
    clock.advance(LEASE / 2)
    drain(alive)
    assert len(broker.log) == 100


def test_a_closed_relays_slots_are_free_at_once(timed_store, clock, two):
    (alive, closed), _ = two
    closed.close()
    clock.advance(LEASE / 3)
    commit(timed_store, *(message(f"m{n}", f"k{n}") for n in range(100)))
    assert drain(alive) == 100


def test_what_one_may_not_send_yet_is_counted_as_sendable_all_the_same(timed_store, two):
    relays, _ = two
    commit(timed_store, *(message(f"m{n}", f"k{n}") for n in range(100)))
    drain(relays[0])
    assert relays[0].sendable() == relays[1].sendable() == len(waiting(timed_store)) > 0


def taken_over_while_it_publishes(store, clock, heir, then):
    """Return a gate in which a relay is stopped until long after its lease has expired."""

    def gate(messages):
        clock.advance(LEASE)
        heir._leases.renew()
        assert len(slots_of(heir)) == OUTBOX_SLOTS
        then()

    return gate


def test_trap_9_a_stopped_relay_that_resumes_holds_nothing(timed_store, clock):
    """It was told "refused"; its heir, that the message is stored."""
    old_broker, new_broker = ScriptedBroker(), ScriptedBroker()
    old = make_relay(timed_store, old_broker, instance="old", clock=clock)
    heir = make_relay(timed_store, new_broker, instance="heir", clock=clock)
    commit(timed_store, message("k1"), message("k2"))
    old_broker.answer("k1", REFUSED)
    old_broker.gate = taken_over_while_it_publishes(timed_store, clock, heir, lambda: None)
    old.step()
    assert held(timed_store) == []
    assert waiting(timed_store) == ["k1", "k2"]
    drain(heir)
    assert new_broker.log == ["k1", "k2"]


def test_trap_9_a_stopped_relay_that_resumes_publishes_nothing_more(timed_store, clock):
    old_broker, new_broker = ScriptedBroker(), ScriptedBroker()
    old = make_relay(timed_store, old_broker, instance="old", clock=clock, batch_size=2)
    heir = make_relay(timed_store, new_broker, instance="heir", clock=clock)
    commit(timed_store, *(message(f"k{n}") for n in range(6)))
    old_broker.gate = taken_over_while_it_publishes(
        timed_store, clock, heir, lambda: setattr(old_broker, "gate", None)
    )
    old.step()
    old.step()
    assert old_broker.log == ["k0", "k1"]
    drain(heir)
    assert new_broker.log == ["k2", "k3", "k4", "k5"]


def test_what_a_stopped_relay_had_confirmed_is_deleted_lease_or_not(timed_store, clock):
    """The message is on the broker, whoever put it there: sending it again helps nobody."""
    old_broker, new_broker = ScriptedBroker(), ScriptedBroker()
    old = make_relay(timed_store, old_broker, instance="old", clock=clock)
    heir = make_relay(timed_store, new_broker, instance="heir", clock=clock)
    commit(timed_store, message("k1"))
    old_broker.gate = taken_over_while_it_publishes(timed_store, clock, heir, lambda: None)
    old.step()
    assert waiting(timed_store) == []
    drain(heir)
    assert new_broker.log == []


def test_trap_9_after_a_take_over_each_sends_in_order_so_first_copies_are_in_order(
    timed_store, clock
):
    """The heir sends all while the old one is stopped in the middle of the same messages."""
    old_broker, new_broker = ScriptedBroker(), ScriptedBroker()
    old = make_relay(timed_store, old_broker, instance="old", clock=clock)
    heir = make_relay(timed_store, new_broker, instance="heir", clock=clock)
    commit(timed_store, *(message(f"k{n}") for n in range(4)))
    old_broker.gate = taken_over_while_it_publishes(timed_store, clock, heir, lambda: drain(heir))
    old.step()
    assert new_broker.log == old_broker.log == [f"k{n}" for n in range(4)]
    assert waiting(timed_store) == []


def test_a_publish_is_given_no_more_time_than_the_lease_has_left(timed_store, clock):
    given = []

    class Slow:
        name = "scripted"

        def publish(self, messages, timeout):
            given.append(timeout)
            clock.advance(8.0)
            return [SENT] * len(messages)

    relay = make_relay(timed_store, Slow(), clock=clock, batch_size=1, publish_timeout=20.0)
    commit(timed_store, *(message(f"m{n}") for n in range(6)))
    drain(relay)
    # Of 30 s it relies on 27; a batch that would get less than half its time waits for a renewal.
    assert given == pytest.approx([20.0, 19.0, 11.0] * 2)


def test_a_third_relay_gets_its_share_while_messages_flow(timed_store, clock, two):
    relays, brokers = two
    broker = ScriptedBroker()
    third = make_relay(timed_store, broker, instance="three", clock=clock)
    everybody = [*relays, third]
    for n in range(30):
        commit(timed_store, *(message(f"m{n}-{k}", f"k{k}") for k in range(20)))
        drain(*everybody)
        clock.advance(LEASE / 3)
    assert sorted(len(slots_of(relay)) for relay in everybody) == [21, 21, 22]
    logs = [one.log for one in (*brokers, broker)]
    assert all(logs)
    assert sum(map(len, logs)) == 600


def test_one_relay_object_runs_once_at_a_time(timed_store, clock, broker):
    relay = make_relay(timed_store, broker, clock=clock)
    inside, leave = threading.Event(), threading.Event()

    def gate(messages):
        inside.set()
        leave.wait(DEADLINE)

    broker.gate = gate
    commit(timed_store, message("m"))
    thread = threading.Thread(target=relay.step)
    thread.start()
    assert inside.wait(DEADLINE)
    with pytest.raises(RuntimeError, match="another thread"):
        relay.step()
    leave.set()
    thread.join()


def test_the_slot_of_a_key_is_the_same_everywhere_and_lease_names_are_slots(
    timed_store, clock, broker
):
    relay = make_relay(timed_store, broker, clock=clock)
    relay.step()
    assert LEASE_KIND == "relay"
    assert slots_of(relay) == {str(slot) for slot in range(OUTBOX_SLOTS)}
    assert slot_of("k", "a", OUTBOX_SLOTS) == slot_of("k", "b", OUTBOX_SLOTS) == 29
