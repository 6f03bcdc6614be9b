"""A database without room refuses what a handler writes: that is not the handler's failure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from reliable_mq import Delivery, ReliableMQ, RetryPolicy
from reliable_mq.consumer import processor
from reliable_mq.testing import Harness
from tests.consumer.conftest import effects
from tests.store.full import overfill, prepare

Enter = Callable[[], Harness]
Seen = Callable[[], list[str]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    monkeypatch.setattr(processor, "STORE_DOWN_DELAY", 0.01)
    prepare(engine)


def note(session: Session, what: object) -> None:
    session.execute(insert(effects).values(what=str(what)))


def test_while_the_disk_is_full_no_attempt_counts(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    refusals = [1, 2, 3]

    @mq.handler("orders", retry=RetryPolicy.never())
    def handle(number: int, session: Session, delivery: Delivery) -> None:
        note(session, f"{number}/{delivery.attempt}")
        if refusals:
            refusals.pop()
            overfill(session.connection())

    h = harness()
    h.deliver("orders", 7)
    h.run()
    assert refusals == []
    assert seen() == ["7/1"]
    assert h.dead_letters() == []


def test_what_never_finds_room_runs_out_of_attempts(
    mq: ReliableMQ, harness: Enter, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one message that is too large for the database would stop its key for ever."""
    monkeypatch.setattr(processor, "MAX_COLLISIONS", 3)
    calls: list[int] = []

    @mq.handler("orders", retry=RetryPolicy.never())
    def handle(number: int, session: Session, delivery: Delivery) -> None:
        calls.append(delivery.attempt)
        overfill(session.connection())

    h = harness()
    h.deliver("orders", 7)
    h.run()
    (letter,) = h.dead_letters()
    assert letter.attempts == 1
    assert calls == [1] * 4
    assert seen() == []


def test_a_handler_may_go_on_behind_a_savepoint(mq: ReliableMQ, harness: Enter, seen: Seen) -> None:
    @mq.handler("orders", retry=RetryPolicy.never())
    def handle(number: int, session: Session) -> None:
        with pytest.raises(DBAPIError), session.begin_nested():
            overfill(session.connection())
        note(session, number)

    h = harness()
    assert h.deliver("orders", 7).result == "handled"
    assert seen() == ["7"]
