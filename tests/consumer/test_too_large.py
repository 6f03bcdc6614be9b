"""Messages that are more than the database takes as one row: they stop nobody, and say so.

MariaDB has its own limit, max_allowed_packet. SQLite and PostgreSQL take a gigabyte; here their
limit is as MariaDB's, on SQLite by its own means.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from reliable_mq import (
    DeadLetter,
    Delivery,
    IncompleteDeadLetterError,
    ReliableMQ,
    Retry,
    RetryPolicy,
    Settings,
)
from reliable_mq.consumer import subjects
from reliable_mq.store.dialects import Room, postgresql, sqlite
from reliable_mq.testing import Harness
from tests.consumer.conftest import effects

Enter = Callable[[], Harness]
Seen = Callable[[], list[str]]

LIMIT = 16 * 1024 * 1024
BROKER = Settings(broker_url="memory://unused", group="tests", max_message_bytes=2 * LIMIT)
AT_ONCE = RetryPolicy(max_attempts=3, jitter=0)


@pytest.fixture(autouse=True)
def limited(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine.dialect.name == "sqlite":
        limit_sqlite(engine, LIMIT)
        monkeypatch.setattr(sqlite, "_LENGTH", LIMIT)  # of aiosqlite's connections
    elif engine.dialect.name == "postgresql":
        monkeypatch.setattr(postgresql, "_ROOM", Room(2 * LIMIT, "a test"))
    else:
        with engine.connect() as connection:
            asked = connection.execute(text("SELECT @@max_allowed_packet")).scalar_one()
        if asked != LIMIT:
            pytest.skip(f"the server's max_allowed_packet is {asked}")


def limit_sqlite(engine: Engine, size: int) -> None:
    @event.listens_for(engine, "connect")
    def limit(connection: Any, record: object) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, size)

    engine.dispose()


@pytest.fixture(scope="module")
def large() -> bytes:
    """More than any of the databases takes, with all bytes that are written as two."""
    return os.urandom(LIMIT + 1000)


@pytest.fixture
def generous() -> ReliableMQ:
    """An application to whose handlers such messages are given."""
    return ReliableMQ(BROKER)


@pytest.fixture
def given(request: pytest.FixtureRequest, generous: ReliableMQ, engine: Engine) -> Enter:
    """Enter the harness of ``generous``, left at the end of the test."""

    def enter() -> Harness:
        entered = Harness(generous, engine).__enter__()
        request.addfinalizer(lambda: entered.__exit__(None, None, None))
        return entered

    return enter


def note(session: Session | Connection, what: object) -> None:
    session.execute(insert(effects).values(what=str(what)))


def rows(mq: ReliableMQ) -> int:
    """Return how many messages wait in the store."""
    with mq.store.engine.connect() as connection:
        count = select(func.count()).select_from(mq.store.tables.retry)
        return int(connection.execute(count).scalar_one())


def only_letter(harness: Harness) -> DeadLetter:
    (letter,) = harness.dead_letters()
    return letter


# --- a message that no handler sees -------------------------------------------------------------


@pytest.mark.parametrize("guarantee", ["effectively-once", "at-least-once", "at-most-once"])
@pytest.mark.parametrize("size", [1, 10])
def test_it_is_a_dead_letter_without_its_body_and_what_follows_goes_on(
    mq: ReliableMQ, harness: Enter, large: bytes, guarantee: Any, size: int
) -> None:
    if size > 1 and guarantee != "effectively-once":
        pytest.skip("takes no batches")
    seen: list[bytes] = []

    @mq.handler(mq.topic("t", bytes), guarantee=guarantee, transaction_size=size)
    def handle(body: bytes) -> None:
        seen.append(body)

    h = harness()
    for body in (b"before", large, b"after"):
        h.broker.inject("t", body, headers=[("who", b"them")], key=b"k")
    h.run()
    assert sorted(seen) == [b"after", b"before"]
    assert h.broker.lag("t", "tests") == 0
    letter = only_letter(h)
    assert (letter.complete, letter.message.body, letter.attempts) == (False, b"", 0)
    assert (letter.message.key, letter.message.headers) == ("k", {"who": "them"})
    assert letter.cause.startswith(f"incomplete: lacks its body of {len(large)} bytes: ")
    assert f"it came from {letter.message.id}; oversize: " in letter.cause


def test_an_async_handler_does_not_stop_at_it_either(
    mq: ReliableMQ, harness: Enter, seen: Seen, large: bytes
) -> None:
    @mq.handler(mq.topic("t", bytes))
    async def handle(body: bytes, session: AsyncSession) -> None:
        await session.execute(insert(effects).values(what=body.decode()))

    h = harness()
    h.broker.inject("t", large)
    h.broker.inject("t", b"after")
    h.run()
    assert not only_letter(h).complete
    assert seen() == ["after"]


def test_its_copy_on_the_dead_letter_topic_says_what_it_lacks(
    generous: ReliableMQ, given: Enter, large: bytes
) -> None:
    """It is below max_message_bytes, so that its body would go with the copy otherwise."""
    generous.handler(generous.topic("t", bytes), retry=RetryPolicy.never())(fail)
    h = given()
    h.broker.inject("t", large, headers=[("who", b"them")])
    h.run()
    (copy,) = h.published("t.tests.dlq")
    assert copy.body == b""
    assert copy.headers["reliable-mq-truncated"] == "body"
    assert copy.headers["who"] == "them"
    assert str(copy.headers["reliable-mq-origin-cause"]).startswith("incomplete: lacks its body")


def fail(body: bytes) -> None:
    raise ValueError("no")


def test_an_exactly_once_handler_has_it_on_its_dead_letter_topic_only(
    mq: ReliableMQ, harness: Enter, large: bytes
) -> None:
    handled: list[bytes] = []

    @mq.handler(mq.topic("t", bytes), guarantee="exactly-once")
    def handle(body: bytes) -> None:
        handled.append(body)

    h = harness()
    h.broker.inject("t", large)
    h.broker.inject("t", b"after")
    h.run()
    (copy,) = h.published("t.tests.dlq")
    assert (copy.body, copy.headers["reliable-mq-truncated"]) == (b"", "body")
    assert (handled, h.dead_letters()) == ([b"after"], [])


def test_headers_for_which_there_is_no_room_are_left_out_and_the_body_is_kept(
    mq: ReliableMQ, harness: Enter, large: bytes
) -> None:
    mq.handler(mq.topic("t", bytes))(fail)
    h = harness()
    h.broker.inject("t", b"body", headers=[("huge", large)])
    h.run()
    letter = only_letter(h)
    assert (letter.message.body, dict(letter.message.headers)) == (b"body", {})
    assert letter.cause.startswith("incomplete: lacks its headers of ")
    with pytest.raises(IncompleteDeadLetterError, match="not the whole message"):
        mq.replay(letter.id)


def test_an_id_conflict_is_kept_once_without_its_body(
    mq: ReliableMQ, harness: Enter, large: bytes
) -> None:
    handled: list[bytes] = []

    @mq.handler(mq.topic("t", bytes))
    def handle(body: bytes) -> None:
        handled.append(body)

    h = harness()
    for body in (b"first", large, large):
        h.broker.inject("t", body, headers=[("message-id", b"m")])
    h.run()
    letter = only_letter(h)
    assert (letter.complete, letter.message.id) == (False, "m")
    assert "; id-conflict: " in letter.cause
    assert handled == [b"first"]


def test_it_is_logged_as_what_it_is(
    mq: ReliableMQ, harness: Enter, large: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    mq.handler(mq.topic("t", bytes))(fail)
    h = harness()
    with caplog.at_level(logging.WARNING, "reliable_mq"):
        h.broker.inject("t", large)
        h.run()
    (record,) = [one for one in caplog.records if one.name == "reliable_mq"]
    assert record.levelno == logging.ERROR
    assert f"lacks its body of {len(large)} bytes" in record.getMessage()


# --- a message that a handler fails on ----------------------------------------------------------


def test_its_attempts_are_made_in_place_with_all_of_it(
    generous: ReliableMQ, given: Enter, seen: Seen, large: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    @generous.handler(generous.topic("t", bytes), retry=AT_ONCE)
    def handle(body: bytes, session: Session, delivery: Delivery) -> None:
        note(session, f"{body == large}/{delivery.attempt}")
        if delivery.attempt < 3:
            raise Retry("not yet")

    h = given()
    with caplog.at_level(logging.WARNING, "reliable_mq"):
        assert h.deliver("t", large).result == "handled"
    assert seen() == ["True/3"]
    assert (h.dead_letters(), rows(generous)) == ([], 0)
    warnings = [one.getMessage() for one in caplog.records if "waits in memory" in one.message]
    assert len(warnings) == 2


@pytest.mark.parametrize("size", [1, 10])
def test_what_keeps_failing_is_a_dead_letter_after_all_its_attempts(
    generous: ReliableMQ, given: Enter, seen: Seen, large: bytes, size: int
) -> None:
    @generous.handler(generous.topic("t", bytes), retry=AT_ONCE, transaction_size=size)
    def handle(body: bytes, session: Session, delivery: Delivery) -> None:
        note(session, delivery.attempt)
        if body == large:
            raise ValueError("no")

    h = given()
    for body in (b"before", large, b"after"):
        h.broker.inject("t", body)
    h.run()
    letter = only_letter(h)
    assert (letter.attempts, letter.complete) == (3, False)
    assert letter.cause.endswith("; ValueError: no")
    assert seen() == ["1", "1"]


def test_its_attempts_are_counted_where_there_are_batches(
    generous: ReliableMQ, given: Enter, seen: Seen, large: bytes
) -> None:
    begun: Counter[int] = Counter()

    @generous.handler(generous.topic("t", bytes), retry=AT_ONCE, transaction_size=10)
    def handle(body: bytes, session: Session, delivery: Delivery) -> None:
        note(session, f"{len(body)}/{delivery.attempt}")
        if delivery.attempt == 1:
            begun[len(body)] += 1
            raise Retry("not yet")

    h = given()
    for body in (large, large + b"!"):
        h.broker.inject("t", body)
    h.run()
    assert sorted(seen()) == [f"{len(large)}/2", f"{len(large) + 1}/2"]
    assert max(begun.values()) <= 2, "first attempts: one in a batch, which is none, and one alone"


@pytest.mark.parametrize("size", [1, 10])
def test_what_follows_in_its_key_waits_for_it_in_memory(
    generous: ReliableMQ, given: Enter, seen: Seen, large: bytes, size: int
) -> None:
    @generous.handler(
        generous.topic("t", bytes), ordered=True, retry=AT_ONCE, transaction_size=size
    )
    def handle(body: bytes, session: Session, delivery: Delivery) -> None:
        note(session, "large" if body == large else body.decode())
        if body == large and delivery.attempt < 3:
            raise Retry("not yet")

    h = given()
    for body in (b"first", large, b"third", b"fourth"):
        h.broker.inject("t", body, key=b"k")
    h.broker.inject("t", b"other", key=b"l")
    h.run()
    assert [one for one in seen() if one != "other"] == ["first", "large", "third", "fourth"]
    assert "other" in seen()


def test_behind_one_that_waits_in_the_store_it_waits_in_memory(
    engine: Engine,
    seen: Seen,
    large: bytes,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And the group takes other messages in: nothing is wrong with the database."""
    monkeypatch.setattr(subjects, "BEHIND_DELAY", 0.02)
    mq = ReliableMQ(BROKER.replace(broker_url=f"memory://{unique}"), engine=engine)
    retry = RetryPolicy(initial_delay=0.2, jitter=0)
    ended = threading.Event()

    @mq.handler(mq.topic("t", bytes), ordered=True, retry=retry)
    def handle(body: bytes, session: Session, delivery: Delivery) -> None:
        if body == b"first" and delivery.attempt == 1:
            raise Retry("not yet")
        note(session, "large" if body == large else body.decode())
        if body == b"last":
            ended.set()

    with mq, mq.running():
        for body in (b"first", large, b"last"):
            mq.publish_direct("t", body, key="k")
        assert ended.wait(120)
    assert seen() == ["first", "large", "last"]
    assert "the database failed" not in caplog.text


# --- what a person can do -----------------------------------------------------------------------


def test_a_replay_is_refused_and_says_why_and_discarding_is_not(
    mq: ReliableMQ, harness: Enter, large: bytes
) -> None:
    mq.handler(mq.topic("t", bytes))(fail)
    h = harness()
    h.broker.inject("t", large)
    h.run()
    letter = only_letter(h)
    with pytest.raises(IncompleteDeadLetterError, match=f"lacks its body of {len(large)} bytes"):
        mq.replay(letter.id)
    assert h.dead_letters() == [letter]
    assert mq.discard(letter.id)
    assert h.dead_letters() == []
