"""Which deliveries of an exactly-once handler go into the next transaction."""

from __future__ import annotations

from datetime import UTC, datetime

from reliable_mq.adapter import Lost, Received
from reliable_mq.consumer.items import Item, make_item
from reliable_mq.consumer.ledger import (
    MAX_DELIVERIES,
    PENALTY,
    STUCK,
    Completion,
    Ledger,
    Ready,
    progress_of,
)
from reliable_mq.wire import Limits, RawMessage

LIMITS = Limits(1000, 10, 1000)
MANY = 100


def items(partition: str, count: int, epoch: int = 1) -> list[Item]:
    return [_item(partition, epoch, offset) for offset in range(count)]


def _item(partition: str, epoch: int, offset: int) -> Item:
    raw = RawMessage(
        topic="orders", body=b"1", headers=(), key=None, position=f"{partition}/{offset}"
    )
    received = Received(raw=raw, partition=partition, epoch=epoch, receipt=offset)
    return make_item(received, LIMITS, datetime.now(UTC))


def ended(ledger: Ledger, found: list[Item]) -> None:
    for item in found:
        progress_of(item).completion = Completion((), lambda: None)
    ledger.ended([item.received for item in found])


def ledger_of(*found: list[Item]) -> Ledger:
    """Return a ledger in which all of this has ended."""
    ledger = Ledger()
    for some in found:
        ledger.arrived(some, 0.0)
        ended(ledger, some)
    return ledger


def places(ready: list[Ready]) -> list[str]:
    return [f"{one.item.received.partition}{one.item.received.receipt}" for one in ready]


def commit(ledger: Ledger, now: float) -> list[str]:
    ready = ledger.ready(now)
    ledger.committed(ready, now)
    return places(ready)


def fail(ledger: Ledger, now: float, took: float = 0.1) -> list[str]:
    ready = ledger.ready(now)
    ledger.failed(ready, now, took)
    return places(ready)


def test_all_partitions_share_a_transaction_up_to_their_first_that_has_not_ended() -> None:
    a, b = items("a", 3), items("b", 2)
    ledger = Ledger()
    ledger.arrived([*a, *b], 0.0)
    ended(ledger, [a[0], a[2], *b])
    assert places(ledger.ready(0.0)) == ["a0", "b0", "b1"]


def test_what_is_postponed_keeps_back_its_own_partition_alone() -> None:
    a, b = items("a", 3), items("b", 1)
    ledger = ledger_of(a, b)
    ledger.postponed(a[1], 5.0)
    assert places(ledger.ready(4.9)) == ["a0", "b0"]
    assert places(ledger.ready(5.0)) == ["a0", "a1", "a2", "b0"]


def test_after_a_failure_each_partition_comes_alone_and_with_half_of_it() -> None:
    ledger = ledger_of(items("a", 4), items("b", 4))
    fail(ledger, 0.0)
    assert ledger.has_failed
    assert commit(ledger, 0.0) == ["a0", "a1"]
    assert ledger.has_failed, "of the other it is not known yet"
    assert commit(ledger, 0.0) == ["b0", "b1"]
    assert not ledger.has_failed


def test_a_partition_that_fails_alone_leaves_the_next_turns_to_the_others() -> None:
    ledger = ledger_of(items("a", 4), items("b", 4), items("c", 4))
    fail(ledger, 0.0)
    assert fail(ledger, 0.0, took=60.0) == ["a0", "a1"]
    for _ in range(2):
        assert commit(ledger, 0.0)[0][0] == "b"
        assert commit(ledger, 0.0)[0][0] == "c"
    assert commit(ledger, PENALTY - 0.1) == []
    assert commit(ledger, PENALTY) == ["a0"]


def test_a_partition_that_fails_again_while_others_do_not_waits_as_long_as_it_took() -> None:
    ledger = ledger_of(items("a", MANY), items("b", 40 * MANY))
    fail(ledger, 0.0)
    now = 0.0
    for wait in (PENALTY, 60.0, 60.0):
        assert fail(ledger, now, took=60.0)[0] == "a0"
        assert [commit(ledger, now + wait - 0.1)[0][0] for _ in range(2)] == ["b", "b"]
        now += wait
    assert [commit(ledger, now)[0][0] for _ in range(2)] == ["a", "b"]
    assert fail(ledger, now, took=60.0)[0][0] == "a"
    assert [commit(ledger, now + PENALTY)[0][0] for _ in range(2)] == ["b", "a"], (
        "after a success it is as the first time"
    )


def test_after_an_outage_no_partition_waits_as_long_as_it_was_tried_in_vain() -> None:
    ledger = ledger_of(items("a", 4), items("b", 4))
    fail(ledger, 0.0)
    for now in (0.0, 60.0, 120.0):
        assert fail(ledger, now, took=60.0)[0] == "a0"
        assert fail(ledger, now, took=60.0)[0] == "b0"
    assert commit(ledger, 120.0 + PENALTY) == ["a0"]
    assert commit(ledger, 120.0 + PENALTY) == ["b0"]


def test_a_partition_that_is_alone_waits_for_nobody() -> None:
    ledger = ledger_of(items("a", 4))
    assert len(fail(ledger, 0.0)) == 4
    assert len(fail(ledger, 0.0)) == 2
    assert len(fail(ledger, 0.0)) == 1
    assert len(fail(ledger, 0.0)) == 1, "never none"


def test_a_transaction_grows_again_with_each_success_and_is_shared_in_the_end() -> None:
    ledger = ledger_of(items("a", 6 * MAX_DELIVERIES))
    fail(ledger, 0.0)
    sizes = [len(commit(ledger, 0.0)) for _ in range(7)]
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (MAX_DELIVERIES // 2, MAX_DELIVERIES)
    while len(ledger) > 1:
        left = ledger.ready(0.0)[: len(ledger) - 1]
        ledger.committed(left, 0.0)
    other = items("b", 1)
    ledger.arrived(other, 0.0)
    ended(ledger, other)
    assert len(ledger.ready(0.0)) == 2


def test_the_size_outlives_the_ownership_in_which_the_transaction_failed() -> None:
    ledger = ledger_of(items("a", 8))
    fail(ledger, 0.0)
    ledger.dropped([Lost("a", 1)])
    assert not ledger.has_failed
    again = items("a", 8, epoch=2)
    ledger.arrived(again, 0.0)
    ended(ledger, again)
    assert len(ledger.ready(0.0)) == 4


# --- what is not read on --------------------------------------------------------------------------


def test_a_partition_that_does_not_go_on_is_held_back_until_it_is_almost_used_up() -> None:
    a = items("a", MANY)
    ledger = Ledger()
    ledger.arrived([*a, *items("b", 1)], 0.0)
    assert ledger.hold_back(STUCK - 0.1, MANY, full=False) == set()
    assert ledger.hold_back(STUCK, MANY, full=False) == {"a"}
    assert ledger.moving()[0] == 1
    ended(ledger, a[: MANY // 2])
    ledger.committed(ledger.ready(STUCK), STUCK)
    assert ledger.hold_back(STUCK, MANY, full=False) == set()
    assert ledger.moving()[0] == MANY // 2 + 1


def test_a_partition_that_goes_on_is_not_held_back_however_much_there_is_of_it() -> None:
    ledger = ledger_of(items("a", MANY))
    ledger.committed(ledger.ready(STUCK)[:1], STUCK)
    assert ledger.hold_back(STUCK, 10, full=True) == set()


def test_where_there_is_no_room_left_every_partition_that_does_not_go_on_is_held_back() -> None:
    ledger = Ledger()
    ledger.arrived([*items("a", 2), *items("b", 1)], 0.0)
    assert ledger.hold_back(STUCK, MANY, full=True) == {"a", "b"}
    assert ledger.hold_back(STUCK, MANY, full=False) == {"a", "b"}, "nothing has changed for them"
    ledger.dropped([Lost("a", 1)])
    assert ledger.hold_back(STUCK, MANY, full=False) == {"b"}
