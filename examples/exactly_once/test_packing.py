"""The handler is tested without Kafka: python -m pytest examples/exactly_once."""

from examples.exactly_once.packing import Order, mq, orders, parcels
from reliable_mq.testing import Harness


def test_a_failed_attempt_leaves_no_parcel() -> None:
    with Harness(mq) as harness:
        outcome = harness.deliver(orders, Order(id=7, items=["cup", "vase"]))
        assert (outcome.result, outcome.attempts) == ("handled", 2)
        sent = [message.body for message in harness.published(parcels)]
        assert sent == [b'{"order":7,"item":"cup"}', b'{"order":7,"item":"vase"}']
