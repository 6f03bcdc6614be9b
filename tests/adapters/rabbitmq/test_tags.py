from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reliable_mq_rabbitmq.tags import CompetingTags, OrderedTags


def delivered(tags: CompetingTags, count: int = 5) -> CompetingTags:
    for tag in range(1, count + 1):
        tags.deliver(tag)
    return tags


def test_the_front_is_acknowledged_in_one_go() -> None:
    tags = delivered(CompetingTags())
    assert tags.ack([2, 1, 3]) == [(3, True)]
    assert len(tags) == 2


def test_competing_acks_behind_a_gap_are_sent_one_by_one() -> None:
    tags = delivered(CompetingTags())
    assert tags.ack([1, 3, 5]) == [(1, True), (3, False), (5, False)]
    assert tags.ack([2]) == [(2, True)]
    assert tags.ack([4]) == [(4, True)]


def test_ordered_acks_behind_a_gap_wait_for_it() -> None:
    tags = delivered(OrderedTags())
    assert tags.ack([2, 3]) == []
    assert tags.ack([5]) == []
    assert len(tags) == 5
    assert tags.ack([1]) == [(3, True)]
    assert tags.ack([4]) == [(5, True)]
    assert len(tags) == 0


def test_what_is_not_outstanding_is_ignored() -> None:
    for tags in (delivered(CompetingTags()), delivered(OrderedTags())):
        assert tags.ack([1, 1]) == [(1, True)]
        assert tags.ack([1, 99]) == []


def test_a_released_delivery_cannot_be_acknowledged_any_more() -> None:
    tags = delivered(CompetingTags())
    assert tags.release([2, 2, 99]) == [2]
    assert tags.ack([1, 2, 3]) == [(3, True)]


@given(st.lists(st.lists(st.integers(1, 30), max_size=10), max_size=20))
def test_the_broker_never_hears_of_a_tag_that_it_does_not_hold(calls: list[list[int]]) -> None:
    """A tag it does not hold makes the broker close the channel."""
    for tags in (delivered(CompetingTags(), 30), delivered(OrderedTags(), 30)):
        held = set(range(1, 31))
        asked: set[int] = set()
        for call in calls:
            asked.update(call)
            for tag, multiple in tags.ack(call):
                assert tag in held
                covered = {one for one in held if one <= tag} if multiple else {tag}
                assert covered <= asked
                held -= covered
        assert len(tags) == len(held)
        if type(tags) is CompetingTags:
            assert held == set(range(1, 31)) - asked
