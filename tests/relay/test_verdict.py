"""From outcomes to what becomes of the rows, and what waits how long: no database, no broker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_mq.adapter import SENT, Outcome, Refused, Sent, Unknown, Unroutable
from reliable_mq.relay.verdict import Verdict, judge
from reliable_mq.relay.waiting import FIRST_DELAY, MAX_DELAY, Waiting, delay_after
from reliable_mq.store.outbox.outgoing import Outgoing
from reliable_mq.testing.clock import FakeClock

UNKNOWN = Unknown("no answer")
UNROUTABLE = Unroutable("no queue")
REFUSED = Refused("too large")


def row(number: int, key: str | None = "k", *, topic: str = "t", attempts: int = 0) -> Outgoing:
    row_key = None if key is None else (topic, key.encode())
    values = (f"m{number}", topic, None, 0)
    return Outgoing(number, 0, topic, row_key, attempts, 0, b"", b"[]", values)


def judged(*pairs: tuple[Outgoing, Outcome]) -> Verdict:
    return judge([pair[0] for pair in pairs], [pair[1] for pair in pairs], Verdict())


def later_ids(verdict: Verdict) -> list[int]:
    return [item.row.id for item in verdict.later]


def test_of_a_key_only_the_first_row_that_was_not_sent_counts_as_tried():
    verdict = judged((row(1), SENT), (row(2), REFUSED), (row(3), UNKNOWN), (row(4, "x"), SENT))
    assert [one.id for one in verdict.sent] == [1, 4]
    assert [item.row.id for item in verdict.unfit] == [2]
    assert verdict.later == []
    assert verdict.stopped == {("t", b"k")}


def test_what_was_sent_is_sent_even_behind_one_that_was_not():
    """An adapter must not do that; but the message is there, and its row must go."""
    verdict = judged((row(1), UNKNOWN), (row(2), SENT))
    assert [one.id for one in verdict.sent] == [2]
    assert later_ids(verdict) == [1]


def test_an_outage_is_when_not_one_outcome_is_known():
    assert judged((row(1), UNKNOWN), (row(2, "x"), UNKNOWN)).outage == "no answer"
    for known in (SENT, REFUSED, UNROUTABLE):
        assert judged((row(1), UNKNOWN), (row(2, "x"), known)).outage is None


def test_in_an_outage_no_row_gets_a_delay_of_its_own():
    verdict = judged((row(1, attempts=9), UNKNOWN))
    assert [item.delay for item in verdict.later] == [None]


def test_a_row_that_is_never_confirmed_waits_ever_longer():
    delays = []
    for attempts in (0, 1, 2, 30):
        verdict = judged((row(1, attempts=attempts), UNKNOWN), (row(2, "x"), SENT))
        delays += [item.delay for item in verdict.later]
    assert delays == [None, FIRST_DELAY, 2 * FIRST_DELAY, MAX_DELAY]


def test_a_topic_without_any_route_waits_as_a_whole_by_its_most_tried_row():
    verdict = judged(
        (row(1, "a", attempts=3), UNROUTABLE),
        (row(2, "b"), UNROUTABLE),
        (row(3, "c", topic="u"), SENT),
    )
    assert verdict.without_route == {"t": delay_after(3)}
    assert [item.cause for item in verdict.later] == ["unroutable: no queue"] * 2
    assert [item.delay for item in verdict.later] == [delay_after(3)] * 2


def test_a_topic_that_some_rows_reached_does_not_wait():
    verdict = judged((row(1, "a"), UNROUTABLE), (row(2, "b"), SENT))
    assert verdict.without_route == {}
    assert [item.cause for item in verdict.later] == ["unroutable for this key: no queue"]


OUTCOMES = st.sampled_from([SENT, UNKNOWN, UNROUTABLE, REFUSED])
ROWS = st.lists(st.tuples(st.sampled_from(["a", "b", None]), OUTCOMES), max_size=30)


@given(ROWS)
def test_every_row_is_sent_or_refused_or_tried_later_or_behind_one_that_is(pairs):
    rows = [row(n, key) for n, (key, _) in enumerate(pairs)]
    outcomes = [outcome for _, outcome in pairs]
    verdict = judge(rows, outcomes, Verdict())
    places = [
        [one.id for one in verdict.sent],
        [item.row.id for item in verdict.unfit],
        later_ids(verdict),
    ]
    placed = [number for place in places for number in place]
    assert len(placed) == len(set(placed))
    assert set(places[0]) == {n for n, outcome in enumerate(outcomes) if isinstance(outcome, Sent)}
    for one in rows:
        if one.id not in placed:
            assert one.key in verdict.stopped
            assert any(r.key == one.key and r.id in places[1] + places[2] for r in rows[: one.id])


def test_delays_grow_to_their_limit_and_stay_there():
    assert [delay_after(n) for n in range(7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert delay_after(10**9) == MAX_DELAY


# --- waiting -----------------------------------------------------------------------------------


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_a_topic_waits_its_time_by_the_clock(clock):
    waiting = Waiting(clock)
    waiting.add_topic("t", 2.0)
    assert waiting.blocks(row(1))
    assert not waiting.blocks(row(1, topic="u"))
    assert list(waiting.excluded().topics) == ["t"]
    assert waiting.next_end() == 2.0
    clock.advance(2.0)
    assert not waiting.excluded()
    assert not waiting.blocks(row(1))
    assert waiting.next_end() is None


def test_a_row_waits_with_its_key_and_alone_without_one(clock):
    waiting = Waiting(clock)
    waiting.add_row(row(1), 2.0, no_route=True)
    waiting.add_row(row(2, None), 2.0, no_route=True)
    assert waiting.blocks(row(5))
    assert waiting.blocks(row(2, None))
    assert not waiting.blocks(row(3, None))
    assert not waiting.blocks(row(6, "x"))


def test_what_was_not_confirmed_waits_by_real_time_and_not_when_the_broker_is_back(clock):
    now = 100.0
    waiting = Waiting(clock, real=lambda: now)
    waiting.add_row(row(1, "a"), 2.0, no_route=False)
    waiting.add_row(row(2, "b"), 5.0, no_route=False)
    waiting.add_row(row(3, "c"), 9.0, no_route=True)
    now += 2.0
    assert set(waiting.excluded().keys) == {("t", b"b"), ("t", b"c")}
    waiting.forget_unconfirmed()
    assert set(waiting.excluded().keys) == {("t", b"c")}


def test_what_is_set_aside_misses_one_read(clock):
    waiting = Waiting(clock)
    waiting.set_aside([row(1, "a"), row(2, None)])
    found = waiting.excluded()
    assert (set(found.keys), set(found.rows)) == ({("t", b"a")}, {2})
    assert not waiting.excluded()


def test_of_many_that_are_set_aside_it_is_their_topics(clock):
    waiting = Waiting(clock)
    waiting.set_aside([row(n, f"k{n}") for n in range(1000)])
    found = waiting.excluded()
    assert (set(found.topics), set(found.keys)) == ({"t"}, set())


def test_it_stays_small_whatever_waits(clock):
    waiting = Waiting(clock)
    for n in range(5000):
        waiting.add_topic(f"topic{n}", 5.0)
        waiting.add_row(row(n, f"k{n}", topic=f"u{n}"), 5.0, no_route=True)
        waiting.add_row(row(n, None), 5.0, no_route=True)
    found = waiting.excluded()
    assert len(found.topics) + len(found.keys) + len(found.rows) < 500


def test_when_many_keys_of_a_topic_wait_the_topic_does(clock):
    waiting = Waiting(clock)
    for n in range(100):
        waiting.add_row(row(n, f"k{n}"), 5.0, no_route=True)
    assert waiting.blocks(row(1, "another"))
    clock.advance(5.0)
    waiting.excluded()
    assert not waiting.blocks(row(1, "another"))
