from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from reliable_mq.adapter import (
    SENT,
    Adapter,
    AdapterContext,
    GroupSpec,
    Refused,
    TopicSpec,
    Unknown,
)
from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq.message import Message, new_message_id
from reliable_mq.testing.memory import MemoryAdapter, MemoryBroker, open_adapter


@pytest.fixture
def adapter() -> Iterator[MemoryAdapter]:
    opened = open_adapter("memory://faults", AdapterContext(instance="test"))
    opened.declare(
        [TopicSpec(name="orders", partitions=2)], [GroupSpec(topic="orders", group="billing")]
    )
    yield opened
    opened.close()
    MemoryBroker.forget("faults")


def order(body: bytes = b"1", *, key: str | None = "ann", topic: str = "orders") -> Message:
    return Message(id=new_message_id(), topic=topic, key=key, body=body)


def received(adapter: MemoryAdapter) -> list[bytes]:
    subscription = adapter.subscribe(["orders"], "billing", prefetch=100, ordered=True)
    deliveries = subscription.receive(100, 0).deliveries
    subscription.close()
    return [delivery.raw.body for delivery in deliveries]


def test_the_adapter_fits_the_protocol(adapter: MemoryAdapter):
    checked: Adapter = adapter
    assert isinstance(checked, Adapter)


def test_one_name_is_one_broker_until_it_is_forgotten(adapter: MemoryAdapter):
    again = open_adapter("memory://faults", AdapterContext(instance="other"))
    assert again.broker is adapter.broker is MemoryBroker.named("faults")
    MemoryBroker.forget("faults")
    assert MemoryBroker.named("faults") is not adapter.broker


def test_client_options_are_refused_by_name():
    context = AdapterContext(instance="test", client_options={"linger.ms": 5})
    with pytest.raises(ConfigurationError, match=r"linger\.ms"):
        open_adapter("memory://faults", context)


def test_a_broker_that_is_down_stores_nothing_and_comes_back_with_what_it_had(adapter):
    broker = adapter.broker
    assert adapter.publish([order(b"kept")], 1) == [SENT]
    broker.down()
    assert [type(one) for one in adapter.publish([order(b"lost")], 1)] == [Unknown]
    subscription = adapter.subscribe(["orders"], "billing", prefetch=1, ordered=True)
    for call in (
        lambda: subscription.receive(1, 0),
        lambda: adapter.lag("orders", "billing"),
        lambda: adapter.declare([], []),
    ):
        with pytest.raises(TransportError):
            call()
    broker.up()
    assert received(adapter) == [b"kept"]


def test_going_down_ends_a_receive_that_waits(adapter: MemoryAdapter):
    subscription = adapter.subscribe(["orders"], "billing", prefetch=1, ordered=True)
    joined = threading.Event()
    ended: list[BaseException] = []

    def wait() -> None:
        subscription.receive(0, 0)
        joined.set()
        try:
            subscription.receive(1, 60)
        except TransportError as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert joined.wait(10)
    adapter.broker.down()
    thread.join(10)
    assert len(ended) == 1


def test_a_refused_topic_refuses_until_it_accepts_again(adapter: MemoryAdapter):
    adapter.broker.refuse("orders")
    assert [type(one) for one in adapter.publish([order()], 1)] == [Refused]
    adapter.broker.accept("orders")
    assert adapter.publish([order()], 1) == [SENT]


def test_duplicates_are_delivered_and_published_names_each_message_once(adapter: MemoryAdapter):
    adapter.broker.duplicate(2)
    adapter.publish([order(b"thrice")], 1)
    adapter.broker.duplicate(0)
    adapter.publish([order(b"once")], 1)
    assert received(adapter) == [b"thrice"] * 3 + [b"once"]
    assert [one.body for one in adapter.broker.published("orders")] == [b"thrice", b"once"]


def test_an_unknown_outcome_may_be_stored_and_blocks_its_key_if_not(adapter: MemoryAdapter):
    adapter.broker.unknown(stored=False)
    batch = [order(b"1"), order(b"2"), order(b"3", key="bob")]
    assert [type(one) for one in adapter.publish(batch, 1)] == [Unknown, Unknown, type(SENT)]
    adapter.broker.unknown(stored=True)
    assert [type(one) for one in adapter.publish([order(b"4")], 1)] == [Unknown]
    assert sorted(received(adapter)) == [b"3", b"4"]


@pytest.mark.parametrize(("applied", "left"), [(True, 0), (False, 1)])
def test_a_lost_ack_may_have_been_applied(adapter: MemoryAdapter, *, applied: bool, left: int):
    adapter.publish([order()], 1)
    subscription = adapter.subscribe(["orders"], "billing", prefetch=1, ordered=True)
    deliveries = subscription.receive(1, 0).deliveries
    adapter.broker.lose_acks(applied=applied)
    with pytest.raises(TransportError):
        subscription.ack(deliveries)
    assert adapter.lag("orders", "billing") == left
    subscription.ack(deliveries)
    assert adapter.lag("orders", "billing") == 0


def test_revoked_partitions_start_again_at_the_first_unacknowledged(adapter: MemoryAdapter):
    adapter.publish([order(b"1"), order(b"2"), order(b"3")], 1)
    subscription = adapter.subscribe(["orders"], "billing", prefetch=10, ordered=True)
    before = subscription.receive(10, 0).deliveries
    subscription.ack(before[:1])
    adapter.broker.revoke()
    batch = subscription.receive(10, 0)
    assert [delivery.raw.body for delivery in batch.deliveries] == [b"2", b"3"]
    assert {(one.partition, one.epoch) for one in batch.lost} >= {
        (before[0].partition, before[0].epoch)
    }
    assert batch.deliveries[0].epoch > before[0].epoch


def test_waiting_for_a_condition_ends_with_the_change_that_fulfils_it(adapter: MemoryAdapter):
    broker = adapter.broker
    publisher = threading.Timer(0.05, adapter.publish, ([order()], 1))
    publisher.start()
    assert broker.wait_for(lambda: len(broker.published()) == 1, 30)
    publisher.join()
    assert not broker.wait_for(lambda: len(broker.published()) == 2, 0.01)
