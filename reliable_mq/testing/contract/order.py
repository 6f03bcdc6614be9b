"""What an ordered subscription promises while everybody is alive. Crashes: ``crash.py``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from reliable_mq.adapter import Adapter, Received
from reliable_mq.errors import TransportError
from reliable_mq.message import Message
from reliable_mq.partitioning import partition_for
from reliable_mq.testing.contract.base import (
    ContractBase,
    Declare,
    OpenAnother,
    OpenReader,
    send,
)
from reliable_mq.testing.contract.ledger import Ledger
from reliable_mq.testing.contract.messages import (
    key_of,
    message,
    number_of,
    numbered,
    numbers_of,
    one_key_per_partition,
)
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import wait_for

SENT_COUNT = 1000
HELD = 500
ACKED = 100


class OrderContract(ContractBase):
    """Partitions, ownership and the order inside them."""

    def test_a_partition_is_delivered_in_the_order_of_its_publishes(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare(partitions=1, ordered=True)
        for start in range(0, 300, 50):
            send(adapter, numbered(topic, range(start, start + 50)))
        assert numbers_of(reader(topic, ordered=True).take_only(300)) == list(range(300))

    def test_every_publisher_puts_a_key_into_the_same_partition(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, another: OpenAnother
    ) -> None:
        topic = declare(partitions=8, ordered=True)
        keys = [f"key-{index}" for index in range(64)]
        send(adapter, [message(topic, key=key) for key in keys])
        send(another(), [message(topic, key=key) for key in keys])
        taken = reader(topic, ordered=True).take_only(128)
        names = {(partition_for(_key_bytes(one), 8), one.partition) for one in taken}
        assert len(names) == 8
        assert len({name for _, name in names}) == 8

    def test_messages_without_a_key_are_spread(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare(partitions=4, ordered=True)
        for _ in range(16):
            send(adapter, [message(topic) for _ in range(4)])
        taken = reader(topic, ordered=True).take_only(64)
        assert len({one.partition for one in taken}) > 1

    def test_release_in_the_middle_starts_the_stream_again_at_the_first_unacknowledged(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        _, consumer, ledger = _holding(adapter, declare, reader)
        held = list(consumer.held)
        consumer.release([held[HELD // 2]])
        consumer.wait_until_lost(held[-1])
        again = consumer.take(1)
        ledger.deliver(consumer, again)
        assert numbers_of(again) == [ACKED]
        assert again[0].epoch > held[0].epoch
        ledger.drain([consumer], SENT_COUNT)
        assert ledger.effects == {"key": list(range(SENT_COUNT))}

    def test_acks_of_a_released_ownership_are_ignored(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic, consumer, _ = _holding(adapter, declare, reader)
        held = list(consumer.held)
        consumer.release(held[:1])
        consumer.subscription.ack(held)
        consumer.wait_until_lost(held[0])
        consumer.subscription.ack(held)
        assert numbers_of(consumer.take(HELD)) == numbers_of(held)
        consumer.subscription.ack(held)
        consumer.close()
        assert numbers_of(reader(topic, ordered=True).take(1)) == [ACKED]

    def test_close_hands_over_from_the_first_unacknowledged(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, another: OpenAnother
    ) -> None:
        topic, consumer, ledger = _holding(adapter, declare, reader)
        heir = reader(topic, ordered=True, adapter=another())
        heir.idle()
        consumer.close()
        first = heir.take(1)
        ledger.deliver(heir, first)
        assert numbers_of(first) == [ACKED]
        ledger.drain([heir], SENT_COUNT)
        assert ledger.effects == {"key": list(range(SENT_COUNT))}

    def test_hand_over_gives_the_partition_up_from_the_first_unacknowledged(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, another: OpenAnother
    ) -> None:
        topic, consumer, ledger = _holding(adapter, declare, reader)
        other = reader(topic, ordered=True, adapter=another())
        assert other.step() == []
        held = consumer.held[0]
        consumer.subscription.hand_over(held.partition)
        consumer.wait_until_lost(held)
        consumer.subscription.hand_over("no such partition")
        ledger.drain([consumer, other], SENT_COUNT)
        assert ledger.effects == {"key": list(range(SENT_COUNT))}

    def test_an_ack_behind_a_loss_is_not_flushed_before_the_loss_is_reported(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        _, consumer, _ = _holding(adapter, declare, reader)
        held = list(consumer.held)
        consumer.subscription.hand_over(held[0].partition)
        consumer.subscription.ack(held)
        for _ in range(2):
            with pytest.raises(TransportError):
                consumer.subscription.flush()
        consumer.wait_until_lost(held[0])
        consumer.subscription.flush()

    def test_a_second_member_gets_its_share_without_a_gap(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, another: OpenAnother
    ) -> None:
        topic = declare(partitions=8, ordered=True)
        keys = one_key_per_partition(8)
        for key in keys:
            send(adapter, numbered(topic, range(75), key=key))
        ledger, first = Ledger(), reader(topic, ordered=True)
        taken = first.take(500)
        ledger.deliver(first, taken)
        done = [one for one in taken if number_of(one) < 10]
        first.ack(done)
        ledger.ack(done)
        second = reader(topic, ordered=True, adapter=another())
        _hold_until(
            lambda: bool(second.received), "a delivery to the second member", ledger, first, second
        )
        assert number_of(second.received[0]) == ledger.first_unacked(key_of(second.received[0]))
        ledger.drain([first, second], 600)
        assert ledger.effects == {key: list(range(75)) for key in keys}

    def test_a_partition_that_is_held_up_does_not_hold_up_the_others(
        self, adapter: Adapter, declare: Declare, reader: OpenReader
    ) -> None:
        topic = declare(partitions=4, ordered=True)
        blocked, *others = one_key_per_partition(4)
        consumer, ledger = reader(topic, ordered=True, prefetch=60), Ledger()
        send(adapter, numbered(topic, range(40), key=blocked))
        ledger.deliver(consumer, consumer.take(40))

        def turn(*, release: bool) -> None:
            ledger.deliver(consumer, consumer.step(timeout=0.1))
            stuck = [one for one in consumer.held if key_of(one) == blocked]
            done = [one for one in consumer.held if key_of(one) != blocked]
            consumer.ack(done)
            ledger.ack(done)
            if release:
                consumer.release(stuck[:1])

        def work_on_the_others(numbers: range, *, release: bool) -> None:
            for key in others:
                send(adapter, numbered(topic, numbers, key=key))
            wait_for(
                lambda: ledger.acked_count() == len(others) * numbers.stop,
                "the other partitions",
                meanwhile=lambda: turn(release=release),
            )

        work_on_the_others(range(20), release=False)
        work_on_the_others(range(20, 40), release=True)
        ledger.drain([consumer], 160)
        assert ledger.effects == {key: list(range(40)) for key in (blocked, *others)}

    def test_members_own_equal_shares_and_no_partition_together(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, another: OpenAnother
    ) -> None:
        topic = declare(partitions=8, ordered=True)
        keys = one_key_per_partition(8)
        members = [
            reader(topic, ordered=True),
            reader(topic, ordered=True, adapter=another()),
        ]
        numbers = iter(range(10_000))
        ledger = Ledger()

        def shares() -> Counter[int]:
            number = next(numbers)
            for key in keys:
                send(adapter, numbered(topic, [number], key=key))
            return _owners(ledger, members, 8 * (number + 1))

        wait_for(
            lambda: sorted(shares().values()) == [4, 4],
            "an even share of 8 partitions between 2 members",
            meanwhile=lambda: _idle(members),
        )

    def test_the_order_of_each_key_survives_members_that_come_and_go(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, another: OpenAnother
    ) -> None:
        topic = declare(partitions=8, ordered=True)
        keys = [f"key-{index}" for index in range(40)]
        ledger, members = Ledger(), [reader(topic, ordered=True, prefetch=100)]
        sent = 0
        for change in (None, "join", None, "leave", "join"):
            if change == "join":
                members.append(reader(topic, ordered=True, prefetch=100, adapter=another()))
            if change == "leave":
                members.pop(0).close()
            send(adapter, _round_robin(topic, keys, range(sent, sent + 5)))
            sent += 5
            ledger.drain(members, len(keys) * sent - 50)
            for member in members:
                ledger.deliver(member, member.step())
        ledger.drain(members, len(keys) * sent)
        assert ledger.effects == {key: list(range(sent)) for key in keys}

    @pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
    def test_an_idle_member_with_limit_0_keeps_its_place(
        self, adapter: Adapter, declare: Declare, reader: OpenReader, *, ordered: bool
    ) -> None:
        topic = declare(partitions=1, ordered=ordered)
        send(adapter, numbered(topic, range(10)))
        consumer = reader(topic, ordered=ordered)
        taken = consumer.take(10)
        for _ in range(20):
            consumer.idle()
        assert not consumer.lost
        consumer.ack(taken)
        consumer.assert_nothing_more()


def _holding(adapter: Adapter, declare: Declare, reader: OpenReader) -> tuple[str, Reader, Ledger]:
    """Return a topic of 1000 messages and a member that acked 100 and holds the next 500."""
    topic = declare(partitions=1, ordered=True)
    send(adapter, numbered(topic, range(SENT_COUNT)))
    consumer, ledger = reader(topic, ordered=True, prefetch=HELD), Ledger()
    first = consumer.take(ACKED)
    ledger.deliver(consumer, first)
    consumer.ack(first)
    ledger.ack(first)
    ledger.deliver(consumer, consumer.take(HELD))
    return topic, consumer, ledger


def _key_bytes(delivery: Received) -> bytes:
    return (key_of(delivery) or "").encode()


def _round_robin(topic: str, keys: list[str], numbers: range) -> list[Message]:
    return [one for number in numbers for key in keys for one in numbered(topic, [number], key=key)]


def _hold_until(condition: Callable[[], bool], what: str, ledger: Ledger, *members: Reader) -> None:
    """Let *members* receive, and acknowledge nothing, until *condition* holds."""

    def turn() -> None:
        for member in members:
            ledger.deliver(member, member.step(timeout=0.1))

    wait_for(condition, what, meanwhile=turn)


def _idle(members: list[Reader]) -> None:
    for member in members:
        member.idle()


def _owners(ledger: Ledger, members: list[Reader], total: int) -> Counter[int]:
    """Return how many of the latest messages each member got, once all *total* are acked."""
    before = [len(member.received) for member in members]
    ledger.drain(members, total)
    return Counter(
        {
            index: len(member.received) - seen
            for index, (member, seen) in enumerate(zip(members, before, strict=True))
        }
    )
