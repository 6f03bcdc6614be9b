"""The queue between intake and workers, by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from reliable_mq.adapter import Lost, Received
from reliable_mq.consumer.items import Again, Ended, Item, make_item
from reliable_mq.consumer.scheduler import Scheduler
from reliable_mq.message import Message
from reliable_mq.store.retries import Waiting
from reliable_mq.wire import Limits, RawMessage


def item(number: int, key: str | None = None, partition: str = "0", epoch: int = 1) -> Item:
    raw = RawMessage(
        topic="t",
        body=str(number).encode(),
        headers=[("message-id", f"m{number}".encode())],
        key=key.encode() if key else None,
    )
    received = Received(raw=raw, partition=partition, epoch=epoch, receipt=number)
    return make_item(received, Limits(), datetime.now(UTC))


def scheduler(
    *, ordered: bool = True, concurrency: int = 4, transaction_size: int = 1
) -> Scheduler:
    return Scheduler(ordered=ordered, concurrency=concurrency, transaction_size=transaction_size)


def numbers(items: object) -> list[int]:
    return [one.received.receipt for one in items]  # type: ignore[attr-defined]


def take(queue: Scheduler) -> list[int]:
    work, _ = queue.try_take()
    return numbers(work.items) if work is not None else []


def test_a_key_is_given_to_one_worker_at_a_time() -> None:
    queue = scheduler()
    queue.put([item(1, "a"), item(2, "a"), item(3, "b")])
    first, _ = queue.try_take()
    second, _ = queue.try_take()
    third, _ = queue.try_take()
    assert first is not None
    assert second is not None
    assert {*numbers(first.items)} & {*numbers(second.items)} == set()
    assert third is None or numbers(third.items) == []
    queue.finish(first, [(one, Ended.HANDLED) for one in first.items])
    assert take(queue) == [2]


def test_without_order_all_workers_share_what_waits() -> None:
    queue = scheduler(ordered=False, concurrency=2)
    queue.put([item(n, "a") for n in range(10)])
    assert take(queue) == [0, 1, 2, 3, 4]
    assert take(queue) == [5, 6, 7, 8, 9]


def test_an_idle_worker_takes_half_of_what_a_busy_one_has_not_begun() -> None:
    queue = scheduler(ordered=False, concurrency=2)
    queue.put([item(n) for n in range(8)])
    slow, _ = queue.try_take()
    quick, _ = queue.try_take()
    assert slow is not None
    assert quick is not None
    assert queue.begin(slow) is slow.items[0]
    queue.finish(quick, [(one, Ended.HANDLED) for one in quick.items])
    assert [take(queue), take(queue), take(queue)] == [[2, 3], [1], []]
    assert queue.begin(slow) is None
    queue.finish(slow, [(slow.items[0], Ended.HANDLED)])
    acknowledged = [received.receipt for received in queue.take_finished()]
    assert acknowledged == [4, 5, 6, 7, 0]


class Door:
    """The scheduler's lock, before which somebody else gets in once."""

    def __init__(self, inner: threading.Condition, first: Callable[[], None]) -> None:
        self._inner = inner
        self._first = [first]

    def __enter__(self) -> None:
        while self._first:
            self._first.pop()()
        self._inner.__enter__()

    def __exit__(self, *error: object) -> None:
        self._inner.__exit__(None, None, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.mark.parametrize("ordered", [False, True])
def test_what_is_taken_from_a_worker_that_is_giving_up_just_then_has_one_worker(
    ordered: bool,
) -> None:
    queue = scheduler(ordered=ordered, concurrency=2)
    queue.put([item(n, f"k{n}") for n in range(8)])
    broken, _ = queue.try_take()
    quick, _ = queue.try_take()
    assert broken is not None
    assert quick is not None
    begun = queue.begin(broken)
    assert begun is not None
    queue.finish(quick, [(one, Ended.HANDLED) for one in quick.items])
    taken: list[int] = []
    queue._changed = Door(queue._changed, lambda: taken.extend(take(queue)))  # type: ignore[assignment]
    queue.finish(broken, [(begun, Again(0.0, store_down=True))])
    assert taken == [2, 3]
    assert [*take(queue), *take(queue)] == [0, 1]
    assert take(queue) == []


def test_nothing_is_taken_from_a_worker_that_has_begun_nothing() -> None:
    queue = scheduler(ordered=False, concurrency=1)
    queue.put([item(n) for n in range(4)])
    assert take(queue) == [0, 1, 2, 3]
    assert take(queue) == []


def test_only_whole_keys_are_taken_from_a_busy_worker() -> None:
    queue = scheduler(concurrency=1)
    queue.put([item(1, "a"), item(2, "b"), item(3, "a"), item(4, "b"), item(5, "a")])
    slow, _ = queue.try_take()
    assert slow is not None
    assert numbers(slow.items) == [1, 3, 5, 2, 4]
    queue.begin(slow)
    quick, _ = queue.try_take()
    assert quick is not None
    assert numbers(quick.items) == [2, 4]
    queue.put([item(6, "a"), item(7, "b")])
    assert take(queue) == []
    queue.finish(quick, [(one, Ended.HANDLED) for one in quick.items])
    assert take(queue) == [7]
    assert [numbers([queue.begin(slow)]), numbers([queue.begin(slow)])] == [[3], [5]]
    queue.finish(slow, [(one, Ended.HANDLED) for one in slow.items])
    assert take(queue) == [6]


def test_a_key_whose_next_delivery_waits_for_a_retry_is_not_taken_apart() -> None:
    queue = scheduler(concurrency=1)
    queue.put([item(1, "a"), item(2, "a"), item(3, "a")])
    slow, _ = queue.try_take()
    assert slow is not None
    queue.begin(slow)
    assert take(queue) == []
    queue.finish(slow, [(slow.items[0], Again(0.0))])
    assert take(queue) == [1, 2, 3]


def test_what_was_lost_before_it_was_begun_is_not_handled() -> None:
    queue = scheduler(concurrency=1, ordered=False)
    queue.put([item(1, partition="p"), item(2, partition="q"), item(3, partition="p")])
    work, _ = queue.try_take()
    assert work is not None
    assert queue.drop([Lost("p", 1)]) == 2
    assert queue.begin(work) is work.items[1]
    assert queue.begin(work) is None


def test_a_batch_stays_together() -> None:
    queue = scheduler(ordered=False, concurrency=2, transaction_size=4)
    queue.put([item(n) for n in range(4)])
    assert take(queue) == [0, 1, 2, 3]
    assert take(queue) == []


def test_what_ended_is_handed_out_for_acknowledgement_once() -> None:
    queue = scheduler()
    queue.put([item(1, "a")])
    work, _ = queue.try_take()
    assert work is not None
    assert queue.take_finished() == []
    queue.finish(work, [(work.items[0], Ended.HANDLED)])
    assert [received.receipt for received in queue.take_finished()] == [1]
    assert queue.take_finished() == []
    assert queue.idle


def test_what_was_not_begun_keeps_its_place_before_later_ones_of_its_key() -> None:
    queue = scheduler(concurrency=1, transaction_size=3)
    queue.put([item(n, "a") for n in (1, 2, 3)])
    work, _ = queue.try_take()
    assert work is not None
    queue.put([item(4, "a")])
    queue.finish(work, [(work.items[0], Ended.HANDLED)])
    assert take(queue) == [2, 3, 4]


def test_again_keeps_the_key_until_its_delay_is_over_and_lets_other_keys_go_on() -> None:
    queue = scheduler(concurrency=1, transaction_size=2)
    queue.put([item(1, "a"), item(2, "a")])
    work, _ = queue.try_take()
    assert work is not None
    queue.put([item(3, "b")])
    queue.finish(work, [(one, Again(3600.0)) for one in work.items])
    assert take(queue) == [3]
    assert take(queue) == []
    assert queue.held_count == 3


def test_again_without_a_delay_comes_back_first() -> None:
    queue = scheduler(concurrency=1, transaction_size=2)
    queue.put([item(n, "a") for n in (1, 2, 3)])
    work, _ = queue.try_take()
    assert work is not None
    queue.finish(work, [(one, Again(0.0)) for one in work.items])
    assert take(queue) == [1, 2]


def test_lost_partitions_are_forgotten_up_to_their_epoch_only() -> None:
    queue = scheduler(concurrency=1, transaction_size=10)
    queue.put([item(1, "a", "p0", 1), item(2, "a", "p1", 1), item(3, "a", "p0", 2)])
    assert queue.drop([Lost("p0", 1)]) == 1
    assert take(queue) == [2, 3]


def test_work_that_was_lost_meanwhile_is_not_acknowledged() -> None:
    queue = scheduler()
    queue.put([item(1, "a", "p0", 1)])
    work, _ = queue.try_take()
    assert work is not None
    queue.drop([Lost("p0", 1)])
    queue.finish(work, [(work.items[0], Ended.HANDLED)])
    assert queue.take_finished() == []
    assert queue.held_bytes == 0


def test_a_redelivery_of_a_lost_message_waits_for_the_old_attempt_of_its_key() -> None:
    queue = scheduler()
    queue.put([item(1, "a", "p0", 1)])
    work, _ = queue.try_take()
    assert work is not None
    queue.drop([Lost("p0", 1)])
    queue.put([item(1, "a", "p0", 2)])
    assert take(queue) == []
    queue.finish(work, [(work.items[0], Ended.HANDLED)])
    assert take(queue) == [1]


def test_messages_without_a_key_have_no_order_even_in_an_ordered_group() -> None:
    queue = scheduler(concurrency=2)
    queue.put([item(1), item(2)])
    assert take(queue) == [1]
    assert take(queue) == [2]


def waiting_row(number: int) -> Waiting:
    message = Message(id="m", topic="t")
    return Waiting(seq=number, group="g", attempt=1, message=message, headers=(), replays=0)


def test_a_retry_row_is_worked_on_once_at_a_time() -> None:
    queue = scheduler()
    row = waiting_row(7)
    assert queue.put_retry(row)
    assert not queue.put_retry(row)
    work, _ = queue.try_take()
    assert work is not None
    assert work.waiting is row
    assert not queue.put_retry(row)
    queue.finish(work, [])
    queue.begin_look()
    assert queue.put_retry(row)


def test_a_retry_row_that_was_left_since_the_look_began_is_not_as_it_was_read() -> None:
    queue = scheduler()
    row = waiting_row(7)
    queue.begin_look()
    assert queue.put_retry(row)
    work, _ = queue.try_take()
    assert work is not None
    queue.begin_look()
    queue.finish(work, [])
    assert not queue.put_retry(row)
    assert queue.try_take()[0] is None


def test_the_row_that_follows_in_its_key_is_in_hand_and_the_first_one_no_more() -> None:
    queue = scheduler()
    first, second = waiting_row(7), waiting_row(8)
    assert queue.put_retry(first)
    work, _ = queue.try_take()
    assert work is not None
    queue.begin_look()
    assert queue.go_on(work, second)
    assert not queue.put_retry(second)
    assert not queue.put_retry(first)  # it was read before
    queue.begin_look()
    assert queue.put_retry(first)
    queue.finish(work, [])
    assert not queue.put_retry(second)
    queue.begin_look()
    assert queue.put_retry(second)


def test_a_worker_does_not_go_on_with_a_row_that_is_queued_already() -> None:
    queue = scheduler()
    first, second = waiting_row(7), waiting_row(8)
    assert queue.put_retry(first)
    work, _ = queue.try_take()
    assert work is not None
    assert queue.put_retry(second)
    assert not queue.go_on(work, second)
    queue.finish(work, [])
    other, _ = queue.try_take()
    assert other is not None
    assert other.waiting is second


def test_a_stop_gives_out_nothing_more_and_counts_what_is_left() -> None:
    queue = scheduler()
    queue.put([item(1, "a"), item(2, "b"), item(3)])
    work, _ = queue.try_take()
    assert work is not None
    delayed, _ = queue.try_take()
    assert delayed is not None
    queue.finish(delayed, [(one, Again(60.0)) for one in delayed.items])
    queue.stop()
    assert queue.left == 3
    assert queue.try_take() == (None, None)
    assert queue.take() is None
    assert not queue.wait_for(lambda: not queue.working, 0.0)
    queue.finish(work, [(work.items[0], Ended.HANDLED)])
    assert queue.wait_for(lambda: not queue.working, 0.0)
    assert queue.left == 2
    assert len(queue.take_finished()) == 1


def test_of_the_retry_rows_only_those_in_hand_are_left_at_a_stop() -> None:
    queue = scheduler()
    rows = [waiting_row(n) for n in range(3)]
    for row in rows:
        queue.put_retry(row)
    work, _ = queue.try_take()
    assert work is not None
    queue.stop()
    assert queue.left == 1
    queue.finish(work, [])
    assert queue.left == 0


def test_a_waiting_worker_wakes_when_something_is_put() -> None:
    queue = scheduler()
    taken: list[int] = []
    worker = threading.Thread(target=lambda: taken.extend(numbers(queue.take().items)))  # type: ignore[union-attr]
    worker.start()
    queue.put([item(1, "a")])
    worker.join(10)
    assert taken == [1]


@pytest.mark.parametrize("ordered", [True, False])
def test_every_delivery_is_given_out_until_it_ends(ordered: bool) -> None:
    queue = scheduler(ordered=ordered, concurrency=3)
    queue.put([item(n, f"k{n % 5}") for n in range(200)])
    seen: list[int] = []
    turn = 0
    while (work := queue.try_take()[0]) is not None:
        turn += 1
        done = [(one, Again(0.0) if turn % 3 == 0 else Ended.HANDLED) for one in work.items]
        ended = [one for one, result in done if result is Ended.HANDLED]
        seen.extend(numbers(ended))
        queue.finish(work, done)
    assert sorted(seen) == list(range(200))
    if ordered:
        for k in range(5):
            of_key = [n for n in seen if n % 5 == k]
            assert of_key == sorted(of_key)
