"""Competing consumers on the pending list: whose an entry is, and who may say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from reliable_mq.adapter import SENT, Received, Subscription
from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq.testing.contract.base import fresh_name
from reliable_mq.testing.contract.member import Task
from reliable_mq.testing.contract.messages import number_of, numbered, numbers_of
from reliable_mq.testing.contract.processes import MemberProcess
from reliable_mq.testing.contract.serving import servings
from reliable_mq.testing.contract.waiting import Deadline, wait_for
from reliable_mq_redis import scripts
from reliable_mq_redis.adapter import RedisAdapter
from reliable_mq_redis.unordered import UnorderedSubscription
from tests.adapters.redis.conftest import TIMEOUT, Cut, Declare, Open, Subscribe
from tests.adapters.redis.proxy import Proxy

StartMember = Callable[..., MemberProcess]
SHORT = 1.0
"""A lease, in seconds, that is meant to run out."""


def receive(subscription: Subscription, count: int, seconds: float = 30.0) -> list[Received]:
    """Receive until *count* deliveries are there."""
    found: list[Received] = []

    def step() -> None:
        found.extend(subscription.receive(count - len(found), 0.2).deliveries)

    wait_for(lambda: len(found) >= count, f"{count} deliveries", seconds=seconds, meanwhile=step)
    return found


def pending(raw: Any, topic: str, group: str = "billing") -> dict[bytes, tuple[bytes, int]]:
    """Return consumer and delivery count of each pending entry of partition 0."""
    found = raw.xpending_range(f"{{{topic}}}:0", group, "-", "+", 10_000)
    return {one["message_id"]: (one["consumer"], one["times_delivered"]) for one in found}


def consumers(raw: Any, topic: str, group: str = "billing") -> dict[bytes, int]:
    """Return how much is pending for each consumer of partition 0."""
    found = raw.xinfo_consumers(f"{{{topic}}}:0", group)
    return {one["name"]: one["pending"] for one in found}


@pytest.fixture
def member(redis_url: str, tmp_path: Path, resources: ExitStack) -> StartMember:
    def start(topic: str, *, lease: float, prefetch: int = 500) -> MemberProcess:
        name = fresh_name("member")
        task = Task(
            url=redis_url,
            history=str(tmp_path / f"{name}.jsonl"),
            topics=[topic],
            group="billing",
            instance=name,
            lease=lease,
            prefetch=prefetch,
        )
        made = MemberProcess(task, tmp_path / f"{name}.log")
        resources.callback(made.kill)
        return made

    return start


# --- zombies and leases ------------------------------------------------------------------------


def test_a_stopped_member_acknowledges_nothing_that_was_taken_over(
    adapter: RedisAdapter,
    open_one: Open,
    declare: Declare,
    subscribe: Subscribe,
    member: StartMember,
    raw: Any,
) -> None:
    topic = declare()
    adapter.publish(numbered(topic, range(20)), TIMEOUT)
    # The heir's lease decides when it takes over. With a short one of its own the other would take
    # back what a busy machine keeps the heir from renewing.
    zombie = member(topic, lease=30.0, prefetch=20)
    zombie.wait_for_deliveries(20)
    # Else it may learn of its loss first, and then it asks for nothing.
    zombie.stop_before_ack()
    heir = subscribe(topic, adapter=open_one(lease=SHORT))
    taken = receive(heir, 20)
    assert all(delivery.redelivered for delivery in taken)

    def hold() -> None:
        heir.receive(0, 0.1)
        heir.keep_alive(taken)

    zombie.go_on_with_ack(meanwhile=hold)
    assert adapter.lag(topic, "billing") == 20
    wait_for(lambda: zombie.events("lost"), "the stopped member to be told", meanwhile=hold)
    heir.ack(taken)
    assert adapter.lag(topic, "billing") == 0


def test_a_live_handlers_entries_are_kept_and_their_delivery_counts_stay(
    adapter: RedisAdapter, open_one: Open, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    lease = 2.4
    mine, others = open_one(lease=lease), open_one(lease=lease)
    for serving in servings(within=lease):
        topic = declare()
        adapter.publish(numbered(topic, range(3)), TIMEOUT)
        holder = subscribe(topic, adapter=mine)
        taken = receive(holder, 3)
        before = pending(raw, topic)
        assert {count for _, count in before.values()} == {1}
        rival = subscribe(topic, adapter=others)
        for _ in range(4):
            serving.begin()
            holder.keep_alive(taken)
            # As seldom as it is allowed.
            seldom = Deadline(lease / 3)
            while serving.in_time and not seldom.passed:
                robbed = rival.receive(10, 0.1).deliveries
                assert not (robbed and serving.in_time)
        after = pending(raw, topic)
        assert after == before or not serving.in_time


def test_delivery_counts_rise_with_each_take_over(
    adapter: RedisAdapter, open_one: Open, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare()
    adapter.publish(numbered(topic, [0]), TIMEOUT)
    first = subscribe(topic, adapter=open_one(lease=SHORT))
    receive(first, 1)
    for count in (2, 3):
        heir = subscribe(topic, adapter=open_one(lease=SHORT))
        (taken,) = receive(heir, 1)
        assert taken.redelivered
        assert [times for _, times in pending(raw, topic).values()] == [count]


def test_a_loss_noticed_while_renewing_is_reported_and_the_rest_comes_again(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare()
    adapter.publish(numbered(topic, range(3)), TIMEOUT)
    holder = subscribe(topic)
    taken = receive(holder, 3)
    raw.xclaim(f"{{{topic}}}:0", "billing", "thief", 0, [taken[1].receipt])
    holder.keep_alive(taken)
    batch = holder.receive(10, 0.5)
    assert [(lost.partition, lost.epoch) for lost in batch.lost] == [
        (taken[0].partition, taken[0].epoch)
    ]
    assert numbers_of(batch.deliveries) == [0, 2]
    assert {one.epoch for one in batch.deliveries} == {taken[0].epoch + 1}
    holder.ack(taken)
    assert adapter.lag(topic, "billing") == 3


def test_what_another_took_over_is_neither_settled_nor_handed_back(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare()
    adapter.publish(numbered(topic, range(4)), TIMEOUT)
    holder = subscribe(topic)
    taken = receive(holder, 4)
    stolen = [taken[1].receipt, taken[3].receipt]
    raw.xclaim(f"{{{topic}}}:0", "billing", "thief", 0, stolen)
    holder.ack(taken[:2])
    holder.release(taken[2:])
    assert {entry_id: consumer for entry_id, (consumer, _) in pending(raw, topic).items()} == {
        taken[1].receipt: b"thief",
        taken[2].receipt: b"rmq-released",
        taken[3].receipt: b"thief",
    }


# --- handing back ------------------------------------------------------------------------------


def test_what_was_released_is_anybodys_at_once(
    adapter: RedisAdapter, open_one: Open, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare()
    adapter.publish(numbered(topic, range(4)), TIMEOUT)
    first = subscribe(topic, adapter=open_one(lease=3600))
    taken = receive(first, 4)
    second = subscribe(topic, adapter=open_one(lease=3600))
    assert not second.receive(10, 0.1).deliveries
    first.release(taken[1:3])
    again = receive(second, 2)
    assert numbers_of(again) == [1, 2]
    assert all(one.redelivered for one in again)
    first.ack(taken)
    assert adapter.lag(topic, "billing") == 2


def test_a_released_delivery_that_came_again_is_not_settled_by_its_old_receipt(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare()
    adapter.publish(numbered(topic, [0]), TIMEOUT)
    consumer = subscribe(topic)
    old = receive(consumer, 1)
    consumer.release(old)
    new = receive(consumer, 1)
    consumer.ack(old)
    assert adapter.lag(topic, "billing") == 1
    consumer.ack(new)
    assert adapter.lag(topic, "billing") == 0


@pytest.mark.usefixtures("unhurried")
def test_close_hands_back_and_leaves_no_consumer_of_its_own(
    adapter: RedisAdapter, open_one: Open, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare()
    adapter.publish(numbered(topic, range(2500)), TIMEOUT)
    first = subscribe(topic, prefetch=2500)
    receive(first, 2500)
    first.close()
    assert consumers(raw, topic) == {b"rmq-released": 2500}
    second = subscribe(topic, prefetch=2500, adapter=open_one(lease=3600))
    again = receive(second, 2500)
    assert sorted(map(number_of, again)) == list(range(2500))
    second.ack(again)
    assert set(consumers(raw, topic).values()) == {0}


def test_a_dead_consumer_is_removed_only_when_it_holds_nothing(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare()
    stream = f"{{{topic}}}:0"
    adapter.publish(numbered(topic, [0]), TIMEOUT)
    raw.xreadgroup("billing", "rmq-holding", {stream: ">"})
    raw.xgroup_createconsumer(stream, "billing", "rmq-empty")
    raw.xgroup_createconsumer(stream, "billing", "of-somebody-else")
    forget = scripts.FORGET.call([stream], "billing", "rmq-", 1, "")
    wait_for(
        lambda: adapter._servers.call(topic, [forget], "test") != [0], "the removal", seconds=5
    )
    assert set(consumers(raw, topic)) == {b"rmq-holding", b"of-somebody-else"}
    assert len(pending(raw, topic)) == 1


# --- broken connections ------------------------------------------------------------------------


def test_after_a_reconnect_the_own_pending_come_first_and_the_rest_follows(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, cut: Cut
) -> None:
    topic = declare()
    adapter.publish(numbered(topic, range(30)), TIMEOUT)
    consumer = subscribe(topic, prefetch=20)
    taken = receive(consumer, 20)
    consumer.ack(taken[:5])
    cut()
    with pytest.raises(TransportError):
        consumer.receive(10, 5.0)
    batch = consumer.receive(500, 1.0)
    assert [(lost.partition, lost.epoch) for lost in batch.lost] == [
        (taken[0].partition, taken[0].epoch)
    ]
    assert numbers_of(batch.deliveries) == list(range(5, 25))
    assert [one.redelivered for one in batch.deliveries] == [True] * 15 + [False] * 5
    consumer.ack(taken)
    assert adapter.lag(topic, "billing") == 25


def test_entries_whose_delivery_was_lost_on_the_way_come_again(
    adapter: RedisAdapter,
    open_one: Open,
    declare: Declare,
    subscribe: Subscribe,
    proxy: Proxy,
    through: str,
    raw: Any,
) -> None:
    topic = declare()
    consumer = subscribe(topic, adapter=open_one(through, lease=3600))
    assert not consumer.receive(10, 0.1).deliveries
    adapter.publish(numbered(topic, range(3)), TIMEOUT)
    proxy.drop_replies()
    with pytest.raises(TransportError):
        consumer.receive(10, 5.0)
    assert len(pending(raw, topic)) == 3
    proxy.go_on()
    again = receive(consumer, 3)
    assert numbers_of(again) == [0, 1, 2]
    assert all(one.redelivered for one in again)


def test_an_acknowledgement_without_an_answer_is_an_error_and_the_loss_is_reported(
    adapter: RedisAdapter,
    open_one: Open,
    declare: Declare,
    subscribe: Subscribe,
    proxy: Proxy,
    through: str,
) -> None:
    topic = declare()
    adapter.publish(numbered(topic, range(3)), TIMEOUT)
    consumer = subscribe(topic, adapter=open_one(through))
    taken = receive(consumer, 3)
    proxy.drop_replies()
    with pytest.raises(TransportError):
        consumer.ack(taken)
    proxy.go_on()
    batch = consumer.receive(10, 0.5)
    assert len(batch.lost) == 1
    assert batch.deliveries == []


def test_reading_survives_the_loss_of_the_servers_scripts(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare()
    consumer = subscribe(topic)
    for number in range(3):
        adapter.publish(numbered(topic, [number]), TIMEOUT)
        raw.script_flush()
        taken = receive(consumer, 1)
        assert numbers_of(taken) == [number]
        raw.script_flush()
        consumer.keep_alive(taken)
        raw.script_flush()
        consumer.ack(taken)
    assert adapter.lag(topic, "billing") == 0


def test_a_connection_closed_by_the_server_is_noticed_without_asking_for_anything(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, cut: Cut
) -> None:
    topic = declare()
    adapter.publish(numbered(topic, [0]), TIMEOUT)
    consumer = subscribe(topic, prefetch=1)
    receive(consumer, 1)
    cut()
    with pytest.raises(TransportError):
        consumer.receive(0, 30.0)


# --- entries of others -------------------------------------------------------------------------


def test_a_connection_closed_by_the_server_is_noticed_by_the_briefest_of_calls(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, cut: Cut
) -> None:
    topic = declare()
    adapter.publish(numbered(topic, [0]), TIMEOUT)
    consumer = subscribe(topic)
    receive(consumer, 1)
    cut()

    def noticed() -> bool:
        try:
            consumer.receive(0, 0.0)
        except TransportError:
            return True
        return False

    wait_for(noticed, "the error", seconds=5)


@pytest.fixture
def foreign(raw: Any, declare: Declare, subscribe: Subscribe) -> Iterator[Callable[..., Received]]:
    """Adds one entry as it is and returns its delivery."""
    topic = declare(partitions=2)
    consumer = subscribe(topic)

    def add(*words: bytes | str, entry_id: str = "*") -> Received:
        raw.execute_command("XADD", f"{{{topic}}}:0", entry_id, *words)
        (taken,) = receive(consumer, 1)
        consumer.ack([taken])
        return taken

    return add  # type: ignore[return-value]


def test_an_entry_without_a_body_has_an_empty_one_and_every_field_is_a_header(
    foreign: Callable[..., Received],
) -> None:
    delivery = foreign("x", "", b"\xff\x00", b"\xfe", "x", "again")
    assert delivery.raw.body == b""
    assert list(delivery.raw.headers) == [("x", b""), ("\\xff\x00", b"\xfe"), ("x", b"again")]


def test_of_several_bodies_the_last_counts(foreign: Callable[..., Received]) -> None:
    assert foreign("body", "one", "body", "two").raw.body == b"two"


@pytest.mark.parametrize("entry_id", ["1-1", "18446744073709551614-7", "*"])
def test_any_entry_id_has_a_place(foreign: Callable[..., Received], entry_id: str) -> None:
    delivery = foreign("body", "x", entry_id=entry_id)
    assert delivery.raw.position is not None
    assert delivery.raw.position.startswith("{topic-")
    assert delivery.raw.position.rpartition("/")[2] == delivery.receipt.decode()


def test_entries_deleted_while_pending_are_settled_and_hold_nothing_up(
    adapter: RedisAdapter, open_one: Open, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare()
    adapter.publish(numbered(topic, range(5)), TIMEOUT)
    first = subscribe(topic, adapter=open_one(lease=3600))
    taken = receive(first, 5)
    raw.xdel(f"{{{topic}}}:0", taken[0].receipt, taken[3].receipt)
    first.close()
    again = receive(subscribe(topic), 3)
    assert numbers_of(again) == [1, 2, 4]
    assert len(pending(raw, topic)) == 3


# --- others ------------------------------------------------------------------------------------


def test_a_topic_or_group_that_was_never_declared_says_so(
    declare: Declare, subscribe: Subscribe
) -> None:
    with pytest.raises(ConfigurationError, match=r"declare\(\)"):
        subscribe("never-declared").receive(1, 0.1)
    with pytest.raises(ConfigurationError, match=r"declare\(\)"):
        subscribe(declare("billing"), "audit").receive(1, 0.1)


def test_an_ordered_group_cannot_be_joined_unordered(
    declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare(ordered=True)
    with pytest.raises(ConfigurationError, match="ordered"):
        subscribe(topic, ordered=False).receive(1, 0.1)


def test_large_entries_come_a_few_at_a_time_so_that_memory_is_bounded(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare()
    batch = [*numbered(topic, range(200)), *numbered(topic, [])]
    large = [type(one)(id=one.id, topic=topic, key="k", body=bytes(500_000)) for one in batch]
    for start in range(0, 200, 20):
        assert adapter.publish(large[start : start + 20], TIMEOUT) == [SENT] * 20
    consumer = subscribe(topic)
    assert isinstance(consumer, UnorderedSubscription)
    sizes: list[int] = []
    while sum(sizes) < 200:
        taken = consumer.receive(500, 5.0).deliveries
        sizes.append(len(taken))
        consumer.ack(taken)
    assert max(sizes) <= 64
    assert max(sizes[1:]) <= 20


def test_one_partition_does_not_starve_the_others(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare(partitions=4)
    for partition in range(4):
        for number in range(100):
            raw.xadd(f"{{{topic}}}:{partition}", {"body": str(number)})
    consumer = subscribe(topic, prefetch=10)
    seen: set[str] = set()
    for _ in range(8):
        taken = consumer.receive(10, 1.0).deliveries
        seen.update(one.partition for one in taken)
        consumer.ack(taken)
    assert len(seen) == 4


def test_a_member_whose_entries_were_taken_over_is_told_by_its_next_flush(
    adapter: RedisAdapter, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare()
    adapter.publish(numbered(topic, range(5)), TIMEOUT)
    late = subscribe(topic, adapter=open_one(lease=SHORT))
    held = receive(late, 5)
    heir = subscribe(topic, adapter=open_one(lease=SHORT))
    heir.ack(receive(heir, 5))  # nobody renewed them meanwhile
    late.ack(held)
    with pytest.raises(TransportError, match="lost before"):
        late.flush()
    lost = late.receive(0, 0.0).lost
    assert {one.partition for one in lost} == {one.partition for one in held}
    late.flush()
