"""``status`` on every broker: what waits for each group, whoever asks and whatever is away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from reliable_mq import Reject, ReliableMQ, RetryPolicy
from tests.e2e.brokers import Broker
from tests.e2e.command import as_json, reliable_mq
from tests.e2e.shop import Order, leave
from tests.e2e.waiting import until

MakeMQ = Callable[..., ReliableMQ]

AWAY = {
    "kafka": "kafka://127.0.0.1:1?connect_timeout=1",
    "rabbitmq": "amqp://app:canary@127.0.0.1:1/?connection_timeout=1",
    "redis": "redis://:canary@127.0.0.1:1/0",
}


def shown(broker: Broker) -> dict[tuple[str, str], dict[str, Any]]:
    """The groups as another process's command line shows them, with no application named."""
    return {(one["topic"], one["group"]): one for one in as_json(broker, "status")["groups"]}


def test_lag_is_what_no_group_of_the_topic_has_acknowledged(
    broker: Broker, make_mq: MakeMQ, unique: str, engine: Engine, seen: Callable[[], list[str]]
) -> None:
    mq = make_mq()
    billing, shipping = (unique, f"{unique}-billing"), (unique, f"{unique}-shipping")

    @mq.handler(unique, group=billing[1])
    def charge(order: Order, session: Session) -> None:
        leave(session, order.id)

    other = make_mq()

    @other.handler(unique, group=shipping[1])
    def ship(order: Order) -> None:
        raise AssertionError("this group's process never runs")

    mq.declare()
    other.declare()
    assert {key: one["lag"] for key, one in shown(broker).items()} == {billing: 0, shipping: 0}
    with mq.transaction():
        for number in range(3):
            mq.publish(unique, Order(id=number), key="ann")
    mq.run_until_idle(60, consume=False)
    assert {key: one["lag"] for key, one in shown(broker).items()} == {billing: 3, shipping: 3}
    mq.run_until_idle(60)
    assert len(seen()) == 3
    assert {key: one["lag"] for key, one in shown(broker).items()} == {billing: 0, shipping: 3}


def test_a_message_that_is_being_handled_still_counts_where_it_is_handled(
    broker: Broker, make_mq: MakeMQ, unique: str, engine: Engine
) -> None:
    mq = make_mq()
    begun, go = threading.Event(), threading.Event()

    @mq.handler(unique)
    def charge(order: Order) -> None:
        begun.set()
        assert go.wait(120)

    with mq.running():
        with mq.transaction():
            mq.publish(unique, Order(id=1))
        try:
            assert begun.wait(60)
            status = mq.status()
            assert status.groups[unique, "billing"].lag == 1
            assert set(status.parts.values()) == {"running"}
        finally:
            go.set()
        until(lambda: mq.status().groups[unique, "billing"].lag == 0, mq.status)


def test_retries_and_dead_letters_are_counted_for_their_group(
    broker: Broker, make_mq: MakeMQ, unique: str, engine: Engine
) -> None:
    mq = make_mq(dead_letter={"publish": False})

    @mq.handler(unique, retry=RetryPolicy(initial_delay=300, max_delay=300))
    def charge(order: Order) -> None:
        if order.id == 1:
            raise Reject("never")
        raise ValueError("later")

    mq.declare()
    with mq.transaction():
        for number in (1, 2, 3):
            mq.publish(unique, Order(id=number))
    mq.run_until_idle(60)
    assert shown(broker) == {
        (unique, "billing"): {
            "topic": unique,
            "group": "billing",
            "lag": 0,
            "retries": 2,
            "dead_letters": 1,
        }
    }


def test_with_the_broker_away_the_lag_is_unknown_and_the_rest_is_shown(
    broker: Broker, make_mq: MakeMQ, unique: str, engine: Engine
) -> None:
    mq = make_mq()

    @mq.handler(unique)
    def charge(order: Order) -> None: ...

    mq.declare()
    with mq.transaction():
        mq.publish(unique, Order(id=1))
    if broker.kind not in AWAY:
        assert shown(broker)[unique, "billing"]["lag"] == 0
        return
    away = replace(broker, url=AWAY[broker.kind])
    done = reliable_mq(away, "status", "--json")
    assert done.returncode == 0
    assert "canary" not in done.stdout + done.stderr
    status = as_json(away, "status")
    assert status["outbox"]["pending"] == 1
    assert [one["lag"] for one in status["groups"]] == [None]
    assert status["parts"] == {"relay": "off", "consumer": "off", "retries": "off"}


def test_topics_with_partitions_are_counted_without_the_application(
    broker: Broker, make_mq: MakeMQ, unique: str, engine: Engine
) -> None:
    mq = make_mq()

    @mq.handler(mq.topic(unique, Order, partitions=3))
    def charge(order: Order) -> None: ...

    mq.declare()
    with mq.transaction():
        for number in range(6):
            mq.publish(unique, Order(id=number), key=str(number))
    mq.run_until_idle(60, consume=False)
    assert shown(broker)[unique, "billing"]["lag"] == 6
    assert mq.status().groups[unique, "billing"].lag == 6
