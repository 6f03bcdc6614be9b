"""What is left when the broker is killed, restarted or stopped. Needs the hook ``broker``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Self, TypeVar

import pytest

from reliable_mq.adapter import SENT, Adapter, Outcome, TopicSpec, Unknown
from reliable_mq.errors import TransportError
from reliable_mq.message import Message
from reliable_mq.testing.contract.base import (
    BrokerControl,
    ContractBase,
    Declare,
    OpenAnother,
    OpenReader,
    require_capability,
    send,
    skip_without_hook,
)
from reliable_mq.testing.contract.ledger import Ledger
from reliable_mq.testing.contract.messages import numbered, numbers_of
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import wait_for

T = TypeVar("T")

TIMEOUT = 3.0
GRACE = 10.0
"""Seconds beyond a timeout: a client's connection time-out, and a busy machine."""


class OutageContract(ContractBase):
    """The broker goes away and comes back."""

    @pytest.fixture
    def control(self, broker: BrokerControl | None) -> Iterator[BrokerControl]:
        """Yield the power over the broker; it serves again afterwards."""
        if broker is None:
            skip_without_hook("broker")
        yield broker
        broker.resume()
        broker.restart()

    def test_a_publish_to_a_dead_broker_is_unknown_in_time_and_arrives_once_it_is_sent_again(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, control: BrokerControl
    ) -> None:
        topic = declare(partitions=1)
        send(adapter, numbered(topic, [0]))
        batch = numbered(topic, range(1, 20))
        control.kill()
        outcomes, took = _timed(lambda: adapter.publish(batch, TIMEOUT))
        assert all(isinstance(outcome, Unknown) for outcome in outcomes)
        assert took < TIMEOUT + GRACE
        control.restart()
        rounds = send_eventually(adapter, batch)
        arrived = _take_through_outage(reader(topic), 20)
        assert list(dict.fromkeys(arrived)) == list(range(20))
        if rounds == 1:  # Else an outcome was unknown again, and a second copy is allowed.
            assert len(arrived) == 20

    def test_everything_but_publish_says_that_the_broker_is_away(
        self, declare: Declare, reader: OpenReader, another: OpenAnother, control: BrokerControl
    ) -> None:
        topic = declare()
        control.kill()
        adapter = another()
        consumer = adapter.subscribe([topic], "billing", prefetch=10, ordered=False)
        calls: list[Callable[[], object]] = [
            lambda: adapter.declare([TopicSpec(name=topic)], []),
            lambda: adapter.lag(topic, "billing"),
            lambda: consumer.receive(10, TIMEOUT),
        ]
        for call in calls:
            begin = time.monotonic()
            with pytest.raises(TransportError):
                call()
            assert time.monotonic() - begin < TIMEOUT + 3 * GRACE
        _, took = _timed(consumer.close)
        assert took < GRACE
        _, took = _timed(adapter.close)
        assert took < GRACE

    def test_confirmed_messages_and_unacknowledged_deliveries_survive_the_broker(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, control: BrokerControl
    ) -> None:
        require_capability(adapter, "durable")
        topic = declare(partitions=1)
        send(adapter, numbered(topic, range(100)))
        consumer = reader(topic, prefetch=50)
        consumer.take(50)
        control.restart()
        send_eventually(adapter, numbered(topic, [100]))
        seen: set[int] = set()
        wait_for(
            lambda: seen == set(range(101)),
            "all 101 messages",
            meanwhile=lambda: _ack_all(consumer, seen),
        )
        # An ack on the broken connection may have been in vain: then its message comes again.
        wait_for(
            lambda: adapter.lag(topic, "billing") == 0,
            "a lag of 0",
            meanwhile=lambda: _ack_all(consumer, seen),
        )
        consumer.close()
        reader(topic).assert_nothing_more()

    def test_an_ordered_stream_goes_on_from_its_first_unacknowledged(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, control: BrokerControl
    ) -> None:
        topic = declare(partitions=2, ordered=True)
        send(adapter, numbered(topic, range(200)))
        consumer, ledger = reader(topic, ordered=True, prefetch=100), Ledger()
        ledger.deliver(consumer, consumer.take(100))
        control.restart()
        ledger.drain([consumer], 200, through_outage=True)
        assert ledger.effects == {"key": list(range(200))}

    def test_a_publish_to_a_stopped_broker_is_unknown_in_time_and_keeps_its_order(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, control: BrokerControl
    ) -> None:
        topic = declare(partitions=1)
        send(adapter, numbered(topic, [0]))
        batch = numbered(topic, range(1, 20))
        control.pause()
        outcomes, took = _timed(lambda: adapter.publish(batch, TIMEOUT))
        assert all(isinstance(outcome, Unknown) for outcome in outcomes)
        assert took < TIMEOUT + GRACE
        control.resume()
        send_eventually(adapter, batch)
        arrived = _take_through_outage(reader(topic), 20)
        assert list(dict.fromkeys(arrived)) == list(range(20))

    def test_what_was_confirmed_before_a_kill_amid_publishes_is_there(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, control: BrokerControl
    ) -> None:
        require_capability(adapter, "durable")
        topic = declare(partitions=1)
        with Publishing(adapter, topic) as publishing:
            wait_for(lambda: len(publishing.confirmed) >= 200, "200 confirmed messages")
            control.kill()
            wait_for(lambda: publishing.unconfirmed, "a publish that fails")
            control.restart()
            before = len(publishing.confirmed)
            wait_for(lambda: len(publishing.confirmed) > before, "a publish that succeeds again")
        consumer = reader(topic, prefetch=10_000)
        wait_for(
            lambda: publishing.confirmed <= set(numbers_of(consumer.received)),
            "what was confirmed",
            meanwhile=consumer.step_through_outage,
        )

    def test_a_subscription_goes_on_after_a_broker_that_was_stopped(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, control: BrokerControl
    ) -> None:
        topic = declare(partitions=1)
        send(adapter, numbered(topic, range(50)))
        consumer = reader(topic, prefetch=20)
        consumer.take(20)
        control.pause()
        end = threading.Timer(TIMEOUT, control.resume)
        end.start()
        seen: set[int] = set()
        wait_for(
            lambda: seen == set(range(50)),
            "all 50 messages",
            meanwhile=lambda: _ack_all(consumer, seen),
        )
        end.join()

    def test_receive_returns_in_time_while_the_broker_is_stopped(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, control: BrokerControl
    ) -> None:
        if not self.notices_silence:
            skip_without_hook("notices_silence")
        topic = declare(partitions=1)
        send(adapter, numbered(topic, range(50)))
        consumer = reader(topic, prefetch=20)
        consumer.take(20)
        control.pause()
        for _ in range(3):
            _, took = _timed(consumer.step_through_outage)
            assert took < TIMEOUT + GRACE


class Publishing:
    """Publishes numbered messages one after the other on a thread, until its block ends."""

    def __init__(self, adapter: Adapter, topic: str) -> None:
        self.confirmed: set[int] = set()
        self.unconfirmed: set[int] = set()
        self._adapter = adapter
        self._topic = topic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _publish(self) -> None:
        for start in count(0, 20):
            if self._stop.is_set():
                return
            batch = numbered(self._topic, range(start, start + 20))
            for number, outcome in enumerate(self._adapter.publish(batch, TIMEOUT), start):
                (self.confirmed if outcome == SENT else self.unconfirmed).add(number)


def send_eventually(adapter: Adapter, messages: Sequence[Message]) -> int:
    """Publish until each message was confirmed, as the relay does; return the rounds it took."""
    rounds = 0
    left = list(messages)
    missed: list[Outcome] = []

    def publish() -> bool:
        nonlocal rounds, left, missed
        rounds += 1
        outcomes = adapter.publish(left, 10.0)
        missed = [outcome for outcome in outcomes if outcome != SENT]
        left = [one for one, outcome in zip(left, outcomes, strict=True) if outcome != SENT]
        return not left

    try:
        wait_for(publish, "the confirmation of every message")
    except AssertionError as error:
        error.add_note(f"after {rounds} rounds {len(left)} of them are left; one is {missed[0]}")
        raise
    return rounds


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    begin = time.monotonic()
    return call(), time.monotonic() - begin


def _take_through_outage(consumer: Reader, different: int) -> list[int]:
    """Return the numbers that arrive until *different* ones have, and what follows at once."""
    wait_for(
        lambda: len(set(numbers_of(consumer.received))) >= different,
        f"{different} different messages",
        meanwhile=consumer.step_through_outage,
    )
    while consumer.step_through_outage():
        pass
    return numbers_of(consumer.received)


def _ack_all(consumer: Reader, seen: set[int]) -> None:
    consumer.step_through_outage()
    done = list(consumer.held)
    try:
        consumer.ack(done)
    except TransportError:
        return
    seen.update(numbers_of(done))
