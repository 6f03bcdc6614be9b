"""A server that is full (``maxmemory``, ``noeviction``): it takes no message, and gets empty again.

What makes room is that consumers acknowledge and trim. So they have to go on in everything.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis

from reliable_mq.adapter import SENT, GroupSpec, Outcome, TopicSpec, Unknown
from reliable_mq.message import Message
from reliable_mq.testing.contract.messages import message, number_of, numbered, numbers_of
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_redis import keys
from reliable_mq_redis.adapter import RedisAdapter
from tests.adapters.redis.conftest import TIMEOUT, Open
from tests.brokers import Redis

Fill = Callable[[], None]
Join = Callable[..., Reader]

TOPIC = "orders"
STREAM = keys.stream(TOPIC, 0)
BIG = 10_000
ROOM = 2_000_000

both_kinds = pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])


@pytest.fixture
def raw(alone: Redis) -> Iterator[Any]:
    with redis.Redis.from_url(alone.url) as client:
        yield client


@pytest.fixture
def fill(raw: Any) -> Fill:
    """Leave the server so little memory that nothing the test can delete makes room."""

    def full() -> None:
        raw.config_set("maxmemory", "100kb")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            raw.set("one", "more")

    return full


@pytest.fixture
def adapter(alone: Redis, open_one: Open) -> RedisAdapter:
    return open_one(alone.url, query="trim=0.1")


@pytest.fixture
def join(adapter: RedisAdapter, resources: ExitStack) -> Join:
    def make(*, ordered: bool, prefetch: int = 500) -> Reader:
        member = adapter.subscribe([TOPIC], "billing", prefetch=prefetch, ordered=ordered)
        resources.callback(member.close)
        return Reader(member)

    return make


def declare(adapter: RedisAdapter, *, ordered: bool = False, partitions: int = 1) -> None:
    adapter.declare(
        [TopicSpec(name=TOPIC, partitions=partitions)],
        [GroupSpec(topic=TOPIC, group="billing", ordered=ordered)],
    )


def big(numbers: range) -> list[Message]:
    """Numbered messages of one key that take memory."""
    return [message(TOPIC, str(number).encode().ljust(BIG), key="key") for number in numbers]


def take_what_is_left(raw: Any) -> None:
    """Fill the server to the brim: a publish is refused earlier, for what it brings itself."""
    with contextlib.suppress(redis.exceptions.OutOfMemoryError):
        while True:
            raw.rpush("of another program", bytes(100))


def is_out_of_memory(outcome: Outcome) -> bool:
    return isinstance(outcome, Unknown) and "OOM" in outcome.cause


# --- publishing --------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", [300, 0])
def test_a_full_server_stores_nothing_and_takes_the_messages_later(
    alone: Redis, open_one: Open, fill: Fill, raw: Any, guard: int
) -> None:
    adapter = open_one(alone.url, query=f"guard={guard}")
    declare(adapter)
    batch = numbered(TOPIC, range(5))
    fill()
    before = set(raw.keys())
    first, *others = adapter.publish(batch, TIMEOUT)
    assert is_out_of_memory(first)
    assert all(isinstance(outcome, Unknown) for outcome in others)
    assert raw.xlen(STREAM) == 0
    assert set(raw.keys()) == before
    raw.config_set("maxmemory", "0")
    assert adapter.publish(batch, TIMEOUT) == [SENT] * 5


class Backlog:
    """Messages of one key, published in their order as the server takes them."""

    def __init__(self, adapter: RedisAdapter, messages: list[Message]) -> None:
        self._adapter = adapter
        self._waiting = deque(messages)
        self.refusals = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def publish(self) -> bool:
        """Publish a few, as a relay does; return whether the server took them all."""
        batch = list(self._waiting)[:20]
        outcomes = self._adapter.publish(batch, TIMEOUT)
        for outcome in outcomes:
            if outcome != SENT:
                assert is_out_of_memory(outcome)
                self.refusals += 1
                return False
            self._waiting.popleft()
        return True


@both_kinds
def test_a_server_full_of_messages_gets_empty_by_its_consumers_and_takes_the_rest_by_itself(
    adapter: RedisAdapter, join: Join, raw: Any, *, ordered: bool
) -> None:
    declare(adapter, ordered=ordered)
    backlog = Backlog(adapter, big(range(1000)))
    consumer = join(ordered=ordered, prefetch=50)
    raw.config_set("maxmemory", raw.info("memory")["used_memory"] + ROOM)
    while backlog.publish():
        assert backlog, "the server was never full"
    take_what_is_left(raw)
    stored = raw.xlen(STREAM)
    assert len(backlog) == 1000 - stored > 0

    def work() -> None:
        consumer.ack(consumer.step())
        if backlog:
            backlog.publish()

    wait_for(lambda: len(consumer.received) >= 1000, "everything handled", meanwhile=work)
    assert backlog.refusals > 1
    assert numbers_of(consumer.received) == list(range(1000))
    assert not consumer.lost
    wait_for(lambda: raw.xlen(STREAM) == 0, "an empty stream", meanwhile=work)


# --- consuming ---------------------------------------------------------------------------------


@both_kinds
def test_members_join_and_handle_and_trim_on_a_server_that_stays_full(
    adapter: RedisAdapter, join: Join, fill: Fill, raw: Any, *, ordered: bool
) -> None:
    declare(adapter, ordered=ordered)
    assert adapter.publish(numbered(TOPIC, range(300)), TIMEOUT) == [SENT] * 300
    fill()
    consumer = join(ordered=ordered)
    consumer.ack(consumer.take(100))
    wait_for(lambda: raw.xlen(STREAM) == 200, "the trimming", meanwhile=consumer.idle)
    consumer.ack(consumer.take(200))
    wait_for(lambda: raw.xlen(STREAM) == 0, "the trimming", meanwhile=consumer.idle)
    assert numbers_of(consumer.received) == list(range(300))
    assert not consumer.lost
    assert is_out_of_memory(adapter.publish(numbered(TOPIC, [300]), TIMEOUT)[0])


def test_on_a_full_server_partitions_change_hands_in_order(
    adapter: RedisAdapter, join: Join, fill: Fill
) -> None:
    declare(adapter, ordered=True)
    assert adapter.publish(numbered(TOPIC, range(10)), TIMEOUT) == [SENT] * 10
    fill()
    first = join(ordered=True)
    taken = first.take(10)
    first.ack(taken[:2])
    first.release(taken[2:])
    again = first.take(8)
    assert numbers_of(again) == list(range(2, 10))
    first.ack(again[:2])
    second = join(ordered=True)
    first.subscription.hand_over(again[0].partition)
    handed = second.take(6)
    assert numbers_of(handed) == list(range(4, 10))
    second.ack(handed[:2])
    second.close()
    first.ack(first.take(4))
    assert numbers_of(first.received)[-4:] == list(range(6, 10))


def test_on_a_full_server_a_second_member_gets_its_share_of_the_partitions(
    adapter: RedisAdapter, join: Join, fill: Fill, raw: Any
) -> None:
    declare(adapter, ordered=True, partitions=4)
    fill()
    members = [join(ordered=True), join(ordered=True)]

    def shares() -> list[int]:
        owners = [raw.hget(keys.own(TOPIC, "billing", number), "owner") for number in range(4)]
        return sorted(Counter(owners).values())

    def serve() -> None:
        for member in members:
            member.idle()

    wait_for(lambda: shares() == [2, 2], "fair shares", meanwhile=serve)


def test_on_a_full_server_entries_are_released_and_taken_by_another_member(
    adapter: RedisAdapter, join: Join, fill: Fill, raw: Any
) -> None:
    declare(adapter)
    assert adapter.publish(numbered(TOPIC, range(10)), TIMEOUT) == [SENT] * 10
    fill()
    first, second = join(ordered=False), join(ordered=False)
    taken = first.take(10)
    first.release(taken[5:])
    second.ack(second.take(5))
    first.close()
    second.ack(second.take(5))
    assert sorted(map(number_of, second.received)) == list(range(10))
    second.close()
    # What is gone leaves no consumer behind, which takes memory too.
    assert {one["name"] for one in raw.xinfo_consumers(STREAM, "billing")} <= {b"rmq-released"}


@both_kinds
def test_a_process_that_starts_while_the_server_is_full_declares_and_consumes(
    alone: Redis,
    adapter: RedisAdapter,
    open_one: Open,
    join: Join,
    fill: Fill,
    raw: Any,
    *,
    ordered: bool,
) -> None:
    declare(adapter, ordered=ordered)
    assert adapter.publish(numbered(TOPIC, range(10)), TIMEOUT) == [SENT] * 10
    fill()
    # As after a restart of the server: it knows no script.
    raw.script_flush()
    newcomer = open_one(alone.url)
    declare(newcomer, ordered=ordered)
    newcomer.declare(
        [TopicSpec(name="new", partitions=2, options={"retention": 60})],
        [GroupSpec(topic=topic, group="new", ordered=ordered) for topic in (TOPIC, "new")],
    )
    assert newcomer.lag(TOPIC, "new") == 10
    assert newcomer.lag("new", "new") == 0
    consumer = join(ordered=ordered)
    consumer.ack(consumer.take(10))
    assert Counter(numbers_of(consumer.received)) == Counter(range(10))
