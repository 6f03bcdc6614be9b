from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from reliable_mq.adapter import SENT, Adapter
from reliable_mq.testing.contract.ledger import Ledger
from reliable_mq.testing.contract.messages import numbered, numbers_of, one_key_per_partition
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import Deadline, wait_for
from tests.adapters.rabbitmq.conftest import GROUP, Broker
from tests.adapters.rabbitmq.foreign import channel
from tests.adapters.rabbitmq.test_receiving import break_channel, close_connections

Declare = Callable[..., str]
Read = Callable[..., Reader]
Opened = Callable[..., Adapter]

SENT_COUNT = 1000
HELD = 500


def cut(owner: Reader) -> None:
    connection = owner.held[0].receipt.consumer.connection
    connection.cut("the test pulls the plug")


ENDS: dict[str, Callable[[Reader, Broker], None]] = {
    "it releases": lambda owner, _: owner.release(owner.held[250:251]),
    "it hands over": lambda owner, _: owner.subscription.hand_over(owner.held[0].partition),
    "it closes": lambda owner, _: owner.close(),
    "its channel is closed by the broker": lambda owner, _: break_channel(owner.held[0]),
    "its connection is closed by the broker": lambda _, broker: close_connections(broker, "owner"),
    "its connection is cut": lambda owner, _: cut(owner),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_however_an_owner_ends_the_next_one_starts_at_its_first_unacknowledged(
    broker: Broker,
    adapter: Adapter,
    opened: Opened,
    declare: Declare,
    reader: Read,
    end: Callable[[Reader, Broker], None],
) -> None:
    topic = declare(ordered=True)
    assert adapter.publish(numbered(topic, range(SENT_COUNT), key=None), 20.0) == [SENT] * 1000
    owner = reader(ordered=True, prefetch=HELD, on=opened(instance="owner"))
    held = owner.take(HELD)
    heir = reader(ordered=True, prefetch=SENT_COUNT)
    assert heir.step(timeout=0.5) == []
    end(owner, broker)
    assert numbers_of(heir.take(SENT_COUNT)) == list(range(SENT_COUNT))
    owner.subscription.ack(held)
    assert heir.step() == []


def test_acks_behind_a_gap_leave_no_gap_for_the_next_owner(
    adapter: Adapter, declare: Declare, reader: Read
) -> None:
    topic = declare(ordered=True)
    assert adapter.publish(numbered(topic, range(20)), 20.0) == [SENT] * 20
    owner = reader(ordered=True)
    held = owner.take(20)
    owner.ack(held[:5] + held[7:12])
    assert adapter.lag(topic, GROUP) == 15
    owner.close()
    assert numbers_of(reader(ordered=True).take(15)) == list(range(5, 20))


def test_three_members_own_a_fair_share_each_and_the_order_survives_the_balancing(
    adapter: Adapter, opened: Opened, declare: Declare, reader: Read
) -> None:
    topic = declare(partitions=8, ordered=True)
    keys = one_key_per_partition(8)
    ledger = Ledger()
    members = [reader(ordered=True, on=opened(instance=f"member-{i}")) for i in range(3)]
    owners: dict[str | None, int] = {}
    rounds = 0

    def turn() -> None:
        nonlocal rounds
        for key in keys:
            assert adapter.publish(numbered(topic, [rounds], key=key), 20.0) == [SENT]
        rounds += 1
        for index, member in enumerate(members):
            taken = member.step(timeout=0.05)
            ledger.deliver(member, taken)
            member.ack(taken)
            ledger.ack(taken)
            owners.update({one.partition: index for one in taken})

    wait_for(
        lambda: sorted(Counter(owners.values()).values()) == [2, 3, 3],
        "shares of 3, 3 and 2 partitions",
        meanwhile=turn,
    )
    ledger.drain(members, 8 * rounds)
    assert ledger.effects == {key: list(range(rounds)) for key in keys}


def test_a_member_alone_keeps_all_its_partitions(
    adapter: Adapter, declare: Declare, reader: Read
) -> None:
    topic = declare(partitions=4, ordered=True)
    for key in one_key_per_partition(4):
        assert adapter.publish(numbered(topic, range(5), key=key), 20.0) == [SENT] * 5
    consumer = reader(ordered=True)
    consumer.take(20)
    enough = Deadline(3.0)
    while not enough.passed:  # Some looks at the balance, one a second.
        assert consumer.step() == []
    assert not consumer.lost


def test_the_members_queue_holds_nothing_and_vanishing_does_no_harm(
    broker: Broker, adapter: Adapter, declare: Declare, reader: Read, rabbitmq_url: str
) -> None:
    topic = declare(partitions=2, ordered=True)
    consumer = reader(ordered=True)
    consumer.step()
    name = f"{topic}.{GROUP}:members"

    def members() -> Any:
        found = {one["name"]: one for one in broker.api("GET", "/queues/{vhost}")}
        return found.get(name, {})

    wait_for(members, "the members queue", meanwhile=consumer.idle)
    assert members()["arguments"] == {"x-queue-type": "classic", "x-expires": 60_000}
    assert members()["durable"]
    with channel(rabbitmq_url) as plain:
        plain.basic_publish("", name, b"of no interest")
        plain.queue_delete(name)
    assert adapter.publish(numbered(topic, range(5)), 20.0) == [SENT] * 5
    assert numbers_of(consumer.take_only(5)) == list(range(5))
    wait_for(members, "the members queue again", meanwhile=consumer.idle)
    assert not consumer.lost


def test_a_members_queue_of_another_kind_costs_nothing_but_the_balance_and_is_said_once(
    adapter: Adapter,
    opened: Opened,
    declare: Declare,
    reader: Read,
    rabbitmq_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic = declare(partitions=2, ordered=True)
    name = f"{topic}.{GROUP}:members"
    with channel(rabbitmq_url) as plain:
        plain.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum"})
    first = reader(ordered=True)
    second = reader(ordered=True, on=opened(instance="second"))
    for key in one_key_per_partition(2):
        assert adapter.publish(numbered(topic, range(3), key=key), 20.0) == [SENT] * 3
    first.take(6)
    second.idle()

    def warnings() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.name == "reliable_mq"]

    wait_for(lambda: len(warnings()) >= 2, "a warning of each member", meanwhile=first.idle)
    with channel(rabbitmq_url) as plain:
        plain.queue_delete(name)
    wait_for(second.step, "a partition for the second member", meanwhile=first.idle)
    wait_for(lambda: len(first.held) == 3, "the loss of the other one", meanwhile=first.idle)
    assert len(warnings()) == 2
    assert all("not balanced" in text and "inequivalent" in text for text in warnings())


def test_closing_an_ordered_subscription_takes_no_time(
    adapter: Adapter, declare: Declare, reader: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A close that ends by one of its time-outs would be seen, however busy the machine is.
    monkeypatch.setattr("reliable_mq_rabbitmq.subscription._LEAVE_TIMEOUT", 60.0)
    monkeypatch.setattr("reliable_mq_rabbitmq.connection._CLOSE_TIMEOUT", 60.0)
    topic = declare(partitions=8, ordered=True)
    assert adapter.publish(numbered(topic, range(10)), 20.0) == [SENT] * 10
    consumer = reader(ordered=True)
    consumer.take(10)
    begin = time.monotonic()
    consumer.close()
    assert time.monotonic() - begin < 30.0
