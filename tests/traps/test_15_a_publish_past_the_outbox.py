"""Trap 15: a publish without a transaction is sent at once, or nowhere, and nobody notices."""

from __future__ import annotations

import contextvars
import threading

import pytest
from sqlalchemy import Engine

from reliable_mq import NoTransactionError, ReliableMQ
from tests.e2e.conftest import MakeMQ
from tests.e2e.shop import Order

pytestmark = pytest.mark.parametrize("kind", ["sql", "redis"], indirect=True)


@pytest.fixture
def mq(make_mq: MakeMQ, engine: Engine, unique: str) -> ReliableMQ:
    mq = make_mq()
    mq.topic(unique, Order)
    mq.declare()
    return mq


def check_nothing_left(mq: ReliableMQ) -> None:
    assert mq.status().outbox.pending == 0
    assert mq.run_until_idle(60).sent == 0


def test_trap_15_a_publish_outside_a_transaction_raises(mq: ReliableMQ, unique: str) -> None:
    with pytest.raises(NoTransactionError):
        mq.publish(unique, Order(id=1))
    with mq.transaction():
        pass
    with pytest.raises(NoTransactionError):
        mq.publish(unique, Order(id=2))
    check_nothing_left(mq)


def test_trap_15_a_publish_on_another_thread_is_in_no_transaction(
    mq: ReliableMQ, unique: str
) -> None:
    raised: list[BaseException] = []

    def publish() -> None:
        try:
            mq.publish(unique, Order(id=1))
        except NoTransactionError as error:
            raised.append(error)

    with mq.transaction():
        thread = threading.Thread(target=publish)
        thread.start()
        thread.join()
    assert len(raised) == 1
    check_nothing_left(mq)


def test_trap_15_code_that_outlives_its_transaction_cannot_publish_into_it(
    mq: ReliableMQ, unique: str
) -> None:
    with mq.transaction():
        later = contextvars.copy_context()  # as a task that is started here would have it
    with pytest.raises(NoTransactionError):
        later.run(mq.publish, unique, Order(id=1))
    check_nothing_left(mq)
