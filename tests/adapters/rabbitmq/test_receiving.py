from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pika
import pytest

from reliable_mq import wire
from reliable_mq.adapter import SENT, Adapter, GroupSpec, Received, TopicSpec
from reliable_mq.errors import ConfigurationError, ReliableMQError, TransportError
from reliable_mq.testing.contract.messages import LIMITS, numbered, numbers_of
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.serving import servings
from reliable_mq.testing.contract.waiting import Deadline, wait_for
from reliable_mq_rabbitmq.codec import decode_properties
from tests.adapters.rabbitmq.conftest import GROUP, Broker
from tests.adapters.rabbitmq.foreign import (
    RawProperties,
    channel,
    header_table,
    long_string,
    publish,
)
from tests.brokers import RabbitMQ
from tests.conftest import OwnServer

Declare = Callable[..., str]
Read = Callable[..., Reader]
Opened = Callable[..., Adapter]


def value(kind: bytes, form: str, *numbers: Any) -> bytes:
    return kind + struct.pack(form, *numbers)


def nested(depth: int) -> bytes:
    inside = b"V"
    for _ in range(depth):
        inside = b"A" + struct.pack(">I", len(inside)) + inside
    return inside


LOST_OWNERS = Path(__file__).with_name("lost_owners.py")
LIVES = 25
"""More than the delivery limit that a broker may have of its own: 20, from 4.0 on."""

POISON = {
    "a time beyond the year 9999": value(b"T", ">Q", 2**63),
    "a huge number": value(b"d", ">d", 1e308),
    "a list in a list in a list": nested(5000),
    "text that is not UTF-8": long_string(b"\xff\xfe\xfd"),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
def test_a_header_that_pika_cannot_decode_costs_neither_the_connection_nor_the_message(
    adapter: Adapter, declare: Declare, reader: Read, rabbitmq_url: str, poison: bytes
) -> None:
    topic = declare()
    consumer = reader()
    table = header_table([("before", long_string(b"1")), ("h", poison), ("z", long_string(b"2"))])
    publish(rabbitmq_url, topic, b"poison", properties=table)
    assert adapter.publish(numbered(topic, [1]), 20.0) == [SENT]
    first, second = consumer.take_only(2)
    assert first.raw.body == b"poison"
    headers = dict(first.raw.headers)
    assert (headers["before"], headers["z"]) == (b"1", b"2")
    assert "h" in headers
    assert not wire.decode(first.raw, LIMITS).fault
    assert second.raw.body == b"1"
    assert not consumer.lost


def test_native_properties_that_no_client_would_send_are_survived(
    declare: Declare, reader: Read, rabbitmq_url: str
) -> None:
    topic = declare()
    flags = (1 << 15) | (1 << 7) | (1 << 6)
    odd = struct.pack(">H", flags) + b"\x02\xff\xfe" + b"\x03\xff\xfe\xfd" + b"\xff" * 8
    publish(rabbitmq_url, topic, b"odd", properties=RawProperties(odd))
    raw = reader().take(1)[0].raw
    assert (raw.native_id, raw.native_content_type, raw.native_time) == (
        b"\xff\xfe\xfd",
        None,
        None,
    )
    found = wire.decode(raw, LIMITS)
    assert found.stable_id
    assert found.message.id.startswith("sha256:")


@pytest.mark.parametrize(("names", "prefetch"), [([], 1), (["orders"], 0)])
def test_a_subscription_to_nothing_or_without_a_bound_is_refused(
    adapter: Adapter, names: list[str], prefetch: int
) -> None:
    # To the broker a prefetch of 0 means as many as there are.
    with pytest.raises(ConfigurationError, match="prefetch of 1 or more"):
        adapter.subscribe(names, GROUP, prefetch=prefetch, ordered=False)


def test_a_message_with_nothing_at_all_arrives(
    declare: Declare, reader: Read, rabbitmq_url: str
) -> None:
    topic = declare()
    publish(rabbitmq_url, topic, b"", properties=pika.BasicProperties())
    raw = reader().take(1)[0].raw
    assert (raw.body, list(raw.headers), raw.key, raw.position) == (b"", [], None, None)
    assert (raw.native_id, raw.native_content_type, raw.native_time) == (None, None, None)
    assert not wire.decode(raw, LIMITS).stable_id


def test_bodies_of_any_size_arrive_whole_and_in_order(
    declare: Declare, reader: Read, rabbitmq_url: str
) -> None:
    topic = declare()
    sizes = [0, 10, 131_063, 131_064, 131_065, 11, 5000, 900_000, 70_000, 12]
    sent = [bytes((number,)) * size for number, size in enumerate(sizes)]
    with channel(rabbitmq_url) as plain:
        plain.confirm_delivery()
        for body in sent:
            plain.basic_publish(topic, "", body, mandatory=True)
    assert [one.raw.body for one in reader().take(len(sent))] == sent


def test_a_foreign_message_keeps_its_native_id_content_type_and_time(
    declare: Declare, reader: Read, rabbitmq_url: str
) -> None:
    topic = declare()
    properties = pika.BasicProperties(
        message_id="theirs",
        content_type="text/plain",
        timestamp=1_700_000_000,
        correlation_id="c",
        reply_to="r",
        priority=1,
        app_id="a",
        headers={"number": 7, "flag": True, "none": None, "list": ["x", 1], "text": "t"},
    )
    publish(rabbitmq_url, topic, b"{}", properties=properties)
    delivery = reader().take(1)[0]
    message = wire.decode(delivery.raw, LIMITS).message
    assert (message.id, message.content_type) == ("theirs", "text/plain")
    assert message.time.timestamp() == 1_700_000_000
    assert dict(message.headers) == {
        "number": "7",
        "flag": "true",
        "none": "",
        "list": '["x",1]',
        "text": "t",
    }


def test_a_redelivered_message_has_the_headers_of_the_first_time(
    declare: Declare, reader: Read, rabbitmq_url: str
) -> None:
    publish(rabbitmq_url, declare(), b"", headers=[("b", b"1"), ("a", b"2")])
    consumer = reader()
    (first,) = consumer.take(1)
    assert not first.redelivered
    consumer.release([first])
    (again,) = consumer.take(1)
    assert again.redelivered
    assert sorted(again.raw.headers) == sorted(first.raw.headers) == [("a", b"2"), ("b", b"1")]


def test_the_connection_lives_on_while_nobody_receives(
    opened: Opened, declare: Declare, reader: Read, adapter: Adapter
) -> None:
    beating = opened(query="?heartbeat=1", instance="holder")
    # The holder's own thread serves it: in time unless the whole process is kept waiting.
    for attempt, serving in enumerate(servings(within=1.0)):
        topic = declare(f"orders-{attempt}")
        assert adapter.publish(numbered(topic, range(3)), 20.0) == [SENT] * 3
        holder = reader(topic, on=beating)
        held = holder.take(3)
        # Longer than the broker waits for a heartbeat.
        rival, enough = reader(topic), Deadline(4.0)
        while serving.in_time and not enough.passed:
            serving.begin()
            robbed = rival.step()
            assert not (robbed and serving.in_time)
        holder.ack(held)
        holder.step(timeout=0)
        left = adapter.lag(topic, GROUP)
        assert not ((holder.lost or left) and serving.in_time)


def test_a_deleted_queue_is_noticed_and_consumed_again_once_it_is_declared(
    adapter: Adapter,
    declare: Declare,
    reader: Read,
    rabbitmq_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic = declare()
    assert adapter.publish(numbered(topic, range(3)), 20.0) == [SENT] * 3
    consumer = reader()
    held = consumer.take(2)
    with channel(rabbitmq_url) as plain:
        plain.queue_delete(f"{topic}.{GROUP}")
    consumer.wait_until_lost(held[0])
    # After a second it says that it finds no queue. What it said first is in the log.
    with pytest.raises(TransportError, match=r"orders\.billing.*declare"):
        wait_for(lambda: consumer.step() or None, "an error")
    first, *_ = [one.getMessage() for one in caplog.records if one.name == "reliable_mq"]
    assert "'orders.billing' was deleted" in first
    declare()
    assert adapter.publish(numbered(topic, [7]), 20.0) == [SENT]
    assert numbers_of(consumer.take(1, through_outage=True)) == [7]


def test_one_missing_queue_does_not_keep_the_others_waiting_and_is_said_once(
    adapter: Adapter,
    declare: Declare,
    reader: Read,
    rabbitmq_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic = declare(partitions=4)
    with channel(rabbitmq_url) as plain:
        plain.queue_delete(f"{topic}.{GROUP}.2")
    batch = numbered(topic, range(8), key=None)
    outcomes = adapter.publish(batch, 20.0)
    routed = [index for index, outcome in enumerate(outcomes) if outcome == SENT]
    assert len(routed) == 6
    consumer = reader()
    taken = consumer.take(6, through_outage=True)
    assert sorted(numbers_of(taken)) == routed
    enough = Deadline(2.5)
    while not enough.passed:  # Two more attempts.
        consumer.step_through_outage()
    (record,) = [one for one in caplog.records if one.name == "reliable_mq"]
    assert f"{topic}.{GROUP}.2" in record.getMessage()


def test_a_user_who_may_not_read_is_told_so(
    broker: Broker, opened: Opened, declare: Declare, reader: Read
) -> None:
    declare()
    user = f"user-{broker.vhost}"
    broker.api("PUT", f"/users/{user}", {"password": "pw", "tags": ""})
    rights = {"configure": ".*", "write": ".*", "read": ""}
    broker.api("PUT", f"/permissions/{{vhost}}/{user}", rights)
    consumer = reader(on=opened(broker.url.replace("guest:guest", f"{user}:pw")))
    with pytest.raises(ReliableMQError, match=r"ACCESS_REFUSED.*permission"):
        wait_for(lambda: consumer.step() or None, "an error")
    broker.api("DELETE", f"/users/{user}")


def close_connections(broker: Broker, of: str) -> None:
    """As an administrator does it; the statistics know a connection after a moment only."""
    for name in wait_for(lambda: broker.connections(of), f"the connection of {of}"):
        broker.api("DELETE", f"/connections/{name.replace(' ', '%20').replace('>', '%3E')}")


def test_a_connection_that_the_broker_closes_is_reported_lost_and_made_again(
    broker: Broker, adapter: Adapter, declare: Declare, reader: Read
) -> None:
    topic = declare()
    assert adapter.publish(numbered(topic, range(10)), 20.0) == [SENT] * 10
    consumer = reader()
    held = consumer.take(10)
    close_connections(broker, f"{GROUP} test")
    wait_for(
        lambda: consumer.has_lost(held[0]),
        "the loss of what was held",
        meanwhile=consumer.step_through_outage,
    )
    again = consumer.take(10, through_outage=True)
    assert sorted(numbers_of(again)) == list(range(10))
    assert min(one.epoch for one in again) > held[0].epoch
    consumer.ack(held)
    assert adapter.lag(topic, GROUP) == 10
    consumer.ack(again)
    assert adapter.lag(topic, GROUP) == 0


def break_channel(delivery: Received) -> None:
    """Have the broker close the channel of a delivery: nobody may acknowledge an unknown tag."""
    consumer = delivery.receipt.consumer
    consumer.connection.submit(lambda: consumer._channel.basic_ack(2**40))


def test_a_channel_that_the_broker_closes_is_reported_lost_and_opened_again(
    adapter: Adapter, declare: Declare, reader: Read
) -> None:
    topic = declare()
    assert adapter.publish(numbered(topic, range(10)), 20.0) == [SENT] * 10
    consumer = reader()
    held = consumer.take(10)
    break_channel(held[0])
    wait_for(
        lambda: consumer.has_lost(held[0]),
        "the loss of what was held",
        meanwhile=consumer.step_through_outage,
    )
    assert sorted(numbers_of(consumer.take(10, through_outage=True))) == list(range(10))


def test_flush_of_acks_whose_channel_was_closed_says_that_they_may_be_lost(
    adapter: Adapter, declare: Declare, reader: Read
) -> None:
    topic = declare()
    assert adapter.publish(numbered(topic, range(10)), 20.0) == [SENT] * 10
    consumer = reader()
    held = consumer.take(10)
    consumer.ack(held[:5])
    consumer.subscription.flush()
    consumer.ack(held[5:6])
    break_channel(held[0])
    for _ in range(2):
        # Said until the loss is reported: else whoever asks again would take them for done.
        with pytest.raises(TransportError):
            consumer.subscription.flush()
    consumer.wait_until_lost(held[0])
    consumer.subscription.flush()


@pytest.mark.chaos
def test_flushed_acks_survive_the_kill_of_the_broker(own_server: OwnServer, opened: Opened) -> None:
    server = own_server("rabbitmq")
    adapter = opened(server.url)
    adapter.declare([TopicSpec(name="orders")], [GroupSpec(topic="orders", group=GROUP)])
    assert adapter.publish(numbered("orders", range(100)), 20.0) == [SENT] * 100
    consumer = Reader(adapter.subscribe(["orders"], GROUP, prefetch=500, ordered=False))
    held = consumer.take(100)
    consumer.ack(held[:60])
    consumer.subscription.flush()
    server.kill()
    consumer.close()
    server.restart()
    again = Reader(adapter.subscribe(["orders"], GROUP, prefetch=500, ordered=False))
    assert sorted(numbers_of(again.take(40, through_outage=True))) == list(range(60, 100))
    again.assert_nothing_more()


@pytest.mark.parametrize("ordered", [False, True])
def test_what_is_held_beyond_the_brokers_consumer_timeout_is_lost_and_comes_again(
    own_server: OwnServer, opened: Opened, *, ordered: bool
) -> None:
    server = own_server("rabbitmq", {"consumer_timeout": "1"})
    assert isinstance(server, RabbitMQ)
    # A channel looks what is held too long when it ticks: here only when the test has it tick.
    server.control("eval", "application:set_env(rabbit, channel_tick_interval, 86400000).")
    adapter = opened(server.url)
    group = GroupSpec(topic="orders", group=GROUP, ordered=ordered)
    adapter.declare([TopicSpec(name="orders")], [group])
    assert adapter.publish(numbered("orders", range(10)), 20.0) == [SENT] * 10
    consumer = Reader(adapter.subscribe(["orders"], GROUP, prefetch=50, ordered=ordered))
    held = consumer.take(10)
    consumer.ack_and_flush(held[:2])
    server.control("eval", "[Channel ! tick || Channel <- rabbit_channel:list_local()].")
    wait_for(
        lambda: consumer.has_lost(held[2]),
        "the loss of what was held too long",
        meanwhile=consumer.step_through_outage,
    )
    again = consumer.take(8, through_outage=True)
    assert (numbers_of(again) if ordered else sorted(numbers_of(again))) == list(range(2, 10))
    consumer.ack_and_flush(again)
    assert adapter.lag("orders", GROUP) == 0
    consumer.close()


def test_an_ack_sent_one_by_one_behind_a_gap_leaves_only_the_gap(
    adapter: Adapter, declare: Declare, reader: Read
) -> None:
    topic = declare()
    assert adapter.publish(numbered(topic, range(100)), 20.0) == [SENT] * 100
    consumer = reader()
    held = consumer.take(100)
    for delivery in held[1::2]:
        consumer.ack([delivery])
    consumer.ack(held[1::3])
    left = [n for n in range(100) if n % 2 == 0 and n % 3 != 1]
    assert adapter.lag(topic, GROUP) == len(left)
    # Of many single ones the broker's channel keeps some back until the queue has the others.
    consumer.subscription.flush()
    consumer.close()
    assert sorted(numbers_of(reader().take_only(len(left)))) == left


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_messages_that_were_held_by_many_killed_owners_and_never_handled_all_arrive(
    broker: Broker, adapter: Adapter, declare: Declare, reader: Read
) -> None:
    topic = declare(ordered=True)
    assert adapter.publish(numbered(topic, range(100), key=None), 30.0) == [SENT] * 100
    command = [sys.executable, str(LOST_OWNERS), broker.url, topic, GROUP, str(LIVES), "100"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["100"] * LIVES
    again = reader(ordered=True).take_only(100)
    assert numbers_of(again) == list(range(100))
    counts = dict(decode_properties(again[0].receipt.properties).headers)
    assert int(counts["x-delivery-count"]) >= LIVES
