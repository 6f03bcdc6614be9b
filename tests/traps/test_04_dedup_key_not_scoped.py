"""Trap 4: groups, topics or different messages share one memory of what was seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from reliable_mq import Delivery
from tests.e2e.conftest import MakeMQ
from tests.e2e.shop import Order, leave

pytestmark = pytest.mark.parametrize("kind", ["sql", "redis"], indirect=True)


def test_trap_04_each_group_and_each_topic_sees_the_same_id_once(
    make_mq: MakeMQ, seen: Callable[[], list[str]], unique: str
) -> None:
    mq = make_mq()
    topics = (f"{unique}.a", f"{unique}.b")
    for topic in topics:
        for group in ("billing", "shipping"):

            @mq.handler(topic, group=group)
            def handle(order: Order, session: Session, delivery: Delivery) -> None:
                leave(session, f"{delivery.message.topic[-1]} {delivery.group}")

    mq.declare()
    for _ in range(2):
        for topic in topics:
            mq.publish_direct(topic, Order(id=1), message_id="the same", timeout=30)
    mq.run_until_idle(60)
    assert sorted(seen()) == ["a billing", "a shipping", "b billing", "b shipping"]


def test_trap_04_another_message_under_a_known_id_is_not_taken_for_the_first_one(
    make_mq: MakeMQ, seen: Callable[[], list[str]], unique: str
) -> None:
    mq = make_mq()

    @mq.handler(unique)
    def handle(order: Order, session: Session) -> None:
        leave(session, order.id)

    mq.declare()
    for number in (1, 2):
        mq.publish_direct(unique, Order(id=number), message_id="the same", timeout=30)
        mq.run_until_idle(60)
    (letter,) = mq.dead_letters()
    assert letter.cause.startswith("id-conflict")
    assert mq.replay(letter.id)
    mq.run_until_idle(60)
    assert seen() == ["1", "2"]
