"""Trap 6: a message leaves the outbox although no broker has it, or no queue."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from reliable_mq import ReliableMQ
from tests.brokers import Server
from tests.conftest import OwnServer
from tests.e2e.brokers import Broker
from tests.e2e.conftest import MakeMQ
from tests.e2e.shop import Order, leave
from tests.e2e.waiting import until

Seen = Callable[[], list[str]]


def publish(mq: ReliableMQ, topic: str) -> None:
    with mq.transaction():
        mq.publish(topic, Order(id=1), key="k")


def consume(mq: ReliableMQ, topic: str) -> None:
    @mq.handler(topic)
    def handle(order: Order, session: Session) -> None:
        leave(session, order.id)

    mq.declare()
    with mq.running():
        until(lambda: mq.status().outbox.pending == 0, mq.status)
    mq.run_until_idle(60)


@pytest.mark.usefixtures("engine")
def test_trap_06_a_message_for_a_topic_that_does_not_exist_stays_until_it_does(
    make_mq: MakeMQ, seen: Seen, unique: str
) -> None:
    producer = make_mq()
    producer.declare()
    publish(producer, unique)
    assert producer.run_until_idle(consume=False).sent == 0
    outbox = producer.status().outbox
    assert (outbox.pending, outbox.unroutable, outbox.held) == (1, 1, 0)
    consume(make_mq(), unique)
    assert seen() == ["1"]


class TestABrokerThatIsDown:
    @pytest.fixture
    def server(self, own_server: OwnServer) -> Server:
        return own_server("redis")

    @pytest.fixture
    def broker(self, server: Server, database_url: str) -> Broker:
        return Broker("redis", server.url, database_url)

    @pytest.mark.usefixtures("engine")
    def test_trap_06_confirms_nothing_and_nothing_leaves_the_outbox(
        self, server: Server, make_mq: MakeMQ, seen: Seen, unique: str
    ) -> None:
        mq = make_mq()
        mq.topic(unique, Order)
        mq.declare()
        server.kill()
        publish(mq, unique)
        with mq.running(consume=False):
            until(lambda: mq.status().parts["relay"] == "stalled", mq.status)
            assert mq.status().outbox.pending == 1
            server.restart()
            until(lambda: mq.status().outbox.pending == 0, mq.status)
        consume(make_mq(), unique)
        assert seen() == ["1"]
