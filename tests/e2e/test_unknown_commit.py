"""A COMMIT whose outcome nobody learns neither loses anything nor doubles it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from reliable_mq import Delivery, ReliableMQ, RetryPolicy, Settings
from reliable_mq.testing.memory import MemoryBroker
from tests.e2e.proxy import CommitProxy, Cut
from tests.e2e.shop import Order, leave
from tests.e2e.waiting import until as _until

RETRY = RetryPolicy(max_attempts=3, initial_delay=0.05)

pytestmark = [
    pytest.mark.parametrize("database", ["postgresql", "mariadb"]),
    pytest.mark.parametrize("cut", list(Cut), ids=lambda cut: cut.name.lower()),
]


@pytest.fixture
def database_url(database: str, request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{database}_url")
    return url


@pytest.fixture
def proxy(database_url: str) -> Iterator[CommitProxy]:
    proxy = CommitProxy(database_url)
    yield proxy
    proxy.close()


@pytest.fixture
def mq(proxy: CommitProxy, engine: Engine, unique: str) -> Iterator[ReliableMQ]:
    settings = Settings(
        broker_url=f"memory://{unique}", database_url=proxy.url, group="billing", retry=RETRY
    )
    with ReliableMQ(settings) as mq:
        yield mq
    MemoryBroker.forget(unique)


def test_of_a_handler_its_effects_are_there_once(
    mq: ReliableMQ, proxy: CommitProxy, cut: Cut, unique: str, seen: Callable[[], list[str]]
) -> None:
    calls: list[int] = []

    @mq.handler(unique)
    def handle(order: Order, session: Session, delivery: Delivery) -> None:
        assert delivery.attempt == 1
        calls.append(order.id)
        leave(session, order.id)

    mq.declare()
    proxy.cut("INSERT INTO effect", cut)
    for number in range(3):
        mq.publish_direct(unique, Order(id=number))
    counts = mq.run_until_idle(60)
    assert proxy.cuts == 1
    assert sorted(seen()) == ["0", "1", "2"]
    after = cut is Cut.AFTER_COMMIT
    assert len(calls) == (3 if after else 4), "only what was undone is handled again"
    assert (counts.handled, counts.duplicates) == ((2, 1) if after else (3, 0))
    assert (counts.retried, counts.dead_lettered) == (0, 0)


def test_of_an_async_handler_its_effects_are_there_once(
    mq: ReliableMQ, proxy: CommitProxy, cut: Cut, unique: str, seen: Callable[[], list[str]]
) -> None:
    @mq.handler(unique)
    async def handle(order: Order, session: AsyncSession, delivery: Delivery) -> None:
        assert delivery.attempt == 1
        await session.run_sync(leave, order.id)

    mq.declare()
    proxy.cut("INSERT INTO effect", cut)
    for number in range(3):
        mq.publish_direct(unique, Order(id=number))
    counts = mq.run_until_idle(60)
    assert proxy.cuts == 1
    assert sorted(seen()) == ["0", "1", "2"]
    assert (counts.retried, counts.dead_lettered) == (0, 0)


def test_of_a_batch_its_effects_are_there_once(
    mq: ReliableMQ, proxy: CommitProxy, cut: Cut, unique: str, seen: Callable[[], list[str]]
) -> None:
    @mq.handler(unique, transaction_size=10)
    def handle(order: Order, session: Session) -> None:
        leave(session, order.id)

    mq.declare()
    proxy.cut("INSERT INTO effect", cut)
    for number in range(10):
        mq.publish_direct(unique, Order(id=number))
    mq.run_until_idle(60)
    assert proxy.cuts == 1
    assert sorted(seen()) == [str(number) for number in range(10)]


def test_of_a_failure_it_waits_once_and_is_retried(
    mq: ReliableMQ, proxy: CommitProxy, cut: Cut, unique: str, seen: Callable[[], list[str]]
) -> None:
    attempts: list[int] = []

    @mq.handler(unique)
    def handle(order: Order, session: Session, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        leave(session, f"{order.id} attempt {delivery.attempt}")
        if delivery.attempt == 1:
            raise OSError("not yet")

    mq.declare()
    proxy.cut("INSERT INTO reliable_mq_retry", cut)
    mq.publish_direct(unique, Order(id=7))
    counts = mq.run_until_idle(60)
    if counts.handled == 0:  # the retry was not due yet
        counts = mq.run_until_idle(60)
    assert proxy.cuts == 1
    assert seen() == ["7 attempt 2"]
    # The attempt whose failure was not written down is made again, under its number.
    assert attempts == ([1, 2] if cut is Cut.AFTER_COMMIT else [1, 1, 2])
    assert mq.status().groups[unique, "billing"].retries == 0
    assert mq.dead_letters() == []


def test_of_a_retry_its_effects_are_there_once(
    mq: ReliableMQ, proxy: CommitProxy, cut: Cut, unique: str, seen: Callable[[], list[str]]
) -> None:
    @mq.handler(unique)
    def handle(order: Order, session: Session, delivery: Delivery) -> None:
        if delivery.attempt == 1:
            raise OSError("not yet")
        leave(session, order.id)

    mq.declare()
    proxy.cut("INSERT INTO effect", cut)
    mq.publish_direct(unique, Order(id=7))
    with mq.running():
        _until(lambda: proxy.cuts == 1 and mq.status().groups[unique, "billing"].retries == 0)
        # It still takes messages in: the lost connection was nothing but that.
        mq.publish_direct(unique, Order(id=8))
        _until(lambda: sorted(seen()) == ["7", "8"])
    assert mq.dead_letters() == []


def test_of_a_dead_letter_it_is_there_once(
    mq: ReliableMQ, proxy: CommitProxy, cut: Cut, unique: str
) -> None:
    @mq.handler(unique, retry=RetryPolicy.never())
    def handle(order: Order) -> None:
        raise OSError("never")

    mq.declare()
    proxy.cut("INTO reliable_mq_dead_letter", cut)
    mq.publish_direct(unique, Order(id=7))
    mq.run_until_idle(60)
    assert proxy.cuts == 1
    (letter,) = mq.dead_letters()
    assert letter.attempts == 1
    assert len(MemoryBroker.named(unique).published(f"{unique}.billing.dlq")) == 1


def test_of_the_relay_what_was_sent_arrives_and_is_applied_once(
    mq: ReliableMQ, proxy: CommitProxy, cut: Cut, unique: str, seen: Callable[[], list[str]]
) -> None:
    @mq.handler(unique)
    def handle(order: Order, session: Session) -> None:
        leave(session, order.id)

    mq.declare()
    proxy.cut("DELETE FROM reliable_mq_outbox", cut)
    with mq.transaction():
        for number in range(5):
            mq.publish(unique, Order(id=number), key=f"k{number % 2}")
    mq.run_until_idle(60)
    assert proxy.cuts == 1
    assert sorted(seen()) == ["0", "1", "2", "3", "4"]
    assert mq.status().outbox.pending == 0


def test_of_the_application_the_row_and_its_message_are_both_there_or_neither_is(
    mq: ReliableMQ, proxy: CommitProxy, cut: Cut, unique: str, seen: Callable[[], list[str]]
) -> None:
    mq.topic(unique)
    mq.declare()
    proxy.cut("INSERT INTO effect", cut)

    def order() -> None:
        with mq.transaction() as session:
            leave(session, "order")
            mq.publish(unique, Order(id=1))

    with pytest.raises(DBAPIError):
        order()
    assert proxy.cuts == 1
    committed = cut is Cut.AFTER_COMMIT
    assert seen() == (["order"] if committed else [])
    assert mq.status().outbox.pending == (1 if committed else 0)


def test_of_a_replay_the_message_is_handled_once(
    mq: ReliableMQ, proxy: CommitProxy, cut: Cut, unique: str, seen: Callable[[], list[str]]
) -> None:
    broken = True

    @mq.handler(unique, retry=RetryPolicy.never())
    def handle(order: Order, session: Session) -> None:
        if broken:
            raise OSError("never")
        leave(session, order.id)

    mq.declare()
    mq.publish_direct(unique, Order(id=7))
    mq.run_until_idle(60)
    broken = False
    (letter,) = mq.dead_letters()
    proxy.cut("INSERT INTO reliable_mq_retry", cut)
    with pytest.raises(DBAPIError):
        mq.replay(letter.id)
    # Whoever does not know asks again.
    assert mq.replay(letter.id) is (cut is Cut.BEFORE_COMMIT)
    mq.run_until_idle(60)
    assert seen() == ["7"]
