"""The messages of a key go out in the order in which their transactions committed."""

from __future__ import annotations

from sqlalchemy import event

from reliable_mq.relay import waiting as waiting_topics
from tests.relay.support import (
    REFUSED,
    UNKNOWN,
    UNROUTABLE,
    commit,
    drain,
    held,
    make_relay,
    message,
    put,
    waiting,
)


def test_trap_7_a_late_commit_with_a_lower_id_is_sent_before_what_was_committed_after_it(
    server_store, broker
):
    store, relay = server_store, make_relay(server_store, broker)
    with store.transaction() as late:
        put(store, late, message("first of k", "k"))  # takes its number now
        commit(store, message("of another key", "other"))
        drain(relay)  # has seen a number above that of the open transaction
    commit(store, message("second of k", "k"))
    drain(relay)
    assert broker.log == ["of another key", "first of k", "second of k"]


def test_a_late_commit_between_two_batches_of_one_read_is_in_order(server_store, broker):
    store, relay = server_store, make_relay(server_store, broker, batch_size=1)
    late = store.engine.connect()
    put(store, late, message("first of k", "k"))
    commit(store, message("a", "a"), message("b", "b"))

    def commit_meanwhile(messages):
        broker.gate = None
        late.commit()
        late.close()
        commit(store, message("second of k", "k"))

    broker.gate = commit_meanwhile
    drain(relay)
    assert broker.log.index("first of k") < broker.log.index("second of k")
    assert sorted(broker.log) == ["a", "b", "first of k", "second of k"]


def test_an_unknown_outcome_is_sent_again_with_the_same_id_before_what_follows_it(store, broker):
    broker.stores_unknown = True
    broker.answer("k1", UNKNOWN)
    commit(store, message("k1"), message("k2"), message("x1", "x"))
    drain(make_relay(store, broker))
    assert broker.log == ["k1", "x1", "k1", "k2"]
    assert waiting(store) == []


def test_keys_that_a_batch_did_not_send_are_left_out_of_the_next_one(store, broker):
    broker.answer("k1", UNKNOWN)
    commit(store, message("k1"), message("x1", "x"), message("k2"), message("x2", "x"))
    relay = make_relay(store, broker, batch_size=2)
    relay.step()
    assert broker.calls == [["k1", "x1"], ["x2"]]
    drain(relay)
    assert broker.log == ["x1", "x2", "k1", "k2"]


def test_the_next_batch_is_published_only_when_every_outcome_of_the_one_before_is_known(
    store, broker
):
    under_way: list[object] = []
    most: list[int] = []

    class Watching:
        name = broker.name

        def publish(self, messages, timeout):
            under_way.append(messages)
            most.append(len(under_way))
            try:
                return broker.publish(messages, timeout)
            finally:
                under_way.pop()

    commit(store, *(message(f"m{n}", f"k{n % 3}") for n in range(20)))
    relay = make_relay(store, Watching(), batch_size=2)
    with relay._settler.writing_beside():
        drain(relay)
    assert max(most) == 1
    assert len(broker.log) == 20


def test_trap_11_a_refused_message_stops_its_key_and_no_other(store, broker):
    broker.answer("k2", REFUSED)
    commit(store, *(message(f"k{n}") for n in range(1, 5)), message("x1", "x"))
    drain(make_relay(store, broker))
    assert broker.log == ["k1", "x1"]
    assert held(store) == ["k2"]
    assert waiting(store) == ["k3", "k4"]


def test_messages_committed_behind_a_held_one_wait_too(store, broker):
    broker.answer("k1", REFUSED)
    commit(store, message("k1"))
    relay = make_relay(store, broker)
    drain(relay)
    commit(store, message("k2"), message("of another topic", topic="invoices"))
    drain(relay)
    assert broker.log == ["of another topic"]
    assert waiting(store) == ["k2"]


def test_a_message_without_a_key_waits_for_nobody(store, broker):
    broker.answer("none1", REFUSED)
    broker.answer("none2", UNKNOWN)
    commit(store, *(message(f"none{n}", None) for n in range(1, 5)))
    relay = make_relay(store, broker)
    relay.step()
    assert sorted(broker.log) == ["none3", "none4"]
    drain(relay)
    assert sorted(broker.log) == ["none2", "none3", "none4"]
    assert held(store) == ["none1"]


def test_a_message_that_may_be_sent_later_stops_only_its_key(timed_store, clock, broker):
    store = timed_store
    broker.answer("k1", UNROUTABLE)
    commit(store, message("k1"), message("k2"), message("x1", "x"))
    relay = make_relay(store, broker, clock=clock)
    drain(relay)
    commit(store, message("x2", "x"), message("k3"))
    drain(relay)
    assert broker.log == ["x1", "x2"]
    clock.advance(60)
    drain(relay)
    assert broker.log == ["x1", "x2", "k1", "k2", "k3"]


def test_what_is_behind_a_skipped_message_is_skipped_though_its_topic_has_a_route_by_then(
    store, broker, monkeypatch
):
    monkeypatch.setattr(waiting_topics, "_MAX_TOPICS", 1)
    broker.topics = {"nobody": UNROUTABLE, "nobody either": UNROUTABLE}

    def deploy_its_consumer(messages):
        if messages[0].topic == "nobody either":
            broker.topics.pop("nobody", None)

    broker.gate = deploy_its_consumer
    commit(
        store,
        message("first", None, topic="nobody"),
        message("k1", topic="nobody"),
        message("other", None, topic="nobody either"),
        message("k2", topic="nobody"),
    )
    make_relay(store, broker, batch_size=1).step()
    assert "k2" not in broker.log


def test_trap_12_no_transaction_is_open_while_it_publishes(store, broker):
    """Not one connection is out of the pool; and no message is published twice for that."""
    out = []
    for engine in {store.engine, store.walking_engine}:
        event.listen(engine, "checkout", lambda *_: out.append(1))
        event.listen(engine, "checkin", lambda *_: out.pop())
    seen = []
    broker.gate = lambda messages: seen.append(len(out))
    commit(store, *(message(f"m{n}", None) for n in range(4)))
    relay = make_relay(store, broker, batch_size=2)
    drain(relay)
    assert seen == [0, 0]
