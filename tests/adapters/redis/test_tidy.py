"""What is deleted and when, and counting what is left."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest

from reliable_mq.adapter import GroupSpec, Subscription, TopicSpec
from reliable_mq.errors import ConfigurationError
from reliable_mq.testing.contract.messages import numbered, numbers_of
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_redis import keys, scripts, tidy
from reliable_mq_redis.adapter import RedisAdapter
from tests.adapters.redis.conftest import TIMEOUT, Declare, Open, Subscribe


def trim(adapter: RedisAdapter, topic: str, retention_ms: int | str = "") -> int:
    command = scripts.TRIM.call([keys.stream(topic, 0)], retention_ms, 1000)
    (deleted,) = adapter._servers.call(topic, [command], "test")
    return int(deleted)


def take(subscription: Subscription, count: int) -> list[Any]:
    found: list[Any] = []
    wait_for(
        lambda: len(found) >= count,
        f"{count} deliveries",
        meanwhile=lambda: found.extend(subscription.receive(count - len(found), 0.2).deliveries),
    )
    return found


def left(raw: Any, topic: str) -> list[int]:
    return [int(fields[b"body"]) for _, fields in raw.xrange(keys.stream(topic, 0))]


# --- trimming ----------------------------------------------------------------------------------


def test_only_what_every_group_acknowledged_is_deleted(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare("billing", "audit")
    adapter.publish(numbered(topic, range(10)), TIMEOUT)
    assert trim(adapter, topic) == 0
    billing, audit = subscribe(topic, "billing"), subscribe(topic, "audit")
    billing.ack(take(billing, 10))
    assert trim(adapter, topic) == 0
    held = take(audit, 6)
    audit.ack([*held[:2], *held[3:]])
    assert trim(adapter, topic) == 2
    assert left(raw, topic) == list(range(2, 10))
    audit.ack([held[2]])
    assert trim(adapter, topic) == 4
    audit.ack(take(audit, 4))
    assert trim(adapter, topic) == 4
    assert left(raw, topic) == []
    adapter.publish(numbered(topic, [10]), TIMEOUT)
    assert numbers_of(take(billing, 1)) == numbers_of(take(audit, 1)) == [10]


def test_whatever_the_groups_do_nothing_unacknowledged_is_deleted(
    adapter: RedisAdapter, declare: Declare, raw: Any
) -> None:
    dice = random.Random(20)
    groups = ("one", "two", "three")
    topic = declare(*groups)
    stream = keys.stream(topic, 0)
    unacked: dict[str, dict[bytes, bool]] = {group: {} for group in groups}
    deleted = 0
    for _ in range(600):
        group, choice = dice.choice(groups), dice.random()
        if choice < 0.4:
            for entry_id in [raw.xadd(stream, {"body": "x"}) for _ in range(dice.randrange(4))]:
                for one in groups:
                    unacked[one][entry_id] = False
        elif choice < 0.6:
            count = dice.randrange(1, 9)
            for _, entries in raw.xreadgroup(group, "me", {stream: ">"}, count=count):
                unacked[group].update((entry_id, True) for entry_id, _ in entries)
        elif choice < 0.8:
            read = [entry_id for entry_id, was_read in unacked[group].items() if was_read]
            for entry_id in dice.sample(read, len(read) // 2):
                raw.xack(stream, group, entry_id)
                del unacked[group][entry_id]
        else:
            deleted += trim(adapter, topic)
            there = {entry_id for entry_id, _ in raw.xrange(stream)}
            assert all(there >= waiting.keys() for waiting in unacked.values())
    assert deleted > 50


def test_a_topic_without_groups_keeps_everything(
    adapter: RedisAdapter, topics: dict[str, TopicSpec], unique: str, raw: Any
) -> None:
    adapter.declare([TopicSpec(name=unique)], [])
    adapter.publish(numbered(unique, range(5)), TIMEOUT)
    assert trim(adapter, unique) == 0
    assert left(raw, unique) == [0, 1, 2, 3, 4]


def test_an_entry_id_beyond_a_lua_number_is_compared_right(
    adapter: RedisAdapter, declare: Declare, raw: Any
) -> None:
    topic = declare()
    stream, ids = keys.stream(topic, 0), []
    for entry_id in ("9-18446744073709551614", "9-18446744073709551615", "10-0", "10-1"):
        ids.append(raw.xadd(stream, {"body": "0"}, id=entry_id))
    raw.xreadgroup("billing", "me", {stream: ">"}, count=1)
    assert trim(adapter, topic) == 0
    raw.xack(stream, "billing", ids[0])
    trim(adapter, topic)
    assert [entry_id for entry_id, _ in raw.xrange(stream)][-3:] == ids[1:]
    raw.xreadgroup("billing", "me", {stream: ">"}, count=2)
    raw.xack(stream, "billing", *ids[1:3])
    trim(adapter, topic)
    assert [entry_id for entry_id, _ in raw.xrange(stream)] == ids[3:]


def test_receiving_trims_in_passing(open_one: Open, declare: Declare, raw: Any) -> None:
    topic = declare()
    adapter = open_one(query="trim=0.1")
    adapter.publish(numbered(topic, range(500)), TIMEOUT)
    consumer = adapter.subscribe([topic], "billing", prefetch=500, ordered=False)
    consumer.ack(take(consumer, 500))
    wait_for(
        lambda: left(raw, topic) == [],
        "an empty stream",
        meanwhile=lambda: consumer.receive(1, 0.1),
    )
    consumer.close()


def test_trimming_can_be_turned_off(open_one: Open, declare: Declare, raw: Any) -> None:
    topic = declare()
    adapter = open_one(query="trim=0")
    adapter.publish(numbered(topic, range(5)), TIMEOUT)
    consumer = adapter.subscribe([topic], "billing", prefetch=5, ordered=False)
    consumer.ack(take(consumer, 5))
    consumer.receive(1, 0.3)
    consumer.close()
    assert raw.exists(keys.turn(topic)) == 0
    assert len(left(raw, topic)) == 5


def test_a_long_backlog_is_trimmed_in_bounded_steps(
    open_one: Open, declare: Declare, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tidy, "MOST", 100)
    topic = declare()
    adapter = open_one(query="trim=0.1")
    adapter.publish(numbered(topic, range(2500)), TIMEOUT)
    consumer = adapter.subscribe([topic], "billing", prefetch=2500, ordered=False)
    taken = take(consumer, 2500)
    consumer.ack(taken)
    calls = raw.info("commandstats")["cmdstat_xtrim"]["calls"]
    wait_for(
        lambda: left(raw, topic) == [],
        "an empty stream",
        meanwhile=lambda: consumer.receive(1, 0.1),
    )
    assert raw.info("commandstats")["cmdstat_xtrim"]["calls"] - calls > 25
    consumer.close()


# --- retention ---------------------------------------------------------------------------------


def test_with_a_retention_entries_go_by_age_read_or_not(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare(options={"retention": timedelta(hours=1)})
    stream = keys.stream(topic, 0)
    now = 1000 * raw.time()[0]
    old, young = f"{now - 3_700_000}-0", f"{now - 3_500_000}-0"
    for entry_id in (old, young):
        raw.xadd(stream, {"body": "0"}, id=entry_id)
    consumer = subscribe(topic)
    taken = take(consumer, 1)
    assert [one.receipt.decode() for one in taken] == [young]
    consumer.ack(taken)
    consumer.close()
    assert trim(adapter, topic, raw.hget(keys.meta(topic), "retention")) == 0
    assert raw.xlen(stream) == 1


def test_the_bound_of_redelivery_is_the_longest_retention_if_all_have_one(
    adapter: RedisAdapter, declare: Declare, open_one: Open
) -> None:
    hour, day = declare(options={"retention": 3600}), declare(options={"retention": 86400.0})
    bound = adapter.redelivery_bound([hour, day])
    assert bound is not None
    assert timedelta(days=1) <= bound < timedelta(days=1, minutes=1)
    assert adapter.redelivery_bound([hour, declare()]) is None
    assert open_one(query="trim=0").redelivery_bound([hour]) is None


def test_another_retention_than_the_topic_has_is_an_error_naming_both(
    adapter: RedisAdapter, declare: Declare
) -> None:
    topic = declare(options={"retention": 3600})
    adapter.declare([TopicSpec(name=topic)], [])
    with pytest.raises(ConfigurationError, match=r"60 s.*3600 s"):
        adapter.declare([TopicSpec(name=topic, options={"retention": 60})], [])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"retention": "long"}, "retention"),
        ({"retention": 0}, "retention"),
        ({"retention": True}, "retention"),
        ({"retention": float("nan")}, "retention"),
        ({"retention.ms": 1}, "retention.ms"),
    ],
)
def test_options_a_topic_cannot_have_are_refused(
    adapter: RedisAdapter, unique: str, options: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        adapter.declare([TopicSpec(name=unique, options=options)], [])


@pytest.mark.parametrize(
    "spec",
    [
        TopicSpec(name="t", partitions=0),
        TopicSpec(name="t", partitions=100_000),
        TopicSpec(name="t", replication_factor=3),
        TopicSpec(name="no/topic"),
    ],
)
def test_what_redis_cannot_give_a_topic_is_refused(adapter: RedisAdapter, spec: TopicSpec) -> None:
    with pytest.raises(ConfigurationError):
        adapter.declare([spec], [])


# --- lag ---------------------------------------------------------------------------------------


def test_lag_is_exact_whatever_was_deleted(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe, raw: Any
) -> None:
    topic = declare("billing", "audit")
    stream = keys.stream(topic, 0)
    adapter.publish(numbered(topic, range(100)), TIMEOUT)
    billing = subscribe(topic)
    taken = take(billing, 40)
    billing.ack(taken[:30])
    assert adapter.lag(topic, "billing") == 70
    entries = [entry_id for entry_id, _ in raw.xrange(stream)]
    raw.xdel(stream, entries[0], entries[20], entries[50], entries[99])
    assert adapter.lag(topic, "billing") == 68
    assert adapter.lag(topic, "audit") == 96
    raw.xtrim(stream, maxlen=30, approximate=False)
    assert adapter.lag(topic, "billing") == 10 + 30
    assert adapter.lag(topic, "audit") == 30


def test_lag_is_exact_where_much_is_unread_and_much_is_kept(
    adapter: RedisAdapter, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare("billing", "audit")
    for start in range(0, 9000, 1000):
        adapter.publish(numbered(topic, range(start, start + 1000)), TIMEOUT)
    billing = subscribe(topic, prefetch=10_000)
    for expected in (8000, 4500, 100, 0):
        billing.ack(take(billing, adapter.lag(topic, "billing") - expected))
        assert adapter.lag(topic, "billing") == expected
        assert adapter.lag(topic, "audit") == 9000


def test_the_lag_of_what_does_not_exist_is_an_error(
    adapter: RedisAdapter, declare: Declare
) -> None:
    with pytest.raises(ConfigurationError, match="nobody"):
        adapter.lag("nobody", "billing")
    with pytest.raises(ConfigurationError, match="audit"):
        adapter.lag(declare("billing"), "audit")


# --- declare -----------------------------------------------------------------------------------


def test_a_group_of_the_other_kind_is_an_error(adapter: RedisAdapter, declare: Declare) -> None:
    topic = declare("billing", ordered=True)
    with pytest.raises(ConfigurationError, match="ordered"):
        adapter.declare([], [GroupSpec(topic=topic, group="billing", ordered=False)])


def test_a_key_of_another_program_is_an_error_that_names_the_topic(
    adapter: RedisAdapter, unique: str, raw: Any
) -> None:
    raw.set(keys.meta(unique), "somebody else's")
    with pytest.raises(ConfigurationError, match=unique):
        adapter.declare([TopicSpec(name=unique)], [])
