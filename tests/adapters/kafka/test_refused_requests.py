"""A broker that refuses a request and, not knowing the producer yet, takes the one behind it.

So does one whose topic was just created. For the client the first is stored then.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reliable_mq.adapter import SENT, Handled, TopicSpec
from reliable_mq.errors import StaleDeliveryError, TransportError
from reliable_mq.message import Message
from reliable_mq.testing.contract.messages import message
from reliable_mq.testing.contract.waiting import wait_for
from tests.adapters.kafka.conftest import GROUP, Declare, Open
from tests.adapters.kafka.copying import read_all, settle
from tests.adapters.kafka.refusing import RefusingProxy
from tests.brokers import Kafka
from tests.conftest import started

TOPIC = "fresh"
ONE_BY_ONE: dict[str, object] = {"batch.num.messages": 1, "linger.ms": 0}
"""A request for each message, several under way at once."""


@pytest.fixture
def proxy() -> Iterator[RefusingProxy]:
    proxy = RefusingProxy(TOPIC)
    yield proxy
    proxy.close()


@pytest.fixture
def behind(request: pytest.FixtureRequest, proxy: RefusingProxy) -> Iterator[Kafka]:
    kafka = Kafka({"advertised.listeners": f"PLAINTEXT://127.0.0.1:{proxy.port}"})
    proxy.start(kafka.port())
    yield from started(request, kafka)


def batch(*keys: str | None) -> list[Message]:
    return [message(TOPIC, b"%d" % number, key=key) for number, key in enumerate(keys)]


@pytest.mark.parametrize("keys", [("a", "b", "c"), (None, None, None)], ids=["keys", "no key"])
def test_what_counts_as_sent_is_stored(
    behind: Kafka, proxy: RefusingProxy, open_one: Open, keys: tuple[str | None, ...]
) -> None:
    adapter = open_one(behind.url, client_options=ONE_BY_ONE)
    adapter.declare([TopicSpec(name=TOPIC, partitions=1)], [])
    proxy.refuse()
    assert adapter.publish(batch(*keys), 60.0) == [SENT] * len(keys)
    assert proxy.refused.is_set()
    assert set(read_all(behind.bootstrap, TOPIC, "read_committed")) == {b"0", b"1", b"2"}


def test_what_counts_as_an_output_is_stored(
    behind: Kafka, proxy: RefusingProxy, open_one: Open, declare: Declare
) -> None:
    adapter = open_one(behind.url, client_options=ONE_BY_ONE)
    source = declare(GROUP, adapter=adapter)
    adapter.declare([TopicSpec(name=TOPIC, partitions=1)], [])
    assert adapter.publish([message(source)], 60.0) == [SENT]
    subscription = adapter.subscribe_transactional([source], GROUP, prefetch=10)
    (delivery,) = wait_for(lambda: subscription.receive(10, 0.1).deliveries, "the delivery")
    proxy.refuse()

    def is_committed() -> bool:
        try:
            return not subscription.commit([Handled(delivery, batch("a", "b", "c"))])
        except (TransportError, StaleDeliveryError):
            return False

    wait_for(is_committed, "a commit", meanwhile=lambda: subscription.receive(10, 0.1))
    subscription.close()
    assert proxy.refused.is_set()
    assert adapter.lag(source, GROUP) == 0
    settle(behind.bootstrap, TOPIC)
    assert sorted(read_all(behind.bootstrap, TOPIC, "read_committed")) == [b"0", b"1", b"2"]
