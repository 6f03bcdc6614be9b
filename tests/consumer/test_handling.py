"""What becomes of a delivery, on every database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Connection, Engine, insert, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from reliable_mq import (
    Delivery,
    Message,
    NoTransactionError,
    Reject,
    ReliableMQ,
    ReliableMQError,
    Retry,
    RetryPolicy,
)
from reliable_mq.adapter import Batch
from reliable_mq.store.retries import Retries, Waiting
from reliable_mq.testing import Harness
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq.testing.memory.adapter import MemorySubscription
from tests.consumer.conftest import effects, unique_effects
from tests.relay.support import deadlocks

Enter = Callable[[], Harness]
Seen = Callable[[], list[str]]


class Order(BaseModel):
    id: int


def note(session: Session | Connection, what: object) -> None:
    session.execute(insert(effects).values(what=str(what)))


def test_a_message_is_handled_with_its_effects_committed(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("orders")
    def handle(
        order: Order, session: Session, delivery: Delivery, message: Message, app: ReliableMQ
    ) -> None:
        assert delivery.message is message
        assert delivery.group == "tests"
        assert app is mq
        note(session, f"{order.id}/{delivery.attempt}")

    outcome = harness().deliver("orders", {"id": 7})
    assert (outcome.result, outcome.attempts) == ("handled", 1)
    assert seen() == ["7/1"]


def test_the_same_message_again_is_skipped(mq: ReliableMQ, harness: Enter, seen: Seen) -> None:
    @mq.handler("orders")
    def handle(order: Order, session: Session) -> None:
        note(session, order.id)

    h = harness()
    h.deliver("orders", {"id": 1}, message_id="same")
    assert h.deliver("orders", {"id": 1}, message_id="same").result == "duplicate"
    assert seen() == ["1"]


def test_two_groups_have_their_own_memory(mq: ReliableMQ, harness: Enter, seen: Seen) -> None:
    for group in ("a", "b"):

        @mq.handler("orders", group=group)
        def handle(order: Order, session: Session, delivery: Delivery) -> None:
            note(session, delivery.group)

    h = harness()
    h.deliver("orders", {"id": 1}, group="a", message_id="same")
    assert sorted(seen()) == ["a", "b"]


def test_copies_made_by_the_broker_are_applied_once(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("orders")
    def handle(order: Order, session: Session) -> None:
        note(session, order.id)

    h = harness()
    h.broker.duplicate(2)
    h.deliver("orders", {"id": 1})
    assert seen() == ["1"]


def test_the_same_id_with_another_body_is_a_dead_letter_and_replays_under_an_id_of_its_own(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("orders")
    def handle(order: Order, session: Session) -> None:
        note(session, order.id)

    h = harness()
    h.deliver("orders", {"id": 1}, message_id="same")
    outcome = h.deliver("orders", {"id": 2}, message_id="same")
    assert outcome.result == "dead-lettered"
    (letter,) = h.dead_letters()
    assert letter.cause.startswith("id-conflict")
    assert letter.message.body == b'{"id":2}'
    assert h.deliver("orders", {"id": 2}, message_id="same").result == "duplicate"
    assert len(h.dead_letters()) == 1
    assert mq.replay(letter.id)
    h.run()
    assert seen() == ["1", "2"]


def test_a_failure_undoes_its_effects_and_is_tried_again_after_the_delay(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("orders", retry=RetryPolicy(max_attempts=3, initial_delay=10, jitter=0))
    def handle(order: Order, session: Session, delivery: Delivery) -> None:
        note(session, f"attempt {delivery.attempt}")
        if delivery.attempt < 3:
            raise OSError("the bank is closed")

    h = harness()
    outcome = h.deliver("orders", {"id": 1})
    assert (outcome.result, outcome.attempts) == ("retried", 1)
    assert outcome.cause == "OSError: the bank is closed"
    assert h.run(through=9.9).handled == 0
    assert h.run(through=0.2).retried == 1
    assert h.run(through=19.8).handled == 0
    assert h.run(through=0.3).handled == 1
    assert seen() == ["attempt 3"]
    assert mq.status().groups["orders", "tests"].retries == 0


def test_the_last_failure_makes_a_dead_letter_with_everything_in_it(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("orders", retry=RetryPolicy(max_attempts=2, initial_delay=1))
    def handle(order: Order, session: Session) -> None:
        note(session, "never")
        raise ValueError("no such customer\x00")

    h = harness()
    h.deliver("orders", {"id": 1}, key="ann", headers={"x": "1", "raw": b"\xff"}, message_id="m1")
    assert h.run(through=60).dead_lettered == 1
    (letter,) = h.dead_letters("orders", "tests")
    assert letter.attempts == 2
    assert letter.cause == "ValueError: no such customer\ufffd"
    assert (letter.message.id, letter.message.key, letter.message.body) == (
        "m1",
        "ann",
        b'{"id":1}',
    )
    assert letter.message.headers == {"x": "1", "raw": b"\xff"}
    assert seen() == []
    (copy,) = h.published("orders.tests.dlq")
    assert copy.id != "m1"
    assert copy.body == b'{"id":1}'
    assert copy.key == "ann"
    assert copy.headers["reliable-mq-origin-id"] == "m1"
    assert copy.headers["reliable-mq-origin-attempts"] == "2"
    assert copy.headers["x"] == "1"
    assert copy.headers["raw"] == b"\xff"


def test_reject_and_an_undecodable_body_are_dead_letters_at_once_and_neighbours_are_handled(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("orders")
    def handle(order: Order, session: Session) -> None:
        if order.id == 2:
            raise Reject("unknown order")
        note(session, order.id)

    h = harness()
    h.broker.inject("orders", b"\x00not json", [("message-id", b"poison")])
    h.broker.inject("orders", b'{"id": 1}')
    h.broker.inject("orders", b'{"id": 2}')
    h.broker.inject("orders", b'{"id": 3}')
    counts = h.run()
    assert (counts.handled, counts.dead_lettered) == (2, 2)
    assert seen() == ["1", "3"]
    poison, rejected = h.dead_letters()
    assert poison.message.body == b"\x00not json"
    assert "DecodeError" in poison.cause
    assert rejected.cause == "Reject: unknown order"


def test_headers_over_the_limit_are_a_dead_letter_that_keeps_them(
    mq: ReliableMQ, harness: Enter
) -> None:
    @mq.handler("orders")
    def handle(order: Order) -> None:
        raise AssertionError("must not be called")

    h = harness()
    h.broker.inject("orders", b"{}", [(f"h{n}", b"x") for n in range(500)])
    assert h.run().dead_lettered == 1
    (letter,) = h.dead_letters()
    assert letter.cause.startswith("headers:")
    assert len(letter.message.headers) == 500
    (copy,) = h.published("orders.tests.dlq")
    assert copy.headers["reliable-mq-truncated"] == "headers"


def test_retry_asks_for_its_own_delay(mq: ReliableMQ, harness: Enter) -> None:
    @mq.handler("orders", retry=RetryPolicy(initial_delay=1, max_delay=500))
    def handle(order: Order, delivery: Delivery) -> None:
        if delivery.attempt == 1:
            raise Retry("busy", after=100)

    h = harness()
    assert h.deliver("orders", {"id": 1}).result == "retried"
    assert h.run(through=99).handled == 0
    assert h.run(through=2).handled == 1


def test_immediate_attempts_are_made_in_place_and_counted(mq: ReliableMQ, harness: Enter) -> None:
    attempts: list[int] = []

    @mq.handler(
        "orders",
        retry=RetryPolicy(max_attempts=5, immediate_attempts=3, initial_delay=10, jitter=0),
    )
    def handle(order: Order, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        raise OSError

    h = harness()
    assert h.deliver("orders", {"id": 1}).result == "retried"
    assert attempts == [1, 2, 3]
    h.run(through=600)
    assert attempts == [1, 2, 3, 4, 5]
    assert h.dead_letters()[0].attempts == 5


def test_a_swallowed_database_error_does_not_end_as_handled(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("orders", retry=RetryPolicy.never())
    def handle(order: Order, session: Session) -> None:
        note(session, order.id)
        session.execute(insert(unique_effects).values(what="x"))
        with suppress(DBAPIError):
            session.execute(insert(unique_effects).values(what="x"))

    assert harness().deliver("orders", {"id": 1}).result == "dead-lettered"
    assert seen() == []


def test_a_database_error_inside_a_savepoint_may_be_caught(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("orders")
    def handle(order: Order, session: Session) -> None:
        session.execute(insert(unique_effects).values(what="x"))
        try:
            with session.begin_nested():
                session.execute(insert(unique_effects).values(what="x"))
        except DBAPIError:
            note(session, "caught")

    assert harness().deliver("orders", {"id": 1}).result == "handled"
    assert seen() == ["caught"]


def test_a_commit_in_the_handler_commits_nothing_by_itself(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("orders", retry=RetryPolicy.never())
    def handle(order: Order, session: Session) -> None:
        note(session, order.id)
        session.commit()
        raise OSError("after the commit")

    assert harness().deliver("orders", {"id": 1}).result == "dead-lettered"
    assert seen() == []


@pytest.mark.parametrize("how", ["session", "connection", "raw connection"])
def test_a_handler_that_ends_the_transaction_has_failed(
    mq: ReliableMQ, harness: Enter, seen: Seen, how: str
) -> None:
    @mq.handler("orders", retry=RetryPolicy.never())
    def handle(order: Order, session: Session, connection: Connection) -> None:
        note(session, order.id)
        if how == "session":
            session.rollback()
        elif how == "connection":
            connection.commit()
        else:
            session.connection().rollback()

    assert harness().deliver("orders", {"id": 1}).result == "dead-lettered"
    assert seen() == []


def test_what_a_failed_attempt_published_is_never_sent(mq: ReliableMQ, harness: Enter) -> None:
    @mq.handler("orders", retry=RetryPolicy(initial_delay=1))
    def handle(order: Order, delivery: Delivery) -> None:
        mq.publish("charges", {"attempt": delivery.attempt})
        if delivery.attempt == 1:
            raise OSError

    mq.topic("charges")
    h = harness()
    h.deliver("orders", {"id": 1})
    h.run(through=60)
    assert [message.decode(dict) for message in h.published("charges")] == [{"attempt": 2}]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_handler_that_wants_to_end_the_process_has_failed(
    mq: ReliableMQ, harness: Enter, error: type[BaseException]
) -> None:
    @mq.handler("orders", retry=RetryPolicy.never())
    def handle(order: Order) -> None:
        raise error

    h = harness()
    assert h.deliver("orders", {"id": 1}).result == "dead-lettered"
    assert error.__name__ in h.dead_letters()[0].cause


def test_a_payload_nested_without_end_is_a_dead_letter(mq: ReliableMQ, harness: Enter) -> None:

    @mq.handler("orders")
    def handle(order: Any) -> None:
        raise AssertionError("must not be called")

    h = harness()
    h.broker.inject("orders", b"[" * 100_000)
    assert h.run().dead_lettered == 1


def test_at_least_once_has_no_current_transaction_and_retries_from_the_store(
    mq: ReliableMQ, harness: Enter
) -> None:
    calls: list[int] = []

    @mq.handler("orders", guarantee="at-least-once", retry=RetryPolicy(initial_delay=1))
    def handle(order: Order, delivery: Delivery) -> None:
        with pytest.raises(NoTransactionError):
            mq.publish("charges", {})
        calls.append(delivery.attempt)
        if delivery.attempt == 1:
            raise OSError

    h = harness()
    assert h.deliver("orders", {"id": 1}).result == "retried"
    assert h.run(through=60).handled == 1
    assert calls == [1, 2]


def test_a_row_that_another_process_ended_after_it_was_read_is_not_handled(
    mq: ReliableMQ, harness: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    read_due = Retries.due

    @mq.handler("orders", guarantee="at-least-once", retry=RetryPolicy(initial_delay=1))
    def handle(order: Order, delivery: Delivery) -> None:
        calls.append(delivery.attempt)
        raise OSError

    h = harness()

    def ended_then(self: Retries, *args: Any, **options: Any) -> list[Waiting]:
        found = read_due(self, *args, **options)
        for waiting in found:
            with mq.store.transaction() as connection:
                assert self.finish(connection, waiting)
        return found

    assert h.deliver("orders", {"id": 1}).result == "retried"
    monkeypatch.setattr(Retries, "due", ended_then)
    assert h.run(through=60).handled == 0
    assert calls == [1]


def test_a_handler_that_takes_long_holds_up_no_message_while_a_worker_is_idle(
    mq: ReliableMQ, harness: Enter
) -> None:
    done: list[int] = []
    others = threading.Event()

    @mq.handler("orders", guarantee="at-least-once", concurrency=2)
    def handle(order: Order) -> None:
        if order.id == 0:
            assert others.wait(30), done
        done.append(order.id)
        if len(done) == 40:
            others.set()

    h = harness()
    with mq.transaction():
        for number in range(41):
            mq.publish("orders", {"id": number})
    assert h.run(through=1).handled == 41
    assert sorted(done) == list(range(41))


def test_at_least_once_with_a_session_commits_after_the_handler(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("orders", guarantee="at-least-once")
    def handle(order: Order, session: Session) -> None:
        note(session, order.id)

    h = harness()
    h.deliver("orders", {"id": 1}, message_id="m")
    h.deliver("orders", {"id": 1}, message_id="m")
    assert seen() == ["1", "1"]


def test_at_most_once_makes_an_error_a_dead_letter_at_once(mq: ReliableMQ, harness: Enter) -> None:
    @mq.handler("orders", guarantee="at-most-once")
    def handle(order: Order) -> None:
        raise OSError("gone")

    h = harness()
    assert h.deliver("orders", {"id": 1}).result == "dead-lettered"
    assert h.dead_letters()[0].cause == "OSError: gone"


@pytest.mark.parametrize(
    "statement", ["COMMIT", " rollback", "/* now */ Commit and chain", "END", "START TRANSACTION"]
)
def test_a_handler_cannot_end_its_transaction_by_sql(
    mq: ReliableMQ, harness: Enter, seen: Seen, statement: str
) -> None:
    @mq.handler("orders", retry=RetryPolicy.never())
    def handle(order: Order, session: Session) -> None:
        note(session, order.id)
        with suppress(ReliableMQError):
            session.execute(text(statement))

    h = harness()
    assert h.deliver("orders", {"id": 1}).result == "dead-lettered"
    assert "ended the transaction" in h.dead_letters()[0].cause
    assert seen() == []


def test_a_handler_may_use_savepoints_as_sql(mq: ReliableMQ, harness: Enter, seen: Seen) -> None:
    @mq.handler("orders")
    def handle(order: Order, session: Session) -> None:
        session.execute(text("SAVEPOINT mine"))
        note(session, order.id)
        session.execute(text("ROLLBACK TO SAVEPOINT mine"))
        session.execute(text("RELEASE SAVEPOINT mine"))

    assert harness().deliver("orders", {"id": 1}).result == "handled"
    assert seen() == []


def test_a_handler_may_change_the_schema_only_where_that_does_not_commit(
    mq: ReliableMQ, harness: Enter, engine: Engine
) -> None:
    @mq.handler("orders", retry=RetryPolicy.never())
    def handle(order: Order, session: Session) -> None:
        session.execute(text("CREATE TABLE made_by_a_handler (x INTEGER)"))

    expected = "dead-lettered" if engine.dialect.name == "mysql" else "handled"
    assert harness().deliver("orders", {"id": 1}).result == expected


def test_a_replay_of_an_at_most_once_dead_letter_runs_once_though_its_end_is_not_known(
    mq: ReliableMQ, harness: Enter, engine: Engine
) -> None:
    calls: list[int] = []

    @mq.handler("orders", guarantee="at-most-once")
    def handle(order: Order, delivery: Delivery) -> None:
        calls.append(delivery.attempt)
        if len(calls) == 1:
            raise OSError("the first time")
        with engine.begin() as connection:  # as when the process dies after its handler
            connection.execute(text("UPDATE reliable_mq_retry SET attempt = attempt + 7"))

    h = harness()
    assert h.deliver("orders", {"id": 1}).result == "dead-lettered"
    mq.replay(h.dead_letters()[0].id)
    h.run(through=3600)
    assert calls == [1, 1]
    assert h.dead_letters()[0].cause.startswith("interrupted")
    assert mq.status().groups["orders", "tests"].retries == 0


def test_at_most_once_is_acknowledged_before_the_handler_runs(
    mq: ReliableMQ, harness: Enter
) -> None:
    lag: list[int] = []

    @mq.handler("orders", guarantee="at-most-once")
    def handle(order: Order) -> None:
        lag.append(h.broker.lag("orders", "tests"))

    h = harness()
    h.deliver("orders", {"id": 1})
    assert lag == [0]


def test_effectively_once_is_not_acknowledged_before_its_commit(
    mq: ReliableMQ, harness: Enter
) -> None:
    lag: list[int] = []

    @mq.handler("orders")
    def handle(order: Order) -> None:
        lag.append(h.broker.lag("orders", "tests"))

    h = harness()
    h.deliver("orders", {"id": 1})
    assert lag == [1]


def test_around_is_entered_for_each_attempt_outside_the_transaction(
    mq: ReliableMQ, harness: Enter
) -> None:
    steps: list[str] = []

    @mq.around
    @contextmanager
    def around(delivery: Delivery) -> Iterator[None]:
        with pytest.raises(NoTransactionError):
            mq.publish("charges", {})
        steps.append(f"in {delivery.attempt}")
        yield
        steps.append(f"out {delivery.attempt}")

    @mq.handler("orders", retry=RetryPolicy(initial_delay=1))
    def handle(order: Order, delivery: Delivery) -> None:
        if delivery.attempt == 1:
            raise OSError

    h = harness()
    h.deliver("orders", {"id": 1})
    h.run(through=10)
    assert steps == ["in 1", "in 2", "out 2"]


def test_a_discarded_message_is_not_handled_when_a_late_copy_comes(
    mq: ReliableMQ, harness: Enter
) -> None:
    @mq.handler("orders", retry=RetryPolicy.never())
    def handle(order: Order) -> None:
        raise OSError

    h = harness()
    h.deliver("orders", {"id": 1}, message_id="m")
    (letter,) = h.dead_letters()
    assert mq.discard(letter.id)
    assert not mq.discard(letter.id)
    assert not mq.replay(letter.id)
    assert h.deliver("orders", {"id": 1}, message_id="m").result == "duplicate"


@pytest.mark.parametrize("act", ["replay", "discard"])
def test_a_deadlock_of_who_works_on_dead_letters_is_tried_again(
    mq: ReliableMQ, harness: Enter, act: str
) -> None:
    @mq.handler("orders")
    def handle(order: Order) -> None:
        raise Reject

    h = harness()
    h.deliver("orders", {"id": 1}, message_id="m")
    (letter,) = h.dead_letters()
    failures = deadlocks(mq.store, "DELETE", 2)
    assert getattr(mq, act)(letter.id)
    assert not failures
    assert h.dead_letters() == []


def test_a_replay_is_handled_once_and_may_die_again(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    broken = True

    @mq.handler("orders", retry=RetryPolicy.never())
    def handle(order: Order, session: Session, delivery: Delivery) -> None:
        note(session, f"{order.id}/{delivery.attempt}")
        if broken:
            raise OSError

    h = harness()
    h.deliver("orders", {"id": 1}, message_id="m")
    for _ in range(2):
        (letter,) = h.dead_letters()
        assert mq.replay(letter.id)
        assert not mq.replay(letter.id)
        assert h.run().dead_lettered == 1
    broken = False
    (letter,) = h.dead_letters()
    assert mq.replay(letter.id)
    assert h.run().handled == 1
    assert seen() == ["1/1"]
    assert h.dead_letters() == []
    assert h.deliver("orders", {"id": 1}, message_id="m").result == "duplicate"


def test_a_group_with_too_many_waiting_takes_nothing_new_in(
    mq: ReliableMQ, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise an outage behind the handler would move the broker's backlog into the database."""
    limited = ReliableMQ(mq.settings.replace(consumer={"max_waiting_retries": 5, "prefetch": 2}))
    calls: list[int] = []
    asked_for: list[int] = []
    received = MemorySubscription.receive

    def receive(self: MemorySubscription, limit: int, timeout: float) -> Batch:
        asked_for.append(limit)
        return received(self, limit, timeout)

    monkeypatch.setattr(MemorySubscription, "receive", receive)

    @limited.handler("orders", retry=RetryPolicy(initial_delay=3600, max_delay=3600))
    def handle(order: Order) -> None:
        calls.append(order.id)
        raise OSError("the other service is down")

    with Harness(limited, engine) as h:
        for number in range(200):
            h.broker.inject("orders", b'{"id": %d}' % number)
        with limited.running() as service:
            (consumer,), retries = service.consumers, service.retries
            assert retries is not None
            wait_for(lambda: consumer.paused, "the pause")
            # The intake may have looked for room before it, for one more batch.
            asked = len(asked_for) + 1
            wait_for(lambda: len(asked_for) > asked, "the intake behind the pause")
            wait_for(lambda: not consumer.scheduler.held_count, "the end of what was taken in")
            made, rounds = len(calls), retries.rounds
            wait_for(lambda: retries.rounds >= rounds + 2, "two looks at what waits")
            assert set(asked_for[asked:]) == {0}
            assert len(calls) == made
            with pytest.raises(TimeoutError):
                service.wait_idle(0.1)
        assert 5 <= len(calls) < 100
        assert h.broker.lag("orders", "tests") == 200 - len(calls)
