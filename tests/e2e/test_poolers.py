"""PostgreSQL behind a pooler that gives each transaction another session."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from reliable_mq import Delivery, ReliableMQ, RetryPolicy, Settings
from tests.brokers import PgBouncer
from tests.conftest import started
from tests.e2e.shop import effects, leave, metadata
from tests.e2e.waiting import until

KEYS = 7
MESSAGES = 140
SESSIONS = 3


@pytest.fixture
def pooler(postgresql_url: str, request: pytest.FixtureRequest) -> Iterator[PgBouncer]:
    yield from started(request, PgBouncer(postgresql_url, sessions=SESSIONS))


@pytest.fixture
def direct(postgresql_url: str) -> Iterator[Engine]:
    """The database, past the pooler."""
    engine = create_engine(postgresql_url)
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(pooler: PgBouncer) -> Iterator[Engine]:
    """As ``docs/stores.md`` says it is made."""
    engine = create_engine(pooler.url, connect_args={"prepare_threshold": None})
    yield engine
    engine.dispose()


@pytest.mark.parametrize("kind", ["sql", "redis"])
def test_behind_a_pooler_messages_are_applied_once_and_in_order(
    kind: str, request: pytest.FixtureRequest, engine: Engine, direct: Engine, unique: str
):
    url = "sql://" if kind == "sql" else request.getfixturevalue(f"{kind}_url")
    mq = ReliableMQ(Settings(broker_url=url, group="billing"), engine=engine)

    @mq.handler(unique, ordered=True, concurrency=4, retry=RetryPolicy(initial_delay=0.05))
    def handle(number: int, session: Session, delivery: Delivery) -> None:
        leave(session, number)
        if number % 20 == 3 and delivery.attempt == 1:
            raise OSError("injected")

    with mq, mq.running():
        for number in range(MESSAGES):
            with mq.transaction() as session:
                mq.publish(unique, number, key=f"k{number % KEYS}", session=session)
        until(lambda: len(effects(direct)) >= MESSAGES, lambda: len(effects(direct)))
    found = defaultdict(list)
    for what in effects(direct):
        found[int(what) % KEYS].append(int(what))
    assert found == {key: list(range(key, MESSAGES, KEYS)) for key in range(KEYS)}


def test_behind_a_pooler_no_limit_of_ours_stays_on_a_session_that_others_get(
    engine: Engine, direct: Engine, pooler: PgBouncer, unique: str
):
    mq = ReliableMQ(Settings(broker_url="sql://", group="billing"), engine=engine)

    @mq.handler(unique)
    def handle(number: int, session: Session) -> None:
        leave(session, number)

    with mq, mq.running(), mq.transaction() as session:
        mq.publish(unique, 1, session=session)
        session.commit()
        until(lambda: effects(direct))
    limit = "SHOW idle_in_transaction_session_timeout"
    with direct.connect() as connection:
        unlimited = connection.exec_driver_sql(limit).scalar_one()
    assert everywhere(engine, limit) == {unlimited}


def test_behind_a_pooler_nobody_listens_on_a_session_that_others_get(
    engine: Engine, unique: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG, "reliable_mq")
    mq = ReliableMQ(Settings(broker_url="sql://"), engine=engine)
    topic = mq.topic(unique)
    with mq, mq.running():
        until(lambda: "a pooler is between us" in caplog.text)
        mq.publish_direct(topic, 1)
        assert everywhere(engine, "SELECT pg_listening_channels()") == set()


def everywhere(engine: Engine, query: str) -> set[str]:
    """Return what *query* finds in all sessions of the pooler: each has a transaction of ours."""
    found: set[str] = set()
    sessions: set[int] = set()
    with ExitStack() as stack:
        for _ in range(SESSIONS):
            connection = stack.enter_context(engine.connect())
            found.update(connection.exec_driver_sql(query).scalars())
            sessions.add(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
    assert len(sessions) == SESSIONS
    return found
