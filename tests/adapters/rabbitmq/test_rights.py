"""What each role may do with the permissions it is given, and what it is told without them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from reliable_mq.adapter import SENT, Adapter, GroupSpec, Severity, TopicSpec, Unroutable
from reliable_mq.errors import ConfigurationError
from reliable_mq.testing.contract.messages import numbered, one_key_per_partition
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_rabbitmq import rights
from reliable_mq_rabbitmq.rights import Permissions
from tests.adapters.rabbitmq.conftest import GROUP, Broker
from tests.adapters.rabbitmq.users import PASSWORD, user

Opened = Callable[..., Adapter]
Declare = Callable[..., str]
Allowed = Callable[[Permissions], Adapter]

DECLARE = rights.to_declare("orders")
PUBLISH = rights.to_publish("orders")
CONSUME = rights.to_consume("orders", GROUP)

TOPIC = TopicSpec(name="orders", partitions=2)
LETTERS = TopicSpec(name="orders.billing.dlq", partitions=1, catch_all=True)
BILLING = GroupSpec(topic="orders", group=GROUP, ordered=True)


@pytest.fixture
def allowed(broker: Broker, opened: Opened, topics: dict[str, TopicSpec]) -> Iterator[Allowed]:
    """Opens an adapter as a user of these permissions."""
    topics.update({spec.name: spec for spec in (TOPIC, LETTERS)})
    with ExitStack() as stack:
        count = iter("abcdefgh")

        def make(permissions: Permissions) -> Adapter:
            url = stack.enter_context(user(broker.node, broker.vhost, permissions, next(count)))
            return opened(url)

        yield make


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        act()
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


def test_each_role_needs_no_more_than_its_own_permissions(allowed: Allowed) -> None:
    allowed(DECLARE).declare([TOPIC, LETTERS], [BILLING])
    relay, worker = allowed(PUBLISH), allowed(CONSUME)
    for key in one_key_per_partition(2):
        assert relay.publish(numbered("orders", range(3), key=key), 30.0) == [SENT] * 3
    assert relay.publish(numbered(LETTERS.name, [0], key=None), 30.0) == [SENT]
    reader = Reader(worker.subscribe(["orders"], GROUP, prefetch=10, ordered=True))
    held = reader.take(6)
    reader.release(held[:1])
    reader.ack_and_flush(reader.take(3))
    assert worker.lag("orders", GROUP) == 3
    reader.close()
    # Queues take back what a consumer had when they notice that it is gone, after the close.
    wait_for(lambda: relay.lag("orders", GROUP) == 3, "a lag of 3")


def test_members_of_an_ordered_group_may_count_themselves(
    allowed: Allowed, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    allowed(DECLARE).declare([TOPIC], [BILLING])
    worker = allowed(CONSUME)
    reader = Reader(worker.subscribe(["orders"], GROUP, prefetch=10, ordered=True))

    def queues() -> set[str]:
        return {one["name"] for one in broker.api("GET", "/queues/{vhost}")}

    wait_for(lambda: f"orders.{GROUP}:members" in queues(), "the queue", meanwhile=reader.idle)
    reader.close()
    assert not [one for one in caplog.records if one.name == "reliable_mq"]


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        (Permissions("", DECLARE.write, DECLARE.read), "exchange 'orders'.*configure"),
        (
            Permissions(r"^orders(\..+\.dlq)?$", DECLARE.write, DECLARE.read),
            "queue 'orders.billing.1'.*configure",
        ),
        (Permissions(DECLARE.configure, "", DECLARE.read), "binding of.*write.*read"),
        (Permissions(DECLARE.configure, DECLARE.write, ""), "binding of.*write.*read"),
        (PUBLISH | CONSUME, "exchange 'orders'.*configure"),
    ],
)
def test_whoever_may_not_declare_is_told_what_is_missing(
    allowed: Allowed, lacking: Permissions, words: str
) -> None:
    text = refused(lambda: allowed(lacking).declare([TOPIC, LETTERS], [BILLING]))
    assert "ACCESS_REFUSED" in text
    assert re.search(words, text), text


@pytest.mark.parametrize("role", [DECLARE, CONSUME], ids=["declare", "consume"])
def test_whoever_may_not_publish_has_unroutable_messages_at_once(
    allowed: Allowed, role: Permissions
) -> None:
    allowed(DECLARE | CONSUME).declare([TOPIC], [BILLING])
    adapter = allowed(role)
    (outcome,) = adapter.publish(numbered("orders", [1]), 30.0)
    assert isinstance(outcome, Unroutable)
    assert "ACCESS_REFUSED" in outcome.cause
    assert PASSWORD not in outcome.cause


@pytest.mark.parametrize("role", [DECLARE, PUBLISH], ids=["declare", "publish"])
def test_whoever_may_not_consume_is_told_so(allowed: Allowed, role: Permissions) -> None:
    allowed(DECLARE).declare([TOPIC], [BILLING])
    subscription = allowed(role).subscribe(["orders"], GROUP, prefetch=10, ordered=True)
    text = refused(lambda: wait_for(lambda: Reader(subscription).step() or None, "an error"))
    subscription.close()
    assert re.search("ACCESS_REFUSED.*read", text)


def test_inspect_says_what_it_could_not_compare(allowed: Allowed) -> None:
    allowed(DECLARE).declare([TOPIC, LETTERS], [BILLING])
    worker = allowed(CONSUME)
    worker.subscribe(["orders"], GROUP, prefetch=1, ordered=True)
    findings = worker.inspect()
    assert {one.severity for one in findings} == {Severity.INFO}
    assert {one.code for one in findings} == {"rabbitmq-not-checked"}


def test_the_page_has_these_permissions() -> None:
    page = (Path(__file__).parents[3] / "docs/brokers.md").read_text()
    for role in (DECLARE, PUBLISH, CONSUME):
        line = f"'{role.configure}' '{role.write}' '{role.read}'"
        assert line in page
