"""What ``Subscription`` promises to any group, ordered or not."""

from __future__ import annotations

import threading
import time

from reliable_mq import wire
from reliable_mq.adapter import Adapter, GroupSpec, Received
from reliable_mq.testing.contract.base import (
    ContractBase,
    Declare,
    Foreign,
    OpenAnother,
    OpenReader,
    require_capability,
    send,
    skip_without_hook,
)
from reliable_mq.testing.contract.messages import (
    LIMITS,
    id_of,
    ids_of,
    message,
    numbered,
    numbers_of,
)
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.serving import servings
from reliable_mq.testing.contract.waiting import Deadline, wait_for


class ConsumeContract(ContractBase):
    """Receiving, acknowledging, handing back."""

    def test_without_faults_everything_is_received_once(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare(partitions=4)
        batch = [message(topic, key=f"key-{index % 50}") for index in range(500)]
        send(adapter, batch)
        first = reader(topic)
        taken = first.take_only(500)
        assert sorted(ids_of(taken)) == sorted(one.id for one in batch)
        first.ack(taken)
        first.close()
        reader(topic).assert_nothing_more()

    def test_a_message_that_comes_while_receive_waits_ends_the_wait(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare()
        consumer = reader(topic)
        send(adapter, numbered(topic, [0]))
        consumer.ack(consumer.take(1))  # It has joined now.
        publisher = threading.Timer(0.5, send, (adapter, numbered(topic, [1])))
        publisher.start()
        begin = time.monotonic()
        taken = consumer.step(timeout=60.0)
        publisher.join()
        assert numbers_of(taken) == [1]
        assert time.monotonic() - begin < 30.0

    def test_receive_returns_empty_after_its_timeout(
        self, declare: Declare, reader: OpenReader
    ) -> None:
        consumer = reader(declare())
        consumer.step(timeout=1.0)
        begin = time.monotonic()
        assert consumer.step(timeout=0.5) == []
        assert time.monotonic() - begin < 10.0

    def test_receive_returns_no_more_than_its_limit(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare()
        send(adapter, numbered(topic, range(20)))
        consumer = reader(topic)
        sizes: list[int] = []
        wait_for(
            lambda: len(consumer.received) == 20,
            "20 deliveries",
            meanwhile=lambda: sizes.append(len(consumer.step(limit=3))),
        )
        assert max(sizes) <= 3
        assert sorted(numbers_of(consumer.received)) == list(range(20))

    def test_receive_with_limit_0_delivers_nothing(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare()
        send(adapter, numbered(topic, range(5)))
        consumer = reader(topic)
        for _ in range(5):
            assert consumer.step(limit=0, timeout=0.2) == []
        assert numbers_of(consumer.take(5)) == list(range(5))

    def test_no_more_than_prefetch_are_unacknowledged_at_a_time(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare(partitions=1)
        send(adapter, numbered(topic, range(50)))
        consumer = reader(topic, prefetch=10)
        first = consumer.take_only(10)
        consumer.ack(first[:4])
        second = consumer.take_only(4)
        assert numbers_of(first + second) == list(range(14))

    def test_prefetch_bounds_all_topics_and_partitions_together(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topics = [declare(partitions=4), declare(partitions=4)]
        for topic in topics:
            send(adapter, [message(topic, key=f"key-{index}") for index in range(40)])
        consumer = reader(*topics, prefetch=10)
        everything = 0
        while everything < 80:
            taken = consumer.take_only(10) if everything == 0 else consumer.take(10)
            assert len(consumer.held) == 10
            consumer.ack(taken)
            everything += len(taken)

    def test_what_was_not_acknowledged_comes_again_after_close(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare()
        send(adapter, numbered(topic, range(20)))
        first = reader(topic)
        taken = first.take(20)
        first.ack(taken[:8])
        first.close()
        assert sorted(numbers_of(reader(topic).take_only(12))) == numbers_of(taken[8:])

    def test_a_released_delivery_comes_again(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare()
        send(adapter, numbered(topic, range(3)))
        consumer = reader(topic)
        released = consumer.take(3)[1]
        consumer.release([released])
        again = consumer.take(1)
        assert numbers_of(again)[0] == (0 if adapter.capabilities.log else 1)

    def test_release_on_a_log_gives_back_the_whole_ownership_from_the_first_unacknowledged(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        require_capability(adapter, "log")
        topic = declare(partitions=1)
        send(adapter, numbered(topic, range(10)))
        consumer = reader(topic)
        taken = consumer.take(10)
        consumer.ack(taken[:3])
        consumer.release([taken[5]])
        consumer.wait_until_lost(taken[9])
        again = consumer.take_only(7)
        assert numbers_of(again) == list(range(3, 10))
        assert min(one.epoch for one in again) > taken[0].epoch

    def test_ack_of_a_later_delivery_leaves_an_earlier_one_redeliverable(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare(partitions=1)
        send(adapter, numbered(topic, [1, 2, 3]))
        first = reader(topic)
        taken = first.take(3)
        first.ack(taken[1:])
        first.close()
        second = reader(topic)
        assert numbers_of(second.take(1)) == [1]
        if not adapter.capabilities.log:
            # A log may bring what follows again, done or not.
            second.assert_nothing_more()

    def test_an_ack_in_any_order_settles_everything(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare(partitions=1)
        send(adapter, numbered(topic, range(10)))
        first = reader(topic)
        taken = first.take(10)
        for delivery in reversed(taken):
            first.ack([delivery])
        first.close()
        reader(topic).assert_nothing_more()

    def test_a_second_ack_of_the_same_delivery_is_harmless(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare()
        send(adapter, numbered(topic, range(2)))
        consumer = reader(topic)
        first = consumer.take(1)
        for _ in range(3):
            consumer.ack(first)
            consumer.idle()
        consumer.ack([*first, *first])
        rest = [one for one in consumer.held if one not in first] or consumer.take(1)
        assert numbers_of(rest) == [1]
        consumer.ack(rest)
        consumer.close()
        reader(topic).assert_nothing_more()

    def test_an_ack_after_close_changes_nothing(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare()
        send(adapter, numbered(topic, range(3)))
        first = reader(topic)
        taken = first.take(3)
        first.close()
        first.ack(taken)
        first.close()
        assert sorted(numbers_of(reader(topic).take_only(3))) == [0, 1, 2]

    def test_keep_alive_of_a_lost_delivery_does_not_raise(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare(ordered=True)
        send(adapter, numbered(topic, range(3)))
        consumer = reader(topic, ordered=True)
        taken = consumer.take(3)
        consumer.release(taken)
        consumer.subscription.keep_alive(taken)
        consumer.wait_until_lost(taken[0])
        consumer.subscription.keep_alive(taken)
        assert numbers_of(consumer.take(3)) == [0, 1, 2]

    def test_a_delivery_that_is_kept_alive_stays_with_its_holder(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, another: OpenAnother
    ) -> None:
        lease = self.short_lease
        mine, others = another(lease=lease), another(lease=lease)
        for serving in servings(within=lease / 3):
            topic = declare()
            send(adapter, numbered(topic, range(3)))
            holder = reader(topic, adapter=mine)
            holder.take(3)
            rival = reader(topic, adapter=others)
            enough = Deadline(3 * lease)
            while serving.in_time and not enough.passed:
                serving.begin()
                holder.idle()
                # On a log the partition may be balanced away, which is no breach.
                robbed = rival.step(timeout=lease / 10) and not holder.lost
                assert not (robbed and serving.in_time)
            rival.close()
            holder.close()

    def test_two_groups_receive_everything_each(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare(groups=("billing", "audit"))
        send(adapter, numbered(topic, range(10)))
        billing = reader(topic, group="billing")
        billing.ack(billing.take_only(10))
        audit = reader(topic, group="audit")
        assert sorted(numbers_of(audit.take_only(10))) == list(range(10))

    def test_topics_are_apart(self, adapter: Adapter, declare: Declare, reader: OpenReader) -> None:
        one, other = declare(), declare()
        send(adapter, [message(one, b"one"), message(other, b"other")])
        assert [d.raw.body for d in reader(one).take_only(1)] == [b"one"]
        assert [d.raw.body for d in reader(other).take_only(1)] == [b"other"]

    def test_a_subscription_to_two_topics_tells_them_apart(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        one, other = declare(), declare()
        send(adapter, [message(one, b"one"), message(other, b"other")])
        taken = reader(one, other).take_only(2)
        assert {d.raw.topic: d.raw.body for d in taken} == {one: b"one", other: b"other"}

    def test_members_of_a_group_share_without_overlap(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, another: OpenAnother
    ) -> None:
        topic = declare(partitions=8)
        members = [reader(topic, prefetch=20), reader(topic, prefetch=20, adapter=another())]
        seen: dict[str, tuple[Reader, Received]] = {}
        overlaps: list[tuple[Reader, Received]] = []
        sent = 0
        deadline = Deadline()
        while not all(member.received for member in members) or len(seen) < sent:
            assert not deadline.passed, f"{len(seen)} of {sent} arrived, or one member got nothing"
            if len(seen) == sent:
                send(adapter, [message(topic, key=f"key-{index}") for index in range(64)])
                sent += 64
            for member in members:
                taken = member.step(timeout=0.1)
                member.ack(taken)
                overlaps += _note(seen, member, taken)
        for member in members:
            member.idle()
        for owner, delivery in overlaps:
            # Allowed only where the first holder lost the partition; it may have to be told yet.
            assert owner.has_lost(delivery), f"{id_of(delivery)} was with two members at once"

    def test_a_group_that_appears_later_starts_at_the_earliest_retained_message(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        require_capability(adapter, "retains")
        topic = declare(groups=("billing",))
        send(adapter, numbered(topic, range(10)))
        adapter.declare([], [GroupSpec(topic=topic, group="late")])
        assert numbers_of(reader(topic, group="late").take_only(10)) == list(range(10))

    def test_lag_counts_what_is_not_acknowledged(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare(partitions=4)
        assert adapter.lag(topic, "billing") == 0
        send(adapter, [message(topic, key=f"key-{index}") for index in range(10)])
        _wait_for_lag(adapter, topic, 10)
        consumer = reader(topic)
        taken = consumer.take(10)
        _wait_for_lag(adapter, topic, 10, consumer)
        partition = [one for one in taken if one.partition == taken[0].partition]
        consumer.ack(partition)
        _wait_for_lag(adapter, topic, 10 - len(partition), consumer)
        consumer.ack(taken)
        _wait_for_lag(adapter, topic, 0, consumer)

    def test_a_foreign_message_arrives_with_its_headers_and_an_id_of_its_place(
        self,
        adapter: Adapter,
        declare: Declare,
        reader: OpenReader,
        foreign: Foreign | None,
    ) -> None:
        if foreign is None:
            skip_without_hook("foreign")
        topic = declare()
        foreign(topic, b"body", [("name", b"value")])
        first = reader(topic)
        arrived = wire.decode(first.take_only(1)[0].raw, LIMITS)
        assert arrived.message.body == b"body"
        assert dict(arrived.message.headers) == {"name": "value"}
        assert arrived.stable_id == adapter.capabilities.stable_position
        first.close()
        again = wire.decode(reader(topic).take(1)[0].raw, LIMITS)
        if adapter.capabilities.stable_position:
            assert again.message.id == arrived.message.id

    def test_a_foreign_message_without_a_body_has_an_empty_one(
        self, declare: Declare, reader: OpenReader, foreign: Foreign | None
    ) -> None:
        if foreign is None:
            skip_without_hook("foreign")
        topic = declare()
        foreign(topic, None, [("name", b"value")])
        raw = reader(topic).take_only(1)[0].raw
        assert (raw.body, list(raw.headers)) == (b"", [("name", b"value")])

    def test_duplicate_header_names_of_a_foreign_message_are_kept(
        self,
        adapter: Adapter,
        declare: Declare,
        reader: OpenReader,
        foreign: Foreign | None,
    ) -> None:
        require_capability(adapter, "raw_headers")
        if foreign is None:
            skip_without_hook("foreign")
        topic = declare()
        pairs = [("name", b"one"), ("name", b"\xff")]
        foreign(topic, b"body", pairs)
        assert list(reader(topic).take(1)[0].raw.headers) == pairs


def _note(
    seen: dict[str, tuple[Reader, Received]], member: Reader, taken: list[Received]
) -> list[tuple[Reader, Received]]:
    """Note who got what; return who had it before."""
    before = [seen[message_id] for message_id in ids_of(taken) if message_id in seen]
    seen.update({id_of(delivery): (member, delivery) for delivery in taken})
    return before


def _wait_for_lag(
    adapter: Adapter, topic: str, expected: int, consumer: Reader | None = None
) -> None:
    wait_for(
        lambda: [adapter.lag(topic, "billing")] == [expected],
        f"a lag of {expected}",
        meanwhile=None if consumer is None else consumer.idle,
    )
