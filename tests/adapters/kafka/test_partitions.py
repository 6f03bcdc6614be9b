"""What is known of an owned partition, without a broker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reliable_mq.adapter import Lost
from reliable_mq_kafka.completed import decode, log_of
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
    one.reached_end(14, 1.0)
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


# --- another log of the same name -----------------------------------------------------------------

OLD, NEW = "0" * 22, "1" * 22


def known(*offsets: int) -> OwnedPartition:
    """Return a partition of the topic with the id OLD, of which these were read."""
    one = partition(*offsets)
    assert one.foreign_from(OLD, (), 1.0) is None
    return one


def test_a_topic_in_the_place_of_the_one_that_was_read_is_foreign_from_its_beginning() -> None:
    one = known(10, 11)
    assert one.foreign_from(OLD, (), 2.0) is None
    assert one.foreign_from(NEW, {OLD}, 3.0) == 0
    assert one.foreign_from(NEW, {OLD}, 4.0) is None, "once is enough"


def test_another_id_of_which_nobody_knows_that_it_is_the_newer_says_nothing() -> None:
    one = known(10, 11)
    assert one.foreign_from(NEW, (), 2.0) is None
    assert log_of(one.commit().metadata) == NEW


def test_what_an_earlier_owner_has_read_of_the_new_topic_is_not_read_again() -> None:
    one = partition(10, 11)
    one.signed = one.log = NEW
    # Of a broker that is late, and then not.
    assert one.foreign_from(OLD, (), 2.0) is None
    assert one.foreign_from(NEW, {OLD}, 3.0) is None
    assert one.foreign_from("2" * 22, {OLD, NEW}, 4.0) == 0, "it is made anew once more"


def test_a_topic_that_was_replaced_before_the_ownership_is_begun_once() -> None:
    one = partition(10, 11)
    one.signed = one.log = OLD
    assert one.foreign_from(NEW, {OLD}, -1.0) == 0
    one.begin_again(8, 0)
    one.rewinding = False
    assert one.read(0)
    assert one.foreign_from(NEW, {OLD}, 4.0) is None


def test_what_a_topic_was_before_the_ownership_says_nothing_of_what_is_read() -> None:
    one = OwnedPartition("orders", 3, 7, 5.0)
    assert one.foreign_from(OLD, (), 5.0) is None
    assert one.foreign_from(NEW, {OLD}, 5.1) is None
    assert log_of(one.commit_of(0).metadata) == NEW


def test_a_broker_that_tells_no_id_says_nothing_of_one_that_is_known() -> None:
    one = known(10, 11)
    assert one.foreign_from(None, (), 2.0) is None
    assert one.foreign_from(NEW, {OLD}, 3.0) == 0


def test_a_log_that_ends_before_what_was_read_is_foreign_from_there() -> None:
    one = known(10, 11, 12)
    one.reached_end(11, 2.0)
    assert one.foreign_from(OLD, (), 2.0) is None, "it may be another one by now"
    assert one.foreign_from(OLD, (), 2.1) == 11


def test_a_new_topic_that_is_shorter_than_the_former_is_foreign_from_its_beginning() -> None:
    one = known(10, 11, 12)
    one.reached_end(11, 2.0)
    assert one.foreign_from(NEW, {OLD}, 2.1) == 0


def test_an_end_before_the_end_of_a_transaction_takes_away_nothing_that_was_read() -> None:
    one = known(10, 11)
    one.reached_end(14, 2.0)
    one.reached_end(12, 3.0)  # of a new leader, which has yet to learn how far it may tell
    assert one.foreign_from(OLD, (), 4.0) is None


def test_without_ids_a_log_that_ends_early_is_not_read_from_its_beginning() -> None:
    one = partition(10, 11, 12)
    one.reached_end(11, 2.0)
    assert one.foreign_from(None, (), 2.1) == 11


def test_nothing_of_another_log_is_skipped_and_the_commit_goes_back_to_its_beginning() -> None:
    one = known(10, 11, 12)
    one.ack(10)
    one.ack(12)
    one.was_offered()
    assert one.begin_again(8, 0) == Lost("orders/3", 7)
    assert one.position.offset == 0
    told = [one.dirty]
    one.was_committed(11)  # of the other log
    told.append(one.dirty)
    assert one.commit().offset == 0
    one.was_offered()
    one.was_committed(0)
    assert [*told, one.dirty] == [True, True, False]
    one.rewinding = False
    assert [one.read(offset) for offset in (0, 10, 12)] == [True] * 3


def test_what_is_new_behind_a_cut_is_read_and_what_was_done_before_it_is_not() -> None:
    one = known(*range(10, 16))
    for offset in (11, 12, 15):
        one.ack(offset)
    one.begin_again(8, 13)
    one.rewinding = False
    assert [offset for offset in range(10, 16) if one.read(offset)] == [10, 13, 14, 15]


def test_what_was_done_behind_a_start_that_a_log_does_not_reach_is_not_of_this_log() -> None:
    one = OwnedPartition("orders", 3, 7, 0.0)
    one.start = 10
    one.skip([range(12, 14)])
    assert all(one.read(offset) for offset in range(14))


def test_a_commit_says_of_which_topic_it_is() -> None:
    one = known(10, 11, 12)
    one.ack(11)
    for made in (one.commit(), one.commit_of(10)):
        assert log_of(made.metadata) == OLD
    assert decode(one.commit().metadata, 10) == [range(11, 12)]


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
