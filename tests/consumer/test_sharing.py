"""Handlers of a batch share a session: written in one go, and nobody can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, event, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, registry

from reliable_mq import ReliableMQ, RetryPolicy
from reliable_mq.testing import Harness
from tests.consumer.conftest import effects, unique_effects
from tests.consumer.test_batches import put, together

__all__ = ["together"]

Enter = Callable[[], Harness]
Seen = Callable[[], list[str]]


class Effect:
    id: int
    what: str

    def __init__(self, what: object) -> None:
        self.what = str(what)


class UniqueEffect:
    what: str

    def __init__(self, what: str) -> None:
        self.what = what


_mappers = registry()
_mappers.map_imperatively(Effect, effects)
_mappers.map_imperatively(UniqueEffect, unique_effects)


@pytest.fixture
def flushes() -> Iterator[list[int]]:
    """How many new objects each flush has written."""
    sizes: list[int] = []

    def note(session: Session, _: object) -> None:
        if session.new:
            sizes.append(len(session.new))

    event.listen(Session, "after_flush", note)
    yield sizes
    event.remove(Session, "after_flush", note)


def in_order(seen: Seen) -> list[int]:
    return sorted(map(int, seen()))


def test_what_the_handlers_of_a_batch_add_is_written_by_one_flush(
    mq: ReliableMQ, harness: Enter, seen: Seen, together: list[int], flushes: list[int]
) -> None:
    @mq.handler("t", transaction_size=10)
    def handle(number: int, session: Session) -> None:
        session.add(Effect(number))

    h = harness()
    put(h, range(10))
    assert h.run().handled == 10
    assert in_order(seen) == list(range(10))
    assert together == [10]
    assert flushes == [10]


def test_a_statement_sees_what_earlier_handlers_of_the_batch_have_added(
    mq: ReliableMQ, harness: Enter, together: list[int]
) -> None:
    counted: list[int] = []

    @mq.handler("t", transaction_size=10)
    def handle(number: int, session: Session) -> None:
        counted.append(session.execute(text("SELECT count(*) FROM effects")).scalar_one())
        session.add(Effect(number))

    h = harness()
    put(h, range(4))
    assert h.run().handled == 4
    assert counted == [0, 1, 2, 3]
    assert together == [4]


def test_a_statement_does_not_see_what_its_own_handler_has_not_written_yet(
    mq: ReliableMQ, harness: Enter, seen: Seen, together: list[int]
) -> None:
    counted: dict[int, int] = {}

    @mq.handler("t", transaction_size=10)
    def handle(number: int, session: Session) -> None:
        connection = session.connection()
        session.add(Effect(number))
        counted[number] = connection.execute(text("SELECT count(*) FROM effects")).scalar_one()

    h = harness()
    put(h, range(4))
    assert h.run().handled == 4
    assert counted == {0: 0, 1: 1, 2: 2, 3: 3}
    assert in_order(seen) == [0, 1, 2, 3]
    assert together == []


@pytest.mark.parametrize("how", ["close", "expunge_all", "rollback"])
def test_a_handler_that_empties_the_session_takes_nothing_from_the_others(
    mq: ReliableMQ, harness: Enter, seen: Seen, how: str
) -> None:
    @mq.handler("t", transaction_size=10, retry=RetryPolicy(max_attempts=1))
    def handle(number: int, session: Session) -> None:
        session.add(Effect(number))
        if number == 2:
            getattr(session, how)()

    h = harness()
    put(h, range(4))
    h.run()
    assert in_order(seen) == [0, 1, 3]


def test_what_an_earlier_handler_changed_is_not_undone_by_expire_all(
    mq: ReliableMQ, harness: Enter, seen: Seen, engine: Engine
) -> None:
    with Session(engine) as session, session.begin():
        session.add(Effect("old"))

    @mq.handler("t", transaction_size=10)
    def handle(number: int, session: Session) -> None:
        if number == 0:
            session.scalars(select(Effect)).one().what = "new"
        else:
            session.expire_all()

    h = harness()
    put(h, range(2))
    assert h.run().handled == 2
    assert seen() == ["new"]


def test_an_object_that_cannot_be_written_is_the_failure_of_its_message_alone(
    mq: ReliableMQ, harness: Enter, engine: Engine
) -> None:
    @mq.handler("t", transaction_size=10, retry=RetryPolicy(max_attempts=1))
    def handle(number: int, session: Session) -> None:
        session.add(UniqueEffect("twice" if number in (1, 3) else str(number)))

    h = harness()
    put(h, range(5))
    counts = h.run()
    assert (counts.handled, counts.dead_lettered) == (4, 1)
    with engine.connect() as connection:
        found = set(connection.scalars(select(unique_effects.c.what)))
    assert found == {"0", "2", "4", "twice"}


def test_messages_published_by_a_batch_are_sent_once_each(
    mq: ReliableMQ, harness: Enter, together: list[int]
) -> None:
    later = mq.topic("later", int)

    @mq.handler("t", transaction_size=10)
    def handle(number: int, session: Session) -> None:
        session.add(Effect(number))
        mq.publish(later, number)

    h = harness()
    put(h, range(6))
    assert h.run().handled == 6
    assert together == [6]
    assert sorted(int(one.body) for one in h.broker.published("later")) == list(range(6))


def test_a_savepoint_of_a_later_handler_keeps_what_was_added_before(
    mq: ReliableMQ, harness: Enter, seen: Seen
) -> None:
    @mq.handler("t", transaction_size=10)
    def handle(number: int, session: Session) -> None:
        session.add(Effect(number))
        if number == 2:
            savepoint = session.begin_nested()
            session.execute(update(effects).values(what="9"))
            savepoint.rollback()

    h = harness()
    put(h, range(4))
    assert h.run().handled == 4
    assert in_order(seen) == [0, 1, 2, 3]


def test_an_object_added_twice_by_two_handlers_is_two_rows(
    mq: ReliableMQ, harness: Enter, engine: Engine
) -> None:
    """What is true of two sessions is true of the one that is shared."""

    @mq.handler("t", transaction_size=10)
    def handle(number: int, session: Session) -> None:
        session.add(Effect("same"))

    h = harness()
    put(h, range(3))
    h.run()
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(effects)) == 3


def test_async_handlers_of_a_batch_share_their_session_too(
    mq: ReliableMQ, harness: Enter, seen: Seen, together: list[int], flushes: list[int]
) -> None:
    @mq.handler("t", transaction_size=10)
    async def handle(number: int, session: AsyncSession) -> None:
        session.add(Effect(number))

    h = harness()
    put(h, range(6))
    assert h.run().handled == 6
    assert in_order(seen) == list(range(6))
    assert together == [6]
    assert flushes == [6]
