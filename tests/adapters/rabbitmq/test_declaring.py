from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pika
import pytest

from reliable_mq.adapter import SENT, Adapter, GroupSpec, TopicSpec
from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq.testing.contract.messages import message, numbered
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import wait_for
from tests.adapters.rabbitmq.conftest import GROUP, Broker
from tests.adapters.rabbitmq.foreign import channel

Declare = Callable[..., str]
Read = Callable[..., Reader]
Opened = Callable[..., Adapter]

QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 2147483647}


def test_one_partition_has_one_queue_that_is_bound_to_everything(
    broker: Broker, declare: Declare
) -> None:
    declare(groups=("billing", "audit"))
    queues = {one["name"]: one for one in broker.api("GET", "/queues/{vhost}")}
    assert set(queues) == {"orders.billing", "orders.audit"}
    assert queues["orders.billing"]["arguments"] == QUORUM
    assert queues["orders.billing"]["durable"]
    (binding,) = broker.api("GET", "/bindings/{vhost}/e/orders/q/orders.billing")
    assert binding["routing_key"] == "#"
    exchange = broker.api("GET", "/exchanges/{vhost}/orders")
    assert (exchange["type"], exchange["durable"]) == ("topic", True)


def test_an_ordered_group_has_a_queue_a_partition_for_one_consumer_each(
    broker: Broker, declare: Declare
) -> None:
    declare(partitions=3, ordered=True)
    queues = {one["name"]: one for one in broker.api("GET", "/queues/{vhost}")}
    assert set(queues) == {f"orders.billing.{partition}" for partition in range(3)}
    for queue in queues.values():
        assert queue["arguments"] == {**QUORUM, "x-single-active-consumer": True}
    bindings = broker.api("GET", "/exchanges/{vhost}/orders/bindings/source")
    found = {one["destination"]: one["routing_key"] for one in bindings}
    assert found == {f"orders.billing.{partition}": f"p.3.{partition}" for partition in range(3)}


def test_a_catch_all_topic_is_never_unroutable(
    broker: Broker, adapter: Adapter, declare: Declare
) -> None:
    declare("orders.billing.dlq", groups=(), catch_all=True)
    assert adapter.publish([message("orders.billing.dlq")], 20.0) == [SENT]
    (queue,) = broker.api("GET", "/queues/{vhost}")
    assert (queue["name"], queue["arguments"]) == ("orders.billing.dlq", QUORUM)


def test_a_catch_all_whose_queue_would_be_a_groups_is_refused(adapter: Adapter) -> None:
    with pytest.raises(ConfigurationError, match=r"'orders.dlq'.*'dlq' of topic 'orders'"):
        adapter.declare(
            [TopicSpec(name="orders"), TopicSpec(name="orders.dlq", catch_all=True)],
            [GroupSpec(topic="orders", group="dlq")],
        )


def test_the_replication_factor_is_the_initial_group_size(broker: Broker, declare: Declare) -> None:
    declare(replication_factor=1)
    declare(replication_factor=1)
    (queue,) = broker.api("GET", "/queues/{vhost}")
    assert queue["arguments"] == {**QUORUM, "x-quorum-initial-group-size": 1}


def test_an_option_nobody_knows_is_refused(adapter: Adapter) -> None:
    with pytest.raises(ConfigurationError, match="retention"):
        adapter.declare([TopicSpec(name="orders", options={"retention": 60})], [])


@pytest.mark.parametrize("ordered", [True, False])
def test_a_group_cannot_change_between_ordered_and_unordered(
    adapter: Adapter, declare: Declare, *, ordered: bool
) -> None:
    declare(ordered=ordered)
    assert adapter.publish([message("orders")], 20.0) == [SENT]
    with pytest.raises(ConfigurationError, match=r"orders\.billing.*new group name"):
        declare(ordered=not ordered)
    wait_for(lambda: adapter.lag("orders", GROUP) == 1, "what was there")


def test_a_queue_of_another_kind_is_refused_and_left_alone(
    adapter: Adapter, declare: Declare, rabbitmq_url: str
) -> None:
    with channel(rabbitmq_url) as plain:
        plain.queue_declare("orders.billing", durable=True, arguments={"x-queue-type": "classic"})
        plain.basic_publish("", "orders.billing", b"kept")
    with pytest.raises(ConfigurationError) as caught:
        declare()
    assert "'quorum'" in str(caught.value)
    assert "'classic'" in str(caught.value)
    assert adapter.lag("orders", GROUP) == 1


QUORUM_ONLY = {"x-queue-type": "quorum"}

OTHER_QUEUES: dict[str, tuple[dict[str, Any], str]] = {
    "classic": ({"durable": True}, "x-queue-type"),
    "stream": ({"durable": True, "arguments": {"x-queue-type": "stream"}}, "x-queue-type.*stream"),
    "not durable": ({"durable": False}, "durable"),
    "auto-delete": ({"durable": True, "auto_delete": True}, "auto_delete|x-queue-type"),
    "exclusive": ({"exclusive": True}, "(?i)locked.*exclusive"),
    "no delivery limit": ({"arguments": QUORUM_ONLY}, "x-delivery-limit"),
    **{
        f"{name}={value}": ({"arguments": {**QUORUM, f"x-{name}": value}}, f"x-{name}")
        for name, value in {
            "delivery-limit": 3,
            "max-length": 10,
            "max-length-bytes": 1000,
            "message-ttl": 60_000,
            "expires": 600_000,
            "dead-letter-exchange": "graveyard",
            "single-active-consumer": True,
            "quorum-initial-group-size": 1,
        }.items()
    },
    "max-length, drop-head": (
        {"arguments": {**QUORUM, "x-max-length": 10, "x-overflow": "drop-head"}},
        "x-max-length|x-overflow",
    ),
    "max-length, reject-publish": (
        {"arguments": {**QUORUM, "x-max-length": 10, "x-overflow": "reject-publish"}},
        "x-max-length|x-overflow",
    ),
}


@pytest.mark.parametrize(("made", "words"), OTHER_QUEUES.values(), ids=OTHER_QUEUES.keys())
def test_an_existing_queue_that_keeps_other_promises_is_refused_and_left_alone(
    declare: Declare, broker: Broker, rabbitmq_url: str, made: dict[str, Any], words: str
) -> None:
    with channel(rabbitmq_url) as plain:
        plain.queue_declare("orders.billing", **{"durable": True, **made})
        with pytest.raises(ConfigurationError, match=words) as caught:
            declare()
        assert "orders.billing" in str(caught.value)
        (queue,) = broker.api("GET", "/queues/{vhost}")
    expected = made.get("arguments", {})
    assert {name: queue["arguments"].get(name) for name in expected} == expected


def test_an_exchange_of_another_kind_is_refused(declare: Declare, rabbitmq_url: str) -> None:
    with channel(rabbitmq_url) as plain:
        plain.exchange_declare("orders", "fanout", durable=True)
    with pytest.raises(ConfigurationError, match=r"exchange 'orders'.*topic.*fanout"):
        declare()


@pytest.mark.parametrize(("first", "then"), [(1, 4), (4, 1), (4, 2), (2, 4), (4, None)])
def test_another_number_of_partitions_is_refused_whatever_it_is(
    declare: Declare, broker: Broker, first: int | None, then: int | None
) -> None:
    declare(partitions=first)
    before = {one["name"] for one in broker.api("GET", "/queues/{vhost}")}
    with pytest.raises(ConfigurationError, match=f"with {then or 1} partitions.*exist for {first}"):
        declare(partitions=then)
    assert {one["name"] for one in broker.api("GET", "/queues/{vhost}")} == before


def test_a_declaration_that_a_crash_left_unfinished_is_finished(
    adapter: Adapter, declare: Declare, rabbitmq_url: str
) -> None:
    declare(partitions=4)
    with channel(rabbitmq_url) as plain:
        plain.queue_delete("orders.billing.0")
        plain.queue_unbind("orders.billing.3", "orders", "p.4.3")
    declare(partitions=4)
    assert adapter.publish([message("orders", key=f"{i}") for i in range(40)], 20.0) == [SENT] * 40


def test_a_name_that_is_too_long_is_refused(declare: Declare) -> None:
    with pytest.raises(ConfigurationError, match="the limit is 249"):
        declare("x" * 245)


def test_a_name_that_the_broker_keeps_for_itself_is_refused(declare: Declare) -> None:
    with pytest.raises(ConfigurationError, match=r"amq\.mine"):
        declare("amq.mine")


def test_a_missing_permission_is_a_configuration_error(broker: Broker, opened: Opened) -> None:
    user = f"user-{broker.vhost}"
    broker.api("PUT", f"/users/{user}", {"password": "pw", "tags": ""})
    broker.api("PUT", f"/permissions/{{vhost}}/{user}", {"configure": "", "write": "", "read": ""})
    adapter = opened(broker.url.replace("guest:guest", f"{user}:pw"))
    with pytest.raises(ConfigurationError, match="permission"):
        adapter.declare([TopicSpec(name="orders")], [])
    broker.api("DELETE", f"/users/{user}")


def test_a_virtual_host_that_does_not_exist_is_a_configuration_error(
    opened: Opened, rabbitmq_url: str
) -> None:
    adapter = opened(rabbitmq_url + "-missing")
    with pytest.raises(ConfigurationError, match="virtual host"):
        adapter.declare([TopicSpec(name="orders")], [])


def test_one_living_host_among_dead_ones_is_found(broker: Broker, opened: Opened) -> None:
    port = broker.node.port()
    hosts = f"127.0.0.1:1,no-such-host.invalid,127.0.0.1:{port}"
    adapter = opened(broker.url.replace(f"127.0.0.1:{port}", hosts))
    adapter.declare([TopicSpec(name="orders", catch_all=True)], [])
    assert adapter.publish([message("orders")], 20.0) == [SENT]


def test_hosts_that_are_all_dead_are_a_transport_error_that_names_them(opened: Opened) -> None:
    adapter = opened("amqp://u:sesame@127.0.0.1:1,127.0.0.1:2/")
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:1, 127\.0\.0\.1:2") as caught:
        adapter.lag("orders", GROUP)
    assert "sesame" not in str(caught.value)


def test_lag_counts_what_is_ready_and_what_this_adapter_holds(
    adapter: Adapter, declare: Declare, reader: Read, opened: Opened
) -> None:
    declare(partitions=2)
    assert adapter.publish([message("orders", key=str(i)) for i in range(20)], 20.0) == [SENT] * 20
    consumer = reader(prefetch=20)
    taken = consumer.take(20)
    assert adapter.lag("orders", GROUP) == 20
    consumer.ack(taken[:5])
    assert adapter.lag("orders", GROUP) == 15
    assert opened(instance="other").lag("orders", GROUP) == 0


@pytest.mark.parametrize("partitions", [1, 3])
def test_lag_is_known_to_one_who_was_not_told_the_number_of_partitions(
    adapter: Adapter, declare: Declare, opened: Opened, partitions: int
) -> None:
    declare(partitions=partitions)
    assert adapter.publish([message("orders", key=str(i)) for i in range(20)], 20.0) == [SENT] * 20
    for topics in ({}, {"orders": TopicSpec(name="orders")}):
        other = opened(topics=topics)
        wait_for(lambda other=other: other.lag("orders", GROUP) == 20, "a lag of 20")  # type: ignore[misc]


def test_lag_of_a_group_that_was_not_declared_is_a_configuration_error(
    adapter: Adapter, declare: Declare
) -> None:
    declare()
    with pytest.raises(ConfigurationError, match=r"orders\.audit"):
        adapter.lag("orders", "audit")


def test_no_record_of_pikas_shows_above_debug_and_none_shows_the_password(
    broker: Broker, opened: Opened, reader: Read, caplog: pytest.LogCaptureFixture
) -> None:
    user = f"user-{broker.vhost}"
    broker.api("PUT", f"/users/{user}", {"password": "sesame-open", "tags": ""})
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    broker.api("PUT", f"/permissions/{{vhost}}/{user}", rights)
    caplog.set_level("DEBUG")
    adapter = opened(broker.url.replace("guest:guest", f"{user}:sesame-open"))
    spec = TopicSpec(name="orders")
    adapter.declare([spec], [GroupSpec(topic="orders", group=GROUP, ordered=True)])
    adapter.publish([*numbered("orders", range(3)), message("missing")], 20.0)
    consumer = reader(ordered=True, on=adapter)
    consumer.release(consumer.take(3))
    consumer.take(3)
    consumer.close()
    wrong = opened(broker.url.replace("guest:guest", f"{user}:wrong-sesame"))
    with pytest.raises(ConfigurationError):
        wrong.declare([spec], [])
    adapter.close()
    broker.api("DELETE", f"/users/{user}")
    records = [one for one in caplog.records if one.name.startswith("pika")]
    assert any("Channel.Close" in one.getMessage() for one in records)
    assert {one.levelname for one in records} == {"DEBUG"}
    assert "sesame" not in caplog.text


def test_other_users_of_pika_keep_their_log_records(
    adapter: Adapter, declare: Declare, rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    declare()
    with channel(rabbitmq_url) as plain, pytest.raises(pika.exceptions.ChannelClosedByBroker):
        plain.queue_declare("missing", passive=True)
    assert any(one.levelname == "WARNING" and one.name == "pika.channel" for one in caplog.records)
