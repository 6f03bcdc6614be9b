"""Exactly-once handlers on the memory broker: what is stored, and what is not."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from reliable_mq import (
    ConfigurationError,
    Delivery,
    Message,
    NoTransactionError,
    Reject,
    ReliableMQ,
    RetryPolicy,
    Settings,
    TransportError,
)
from reliable_mq.consumer import exactly_once, exactly_once_group
from reliable_mq.settings import ConsumerSettings, DeadLetterSettings
from reliable_mq.testing import Harness
from reliable_mq.testing.contract.messages import one_key_per_partition
from reliable_mq.testing.memory.adapter import MemorySubscription

DLQ = "numbers.tests.dlq"
ENOUGH = 60.0


@pytest.fixture
def mq() -> ReliableMQ:
    mq = ReliableMQ(Settings(broker_url="memory://unused", group="tests"))
    mq.topic("numbers", int, partitions=1)
    mq.topic("squares", int, partitions=1)
    return mq


@pytest.fixture
def harness(mq: ReliableMQ) -> Iterator[Callable[[], Harness]]:
    """Enter the harness once the test has registered its handlers."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Harness(mq))


def bodies(harness: Harness, topic: str = "squares") -> list[int]:
    return [int(message.body) for message in harness.published(topic)]


def send(mq: ReliableMQ, *numbers: int) -> None:
    for number in numbers:
        mq.publish_direct("numbers", number)


Enter = Callable[[], Harness]


def test_what_a_handler_publishes_is_stored_with_the_end_of_its_delivery(
    mq: ReliableMQ, harness: Enter
) -> None:
    @mq.handler("numbers", guarantee="exactly-once")
    def square(number: int, delivery: Delivery) -> None:
        mq.publish("squares", number**2, key="k", headers={"by": delivery.group})

    entered = harness()
    assert entered.deliver("numbers", 3).result == "handled"
    (output,) = entered.published("squares")
    assert (output.body, output.key, output.headers["by"]) == (b"9", "k", "tests")
    status = mq.status()
    assert status.outbox.pending == 0
    assert status.groups["numbers", "tests"].lag == 0


def test_nothing_is_stored_before_the_handler_has_ended(mq: ReliableMQ, harness: Enter) -> None:
    seen: list[int] = []

    @mq.handler("numbers", guarantee="exactly-once")
    def square(number: int) -> None:
        mq.publish("squares", number**2)
        seen.extend(bodies(entered))

    entered = harness()
    entered.deliver("numbers", 3)
    assert seen == []
    assert bodies(entered) == [9]


def test_a_failed_attempt_leaves_no_output_behind(mq: ReliableMQ, harness: Enter) -> None:
    @mq.handler("numbers", guarantee="exactly-once")
    def square(number: int, delivery: Delivery) -> None:
        mq.publish("squares", number**2)
        if delivery.attempt < 3:
            raise RuntimeError("not yet")

    entered = harness()
    outcome = entered.deliver("numbers", 3)
    assert (outcome.result, outcome.attempts) == ("handled", 3)
    assert bodies(entered) == [9]


def test_immediate_attempts_are_made_in_place(mq: ReliableMQ, harness: Enter) -> None:
    attempts: list[int] = []
    policy = RetryPolicy(max_attempts=3, immediate_attempts=3)

    @mq.handler("numbers", guarantee="exactly-once", retry=policy)
    def square(number: int, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        raise RuntimeError("never")

    entered = harness()
    assert entered.deliver("numbers", 3).result == "dead-lettered"
    assert attempts == [1, 2, 3]
    assert entered.run().retried == 0


def test_a_message_that_is_given_up_is_a_dead_letter_and_others_go_on(
    mq: ReliableMQ, harness: Enter
) -> None:
    @mq.handler("numbers", guarantee="exactly-once", retry=RetryPolicy(max_attempts=2))
    def square(number: int) -> None:
        mq.publish("squares", number**2)
        if number == 2:
            raise RuntimeError("no twos")

    entered = harness()
    send(mq, 1, 2, 3)
    counts = entered.run()
    assert (counts.handled, counts.retried, counts.dead_lettered) == (2, 1, 1)
    assert bodies(entered) == [1, 9]
    (letter,) = entered.published(DLQ)
    assert letter.body == b"2"
    assert letter.headers["reliable-mq-origin-attempts"] == "2"
    assert letter.headers["reliable-mq-origin-cause"] == "RuntimeError: no twos"
    assert mq.status().groups["numbers", "tests"].lag == 0


def test_a_rejected_and_an_unreadable_message_are_dead_letters_at_once(
    mq: ReliableMQ, harness: Enter
) -> None:
    @mq.handler("numbers", guarantee="exactly-once")
    def square(number: int) -> None:
        raise Reject("no")

    entered = harness()
    send(mq, 1)
    entered.broker.inject("numbers", b"one")
    entered.broker.inject("numbers", b"2", [("message-time", b"yesterday")])
    counts = entered.run()
    assert (counts.retried, counts.dead_lettered) == (0, 3)
    assert [letter.body for letter in entered.published(DLQ)] == [b"1", b"one", b"2"]


def test_outputs_are_stored_in_the_order_of_the_inputs_however_the_handlers_end(
    mq: ReliableMQ, harness: Enter
) -> None:
    last = threading.Event()

    @mq.handler("numbers", guarantee="exactly-once", concurrency=4)
    def square(number: int) -> None:
        mq.publish("squares", number**2)
        if number == 4:
            last.set()
        assert last.wait(ENOUGH)

    entered = harness()
    send(mq, 1, 2, 3, 4)
    entered.run()
    assert bodies(entered) == [1, 4, 9, 16]


def test_what_ended_behind_a_running_delivery_is_not_stored(mq: ReliableMQ, harness: Enter) -> None:
    ended, seen = threading.Event(), list[int]()

    @mq.handler("numbers", guarantee="exactly-once", concurrency=2)
    def square(number: int) -> None:
        mq.publish("squares", number**2)
        if number == 1:
            assert ended.wait(ENOUGH)
            lags.append(mq._runtime.adapter.lag("numbers", "tests"))
            seen.extend(bodies(entered))
        else:
            ended.set()

    lags: list[int] = []
    entered = harness()
    send(mq, 1, 2)
    entered.run()
    assert (seen, lags) == ([], [2])
    assert bodies(entered) == [1, 4]


def test_outputs_of_a_delivery_that_was_lost_meanwhile_are_dropped(
    mq: ReliableMQ, harness: Enter
) -> None:
    calls: list[int] = []

    @mq.handler("numbers", guarantee="exactly-once")
    def square(number: int) -> None:
        calls.append(number)
        mq.publish("squares", number**2)
        if len(calls) == 1:
            entered.broker.revoke()

    entered = harness()
    entered.deliver("numbers", 3)
    assert calls == [3, 3]
    assert bodies(entered) == [9]


def test_a_broker_that_goes_away_before_the_commit_gets_each_output_once(
    mq: ReliableMQ, harness: Enter
) -> None:
    calls: list[int] = []

    @mq.handler("numbers", guarantee="exactly-once")
    def square(number: int) -> None:
        calls.append(number)
        mq.publish("squares", number**2)
        if len(calls) == 1:
            entered.broker.down()
            threading.Timer(0.2, entered.broker.up).start()

    entered = harness()
    send(mq, 3)
    with mq.running():
        assert entered.broker.wait_for(lambda: bodies(entered) == [9], ENOUGH)
    assert entered.run().handled == 0
    assert bodies(entered) == [9]


def test_an_output_that_is_refused_for_good_fails_its_own_delivery_alone(
    mq: ReliableMQ, harness: Enter
) -> None:
    mq.topic("closed", partitions=1)

    @mq.handler("numbers", guarantee="exactly-once", retry=RetryPolicy(max_attempts=2))
    def square(number: int) -> None:
        mq.publish("closed" if number == 2 else "squares", number**2)

    entered = harness()
    entered.broker.refuse("closed")
    send(mq, 1, 2, 3)
    counts = entered.run()
    assert (counts.handled, counts.dead_lettered) == (2, 1)
    assert bodies(entered) == [1, 9]
    (letter,) = entered.published(DLQ)
    assert "'closed' refuses" in str(letter.headers["reliable-mq-origin-cause"])


def test_an_output_without_a_topic_stops_its_own_partition_until_the_topic_is_there(
    mq: ReliableMQ, harness: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exactly_once_group, "WITHOUT_TOPIC", 0.02)
    mq.topic("pairs", int, partitions=2)
    calls: list[int] = []

    @mq.handler("pairs", guarantee="exactly-once")
    def square(number: int) -> None:
        calls.append(number)
        mq.publish("later" if number == 2 else "squares", number**2)

    entered = harness()
    stopped, other = one_key_per_partition(2)
    for number in (1, 2, 3):
        mq.publish_direct("pairs", number, key=stopped)
        mq.publish_direct("pairs", 10 * number, key=other)
    with mq.running():
        found = {1, 100, 400, 900}
        assert entered.broker.wait_for(lambda: set(bodies(entered)) == found, ENOUGH)
        assert entered.broker.lag("pairs", "tests") == 2
        mq.topic("later", int, partitions=1)
        mq.declare()
        assert entered.broker.wait_for(lambda: bodies(entered, "later") == [4], ENOUGH)
        assert entered.broker.wait_for(lambda: bodies(entered)[-1] == 9, ENOUGH)
    assert sorted(calls) == [1, 2, 3, 10, 20, 30], "what was kept was stored, not made again"


def test_a_partition_that_does_not_go_on_is_held_back_though_the_broker_was_away_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prefetch = 8
    consumer = ConsumerSettings(prefetch=prefetch)
    mq = ReliableMQ(Settings(broker_url="memory://unused", group="tests", consumer=consumer))
    mq.topic("squares", int, partitions=1)
    mq.topic("pairs", int, partitions=2)
    failed = threading.Event()
    hold_back = MemorySubscription.hold_back

    def fail_once(subscription: MemorySubscription, partitions: Collection[str]) -> None:
        if not failed.is_set():
            failed.set()
            raise TransportError("the broker is away")
        hold_back(subscription, partitions)

    monkeypatch.setattr(MemorySubscription, "hold_back", fail_once)

    @mq.handler("pairs", guarantee="exactly-once")
    def square(number: int) -> None:
        mq.publish("squares" if number == 0 else "nowhere", number)

    stopped, other = one_key_per_partition(2)
    with Harness(mq) as entered:
        for number in range(1, 1 + prefetch):
            mq.publish_direct("pairs", number, key=stopped)
        with mq.running():
            assert failed.wait(ENOUGH)
            mq.publish_direct("pairs", 0, key=other)
            assert entered.broker.wait_for(lambda: bodies(entered) == [0], ENOUGH)


def test_a_dead_letter_that_is_refused_is_not_stepped_over(
    mq: ReliableMQ, harness: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exactly_once, "REFUSED_DELAY", 0.02)
    said = threading.Event()
    monkeypatch.setattr(exactly_once.log, "error", lambda *_, **__: said.set())
    calls: list[int] = []

    @mq.handler("numbers", guarantee="exactly-once")
    def square(number: int) -> None:
        calls.append(number)
        raise Reject("no")

    entered = harness()
    entered.broker.refuse(DLQ)
    send(mq, 1)
    with mq.running():
        assert said.wait(ENOUGH)
        assert entered.broker.lag("numbers", "tests") == 1
        entered.broker.accept(DLQ)
        assert entered.broker.wait_for(lambda: bool(entered.published(DLQ)), ENOUGH)
    assert calls == [1]
    assert entered.broker.lag("numbers", "tests") == 0


def test_an_async_handler_publishes_into_its_transaction(mq: ReliableMQ, harness: Enter) -> None:
    @mq.handler("numbers", guarantee="exactly-once", timeout=ENOUGH)
    async def square(number: int) -> None:
        mq.publish("squares", number**2)

    entered = harness()
    assert entered.deliver("numbers", 3).result == "handled"
    assert bodies(entered) == [9]


def test_a_transaction_on_the_database_inside_the_handler_has_its_own_outbox(
    mq: ReliableMQ, harness: Enter
) -> None:
    pending: list[int] = []

    @mq.handler("numbers", guarantee="exactly-once")
    def square(number: int) -> None:
        with mq.transaction():
            mq.publish("squares", 100)
        pending.append(mq.status().outbox.pending)
        mq.publish("squares", number**2)

    entered = harness()
    with mq.running(relay=False):
        send(mq, 3)
        assert entered.broker.wait_for(lambda: bodies(entered) == [9], ENOUGH)
    assert pending == [1]
    entered.run()
    assert bodies(entered) == [9, 100]


def test_code_that_outlives_its_handler_cannot_publish_into_its_transaction(
    mq: ReliableMQ, harness: Enter
) -> None:
    contexts: list[contextvars.Context] = []

    @mq.handler("numbers", guarantee="exactly-once")
    def square(number: int) -> None:
        contexts.append(contextvars.copy_context())

    entered = harness()
    entered.deliver("numbers", 3)
    with pytest.raises(NoTransactionError, match="has ended"):
        contexts[0].run(mq.publish, "squares", 9)
    assert bodies(entered) == []


def test_messages_of_another_application_go_elsewhere(mq: ReliableMQ, harness: Enter) -> None:
    other = ReliableMQ(Settings(broker_url="memory://other", group="tests"))
    errors: list[BaseException] = []

    @mq.handler("numbers", guarantee="exactly-once")
    def square(number: int) -> None:
        try:
            other.publish("squares", number**2)
        except NoTransactionError as error:
            errors.append(error)

    entered = harness()
    entered.deliver("numbers", 3)
    assert len(errors) == 1
    assert bodies(entered) == []
    other.close()


# --- what cannot be ------------------------------------------------------------------------------


def test_a_broker_without_transactions_is_refused_at_the_decoration() -> None:
    mq = ReliableMQ(Settings(broker_url="sql://", group="tests"))
    with pytest.raises(ConfigurationError, match="the adapter 'sql' cannot: use 'effectively-on"):

        @mq.handler("numbers", guarantee="exactly-once")
        def square(number: int) -> None: ...

    assert mq.handlers == ()


def test_dead_letters_without_a_topic_are_refused() -> None:
    settings = Settings(
        broker_url="memory://unused", group="tests", dead_letter=DeadLetterSettings(publish=False)
    )
    with pytest.raises(ConfigurationError, match=r"dead_letter\.publish is off"):

        @ReliableMQ(settings).handler("numbers", guarantee="exactly-once")
        def square(number: int) -> None: ...


def test_messages_that_wait_for_a_retry_in_the_database_keep_the_handler_from_starting(
    tmp_path: Path,
) -> None:
    settings = Settings(
        broker_url="memory://waiting",
        database_url=f"sqlite:///{tmp_path}/store.db",
        group="tests",
    )
    with ReliableMQ(settings) as before:
        # Late enough that it does not become due here, by the real clock.
        @before.handler("numbers", retry=RetryPolicy(initial_delay=3600, max_delay=3600))
        def fail(number: int) -> None:
            raise RuntimeError("later")

        before.declare()
        before.publish_direct("numbers", 1)
        assert before.run_until_idle().retried == 1
    with ReliableMQ(settings) as after:

        @after.handler("numbers", guarantee="exactly-once")
        def square(number: int) -> None: ...

        with pytest.raises(ConfigurationError, match="1 messages of numbers/tests wait in the"):
            after.declare()


def test_a_raw_message_can_be_passed_on(mq: ReliableMQ, harness: Enter) -> None:
    @mq.handler("numbers", guarantee="exactly-once")
    def forward(message: Message) -> None:
        mq.publish("squares", message.body, message_id=message.id)

    entered = harness()
    message = mq.publish_direct("numbers", 3)
    entered.run()
    assert [one.id for one in entered.published("squares")] == [message.id]


def test_a_dead_letter_of_before_is_not_replayed_into_an_exactly_once_handler(
    tmp_path: Path,
) -> None:
    settings = Settings(
        broker_url="memory://replayed",
        database_url=f"sqlite:///{tmp_path / 'store.db'}",
        group="tests",
    )
    with ReliableMQ(settings) as before:
        before.topic("numbers", int, partitions=1)

        @before.handler("numbers", retry=RetryPolicy.never())
        def fail(number: int) -> None:
            raise OSError

        before.publish_direct("numbers", 1)
        before.run_until_idle()
    with ReliableMQ(settings) as mq:

        @mq.handler("numbers", guarantee="exactly-once")
        def handle(number: int) -> None: ...

        (letter,) = mq.dead_letters()
        with pytest.raises(ConfigurationError, match="takes nothing from the database"):
            mq.replay(letter.id)
        assert [one.id for one in mq.dead_letters()] == [letter.id]
        assert mq.discard(letter.id)
        assert not mq.replay(letter.id)
