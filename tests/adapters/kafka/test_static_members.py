"""Members that keep their name, and with it their partitions, over a restart."""

from __future__ import annotations

from contextlib import suppress

import pytest

from reliable_mq.adapter import AdapterContext
from reliable_mq.errors import ConfigurationError
from reliable_mq.testing.contract.messages import one_key_per_partition
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import Deadline, wait_for
from reliable_mq_kafka import open_adapter
from reliable_mq_kafka.adapter import KafkaAdapter
from reliable_mq_kafka.config import _static_id
from tests.adapters.kafka.conftest import Declare, Open, Subscribe
from tests.adapters.kafka.test_receiving import fill

PARTITIONS = 4
KEYS = one_key_per_partition(PARTITIONS)


def serve(*readers: Reader) -> None:
    for reader in readers:
        reader.ack(reader.step(timeout=0.05))


def owned(reader: Reader) -> set[str]:
    """The partitions it received something of, without those that it lost since."""
    return {one.partition for one in reader.received if not reader.has_lost(one)}


@pytest.mark.parametrize("static", [True, False])
def test_a_restart_within_the_session_leaves_a_static_members_partitions_to_it(
    adapter: KafkaAdapter,
    open_one: Open,
    declare: Declare,
    subscribe: Subscribe,
    unique: str,
    static: bool,
) -> None:
    def member(name: str) -> Reader:
        query = "session_timeout=60" + (f"&static_id={name}" if static else "")
        # In a group of their own: others would wait until the static members' sessions expire.
        return Reader(subscribe(topic, group=unique, adapter=open_one(query=query)))

    topic = declare(unique, partitions=PARTITIONS)
    first, second = member("one"), member("two")

    def fill_all() -> None:
        for key in KEYS:
            fill(adapter, topic, range(1), key=key)

    def shared() -> bool:
        fill_all()
        serve(first, second)
        return len(owned(first)) == len(owned(second)) == 2

    wait_for(shared, "two partitions each")
    kept, others = owned(first), owned(second)
    assert not kept & others
    first.close()
    fill_all()
    if not static:
        everything = kept | others
        wait_for(
            lambda: owned(second) == everything,
            "all partitions: whoever leaves gives its own up",
            meanwhile=lambda: serve(second),
        )
        return
    lost = len(second.lost)
    enough = Deadline(3.0)
    while not enough.passed:
        serve(second)
    again = member("one")
    wait_for(lambda: owned(again) == kept, "its own", meanwhile=lambda: serve(again, second))
    assert (len(second.lost), owned(second)) == (lost, others), "no rebalance"


def test_of_two_with_one_name_the_elder_stays_out_and_says_why(
    adapter: KafkaAdapter, open_one: Open, declare: Declare, subscribe: Subscribe, unique: str
) -> None:
    def member() -> Reader:
        one = open_one(query="static_id=one&session_timeout=6")
        return Reader(subscribe(topic, group=unique, adapter=one))

    topic = declare(unique)
    fill(adapter, topic, range(5))
    elder = member()
    held = elder.take(5)
    younger = member()
    again = younger.take(5)

    def is_pushed_out() -> bool:
        younger.idle()
        with suppress(ConfigurationError):
            elder.step(timeout=0.05)
        return elder.has_lost(held[0])

    wait_for(is_pushed_out, "the loss of what it held")
    for _ in range(3):
        with pytest.raises(ConfigurationError, match="static_id"):
            elder.step()
    elder.ack(held)
    elder.close()
    younger.ack_and_flush(again)
    assert not younger.lost
    assert adapter.lag(topic, unique) == 0


def test_each_handler_of_a_process_has_a_name_of_its_own() -> None:
    assert _static_id("web-1", ["orders"]) == "web-1.orders"
    assert _static_id("web-1", ["b", "a"]) == "web-1.a.b"
    long = _static_id("web-1", ["x" * 249])
    assert len(long) <= 249
    assert long != _static_id("web-1", ["y" * 249])


def test_members_have_no_lasting_name_unless_it_is_asked_for() -> None:
    adapter = open_adapter("kafka://localhost", AdapterContext(instance="test"))
    assert adapter._clients.options.static_id is None
    with pytest.raises(ConfigurationError, match="static_id"):
        open_adapter("kafka://localhost?static_id=a/b", AdapterContext(instance="test"))
    with pytest.raises(ConfigurationError, match="static_id"):
        open_adapter(
            "kafka://localhost",
            AdapterContext(instance="test", client_options={"group.instance.id": "one"}),
        )
