"""What a handler publishes: it shares the fate of its savepoints, and keeps its order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from sqlalchemy import Connection, Engine, event, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from reliable_mq import ReliableMQ, RetryPolicy
from reliable_mq.testing import Harness
from tests.consumer.conftest import effects
from tests.consumer.test_batches import put, together
from tests.consumer.test_sharing import Effect

__all__ = ["together"]

Enter = Callable[[], Harness]
Seen = Callable[[], list[str]]


class Undo(Exception):
    """Rolls a savepoint back."""


@pytest.fixture
def publish(mq: ReliableMQ) -> Callable[..., None]:
    """Publish words into what is current, or into ``session=``, under one key."""
    mq.topic("out", str, partitions=1)

    def publish(*words: str, session: Session | None = None) -> None:
        for word in words:
            mq.publish("out", word, key="k", session=session)

    return publish


Publish = Callable[..., None]


def sent(h: Harness) -> list[str]:
    h.run()
    return [message.decode(str) for message in h.published("out")]


# --- savepoints ---------------------------------------------------------------------------------


def test_a_savepoint_that_is_rolled_back_before_any_statement_takes_its_message_with_it(
    mq: ReliableMQ, harness: Enter, publish: Publish
) -> None:
    @mq.handler("t")
    def handle(number: int, session: Session) -> None:
        publish("before")
        with suppress(Undo), session.begin_nested():
            publish("in it")
            publish("in it too", session=session)
            raise Undo
        with session.begin_nested():
            publish("in another")
        publish("behind")

    h = harness()
    assert h.deliver("t", 1).result == "handled"
    assert sent(h) == ["before", "in another", "behind"]


def test_an_async_savepoint_that_is_rolled_back_before_any_statement_does_so_too(
    mq: ReliableMQ, harness: Enter, publish: Publish
) -> None:
    @mq.handler("t")
    async def handle(number: int, session: AsyncSession) -> None:
        publish("before")
        with suppress(Undo):
            async with session.begin_nested():
                publish("in it")
                publish("in it too", session=session)
                raise Undo
        savepoint = await session.begin_nested()
        publish("in another")
        await savepoint.commit()
        publish("behind")

    h = harness()
    assert h.deliver("t", 1).result == "handled"
    assert sent(h) == ["before", "in another", "behind"]


def test_a_message_belongs_to_the_innermost_savepoint(
    mq: ReliableMQ, harness: Enter, publish: Publish
) -> None:
    @mq.handler("t")
    def handle(number: int, session: Session) -> None:
        with session.begin_nested():
            publish("outer")
            with suppress(Undo), session.begin_nested():
                publish("inner")
                raise Undo
        with suppress(Undo), session.begin_nested():
            with session.begin_nested():
                publish("inner again")
            raise Undo

    h = harness()
    assert h.deliver("t", 1).result == "handled"
    assert sent(h) == ["outer"]


def test_a_transaction_inside_a_savepoint_that_is_rolled_back_is_undone_with_it(
    mq: ReliableMQ, harness: Enter, publish: Publish, seen: Seen
) -> None:
    @mq.handler("t")
    def handle(number: int, session: Session) -> None:
        with suppress(Undo), session.begin_nested():
            with mq.transaction() as inner:
                inner.execute(insert(effects).values(what="inner"))
                publish("inner")
            raise Undo

    h = harness()
    assert h.deliver("t", 1).result == "handled"
    assert (sent(h), seen()) == ([], [])


def test_a_savepoint_in_a_batch_takes_only_its_own_messages_with_it(
    mq: ReliableMQ, harness: Enter, publish: Publish, seen: Seen, together: list[int]
) -> None:
    @mq.handler("t", transaction_size=10)
    def handle(number: int, session: Session) -> None:
        session.add(Effect(number))
        publish(f"{number}")
        with suppress(Undo), session.begin_nested():
            publish(f"not {number}")
            raise Undo

    h = harness()
    put(h, range(4))
    assert sent(h) == ["0", "1", "2", "3"]
    assert sorted(seen()) == ["0", "1", "2", "3"]
    assert together == [4]


def test_a_handlers_savepoint_is_emitted_once_and_without_one_there_is_none(
    mq: ReliableMQ, harness: Enter, engine: Engine
) -> None:
    statements: list[str] = []

    def note(connection: Connection, cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    @mq.handler("t")
    def handle(number: int, session: Session) -> None:
        event.listen(session.connection(), "before_cursor_execute", note)
        session.execute(insert(effects).values(what="outside"))
        if number == 2:
            with session.begin_nested():
                session.execute(insert(effects).values(what="inside"))

    h = harness()
    found: list[int] = []
    for number in (1, 2):
        h.deliver("t", number)
        found.append(sum(statement.startswith("SAVEPOINT") for statement in statements))
    assert found == [0, 1]


def test_a_session_rolled_back_before_any_statement_is_a_failure_and_sends_nothing(
    mq: ReliableMQ, harness: Enter, publish: Publish
) -> None:
    @mq.handler("t", retry=RetryPolicy.never())
    def handle(number: int, session: Session) -> None:
        publish("never")
        session.add(Effect(number))
        session.rollback()

    h = harness()
    assert h.deliver("t", 1).result == "dead-lettered"
    assert "ended the transaction" in h.dead_letters()[0].cause
    assert sent(h) == []


def test_an_async_session_rolled_back_before_any_statement_is_a_failure_too(
    mq: ReliableMQ, harness: Enter, publish: Publish
) -> None:
    @mq.handler("t", retry=RetryPolicy.never())
    async def handle(number: int, session: AsyncSession) -> None:
        publish("never", session=session)
        await session.rollback()

    h = harness()
    assert h.deliver("t", 1).result == "dead-lettered"
    assert sent(h) == []


# --- order ----------------------------------------------------------------------------------------


def test_messages_of_the_handler_its_session_and_a_transaction_keep_their_order(
    mq: ReliableMQ, harness: Enter, publish: Publish
) -> None:
    @mq.handler("t")
    def handle(number: int, session: Session) -> None:
        publish("a")
        with mq.transaction():
            publish("b")
        publish("c", session=session)
        publish("d")
        with suppress(Undo), mq.transaction():
            publish("never")
            raise Undo
        with mq.transaction() as inner:
            publish("e")
            with inner.begin_nested():
                publish("f")
        publish("g")

    h = harness()
    assert h.deliver("t", 1).result == "handled"
    assert sent(h) == list("abcdefg")


def test_messages_of_an_async_handler_keep_their_order(
    mq: ReliableMQ, harness: Enter, publish: Publish
) -> None:
    @mq.handler("t")
    async def handle(number: int, session: AsyncSession) -> None:
        publish("a")
        async with mq.transaction():
            publish("b")
        publish("c", session=session)
        async with mq.transaction():
            publish("d")
        publish("e")

    h = harness()
    assert h.deliver("t", 1).result == "handled"
    assert sent(h) == list("abcde")


def test_messages_keep_their_order_across_the_deliveries_of_a_batch(
    mq: ReliableMQ, harness: Enter, publish: Publish, together: list[int]
) -> None:
    @mq.handler("t", transaction_size=10)
    def handle(number: int, session: Session) -> None:
        if number % 3 == 0:
            publish(f"{number}")
        elif number % 3 == 1:
            publish(f"{number}", session=session)
        else:
            with mq.transaction():
                publish(f"{number}")

    h = harness()
    put(h, range(9), key=b"k")
    assert sent(h) == [str(number) for number in range(9)]
    assert together == [9]
