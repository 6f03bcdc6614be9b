"""A message for which there is no place yet waits, is shown, and arrives once there is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from reliable_mq import ReliableMQ
from tests.e2e.brokers import Broker
from tests.e2e.command import as_json
from tests.e2e.shop import Order, leave
from tests.e2e.waiting import until

MakeMQ = Callable[..., ReliableMQ]
Seen = Callable[[], list[str]]


def publish_and_relay(mq: ReliableMQ, topic: str) -> None:
    with mq.transaction():
        mq.publish(topic, Order(id=1), key="ann")
        mq.publish(topic, Order(id=2), key="ann")
    assert mq.run_until_idle(consume=False).sent == 0


def check_it_waits(mq: ReliableMQ, broker: Broker) -> None:
    shown = as_json(broker, "status")["outbox"]
    assert (shown["pending"], shown["unroutable"], shown["held"]) == (2, 2, 0)
    assert shown["oldest_age"] >= 0
    causes = {entry["cause"] for entry in as_json(broker, "outbox", "ls")}
    assert any(causes), "the cause is not shown"
    assert mq.status().outbox.unroutable == 2


def let_it_arrive(make_mq: MakeMQ, topic: str, seen: Seen) -> None:
    consumer = make_mq()

    @consumer.handler(topic, ordered=True)
    def handle(order: Order, session: Session) -> None:
        leave(session, order.id)

    with consumer.running():
        until(lambda: len(seen()) == 2, consumer.status)
        until(lambda: consumer.status().outbox.pending == 0)
    assert seen() == ["1", "2"]


@pytest.mark.usefixtures("engine")
def test_a_topic_that_nobody_declared_yet(
    make_mq: MakeMQ, broker: Broker, seen: Seen, unique: str
) -> None:
    producer = make_mq()
    producer.declare()
    publish_and_relay(producer, unique)
    check_it_waits(producer, broker)
    let_it_arrive(make_mq, unique, seen)


@pytest.mark.parametrize("kind", ["rabbitmq"])
def test_an_exchange_without_a_queue(
    make_mq: MakeMQ, broker: Broker, seen: Seen, unique: str, engine: Engine
) -> None:
    producer = make_mq()
    producer.topic(unique, Order)
    producer.declare()
    publish_and_relay(producer, unique)
    check_it_waits(producer, broker)
    let_it_arrive(make_mq, unique, seen)
