"""Queues that are too busy to answer at once lose nothing by that, and do not look empty."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reliable_mq.adapter import SENT, Adapter, Received
from reliable_mq.testing.contract.messages import numbered, numbers_of
from reliable_mq.testing.contract.readers import Reader
from reliable_mq_rabbitmq import subscription
from reliable_mq_rabbitmq.asking import AskingChannel
from tests.adapters.rabbitmq.conftest import GROUP, Broker

Declare = Callable[..., str]
Read = Callable[..., Reader]
Halt = Callable[[str], Callable[[], None]]


@pytest.fixture
def halt(broker: Broker) -> Iterator[Halt]:
    """Has a process of the broker, given in Erlang, stand still until what it returns is called."""
    halted: set[str] = set()

    def go_on(process: str) -> None:
        broker.node.control("eval", f"sys:resume({process}).")
        halted.discard(process)

    def stop(process: str) -> Callable[[], None]:
        broker.node.control("eval", f"sys:suspend({process}).")
        halted.add(process)
        return lambda: go_on(process)

    yield stop
    for process in set(halted):
        go_on(process)


def leader_of(broker: Broker, queue: str) -> str:
    name = f'rabbit_misc:r(<<"{broker.vhost}">>, queue, <<"{queue}">>)'
    return f"amqqueue:get_pid(element(2, rabbit_amqqueue:lookup({name})))"


def close_while(goes_on: Callable[[], None], consumer: Reader) -> None:
    """Close *consumer*, and let the broker go on only when that has begun."""
    closing = threading.Thread(target=consumer.close)
    closing.start()
    goes_on()
    closing.join()


def test_a_queue_whose_leader_does_not_answer_at_once_is_not_taken_for_empty(
    adapter: Adapter,
    declare: Declare,
    broker: Broker,
    halt: Halt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topic = declare(partitions=1)
    assert adapter.publish(numbered(topic, range(3)), 30.0) == [SENT] * 3
    go_on = halt(leader_of(broker, f"{topic}.{GROUP}"))
    ask = AskingChannel.ask
    told: list[int] = []

    def noted(channel: AskingChannel, operation: str, **arguments: Any) -> Any:
        reply = ask(channel, operation, **arguments)
        if not told:
            go_on()
        told.append(reply.message_count)
        return reply

    monkeypatch.setattr(AskingChannel, "ask", noted)
    assert adapter.lag(topic, GROUP) == 3
    assert told[0] == 0, "this is what RabbitMQ says of such a queue"


def test_acknowledgements_that_the_broker_holds_back_are_not_lost_by_a_close(
    adapter: Adapter,
    declare: Declare,
    reader: Read,
    halt: Halt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscription, "_LEAVE_TIMEOUT", 120.0)
    topic = declare()
    assert adapter.publish(numbered(topic, range(200)), 30.0) == [SENT] * 200
    consumer = reader()
    held = consumer.take(200)
    go_on = halt("ra_log_wal")
    # Each by itself: the broker holds back what comes after the first few that it cannot write.
    for delivery in held[1::2]:
        consumer.ack([delivery])
    close_while(go_on, consumer)
    assert sorted(numbers_of(reader().take_only(100))) == list(range(0, 200, 2))


def test_a_queue_whose_channel_is_gone_costs_the_others_no_acknowledgement_at_a_close(
    adapter: Adapter,
    declare: Declare,
    reader: Read,
    halt: Halt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscription, "_LEAVE_TIMEOUT", 120.0)
    topic = declare(partitions=5)
    count = 5 * 96
    assert adapter.publish(numbered(topic, range(count), key=None), 60.0) == [SENT] * count
    consumer = reader()
    held: dict[str, list[Received]] = defaultdict(list)
    for delivery in consumer.take(count):
        held[delivery.partition].append(delivery)
    gone = sorted(held)[::2]
    acked = [one for queue in held if queue not in gone for one in held[queue][1::2]]
    go_on = halt("ra_log_wal")
    for delivery in acked:
        consumer.ack([delivery])
    for queue in gone:
        consumer.ack(held[queue][:1])
        consumer.subscription.hand_over(queue)
    close_while(go_on, consumer)
    # Of the queues that were given up the acknowledgements may have arrived or not.
    after = reader()
    back = after.take(count - len(acked) - len(gone))
    while more := after.step(timeout=1.0):
        back += more
    assert not {*numbers_of(back)} & {*numbers_of(acked)}
