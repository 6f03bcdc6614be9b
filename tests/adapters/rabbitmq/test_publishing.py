from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from reliable_mq.adapter import SENT, Adapter, Refused, Sent, TopicSpec, Unknown, Unroutable
from reliable_mq.message import Message, new_message_id
from reliable_mq.testing.contract.messages import (
    decoded,
    ids_of,
    message,
    numbered,
    numbers_of,
    one_key_per_partition,
)
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import wait_for
from tests.adapters.rabbitmq.conftest import Broker
from tests.adapters.rabbitmq.foreign import channel
from tests.brokers import RabbitMQ
from tests.conftest import OwnServer

TIMEOUT = 20.0

Declare = Callable[..., str]
Read = Callable[..., Reader]
Opened = Callable[..., Adapter]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel may take its time to close; else its connection is cut, with what is on it."""
    monkeypatch.setattr("reliable_mq_rabbitmq.publishing._CLOSE_PATIENCE", 600.0)


def kinds(outcomes: list[Any]) -> list[type]:
    return [type(outcome) for outcome in outcomes]


def test_a_message_that_no_queue_gets_is_not_sent(adapter: Adapter, declare: Declare) -> None:
    topic = declare(groups=())
    (outcome,) = adapter.publish([message(topic)], TIMEOUT)
    assert isinstance(outcome, Unroutable)
    assert topic in outcome.cause
    assert "NO_ROUTE" in outcome.cause


def test_after_its_queue_was_deleted_a_topic_is_unroutable_until_it_is_declared_again(
    adapter: Adapter, declare: Declare, reader: Read, rabbitmq_url: str
) -> None:
    topic = declare()
    assert adapter.publish(numbered(topic, [0]), TIMEOUT) == [SENT]
    with channel(rabbitmq_url) as plain:
        plain.queue_delete(f"{topic}.billing")
    batch = numbered(topic, [1, 2])
    assert kinds(adapter.publish(batch, TIMEOUT)) == [Unroutable, Unroutable]
    declare()
    assert adapter.publish(batch, TIMEOUT) == [SENT, SENT]
    assert numbers_of(reader().take_only(2)) == [1, 2]


def test_a_missing_exchange_is_nobody_elses_concern(
    adapter: Adapter, declare: Declare, reader: Read
) -> None:
    known = declare()
    batch = [message("missing" if index % 2 else known, key="k") for index in range(40)]
    outcomes = adapter.publish(batch, TIMEOUT)
    assert kinds(outcomes) == [type(SENT), Unroutable] * 20
    assert ids_of(reader().take_only(20)) == [one.id for one in batch[::2]]


def test_after_its_exchange_was_deleted_a_topic_is_unroutable(
    adapter: Adapter, declare: Declare, rabbitmq_url: str
) -> None:
    topic, other = declare(), declare("other")
    assert adapter.publish(numbered(topic, [0]), TIMEOUT) == [SENT]
    with channel(rabbitmq_url) as plain:
        plain.exchange_delete(topic)
    batch = [*numbered(topic, [1, 2]), message(other)]
    assert kinds(adapter.publish(batch, TIMEOUT)) == [Unroutable, Unroutable, type(SENT)]


def test_a_topic_that_the_user_may_not_write_is_unroutable(
    broker: Broker, opened: Opened, declare: Declare
) -> None:
    secret, public = declare("secret"), declare("public")
    user = f"user-{broker.vhost}"
    broker.api("PUT", f"/users/{user}", {"password": "pw", "tags": ""})
    rights = {"configure": "", "write": "public", "read": ""}
    broker.api("PUT", f"/permissions/{{vhost}}/{user}", rights)
    adapter = opened(broker.url.replace("guest:guest", f"{user}:pw"))
    outcomes = adapter.publish([message(secret), message(public)], TIMEOUT)
    assert kinds(outcomes) == [Unroutable, type(SENT)]
    assert "ACCESS_REFUSED" in outcomes[0].cause  # type: ignore[union-attr]
    broker.api("DELETE", f"/users/{user}")


def test_a_full_queue_refuses_for_now_and_what_follows_of_the_key_is_not_stored(
    broker: Broker, adapter: Adapter, declare: Declare, reader: Read
) -> None:
    topic = declare()
    limit = {
        "pattern": ".*",
        "apply-to": "queues",
        "definition": {"max-length": 3, "overflow": "reject-publish"},
    }
    broker.api("PUT", "/policies/{vhost}/full", limit)
    batch = numbered(topic, range(100), key="k")
    outcomes = adapter.publish(batch, TIMEOUT)
    stored = kinds(outcomes).index(Unknown)
    assert stored >= 3
    assert kinds(outcomes) == [type(SENT)] * stored + [Unknown] * (100 - stored)
    assert "nack" in outcomes[stored].cause  # type: ignore[union-attr]
    assert numbers_of(reader().take_only(stored)) == list(range(stored))


def test_publishers_with_another_number_of_partitions_are_unroutable(
    opened: Opened, declare: Declare, reader: Read
) -> None:
    topic = declare(partitions=4, ordered=True)
    for wrong in (2, 8, None):
        adapter = opened(topics={topic: TopicSpec(name=topic, partitions=wrong)})
        outcomes = adapter.publish([message(topic, key=f"key-{i}") for i in range(8)], TIMEOUT)
        assert set(kinds(outcomes)) == {Unroutable}
    reader(ordered=True).assert_nothing_more()


def test_the_routing_key_names_the_partition_of_the_key_and_the_number_of_partitions(
    adapter: Adapter, declare: Declare, rabbitmq_url: str
) -> None:
    topic = declare(partitions=4)
    keys = one_key_per_partition(4)
    with channel(rabbitmq_url) as plain:
        queue = plain.queue_declare("", exclusive=True).method.queue
        plain.queue_bind(queue, topic, "#")
        assert adapter.publish([message(topic, key=key) for key in keys], TIMEOUT) == [SENT] * 4
        got = [plain.basic_get(queue) for _ in keys]
    found = {properties.headers["message-key"]: m.routing_key for m, properties, _ in got}
    assert found == {key: f"p.4.{index}" for index, key in enumerate(keys)}


def test_what_is_on_the_wire_is_what_a_foreign_consumer_expects(
    adapter: Adapter, declare: Declare, rabbitmq_url: str
) -> None:
    topic = declare(groups=())
    sent = Message(
        id="order-1",
        topic=topic,
        key="ann",
        body=b"{}",
        headers={"text": "naïve", "bytes": b"\xff\x00"},
        content_type="application/json",
    )
    with channel(rabbitmq_url) as plain:
        queue = plain.queue_declare("", exclusive=True).method.queue
        plain.queue_bind(queue, topic, "#")
        assert adapter.publish([sent], TIMEOUT) == [SENT]
        method, properties, body = plain.basic_get(queue)
    assert (method.exchange, method.routing_key, body) == (topic, "p.1.0", b"{}")
    assert (properties.message_id, properties.content_type) == ("order-1", "application/json")
    assert properties.delivery_mode == 2
    assert properties.timestamp == int(sent.time.timestamp())
    assert properties.headers == {
        "message-time": sent.time.isoformat(timespec="microseconds"),
        "message-key": "ann",
        "text": "naïve",
        "bytes": b"\xff\x00",
    }


@pytest.mark.parametrize(
    "unfit",
    [
        Message(id="x" * 256, topic="orders"),
        Message(id="1", topic="orders", headers={"x" * 256: ""}),
        Message(id="1", topic="orders", content_type="x" * 256),
        Message(id="1", topic="orders", headers={"large": "x" * 200_000}),
        Message(id="1", topic="orders", headers={"text": "\ud800"}),
        Message(id="1", topic="orders", key="\ud800"),
    ],
    ids=["id", "header name", "content type", "headers", "surrogate", "surrogate in the key"],
)
def test_what_amqp_cannot_carry_is_refused_and_the_connection_lives_on(
    adapter: Adapter, declare: Declare, reader: Read, unfit: Message
) -> None:
    topic = declare(partitions=2)
    good = message(topic)
    assert kinds(adapter.publish([unfit, good], TIMEOUT)) == [Refused, type(SENT)]
    assert ids_of(reader().take_only(1)) == [good.id]


def test_bodies_of_many_frames_arrive_whole(opened: Opened, declare: Declare, reader: Read) -> None:
    topic = declare()
    adapter = opened(client_options={"frame_max": 4096})
    bodies = [bytes([size % 251]) * size for size in (4087, 4088, 4089, 8176, 100_000)]
    assert adapter.publish([message(topic, body) for body in bodies], TIMEOUT) == [SENT] * 5
    assert sorted(len(one.raw.body) for one in reader().take_only(5)) == sorted(map(len, bodies))


def test_a_body_that_the_broker_itself_refuses_is_refused_for_good(
    own_server: OwnServer, opened: Opened, declare: Declare, topics: dict[str, TopicSpec]
) -> None:
    server = own_server("rabbitmq", {"max_message_size": "2000"})
    adapter = opened(server.url)
    adapter.declare([TopicSpec(name="orders", catch_all=True)], [])
    small, large = message("orders", key="a"), message("orders", bytes(3000), key="b")
    outcomes = adapter.publish([small, large, message("orders", key="b")], TIMEOUT)
    assert kinds(outcomes) == [type(SENT), Refused, Unknown]
    assert adapter.publish([small], TIMEOUT) == [SENT]


@pytest.mark.usefixtures("patient")
def test_concurrent_calls_do_not_touch_each_other(
    adapter: Adapter, declare: Declare, reader: Read
) -> None:
    topic, other = declare(), declare("other")
    stop, wrong = threading.Event(), list[Any]()

    def disturb() -> None:
        while not stop.is_set():
            adapter.publish([message("missing"), message("absent")], TIMEOUT)
            adapter.publish([message(other)], 0.0)

    thread = threading.Thread(target=disturb)
    thread.start()
    for start in range(0, 1000, 50):
        batch = numbered(topic, range(start, start + 50))
        wrong += [one for one in adapter.publish(batch, TIMEOUT) if one != SENT]
    stop.set()
    thread.join()
    assert not wrong
    assert numbers_of(reader(prefetch=1000).take_only(1000)) == list(range(1000))


@pytest.mark.usefixtures("patient")
def test_after_a_call_whose_time_was_up_the_next_one_is_sent(
    adapter: Adapter, declare: Declare
) -> None:
    topic = declare()
    assert adapter.publish(numbered(topic, [0]), TIMEOUT) == [SENT]
    # Where this thread is kept waiting, the confirmations are there when it looks.
    assert set(kinds(adapter.publish(numbered(topic, range(500)), 0.0))) <= {Unknown, Sent}
    assert adapter.publish(numbered(topic, [0]), TIMEOUT) == [SENT]


@pytest.mark.usefixtures("patient")
def test_nothing_of_a_call_whose_time_was_up_is_stored_after_a_later_call(
    adapter: Adapter, declare: Declare, reader: Read
) -> None:
    topic = declare()
    assert adapter.publish(numbered(topic, [-1]), TIMEOUT) == [SENT]
    for number in range(0, 200, 2):
        adapter.publish(numbered(topic, [number]), 0.0003 * (number % 7))
        assert adapter.publish(numbered(topic, [number + 1]), TIMEOUT) == [SENT]
    arrived = numbers_of(reader(prefetch=1000).take(101))
    assert arrived == sorted(arrived)


@pytest.mark.usefixtures("patient")
def test_while_an_earlier_call_is_being_given_up_nothing_is_sent(
    own_server: OwnServer, opened: Opened
) -> None:
    server = own_server("rabbitmq")
    adapter = opened(server.url)
    adapter.declare([TopicSpec(name="orders", catch_all=True)], [])
    assert adapter.publish(numbered("orders", [0]), TIMEOUT) == [SENT]
    server.pause()
    (first,) = adapter.publish(numbered("orders", [1]), 0.3)
    (second,) = adapter.publish(numbered("orders", [2]), 0.3)
    server.resume()
    assert isinstance(first, Unknown)
    assert "not confirm" in first.cause
    assert isinstance(second, Unknown)
    assert "not sent" in second.cause
    wait_for(lambda: adapter.publish(numbered("orders", [3]), 5.0) == [SENT], "a confirm")


@pytest.mark.chaos
def test_while_an_alarm_blocks_us_nothing_is_sent_and_afterwards_everything_is(
    own_server: OwnServer, opened: Opened
) -> None:
    server = own_server("rabbitmq")
    assert isinstance(server, RabbitMQ)
    adapter = opened(server.url)
    adapter.declare([TopicSpec(name="orders", catch_all=True)], [])
    assert adapter.publish(numbered("orders", [0]), TIMEOUT) == [SENT]
    server.control("set_vm_memory_high_watermark", "0.00001")
    batch = numbered("orders", range(1, 50))

    def blocked() -> bool:
        outcomes = adapter.publish(batch, 1.0)
        assert SENT not in outcomes
        return any("takes no messages" in str(outcome) for outcome in outcomes)

    wait_for(blocked, "an outcome that names the alarm")
    adapter.declare([TopicSpec(name="other")], [])  # Only publishing is blocked.
    server.control("set_vm_memory_high_watermark", "0.4")
    wait_for(lambda: adapter.publish(batch, 5.0) == [SENT] * 49, "all outcomes to be sent")


def test_ids_and_times_survive_a_publish(adapter: Adapter, declare: Declare, reader: Read) -> None:
    sent = Message(id=new_message_id(), topic=declare())
    assert adapter.publish([sent], TIMEOUT) == [SENT]
    arrived = decoded(reader().take(1)[0])
    assert (arrived.id, arrived.time) == (sent.id, sent.time)
