"""Ordered groups on Redis: leases, fences, take-over. Stopped and killed owners: the contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from reliable_mq.adapter import Received, Subscription
from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq.testing.contract.messages import (
    message,
    numbered,
    numbers_of,
    one_key_per_partition,
)
from reliable_mq.testing.contract.serving import servings
from reliable_mq.testing.contract.waiting import Deadline, wait_for
from reliable_mq_redis import keys, scripts
from reliable_mq_redis.adapter import RedisAdapter
from reliable_mq_redis.leases import Leases
from reliable_mq_redis.link import Command, Reply
from tests.adapters.redis.conftest import TIMEOUT, Cut, Declare, Open, Subscribe

SHORT = 1.0


def receive(subscription: Subscription, count: int, seconds: float = 30.0) -> list[Received]:
    """Receive until *count* deliveries are there; what was lost meanwhile does not count."""
    found: list[Received] = []

    def step() -> None:
        batch = subscription.receive(count - len(found), 0.2)
        for lost in batch.lost:
            found[:] = [d for d in found if (d.partition, d.epoch) > (lost.partition, lost.epoch)]
        found.extend(batch.deliveries)

    wait_for(lambda: len(found) >= count, f"{count} deliveries", seconds=seconds, meanwhile=step)
    return found


def owners(raw: Any, topic: str, partitions: int) -> list[bytes]:
    """Return who owns each partition ('' for nobody)."""
    return [raw.hget(keys.own(topic, "billing", n), "owner") or b"" for n in range(partitions)]


def lease_of(raw: Any, topic: str) -> int:
    """Return when the lease of partition 0 ends: milliseconds of the server's clock."""
    return int(raw.hget(keys.own(topic, "billing", 0), "until"))


def time_of(raw: Any) -> int:
    """Return the time of the server's clock in milliseconds."""
    seconds, microseconds = raw.time()
    return int(seconds * 1000 + microseconds // 1000)


def pending_of(raw: Any, topic: str) -> dict[bytes, bytes]:
    """Return the consumer of each pending entry of partition 0."""
    found = raw.xpending_range(keys.stream(topic, 0), "billing", "-", "+", 1000)
    return {one["message_id"]: one["consumer"] for one in found}


def idle(members: Sequence[Subscription]) -> None:
    for member in members:
        member.receive(0, 0.05)


# --- the fence ---------------------------------------------------------------------------------


def test_a_read_of_a_former_owner_takes_nothing(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare(ordered=True)
    adapter.publish(numbered(topic, range(20)), TIMEOUT)
    former = subscribe(topic, ordered=True, prefetch=5)
    taken = receive(former, 5)
    own, stream = keys.own(topic, "billing", 0), keys.stream(topic, 0)
    owner = raw.hget(own, "owner")
    # What a stopped process has sent, or sends when it goes on, with the epoch it believes in.
    late_reads = [
        scripts.FETCH_OWNED.call([own, stream], "billing", owner, 100, taken[0].epoch, cursor)
        for cursor in ("0", ">")
    ]
    late_ack = scripts.ACK_OWNED.call(
        [own, stream], "billing", owner, taken[0].epoch, *(one.receipt for one in taken)
    )
    raw.hset(own, mapping={"owner": "", "until": "0"})
    heir = subscribe(topic, ordered=True, prefetch=7)
    again = receive(heir, 7)
    before = pending_of(raw, topic)
    assert adapter._servers.call(topic, [*late_reads, late_ack], "test") == [[[0]], [[0]], -1]
    assert pending_of(raw, topic) == before
    assert numbers_of(again) == list(range(7))
    heir.ack(again)
    assert numbers_of(receive(heir, 7)) == list(range(7, 14))


def test_a_member_that_lost_its_partition_reports_it_and_settles_nothing(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare(ordered=True)
    adapter.publish(numbered(topic, range(10)), TIMEOUT)
    former = subscribe(topic, ordered=True)
    taken = receive(former, 10)
    raw.hset(keys.own(topic, "billing", 0), mapping={"owner": "another", "epoch": "99"})
    former.ack(taken)
    assert adapter.lag(topic, "billing") == 10
    batch = former.receive(10, 0.1)
    assert [(one.partition, one.epoch) for one in batch.lost] == [
        (taken[0].partition, taken[0].epoch)
    ]
    assert batch.deliveries == []


def test_waiting_takes_nothing(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare(ordered=True)
    consumer = subscribe(topic, ordered=True)
    for _ in range(3):
        assert not consumer.receive(10, 0.3).deliveries
    (group,) = raw.xinfo_groups(keys.stream(topic, 0))
    assert (group["pending"], group["last-delivered-id"]) == (0, b"0-0")


# --- take-over ---------------------------------------------------------------------------------


def test_what_is_handed_over_is_taken_long_before_its_lease_ends(
    adapter: RedisAdapter, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare(ordered=True)
    adapter.publish(numbered(topic, range(10)), TIMEOUT)
    first = subscribe(topic, ordered=True, adapter=open_one(lease=3600))
    taken = receive(first, 10)
    first.ack(taken[:3])
    second = subscribe(topic, ordered=True, adapter=open_one(lease=3600))
    assert not second.receive(10, 0.1).deliveries
    first.hand_over(taken[0].partition)
    # Nothing of the first before: it takes the partition back where nobody does for a second.
    again = receive(second, 7)
    assert numbers_of(again) == list(range(3, 10))
    assert all(one.redelivered and one.epoch > taken[0].epoch for one in again)
    (lost,) = first.receive(0, 0.0).lost
    assert (lost.partition, lost.epoch) == (taken[0].partition, taken[0].epoch)
    second.close()
    assert numbers_of(receive(first, 7)) == list(range(3, 10))


def test_a_silent_owner_is_replaced_after_one_lease_and_not_before(
    adapter: RedisAdapter, open_one: Open, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic, lease = declare(ordered=True), 3 * SHORT
    adapter.publish(numbered(topic, [0]), TIMEOUT)
    silent = subscribe(topic, ordered=True, adapter=open_one(lease=lease))
    heir = subscribe(topic, ordered=True, adapter=open_one(lease=lease))
    receive(silent, 1)
    over = lease_of(raw, topic)
    in_vain: list[int] = []

    def take_over() -> Sequence[Received]:
        begun = time_of(raw)
        taken = heir.receive(10, 0.1).deliveries
        if not taken:
            in_vain.append(begun)
        return taken

    taken = wait_for(take_over, "the take-over", meanwhile=lambda: None)
    assert numbers_of(taken) == [0]
    # The heir's lease began when it took over, and it has not renewed it yet.
    assert lease_of(raw, topic) - round(lease * 1000) >= over
    # It tries every half a second, and each call in vain takes a tenth.
    assert len([begun for begun in in_vain if begun >= over]) <= 6
    assert silent.receive(10, 0.1).lost


def test_an_owner_with_nothing_in_flight_keeps_its_partition_by_being_served(
    adapter: RedisAdapter, open_one: Open, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    mine, others = open_one(lease=SHORT), open_one(lease=SHORT)
    for serving in servings(within=SHORT / 3):
        topic = declare(ordered=True)
        own = keys.own(topic, "billing", 0)
        owner = subscribe(topic, ordered=True, adapter=mine)
        owner.receive(10, 0.1)
        before = raw.hmget(own, "owner", "epoch")
        rival = subscribe(topic, ordered=True, adapter=others)
        enough = Deadline(2.5 * SHORT)
        while serving.in_time and not enough.passed:
            serving.begin()
            idle([owner, rival])
            after = raw.hmget(own, "owner", "epoch")
            assert after == before or not serving.in_time


def test_keep_alive_alone_keeps_the_lease(
    adapter: RedisAdapter, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    mine, others = open_one(lease=SHORT), open_one(lease=SHORT)
    for serving in servings(within=SHORT / 3):
        topic = declare(ordered=True)
        adapter.publish(numbered(topic, range(3)), TIMEOUT)
        owner = subscribe(topic, ordered=True, adapter=mine)
        taken = receive(owner, 3)
        rival = subscribe(topic, ordered=True, adapter=others)
        enough = Deadline(2.5 * SHORT)
        while serving.in_time and not enough.passed:
            serving.begin()
            owner.keep_alive(taken)
            robbed = rival.receive(10, 0.1).deliveries
            assert not (robbed and serving.in_time)


def test_a_lease_of_a_server_whose_clock_was_set_back_is_taken_all_the_same(
    adapter: RedisAdapter, open_one: Open, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare(ordered=True)
    adapter.publish(numbered(topic, [0]), TIMEOUT)
    raw.hset(
        keys.own(topic, "billing", 0),
        mapping={"owner": "dead", "epoch": "7", "until": "9999999999999"},
    )
    heir = subscribe(topic, ordered=True, adapter=open_one(lease=0.5))
    (taken,) = receive(heir, 1, seconds=10)
    assert taken.epoch == 8


def test_an_epoch_is_never_used_twice_even_if_the_server_forgot_it(
    adapter: RedisAdapter, open_one: Open, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare(ordered=True)
    adapter.publish(numbered(topic, range(2)), TIMEOUT)
    owner = subscribe(topic, ordered=True)
    taken = receive(owner, 2)
    for _ in range(3):
        owner.release(taken)
        taken = receive(owner, 2)
    highest = taken[0].epoch
    assert highest >= 4
    raw.delete(keys.own(topic, "billing", 0))
    again = receive(owner, 2)
    assert numbers_of(again) == [0, 1]
    assert again[0].epoch > highest


def test_a_broken_connection_begins_a_new_epoch_at_the_first_unacknowledged(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, cut: Cut
) -> None:
    topic = declare(ordered=True)
    adapter.publish(numbered(topic, range(30)), TIMEOUT)
    owner = subscribe(topic, ordered=True, prefetch=20)
    taken = receive(owner, 20)
    owner.ack([*taken[:5], taken[9]])
    cut()
    with pytest.raises(TransportError):
        owner.receive(10, 5.0)
    batch = owner.receive(500, 1.0)
    assert [(one.partition, one.epoch) for one in batch.lost] == [
        (taken[0].partition, taken[0].epoch)
    ]
    expected = [number for number in range(5, 26) if number != 9]
    assert numbers_of(batch.deliveries) == expected
    assert batch.deliveries[0].epoch > taken[0].epoch


def test_entries_deleted_while_pending_hold_nothing_up(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare(ordered=True)
    adapter.publish(numbered(topic, range(6)), TIMEOUT)
    owner = subscribe(topic, ordered=True)
    taken = receive(owner, 4)
    raw.xdel(keys.stream(topic, 0), *(one.receipt for one in taken[:3]), taken[3].receipt)
    owner.release(taken[:1])
    again = receive(owner, 2)
    assert numbers_of(again) == [4, 5]
    assert set(pending_of(raw, topic)) == {one.receipt for one in again}


def test_a_partition_handed_over_is_left_to_the_others_for_a_moment() -> None:
    leases = Leases("t", "billing", "me", lease_ms=1000, partitions=1)
    sent: list[Command] = []

    def call(commands: Sequence[Command]) -> list[Reply]:
        sent.extend(commands)
        return [[1, [[0, b"0"]]]]

    leases.of[0].own(3)
    leases.hand_over(0, call)
    assert leases.of[0].epoch == 0
    leases.beat(call)
    assert sent[-1][-3:] == (0, 3, "skip")


# --- shares ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unhurried")
def test_partitions_are_shared_fairly_and_again_when_a_member_leaves(
    open_one: Open, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare(partitions=8, ordered=True)
    members = [
        subscribe(topic, ordered=True, adapter=open_one(lease=10 + number)) for number in range(3)
    ]

    def shares() -> list[int]:
        who = owners(raw, topic, 8)
        return sorted(who.count(one) for one in set(who) if one)

    for expected in ([2, 3, 3], [4, 4], [8]):
        wait_for(
            lambda expected=expected: shares() == expected,  # type: ignore[misc]
            f"the shares {expected}",
            meanwhile=lambda: idle(members),
        )
        members.pop().close()
    assert owners(raw, topic, 8) == [b""] * 8
    assert raw.zcard(keys.members(topic, "billing")) == 0


def test_members_of_the_time_before_a_clock_was_set_back_get_no_share(
    open_one: Open, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare(partitions=4, ordered=True)
    raw.zadd(keys.members(topic, "billing"), {"dead": 9_999_999_999_999})
    only = subscribe(topic, ordered=True, adapter=open_one())
    wait_for(
        lambda: b"" not in owners(raw, topic, 4),
        "all partitions at the only member",
        meanwhile=lambda: idle([only]),
        seconds=5,
    )


def test_the_partition_with_the_least_in_flight_is_given_up_for_balance(
    adapter: RedisAdapter, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare(partitions=2, ordered=True)
    busy, _ = one_key_per_partition(2)
    adapter.publish([message(topic, key=busy) for _ in range(10)], TIMEOUT)
    first = subscribe(topic, ordered=True)
    taken = receive(first, 10)
    second = subscribe(topic, ordered=True, adapter=open_one())
    second.receive(0, 0.0)
    lost: list[str] = []
    wait_for(
        lambda: lost,
        "a partition given up",
        meanwhile=lambda: lost.extend(one.partition for one in first.receive(0, 0.1).lost),
    )
    assert lost[0] != taken[0].partition


def test_a_group_reads_in_one_way_only(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare(ordered=False)
    with pytest.raises(ConfigurationError, match="unordered"):
        subscribe(topic, ordered=True).receive(1, 0.1)
