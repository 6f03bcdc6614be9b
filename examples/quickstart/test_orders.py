"""Tests of the smallest service: no server, no sleep, nothing to clean up.

pytest examples/quickstart/test_orders.py
"""

from sqlalchemy import func, select

from examples.quickstart.orders import Base, Charge, Order, mq, orders, place_order
from reliable_mq.testing import Harness


def charges() -> int:
    with mq.transaction() as session:
        return session.scalar(select(func.count()).select_from(Charge)) or 0


def test_an_order_that_comes_twice_is_charged_once() -> None:
    with Harness(mq) as harness:
        Base.metadata.create_all(harness.engine)
        ann = Order(id=1, customer="ann")
        first = harness.deliver(orders, ann, message_id="order-1")
        again = harness.deliver(orders, ann, message_id="order-1")
        assert [first.result, again.result] == ["handled", "duplicate"]
        assert charges() == 1


def test_an_order_is_sent_once_the_broker_is_back() -> None:
    with Harness(mq) as harness:
        Base.metadata.create_all(harness.engine)
        harness.broker.down()
        place_order("ann")
        assert mq.status().outbox.pending == 1
        harness.broker.up()
        harness.run()
        assert [message.key for message in harness.published(orders)] == ["ann"]
        assert charges() == 1


def test_a_charge_that_fails_is_tried_again_until_it_is_a_dead_letter() -> None:
    with Harness(mq) as harness:
        # Without the application's tables every attempt fails.
        outcome = harness.deliver(orders, Order(id=1, customer="ann"))
        assert (outcome.result, outcome.attempts) == ("retried", 1)
        counts = harness.run(through=3600)  # an hour, in no time
        assert (counts.retried, counts.dead_lettered) == (6, 1)
        (letter,) = harness.dead_letters()
        assert (letter.attempts, letter.message.key) == (8, None)
        Base.metadata.create_all(harness.engine)
        assert mq.replay(letter.id)
        harness.run()
        assert charges() == 1
