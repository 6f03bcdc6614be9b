"""The running relay: it wakes, waits, survives, and ends in order."""

from __future__ import annotations

import logging
import threading
import time

import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from reliable_mq.adapter import SENT
from reliable_mq.events import BrokerDown, BrokerUp, Events
from reliable_mq.relay import relay as relay_module
from reliable_mq.store import Store, outbox
from reliable_mq.store.outbox.held import OutboxDesk
from tests.relay.support import (
    ADAPTER,
    DEADLINE,
    REFUSED,
    UNKNOWN,
    UNROUTABLE,
    Recorder,
    Running,
    ScriptedBroker,
    before_execution,
    commit,
    deadlocks,
    drain,
    eventually,
    held,
    make_relay,
    make_sleepy_relay,
    message,
    running,
    waiting,
)


@pytest.fixture
def sqlite_store(sqlite_url):
    store = Store(database_url=sqlite_url, adapter=ADAPTER)
    store.create()
    yield store
    store.dispose()


def test_it_sends_what_was_committed_before_and_while_it_runs(store, broker):
    commit(store, message("before"))
    with running(make_relay(store, broker)):
        broker.wait_for(lambda: broker.log == ["before"], "the first was not sent")
        commit(store, message("meanwhile"))
        broker.wait_for(lambda: broker.log == ["before", "meanwhile"], "the second was not sent")
        eventually(lambda: waiting(store) == [], "a sent message was not deleted")


def test_a_commit_in_this_process_wakes_it(store, broker):
    relay = make_sleepy_relay(store, broker)
    with running(relay):
        eventually(lambda: relay._leases.held, "it did not start")
        for n in range(3):
            with store.transaction() as connection:
                outbox.append(store, connection, message(f"m{n}"))
            broker.wait_for(lambda n=n: f"m{n}" in broker.log, "the commit woke nobody")


def test_without_a_hint_it_looks_every_poll_interval(store, broker):
    with running(make_relay(store, broker, poll_interval=0.1)):
        commit(store, message("unannounced"))
        broker.wait_for(lambda: broker.log == ["unannounced"], "it did not look")


def test_an_idle_relay_ends_at_once_when_woken(store, broker):
    one = Running(make_sleepy_relay(store, broker)).start()
    eventually(lambda: one.relay._leases.held, "it did not start")
    one.end()  # which waits no longer than the deadline


def test_trap_14_the_batch_in_flight_is_finished_and_settled_at_the_end(store, broker):
    inside, leave = threading.Event(), threading.Event()

    def gate(messages):
        inside.set()
        assert leave.wait(DEADLINE)

    broker.gate = gate
    commit(store, *(message(f"m{n}") for n in range(6)))
    one = Running(make_relay(store, broker, batch_size=2)).start()
    assert inside.wait(DEADLINE)
    one.stop.set()
    leave.set()
    one.end()
    assert broker.log == ["m0", "m1"]
    assert waiting(store) == ["m2", "m3", "m4", "m5"]


def test_its_slots_are_free_when_it_has_ended(store, broker):
    commit(store, message("m1"))
    with running(make_relay(store, broker, instance="one")):
        broker.wait_for(lambda: broker.log == ["m1"], "not sent")
    commit(store, message("m2"))
    assert drain(make_relay(store, broker, instance="two")) == 1


def test_it_is_alone_on_its_object_and_can_run_again(sqlite_store, broker):
    relay = make_relay(sqlite_store, broker)
    with running(relay):
        eventually(lambda: relay._leases.held, "it did not start")
        with pytest.raises(RuntimeError, match="another thread"):
            relay.step()
    assert sqlite_store.on_appended == []
    commit(sqlite_store, message("m"))
    with running(relay):
        broker.wait_for(lambda: broker.log == ["m"], "not sent")


def test_broker_down_and_up(store, broker, caplog):
    events = Events()
    recorder = Recorder(events)
    broker.everything = UNKNOWN
    relay = make_relay(store, broker, events=events)
    commit(store, *(message(f"m{n}", f"k{n}") for n in range(5)))
    with running(relay):
        eventually(lambda: not relay.healthy, "it did not notice")
        broker.wait_for(lambda: len(broker.calls) >= 4, "it did not try again")
        assert len(waiting(store)) == 5
        broker.everything = None
        broker.wait_for(lambda: len(broker.log) == 5, "it did not recover")
        eventually(lambda: relay.healthy, "it is still unhealthy")
    assert len(recorder.of(BrokerDown)) == len(recorder.of(BrokerUp)) == 1
    assert caplog.text.count("cannot reach the broker") == 1


def test_a_new_commit_does_not_make_it_knock_at_a_broker_that_is_down(store, broker):
    broker.everything = UNKNOWN
    commit(store, message("m"))
    relay = make_relay(store, broker)
    with running(relay):
        broker.wait_for(lambda: len(broker.calls) >= 4, "it did not try")
        calls = len(broker.calls)
        started = time.monotonic()
        for _ in range(200):
            relay.wake()
            time.sleep(0.001)  # the load of the test, not a wait for something
        # Pauses of at least 0.8 s by now.
        assert len(broker.calls) <= calls + 1 + (time.monotonic() - started) / 0.8


def test_trap_10_whatever_a_round_meets_does_not_end_the_loop(store, broker, monkeypatch, caplog):
    relay = make_relay(store, broker)
    failures = [
        RuntimeError("a bug"),
        MemoryError(),
        OperationalError("SELECT 'secret parameters'", {}, Exception("gone")),
    ]
    real = relay._supply._reader.read

    def read(*arguments):
        if failures:
            raise failures.pop(0)
        return real(*arguments)

    monkeypatch.setattr(relay._supply._reader, "read", read)
    commit(store, message("m"))
    with running(relay) as (one,):
        broker.wait_for(lambda: broker.log == ["m"], "it never recovered")
        eventually(lambda: relay.healthy, "it is still unhealthy")
        assert one.alive
    assert "RuntimeError: a bug" in caplog.text
    assert "secret" not in caplog.text


def test_the_same_trouble_is_logged_once_in_a_while(sqlite_store, broker, monkeypatch, caplog):
    relay = make_relay(sqlite_store, broker)
    monkeypatch.setattr(relay_module, "_MAX_PAUSE", 0.01)
    rounds = []

    def read(*arguments):
        rounds.append(1)
        raise RuntimeError("again")

    monkeypatch.setattr(relay._supply._reader, "read", read)
    with running(relay):
        eventually(lambda: len(rounds) > 20, "it stopped")
    assert caplog.text.count("the relay waits: RuntimeError: again") == 1


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_the_database_goes_down_in_the_middle_and_comes_back(own_server, kind, broker, caplog):
    server = own_server(kind)
    store = Store(database_url=server.url, adapter=ADAPTER)
    store.create()
    reached, go_on = threading.Event(), threading.Event()

    def gate(messages):
        reached.set()
        assert go_on.wait(DEADLINE)

    commit(store, *(message(f"k{n}") for n in range(6)))
    broker.gate = gate
    relay = make_relay(store, broker, batch_size=2)
    with running(relay) as (one,):
        assert reached.wait(DEADLINE)
        server.kill()
        broker.gate = None
        go_on.set()  # confirmed, and it cannot be settled
        eventually(lambda: not relay.healthy, "it did not notice")
        server.restart()
        broker.wait_for(
            lambda: "k5" in broker.log,
            "it did not recover",
        )
        assert one.alive
        # A pool of ours may still hold connections of before.
        other = Store(database_url=server.url, adapter=ADAPTER)
        eventually(lambda: waiting(other) == [], "not everything was deleted")
        eventually(lambda: relay.healthy, "it is still unhealthy")
    assert broker.log == [f"k{n}" for n in range(6)], "a confirmed message was sent again"
    store.dispose()
    other.dispose()


@pytest.mark.chaos
def test_it_ends_though_the_database_is_down(own_server, broker, caplog):
    server = own_server("postgresql")
    store = Store(database_url=server.url, adapter=ADAPTER)
    store.create()
    commit(store, message("m"))
    broker.gate = lambda messages: server.kill()
    one = Running(make_relay(store, broker)).start()
    eventually(lambda: not one.relay.healthy, "it did not notice")
    one.end()
    assert "1 confirmed messages will be sent again" in caplog.text
    store.dispose()


def test_what_could_not_be_settled_is_settled_before_anything_else(store, broker):
    """And is not sent again, although its rows are there."""
    commit(store, *(message(f"m{n}") for n in range(4)))
    relay = make_relay(store, broker, batch_size=2)
    broken = [True]

    @before_execution(store)
    def fail(connection, cursor, statement, parameters, context, many):
        if broken and statement.startswith("DELETE"):
            raise OperationalError(statement, {}, Exception("no space left"))

    with pytest.raises(OperationalError):
        relay.step()
    with pytest.raises(OperationalError):
        relay.step()
    assert broker.log == ["m0", "m1"]
    broken.clear()
    drain(relay)
    assert broker.log == ["m0", "m1", "m2", "m3"]
    assert waiting(store) == []


def test_what_the_database_would_not_settle_before_the_stop_is_settled_after_it(store, broker):
    commit(store, message("m"))
    one = Running(make_relay(store, broker))

    @before_execution(store)
    def fail(connection, cursor, statement, parameters, context, many):
        if statement.startswith("DELETE") and not one.stop.is_set():
            one.stop.set()
            raise OperationalError(statement, {}, Exception("no space left"))

    one.start()
    eventually(lambda: not one.alive, "the end")
    assert broker.log == ["m"]
    assert waiting(store) == []


def test_a_refused_message_that_cannot_be_held_stops_only_its_key(store, broker, caplog):
    """Say, somebody forgot a GRANT on that table."""
    broker.answer("bad", *[REFUSED] * 1000)
    commit(store, message("bad", "b"), message("b2", "b"), message("fine", "f"))
    relay = make_relay(store, broker)

    @before_execution(store)
    def fail(connection, cursor, statement, parameters, context, many):
        if statement.startswith("INSERT") and "outbox_held" in statement:
            raise ProgrammingError(statement, {}, Exception("permission denied"))

    relay.step()
    commit(store, message("fine2", "f"))
    relay.step()
    assert broker.log == ["fine", "fine2"]
    assert waiting(store) == ["bad", "b2"]
    assert "cannot be held" in caplog.text


def test_topics_without_a_route_go_out_soon_after_their_consumer_came(store, broker):
    broker.topics["nobody"] = UNROUTABLE
    commit(store, message("m", topic="nobody"))
    with running(make_sleepy_relay(store, broker)):
        broker.wait_for(lambda: len(broker.calls) >= 2, "it did not try again")
        del broker.topics["nobody"]
        broker.wait_for(lambda: broker.log == ["m"], "it did not try again")


def test_an_operators_discard_lets_the_key_go_on_at_once(store, broker):
    broker.answer("k1", REFUSED)
    commit(store, message("k1"), message("k2"))
    desk = OutboxDesk(store, discard_after=0.0)
    with running(make_sleepy_relay(store, broker)):
        eventually(lambda: held(store) == ["k1"], "it was not held")
        desk.discard(desk.entries(held=True)[0].id)
        broker.wait_for(lambda: broker.log == ["k2"], "the relay was not woken")


def test_settling_goes_on_beside_the_next_publish(server_store):
    """The second batch is under way while the first one's rows are being deleted."""
    store = server_store
    deleting, published = threading.Event(), threading.Event()

    class Watching(ScriptedBroker):
        def publish(self, messages, timeout):
            if self.calls:
                assert deleting.wait(DEADLINE), "the second batch waited for the settling"
                published.set()
            return super().publish(messages, timeout)

    @before_execution(store)
    def watch(connection, cursor, statement, parameters, context, many):
        if statement.startswith("DELETE") and not deleting.is_set():
            deleting.set()
            assert published.wait(DEADLINE), "the settling waited for the end of the publish"

    broker = Watching()
    commit(store, *(message(f"m{n}", f"k{n}") for n in range(4)))
    with running(make_relay(store, broker, batch_size=2)):
        broker.wait_for(lambda: len(broker.log) == 4, "not sent")
    assert waiting(store) == []


def test_a_deadlock_is_tried_again_without_a_word(store, broker, caplog):
    failures = deadlocks(store, "DELETE", 2)
    commit(store, message("m"))
    with caplog.at_level(logging.INFO):
        assert drain(make_relay(store, broker)) == 1
    assert not failures
    assert caplog.text == ""


def test_a_store_of_another_broker_is_not_touched(store, broker, caplog):
    other = Store(database_url=store.engine.url.render_as_string(hide_password=False), adapter="x")
    commit(store, message("m"))
    with running(make_relay(other, broker)):
        eventually(lambda: "belong to the broker 'scripted'" in caplog.text, "it did not complain")
    assert broker.calls == []
    other.dispose()


def test_a_relay_holds_what_it_read_and_not_what_waits_behind_it(sqlite_store, monkeypatch):
    most: list[int] = []
    found: list[int] = []

    class Counting:
        name = ADAPTER

        def publish(self, messages, timeout):
            most.append(len(messages))
            return [SENT] * len(messages)

    commit(sqlite_store, *(message(f"m{n}", f"k{n % 100}") for n in range(10_000)))
    relay = make_relay(sqlite_store, Counting(), batch_size=500)
    real = relay._supply._reader.read

    def read(*arguments):
        rows = real(*arguments)
        found.append(len(rows))
        return rows

    monkeypatch.setattr(relay._supply._reader, "read", read)
    assert drain(relay) == 10_000
    assert (max(most), max(found)) == (500, 2000)
