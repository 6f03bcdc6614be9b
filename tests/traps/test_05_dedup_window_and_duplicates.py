"""Trap 5: a duplicate is not acknowledged, or comes when its first copy is forgotten."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from reliable_mq import ConfigurationError, Reject
from reliable_mq.store.inbox import Inbox
from tests.e2e.brokers import Broker
from tests.e2e.conftest import MakeMQ
from tests.e2e.shop import Order, leave
from tests.traps.conftest import unhurried


@pytest.fixture
def broker(kind: str, request: pytest.FixtureRequest, database_url: str) -> Broker:
    return unhurried(kind, request, database_url)


# On Redis the second publish of an id adds nothing.
@pytest.mark.parametrize("kind", ["sql", "kafka", "rabbitmq"], indirect=True)
def test_trap_05_a_duplicate_is_acknowledged_and_does_not_come_again(
    make_mq: MakeMQ, seen: Callable[[], list[str]], unique: str
) -> None:
    mq = make_mq()

    @mq.handler(unique)
    def handle(order: Order, session: Session) -> None:
        leave(session, order.id)

    mq.declare()
    for _ in range(3):
        mq.publish_direct(unique, Order(id=1), message_id="m", timeout=30)
    counts = mq.run_until_idle(60)
    assert (counts.handled, counts.duplicates) == (1, 2)
    assert mq.run_until_idle(60).duplicates == 0
    assert mq.status().groups[unique, "billing"].lag == 0
    assert seen() == ["1"]


@pytest.mark.parametrize("kind", ["sql"], indirect=True)
@pytest.mark.usefixtures("engine")
class TestTheWindow:
    def test_trap_05_an_inbox_that_forgets_before_the_broker_does_is_refused(
        self, make_mq: MakeMQ, unique: str
    ) -> None:
        mq = make_mq(inbox={"retention": 3600})
        mq.topic(unique, Order, options={"retention": 2 * 3600})

        @mq.handler(unique)
        def handle(order: Order, session: Session) -> None:
            raise AssertionError("must not be called")

        with pytest.raises(ConfigurationError, match=r"inbox\.retention"):
            mq.declare()
        with pytest.raises(ConfigurationError, match=r"inbox\.retention"):
            mq.run_until_idle(60)

    def test_trap_05_what_lies_dead_is_remembered_however_long(
        self, make_mq: MakeMQ, unique: str
    ) -> None:
        """Else a late copy would be handled beside the replay of the dead letter."""
        mq = make_mq()

        @mq.handler(unique)
        def handle(order: Order) -> None:
            raise Reject("no")

        mq.declare()
        mq.publish_direct(unique, Order(id=1), message_id="m", timeout=30)
        assert mq.run_until_idle(60).dead_lettered == 1
        with mq.store.transaction() as connection:
            assert Inbox(mq.store).clean(connection, retention=0.0) == 0
        mq.publish_direct(unique, Order(id=1), message_id="m", timeout=30)
        assert mq.run_until_idle(60).duplicates == 1
