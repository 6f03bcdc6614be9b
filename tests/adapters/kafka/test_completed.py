"""What is done beyond the committed offset: its form, its bounds, what becomes of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from confluent_kafka import Consumer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from reliable_mq.adapter import Received
from reliable_mq.testing.contract.messages import numbers_of
from reliable_mq.testing.contract.readers import Reader
from reliable_mq_kafka import completed
from reliable_mq_kafka.adapter import KafkaAdapter
from reliable_mq_kafka.completed import ROOM, decode, encode, log_of
from reliable_mq_kafka.partitions import OwnedPartition
from tests.adapters.kafka.conftest import GROUP, Declare, Open, Subscribe
from tests.adapters.kafka.test_receiving import fill
from tests.brokers import Kafka
from tests.conftest import OwnServer

BEGIN = 1_000_000
LOG = "x1/" + 19 * "+"


@st.composite
def runs(draw: st.DrawFn) -> list[range]:
    found, at = [], BEGIN
    for gap, length in draw(
        st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)), max_size=50)
    ):
        found.append(range(at + gap, at + gap + length))
        at = found[-1].stop
    return found


# --- the text -----------------------------------------------------------------------------------


@given(runs())
def test_what_was_written_is_read_again(found: list[range]) -> None:
    assert decode(encode(found, BEGIN), BEGIN) == found


@given(runs(), st.integers(0, 200))
def test_what_has_no_room_is_left_out_from_the_end(found: list[range], room: int) -> None:
    text = encode(found, BEGIN, room)
    assert len(text) <= room
    kept = decode(text, BEGIN)
    assert kept == found[: len(kept)]


def test_every_second_of_two_thousand_offsets_fits_into_what_brokers_take() -> None:
    found = [range(offset, offset + 1) for offset in range(BEGIN + 1, BEGIN + 2001, 2)]
    assert decode(encode(found, BEGIN), BEGIN) == found
    many = [range(offset, offset + 1) for offset in range(BEGIN + 1, BEGIN + 200_001, 2)]
    assert len(encode(many, BEGIN)) <= ROOM < 4096
    assert len(decode(encode(many, BEGIN), BEGIN)) > 1000


@given(st.one_of(st.none(), st.text(), st.text().map("rmq1:".__add__)))
def test_text_of_any_kind_is_read_as_runs_or_as_nothing(text: str | None) -> None:
    found = decode(text, BEGIN)
    edges = [edge for run in found for edge in (run.start, run.stop)]
    assert all(before < after for before, after in pairwise([BEGIN, *edges]))


@pytest.mark.parametrize("text", ["rmq1:AAE", "rmq1:AQA", "rmq1:AQ", "rmq1:gA", "rmq1:!", "v2:AQE"])
def test_a_text_that_cannot_be_meant_is_nothing(text: str) -> None:
    assert decode(text, BEGIN) == []


@given(runs(), st.integers(0, 200))
def test_the_id_of_the_topic_goes_along_where_it_has_room(found: list[range], room: int) -> None:
    text = encode(found, BEGIN, room, LOG)
    assert len(text) <= room
    assert log_of(text) == (LOG if room >= len(f"rmq1:@{LOG}") else None)
    kept = decode(text, BEGIN)
    assert kept == found[: len(kept)]


@pytest.mark.parametrize("text", [None, "", "rmq1:AQE", "rmq1:AQE@", "rmq1:@short", f"a@{LOG}"])
def test_a_text_without_an_id_of_ours_names_no_topic(text: str | None) -> None:
    assert log_of(text) is None


# --- a partition --------------------------------------------------------------------------------


def partition(*offsets: int) -> OwnedPartition:
    one = OwnedPartition("orders", 0, 1, 0.0)
    for offset in offsets:
        assert one.read(offset)
        one.handed_out()
    return one


def test_a_commit_names_what_is_done_behind_it_and_gaps_that_hold_no_message() -> None:
    one = partition(10, 11, 12, 15, 16)
    one.ack(12)
    offset = one.commit()
    assert offset.offset == 10
    assert decode(offset.metadata, 10) == [range(12, 15)]
    one.ack(10)
    one.ack(11)
    offset = one.commit()
    assert (offset.offset, offset.metadata) == (15, "")


def test_what_is_done_out_of_order_is_to_be_committed_once() -> None:
    one = partition(10, 11, 12)
    one.ack(11)
    assert one.dirty
    one.was_offered()
    one.ack(12)
    one.was_committed(10)
    assert one.dirty, "12 was done after the commit was sent"
    one.was_offered()
    one.was_committed(10)
    assert not one.dirty


def test_the_next_owner_skips_what_is_done_and_passes_it_on() -> None:
    one = OwnedPartition("orders", 0, 1, 0.0)
    one.skip([range(11, 13), range(20, 22)])
    assert [offset for offset in range(10, 14) if one.read(offset)] == [10, 13]
    assert decode(one.commit().metadata, 10) == [range(11, 13), range(20, 22)]
    one.handed_out()
    one.ack(10)
    assert one.watermark == 13


@given(st.permutations(range(12)), st.integers(0, 12), st.integers(0, 12))
def test_what_was_acknowledged_is_skipped_after_a_new_beginning_and_nothing_else(
    order: list[int], count: int, again: int
) -> None:
    one = partition(*range(100, 112))
    for offset in order[:count]:
        one.ack(100 + offset)
    one.begin_again(2)
    one.rewinding = False
    undone = sorted(set(range(12)) - set(order[:count]))
    begin = 100 + min(undone, default=12)
    delivered = []
    for offset in range(begin, 100 + again):
        if one.read(offset):
            one.handed_out()
            delivered.append(offset - 100)
    assert delivered == [number for number in undone if number < again]
    # Half-way through the skipped ones, the rest of them is still known.
    one.begin_again(3)
    one.rewinding = False
    assert [offset - 100 for offset in range(begin, 112) if one.read(offset)] == undone


# --- on brokers ---------------------------------------------------------------------------------


def metadata(url: str, topic: str) -> str:
    consumer = Consumer({"bootstrap.servers": url.partition("://")[2], "group.id": GROUP})
    try:
        (found,) = consumer.committed([TopicPartition(topic, 0)], timeout=10)
        return found.metadata or ""
    finally:
        consumer.close()


def odd(deliveries: list[Received]) -> list[Received]:
    return [one for one in deliveries if int(one.raw.body) % 2]


def test_what_was_done_behind_an_unfinished_delivery_does_not_come_again_after_a_crash(
    adapter: KafkaAdapter, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare()
    fill(adapter, topic, range(40))
    # Nobody polls it any more: as good as dead.
    left = open_one(query="session_timeout=6", client_options={"max.poll.interval.ms": 6000})
    dead = Reader(subscribe(topic, adapter=left))
    dead.ack_and_flush(odd(dead.take(30)))
    heir = Reader(subscribe(topic, adapter=open_one()))
    expected = [number for number in range(40) if number % 2 == 0 or number >= 30]
    assert numbers_of(heir.take_only(len(expected))) == expected


def test_what_was_done_behind_an_unfinished_delivery_is_handed_over_when_a_member_leaves(
    adapter: KafkaAdapter, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare()
    fill(adapter, topic, range(10))
    first = Reader(subscribe(topic))
    first.ack(odd(first.take(10)))
    first.close()
    second = Reader(subscribe(topic, adapter=open_one()))
    assert numbers_of(second.take_only(5)) == [0, 2, 4, 6, 8]


def test_a_released_delivery_brings_back_only_what_is_not_done(
    adapter: KafkaAdapter, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare()
    fill(adapter, topic, range(10))
    reader = Reader(subscribe(topic))
    taken = reader.take(10)
    reader.ack(odd(taken))
    reader.release(taken[4:5])
    reader.wait_until_lost(taken[0])
    assert numbers_of(reader.take_only(5)) == [0, 2, 4, 6, 8]


def test_lag_leaves_out_what_was_done_out_of_order(
    adapter: KafkaAdapter, declare: Declare, subscribe: Subscribe
) -> None:
    topic = declare()
    fill(adapter, topic, range(10))
    reader = Reader(subscribe(topic))
    taken = reader.take(10)
    reader.ack_and_flush(odd(taken))
    assert adapter.lag(topic, GROUP) == 5
    reader.ack_and_flush(taken)
    assert adapter.lag(topic, GROUP) == 0


def test_metadata_of_another_client_is_passed_over(
    adapter: KafkaAdapter, declare: Declare, subscribe: Subscribe, kafka_url: str
) -> None:
    topic = declare()
    fill(adapter, topic, range(5))
    other = Consumer({"bootstrap.servers": kafka_url.partition("://")[2], "group.id": GROUP})
    place = TopicPartition(topic, 0, 2, metadata="rmq1:this is \N{SNOWMAN} not ours")
    other.commit(offsets=[place], asynchronous=False)
    other.close()
    assert numbers_of(Reader(subscribe(topic)).take_only(3)) == [2, 3, 4]


def test_brokers_that_take_less_metadata_still_get_every_commit(
    own_server: OwnServer, open_one: Open, declare: Declare, subscribe: Subscribe
) -> None:
    server = own_server("kafka", {"offset.metadata.max.bytes": "20"})
    assert isinstance(server, Kafka)
    adapter = open_one(server.url)
    topic = declare(adapter=adapter)
    fill(adapter, topic, range(200))
    reader = Reader(subscribe(topic, adapter=adapter))
    taken = reader.take(200)
    reader.ack(odd(taken)[1:])
    reader.ack_and_flush(taken[:2])
    assert len(metadata(server.url, topic)) <= 20
    assert 99 < adapter.lag(topic, GROUP) <= 198, "2 at the beginning, and few of 99 behind them"
    reader.ack_and_flush(taken)
    assert adapter.lag(topic, GROUP) == 0


def test_the_metadata_of_a_commit_are_bounded(
    adapter: KafkaAdapter, declare: Declare, subscribe: Subscribe, kafka_url: str
) -> None:
    topic = declare()
    for start in range(0, 6000, 1000):
        fill(adapter, topic, range(start, start + 1000))
    reader = Reader(subscribe(topic, prefetch=6000))
    reader.ack_and_flush(odd(reader.take(6000)))
    assert 1000 < len(metadata(kafka_url, topic)) <= completed.ROOM
