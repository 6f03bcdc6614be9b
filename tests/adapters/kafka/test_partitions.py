"""What is known of an owned partition, without a broker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reliable_mq.adapter import Lost
from reliable_mq_kafka.partitions import OwnedPartition, Share


def partition(*offsets: int) -> OwnedPartition:
    one = OwnedPartition("orders", 3, 7, 0.0)
    for offset in offsets:
        assert one.read(offset)
        one.handed_out()
    return one


def test_the_watermark_is_the_first_offset_that_is_not_done() -> None:
    one = partition(10, 11, 12)
    assert (one.watermark, one.dirty) == (10, False)
    assert one.ack(11)
    assert one.ack(12)
    assert one.watermark == 10
    assert one.ack(10)
    assert (one.watermark, one.dirty) == (13, True)


def test_gaps_between_offsets_do_not_stop_the_watermark() -> None:
    one = partition(10, 15, 99)
    one.ack(10)
    assert one.watermark == 15
    one.ack(15)
    one.ack(99)
    assert one.watermark == 100


def test_the_end_of_the_partition_moves_the_watermark_over_what_is_no_message() -> None:
    one = partition(10)
    one.reached_end(14)
    assert one.watermark == 10
    one.ack(10)
    assert (one.watermark, one.dirty) == (14, True)
    one.was_committed(14)
    assert not one.dirty


def test_a_second_ack_counts_for_nothing() -> None:
    one = partition(1, 2)
    assert one.ack(1)
    assert not one.ack(1)
    assert one.held == 1


def test_an_offset_behind_what_was_read_is_thrown_away() -> None:
    one = partition(5, 6)
    assert not one.read(5)
    assert one.read(7)


def test_to_begin_again_reads_from_the_first_that_is_not_done_and_skips_what_is() -> None:
    one = partition(5, 6, 7)
    one.ack(5)
    one.ack(7)
    assert one.begin_again(8) == Lost("orders/3", 7)
    assert (one.epoch, one.held, one.position.offset) == (8, 0, 6)
    assert not one.read(6), "before the client was told"
    one.rewinding = False
    assert one.read(6)
    assert not one.read(7)
    assert one.read(8)


def test_an_older_commit_does_not_undo_a_younger_one() -> None:
    one = partition(5)
    one.ack(5)
    one.was_committed(6)
    one.was_committed(5)
    assert not one.dirty


def test_each_ownership_has_a_higher_epoch() -> None:
    share = Share()
    first = share.add(("orders", 0), 0.0)
    before = first.epoch
    share.begin_again(first)
    assert first.epoch > before
    assert share.remove(("orders", 0)) is first
    assert share.under("orders/0", first.epoch) is None
    assert share.add(("orders", 0), 0.0).epoch > first.epoch


def test_a_partition_is_not_found_under_the_epoch_of_an_ownership_that_is_over() -> None:
    share = Share()
    one = share.add(("orders", 0), 0.0)
    ended = one.epoch
    assert share.under("orders/0", ended) is one
    share.begin_again(one)
    assert share.under("orders/0", ended) is None
    assert share.under("orders/0", one.epoch) is one


@given(st.permutations(range(12)), st.integers(0, 12))
def test_in_whatever_order_acks_come_nothing_undone_is_committed(
    order: list[int], count: int
) -> None:
    one = partition(*range(100, 112))
    for offset in order[:count]:
        one.ack(100 + offset)
    undone = set(range(12)) - set(order[:count])
    assert one.watermark == 100 + min(undone, default=12)
    assert one.held == len(undone)
