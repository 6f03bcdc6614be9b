"""The order of a key, through failures, on every database."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import BaseModel
from sqlalchemy import insert
from sqlalchemy.orm import Session

from reliable_mq import Delivery, Reject, ReliableMQ, RetryPolicy
from reliable_mq.testing import Harness
from tests.consumer.conftest import effects

Enter = Callable[[], Harness]
Seen = Callable[[], list[str]]


class Step(BaseModel):
    key: str
    number: int


def put(h: Harness, *steps: tuple[str, int]) -> None:
    for key, number in steps:
        body = Step(key=key, number=number).model_dump_json().encode()
        h.broker.inject("steps", body, [("message-id", f"{key}{number}".encode())], key.encode())


@pytest.mark.parametrize("transaction_size", [1, 20])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_later_messages_of_a_failed_key_wait_behind_it_and_other_keys_go_on(
    mq: ReliableMQ, harness: Enter, seen: Seen, transaction_size: int, concurrency: int
) -> None:
    @mq.handler(
        mq.topic("steps", Step, partitions=4),
        ordered=True,
        concurrency=concurrency,
        transaction_size=transaction_size,
        retry=RetryPolicy(initial_delay=10, jitter=0),
    )
    def handle(step: Step, session: Session, delivery: Delivery) -> None:
        if step.key == "a" and step.number == 2 and delivery.attempt < 3:
            raise OSError("busy")
        session.execute(insert(effects).values(what=f"{step.key}{step.number}"))

    h = harness()
    put(h, ("a", 1), ("a", 2), ("b", 1), ("a", 3), ("b", 2), ("a", 4))
    h.run()
    assert [what for what in seen() if what[0] == "a"] == ["a1"]
    assert [what for what in seen() if what[0] == "b"] == ["b1", "b2"]
    assert mq.status().groups["steps", "tests"].retries == 3
    put(h, ("a", 5))
    h.run(through=60)
    assert [what for what in seen() if what[0] == "a"] == ["a1", "a2", "a3", "a4", "a5"]
    assert mq.status().groups["steps", "tests"].retries == 0
    put(h, ("a", 6))
    h.run()
    assert seen()[-1] == "a6"


def test_a_dead_letter_lets_the_messages_behind_it_go_on(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("steps", ordered=True, retry=RetryPolicy(max_attempts=2, initial_delay=1))
    def handle(step: Step, session: Session) -> None:
        if step.number == 1:
            raise OSError
        if step.number == 3:
            raise Reject
        session.execute(insert(effects).values(what=f"{step.key}{step.number}"))

    h = harness()
    put(h, ("a", 1), ("a", 2), ("a", 3), ("a", 4))
    h.run(through=30)
    assert seen() == ["a2", "a4"]
    assert {letter.message.id for letter in h.dead_letters()} == {"a1", "a3"}


def test_a_follower_that_fails_too_keeps_its_place(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("steps", ordered=True, retry=RetryPolicy(initial_delay=1, jitter=0))
    def handle(step: Step, session: Session, delivery: Delivery) -> None:
        if delivery.attempt <= step.number % 3:
            raise OSError
        session.execute(insert(effects).values(what=f"{step.key}{step.number}"))

    h = harness()
    put(h, *(("a", number) for number in range(1, 10)))
    h.run(through=100)
    assert seen() == [f"a{number}" for number in range(1, 10)]


def test_a_rebalance_in_the_middle_changes_neither_order_nor_count(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    calls = 0

    @mq.handler("steps", ordered=True, concurrency=4)
    def handle(step: Step, session: Session) -> None:
        nonlocal calls
        calls += 1
        session.execute(insert(effects).values(what=f"{step.key}-{step.number:03}"))
        if calls % 25 == 0:
            h.broker.revoke()

    mq.topic("steps", partitions=4)
    h = harness()
    put(h, *((key, number) for number in range(40) for key in "abcde"))
    h.run()
    for key in "abcde":
        assert [what for what in seen() if what[0] == key] == [f"{key}-{n:03}" for n in range(40)]


def test_acknowledgements_that_get_lost_change_nothing(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("steps", ordered=True)
    def handle(step: Step, session: Session) -> None:
        session.execute(insert(effects).values(what=f"{step.key}{step.number}"))

    h = harness()
    h.broker.lose_acks(2, applied=False)
    put(h, ("a", 1), ("a", 2), ("a", 3))
    h.run()
    h.broker.lose_acks(1, applied=True)
    put(h, ("a", 4))
    h.run()
    assert seen() == ["a1", "a2", "a3", "a4"]
