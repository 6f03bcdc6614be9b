"""Trap 7: a relay that goes on from the last id it saw misses what commits late."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from reliable_mq.store import outbox
from tests.e2e.conftest import MakeMQ
from tests.e2e.program import Task
from tests.e2e.waiting import until


@pytest.fixture
def database_url(database: str, request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{database}_url")
    return url


@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
@pytest.mark.parametrize("kind", ["sql"], indirect=True)
def test_trap_07_a_transaction_that_drew_its_id_first_and_committed_last_is_sent_in_order(
    build_mq: MakeMQ, engine: Engine, seen: Callable[[], list[str]], unique: str
) -> None:
    mq = build_mq(ordered=True)
    with mq.running(), engine.connect() as late:
        late.begin()
        mq.publish(unique, Task(number=1), key="a", session=late)
        outbox.flush(late)  # its row has its id, and nobody sees it yet
        with mq.transaction():
            mq.publish(unique, Task(number=2), key="b")
        until(lambda: seen() == ["2"], mq.status)
        late.commit()
        with mq.transaction():
            mq.publish(unique, Task(number=3), key="a")
        until(lambda: len(seen()) == 3, lambda: (seen(), mq.status()))
    assert seen() == ["2", "1", "3"]
