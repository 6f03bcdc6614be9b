"""Several messages in one transaction: all of them, or each by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import insert
from sqlalchemy.orm import Session

from reliable_mq import Delivery, ReliableMQ, RetryPolicy
from reliable_mq.consumer import batches
from reliable_mq.testing import Harness
from tests.consumer.conftest import effects

Enter = Callable[[], Harness]
Seen = Callable[[], list[str]]


def put(h: Harness, numbers: object, key: bytes | None = None) -> None:
    for number in numbers:  # type: ignore[attr-defined]
        h.broker.inject("t", str(number).encode(), [("message-id", f"m{number}".encode())], key)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that were handled in one transaction."""
    sizes: list[int] = []
    real = batches.BatchProcessor._report

    def report(self: object, fresh: list[object], duplicates: list[object], each: float) -> object:
        sizes.append(len(fresh) + len(duplicates))
        return real(self, fresh, duplicates, each)  # type: ignore[arg-type]

    monkeypatch.setattr(batches.BatchProcessor, "_report", report)
    return sizes


def test_messages_that_are_there_share_a_transaction(
    mq: ReliableMQ, harness: Enter, seen: Seen, together: list[int]
) -> None:
    @mq.handler("t", transaction_size=10)
    def handle(number: int, session: Session) -> None:
        session.execute(insert(effects).values(what=str(number)))

    h = harness()
    put(h, range(25))
    assert h.run().handled == 25
    assert sorted(map(int, seen())) == list(range(25))
    assert max(together) > 1


def test_a_failure_in_a_batch_is_the_failed_messages_alone_and_the_batch_was_no_attempt(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    attempts: dict[int, list[int]] = {}

    @mq.handler("t", transaction_size=10, retry=RetryPolicy(max_attempts=2, initial_delay=1))
    def handle(number: int, session: Session, delivery: Delivery) -> None:
        session.execute(insert(effects).values(what=str(number)))
        attempts.setdefault(number, []).append(delivery.attempt)
        if number == 3:
            raise OSError

    h = harness()
    put(h, range(6))
    counts = h.run()
    assert (counts.handled, counts.retried) == (5, 1)
    assert sorted(map(int, seen())) == [0, 1, 2, 4, 5]
    assert h.run(through=30).dead_lettered == 1
    assert max(attempts[3]) == 2
    assert h.dead_letters()[0].attempts == 2


def test_copies_inside_a_batch_and_from_before_are_applied_once(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("t", transaction_size=20)
    def handle(number: int, session: Session) -> None:
        session.execute(insert(effects).values(what=str(number)))

    h = harness()
    put(h, range(3))
    h.run()
    h.broker.duplicate(0)
    put(h, [0, 3, 3, 1, 4, 3])
    counts = h.run()
    assert (counts.handled, counts.duplicates) == (2, 4)
    assert sorted(seen()) == ["0", "1", "2", "3", "4"]


def test_another_body_under_the_same_id_inside_a_batch_is_a_dead_letter(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("t", transaction_size=20)
    def handle(number: int, session: Session) -> None:
        session.execute(insert(effects).values(what=str(number)))

    h = harness()
    h.broker.inject("t", b"1", [("message-id", b"same")])
    h.broker.inject("t", b"2", [("message-id", b"same")])
    h.broker.inject("t", b"3", [("message-id", b"other")])
    counts = h.run()
    assert (counts.handled, counts.dead_lettered) == (2, 1)
    assert sorted(seen()) == ["1", "3"]


def test_a_poison_body_in_a_batch_harms_nobody_else(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("t", transaction_size=20)
    def handle(number: int, session: Session) -> None:
        session.execute(insert(effects).values(what=str(number)))

    h = harness()
    put(h, range(3))
    h.broker.inject("t", b"{", [("message-id", b"poison")])
    put(h, range(3, 6))
    counts = h.run()
    assert (counts.handled, counts.dead_lettered) == (6, 1)
    assert sorted(seen()) == list("012345")


def test_messages_of_a_rolled_back_batch_are_not_published(mq: ReliableMQ, harness: Enter) -> None:
    mq.topic("out")

    @mq.handler("t", transaction_size=20, retry=RetryPolicy.never())
    def handle(number: int) -> None:
        mq.publish("out", number)
        if number == 4:
            raise OSError

    h = harness()
    put(h, range(6))
    h.run()
    assert sorted(m.decode(int) for m in h.published("out")) == [0, 1, 2, 3, 5]
