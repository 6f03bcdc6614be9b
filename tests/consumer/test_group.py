"""One handler's intake and workers together: stops, rebalances, acknowledgements, trouble."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from reliable_mq import (
    ConsumerSettings,
    Delivery,
    ReliableMQ,
    RetryPolicy,
    Settings,
    TransportError,
)
from reliable_mq.consumer import processor
from reliable_mq.consumer.ack_first import AHEAD
from reliable_mq.testing import Harness
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq.testing.memory import MemoryBroker
from reliable_mq.testing.memory.adapter import MemorySubscription

TOPIC = "t"


def application(*, prefetch: int = 20, shutdown_timeout: float = 30) -> ReliableMQ:
    consumer = ConsumerSettings(prefetch=prefetch, shutdown_timeout=shutdown_timeout)
    return ReliableMQ(Settings(broker_url="memory://unused", group="tests", consumer=consumer))


@pytest.fixture
def mq() -> ReliableMQ:
    return application()


class Gate:
    """Holds handlers until it is opened; tells how many came."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.came: list[int] = []

    def pass_through(self, number: int) -> None:
        with self._lock:
            self.came.append(number)
        assert self._open.wait(30)

    def open(self) -> None:
        self._open.set()

    def wait_for(self, count: int) -> None:
        wait_for(lambda: len(self.came) >= count, f"{count} handlers at the gate")


@contextmanager
def hidden(engine: Engine, *tables: str) -> Iterator[Callable[[], None]]:
    """Let work with these tables fail; the call in the block brings them back."""

    def rename(suffix: str, new: str) -> None:
        with engine.begin() as connection:
            for table in tables:
                connection.execute(text(f"ALTER TABLE {table}{suffix} RENAME TO {table}{new}"))

    rename("", "_away")
    yield lambda: rename("_away", "")


# --- at-most-once -----------------------------------------------------------------------------


def test_an_at_most_once_handler_whose_failure_cannot_be_stored_yet_is_not_run_again(
    mq: ReliableMQ, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    @mq.handler(TOPIC, guarantee="at-most-once")
    def handle(number: int) -> None:
        calls.append(number)
        raise OSError("gone")

    with Harness(mq) as h, hidden(h.engine, "reliable_mq_dead_letter") as bring_back:
        h.broker.inject(TOPIC, b"1")
        with mq.running():
            wait_for(lambda: "the database failed" in caplog.text, "a failed dead letter")
            bring_back()
            wait_for(h.dead_letters, "the dead letter")
        assert calls == [1]


def test_a_rebalance_does_not_take_an_acknowledged_message_from_its_at_most_once_handler(
    mq: ReliableMQ,
) -> None:
    gate = Gate()

    @mq.handler(TOPIC, guarantee="at-most-once")
    def handle(number: int) -> None:
        gate.pass_through(number)

    with Harness(mq) as h:
        h.broker.inject(TOPIC, b"0")
        with mq.running() as service:
            gate.wait_for(1)
            for number in range(1, 10):  # the worker has begun without them: they are queued
                h.broker.inject(TOPIC, b"%d" % number)
            # Not only acknowledged: between that and the queue stands the flush, which may fail.
            wait_for(lambda: service.consumers[0].scheduler.held_count == 10, "all of them queued")
            assert h.broker.lag(TOPIC, "tests") == 0
            h.broker.revoke()
            h.broker.inject(TOPIC, b"10")
            wait_for(lambda: h.broker.lag(TOPIC, "tests") == 0, "the intake on the other side")
            gate.open()
            gate.wait_for(11)
        assert gate.came == list(range(11))


def test_an_acknowledged_message_is_handled_though_its_partition_is_lost_at_once(
    mq: ReliableMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    flush = MemorySubscription.flush

    @mq.handler(TOPIC, guarantee="at-most-once")
    def handle(number: int) -> None:
        calls.append(number)

    with Harness(mq) as h:

        def flush_and_lose(subscription: MemorySubscription) -> None:
            flush(subscription)
            h.broker.revoke()

        monkeypatch.setattr(MemorySubscription, "flush", flush_and_lose)
        for number in range(5):
            h.broker.inject(TOPIC, b"%d" % number)
        h.run()
        assert calls == list(range(5))


def test_what_cannot_be_acknowledged_is_not_handled_and_no_more_is_taken_in(
    mq: ReliableMQ, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    tries: list[int] = []

    def fail(subscription: MemorySubscription) -> None:
        tries.append(1)
        raise TransportError("its copies lack")

    @mq.handler(TOPIC, guarantee="at-most-once")
    def handle(number: int) -> None:
        calls.append(number)

    with Harness(mq) as h:
        for number in range(3 * AHEAD):
            h.broker.inject(TOPIC, b"%d" % number)
        monkeypatch.setattr(MemorySubscription, "flush", fail)
        with mq.running():
            wait_for(lambda: len(tries) >= 3, "several tries")
        assert calls == []
        assert h.broker.lag(TOPIC, "tests") == 2 * AHEAD
        assert f"stopped with {AHEAD} deliveries of at-most-once handlers" in caplog.text
        monkeypatch.undo()
        h.run()
        assert calls == list(range(AHEAD, 3 * AHEAD))


def test_a_message_whose_acknowledgement_did_nothing_is_not_handled_before_it_comes_again(
    mq: ReliableMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    ack = MemorySubscription.ack
    late = iter([True])

    @mq.handler(TOPIC, guarantee="at-most-once")
    def handle(number: int) -> None:
        calls.append(number)

    with Harness(mq) as h:

        def acknowledge_too_late(subscription: MemorySubscription, deliveries: object) -> None:
            if next(late, False):
                h.broker.revoke()
            ack(subscription, deliveries)  # type: ignore[arg-type]

        monkeypatch.setattr(MemorySubscription, "ack", acknowledge_too_late)
        for number in range(5):
            h.broker.inject(TOPIC, b"%d" % number)
        h.run()
        assert calls == list(range(5))


def test_a_stop_waits_for_what_at_most_once_handlers_have_acknowledged(mq: ReliableMQ) -> None:
    gate = Gate()

    @mq.handler(TOPIC, guarantee="at-most-once")
    def handle(number: int) -> None:
        gate.pass_through(number)

    with Harness(mq) as h:
        for number in range(100):
            h.broker.inject(TOPIC, b"%d" % number)
        with mq.running() as service:
            gate.wait_for(1)

            def open_after_the_stop_began() -> None:
                assert service._stop.wait(60)
                gate.open()

            opener = threading.Thread(target=open_after_the_stop_began)
            opener.start()
        opener.join()
        assert len(gate.came) + h.broker.lag(TOPIC, "tests") == 100
        assert gate.came == list(range(len(gate.came)))
        assert len(gate.came) < 100, "a stop takes nothing more in"


def test_what_a_stop_loses_of_at_most_once_handlers_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mq = application(shutdown_timeout=0.2, prefetch=5)
    gate = Gate()

    @mq.handler(TOPIC, guarantee="at-most-once")
    def handle(number: int) -> None:
        gate.pass_through(number)

    with Harness(mq) as h:
        for number in range(5):
            h.broker.inject(TOPIC, b"%d" % number)
        with mq.running():
            wait_for(lambda: h.broker.lag(TOPIC, "tests") == 0, "all of them acknowledged")
            gate.wait_for(1)
        assert "5 deliveries of at-most-once handlers unhandled: lost" in caplog.text
        assert "will be delivered again" not in caplog.text
        gate.open()


@pytest.mark.parametrize("applied", [True, False])
def test_an_at_most_once_handler_runs_once_though_its_acknowledgement_was_not_answered(
    mq: ReliableMQ, applied: bool
) -> None:
    calls: list[int] = []

    @mq.handler(TOPIC, guarantee="at-most-once")
    def handle(number: int) -> None:
        calls.append(number)

    with Harness(mq) as h:
        h.broker.lose_acks(2, applied=applied)
        for number in range(5):
            h.broker.inject(TOPIC, b"%d" % number)
        h.run()
        assert calls == list(range(5))


# --- stops ------------------------------------------------------------------------------------


def test_a_stop_says_exactly_how_many_deliveries_it_left(caplog: pytest.LogCaptureFixture) -> None:
    mq = application(shutdown_timeout=0.2)
    gate = Gate()

    # With a transaction a stuck handler keeps all of SQLite for itself, and a stop waits longer.
    @mq.handler(TOPIC, concurrency=2, guarantee="at-least-once")
    def handle(number: int) -> None:
        gate.pass_through(number)

    with Harness(mq) as h:
        for number in range(12):
            h.broker.inject(TOPIC, b"%d" % number)
        with mq.running() as service:
            gate.wait_for(2)
            wait_for(lambda: service.consumers[0].scheduler.held_count == 12, "all taken in")
        assert "stopped with 12 deliveries unfinished; they will be delivered again" in caplog.text
        assert h.broker.lag(TOPIC, "tests") == 12
        gate.open()


def test_a_stop_does_not_wait_for_the_rest_of_a_batch_that_is_handled_one_by_one() -> None:
    mq = application(shutdown_timeout=20)
    calls: list[int] = []
    stopping = threading.Event()

    @mq.handler(TOPIC, transaction_size=10, retry=RetryPolicy(initial_delay=100))
    def handle(number: int, delivery: Delivery) -> None:
        calls.append(number)
        if number == 3 and calls.count(3) == 2:
            stopping.set()
            assert wait_for(lambda: service.consumers[0].scheduler.stopped, "the stop")
        if number == 3:
            raise OSError("the batch fails")

    with Harness(mq) as h:
        for number in range(10):
            h.broker.inject(TOPIC, b"%d" % number)
        with mq.running() as service:
            assert stopping.wait(30)
        # 0 to 3 together, then 0 to 3 each by itself; 4 to 9 were not begun.
        assert calls == [0, 1, 2, 3, 0, 1, 2, 3]
        assert h.broker.lag(TOPIC, "tests") == 6


# --- trouble ----------------------------------------------------------------------------------


def test_intake_goes_on_although_what_met_the_dead_store_was_lost_meanwhile(
    mq: ReliableMQ, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    @mq.handler(TOPIC)
    def handle(number: int) -> None:
        calls.append(number)

    tables = ("reliable_mq_inbox", "reliable_mq_retry")
    with Harness(mq) as h, hidden(h.engine, *tables) as bring_back:
        h.broker.inject(TOPIC, b"1")
        with mq.running() as service:
            wait_for(lambda: "the database failed" in caplog.text, "a failed attempt")
            held = service.consumers[0].scheduler
            wait_for(lambda: not held.held_count, "the loss", meanwhile=h.broker.revoke)
            bring_back()
            wait_for(lambda: calls == [1], "the message")
            wait_for(lambda: service.parts()["consumer"] == "running", "the part")


def test_an_unknown_error_of_the_adapter_is_said_once_with_its_traceback_and_intake_goes_on(
    mq: ReliableMQ, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled = threading.Event()

    @mq.handler(TOPIC)
    def handle(number: int) -> None:
        handled.set()

    received = MemorySubscription.receive
    errors = [RuntimeError("a bug"), RuntimeError("a bug"), TransportError("away")]

    def receive(self: MemorySubscription, limit: int, timeout: float) -> object:
        if errors:
            raise errors.pop(0)
        return received(self, limit, timeout)

    monkeypatch.setattr(MemorySubscription, "receive", receive)
    with Harness(mq) as h:
        h.broker.inject(TOPIC, b"1")
        with mq.running():
            assert handled.wait(30)
    complaints = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [r.getMessage() for r in complaints] == ["t/tests cannot receive: RuntimeError: a bug"]
    assert complaints[0].exc_info is not None


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_handler_that_always_loses_its_connection_runs_out_of_attempts(
    postgresql_url: str, unique: str, monkeypatch: pytest.MonkeyPatch, attempt: int
) -> None:
    """A lost connection is nobody's fault, the first few times."""
    monkeypatch.setattr(processor, "MAX_COLLISIONS", 3)
    monkeypatch.setattr(processor, "STORE_DOWN_DELAY", 0.01)
    settings = Settings(
        broker_url=f"memory://{unique}",
        database_url=postgresql_url,
        group="tests",
        retry=RetryPolicy(max_attempts=2, initial_delay=0.01),
    )
    calls: list[int] = []
    with ReliableMQ(settings) as mq:

        @mq.handler(TOPIC)
        def handle(number: int, session: Session, delivery: Delivery) -> None:
            calls.append(delivery.attempt)
            if delivery.attempt < attempt:
                raise OSError("an ordinary failure")
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

        mq.declare()
        mq.publish_direct(TOPIC, 1)
        with mq.running():
            (letter,) = wait_for(mq.dead_letters, "the dead letter")
    MemoryBroker.forget(unique)
    assert letter.attempts == 2
    assert calls == [1] * (4 if attempt == 1 else 1) + [2] * 4
