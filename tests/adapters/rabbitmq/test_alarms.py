"""A broker that takes no messages for want of memory or disk, with a connection in each state."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from reliable_mq.adapter import SENT, Adapter, GroupSpec, TopicSpec, Unknown
from reliable_mq.message import Message
from reliable_mq.testing.contract.messages import numbered, numbers_of
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import Deadline, wait_for
from tests.adapters.rabbitmq.conftest import GROUP
from tests.brokers import RabbitMQ
from tests.conftest import OwnServer

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

Opened = Callable[..., Adapter]

TIMEOUT = 30.0
MEMORY, DISK = "set_vm_memory_high_watermark", "set_disk_free_limit"
ALARMS = {
    "memory": ((MEMORY, "0.00001"), (MEMORY, "0.4")),
    "disk": ((DISK, "900GB"), (DISK, "50MB")),
}


@pytest.fixture
def server(own_server: OwnServer) -> RabbitMQ:
    found = own_server("rabbitmq")
    assert isinstance(found, RabbitMQ)
    return found


@pytest.mark.parametrize(("begin", "end"), ALARMS.values(), ids=ALARMS.keys())
def test_while_an_alarm_blocks_publishers_consumers_go_on_and_nothing_is_lost(
    server: RabbitMQ, opened: Opened, begin: tuple[str, ...], end: tuple[str, ...]
) -> None:
    # Given up after a second, so that connections are also lost and made again while it lasts.
    adapter = opened(f"{server.url}?blocked_connection_timeout=1")
    billing = GroupSpec(topic="orders", group=GROUP, ordered=True)
    adapter.declare([TopicSpec(name="orders")], [billing])
    assert adapter.publish(numbered("orders", range(20)), TIMEOUT) == [SENT] * 20
    reader = Reader(adapter.subscribe(["orders"], GROUP, prefetch=10, ordered=True))
    held = reader.take(10)

    server.control(*begin)
    batch = numbered("orders", range(20, 40))
    wait_for(lambda: is_blocked(adapter, batch), "an outcome that names the alarm")

    reader.ack_and_flush(held)
    rest = reader.take(10)
    reader.ack_and_flush(rest)
    assert numbers_of([*held, *rest]) == list(range(20))
    assert not reader.lost
    given_up = Deadline(3.0)
    while not given_up.passed:
        assert SENT not in adapter.publish(batch, 0.5)

    server.control(*end)
    wait_for(lambda: adapter.publish(batch, TIMEOUT) == [SENT] * 20, "all to be confirmed")
    arrived: list[int] = []
    while set(arrived) != set(range(20, 40)):  # What was on its way may come more than once.
        taken = reader.take(1)
        arrived += numbers_of(taken)
        reader.ack(taken)
    assert list(dict.fromkeys(arrived)) == list(range(20, 40))


def is_blocked(adapter: Adapter, batch: list[Message]) -> bool:
    """Publish; tell whether the outcomes, which are unknown, name the alarm."""
    outcomes = adapter.publish(batch, 2.0)
    assert {type(outcome) for outcome in outcomes} == {Unknown}
    return any(re.search("takes no messages|[Bb]locked", str(outcome)) for outcome in outcomes)
