"""Trap 12: the database waits for the broker, or is cleaned without a bound."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Engine, insert, text

from reliable_mq import Message
from reliable_mq.store.inbox import CLEAN_CHUNK, Inbox
from tests.brokers import Server
from tests.conftest import OwnServer
from tests.e2e.brokers import Broker
from tests.e2e.conftest import MakeMQ
from tests.e2e.shop import Order
from tests.e2e.waiting import until


class TestABrokerThatDoesNotAnswer:
    @pytest.fixture
    def database_url(self, postgresql_url: str) -> str:
        return postgresql_url

    @pytest.fixture
    def server(self, own_server: OwnServer) -> Server:
        return own_server("redis")

    @pytest.fixture
    def broker(self, server: Server, database_url: str) -> Broker:
        return Broker("redis", server.url, database_url)

    def test_trap_12_keeps_no_transaction_open(
        self, server: Server, make_mq: MakeMQ, engine: Engine, unique: str
    ) -> None:
        mq = make_mq()
        mq.topic(unique, Order)
        mq.declare()
        asked = _notice_publishes(mq._runtime.adapter)
        server.pause()
        with mq.transaction():
            mq.publish(unique, Order(id=1))
        with mq.running(consume=False):
            assert asked.wait(60)
            assert _sessions(engine, "state LIKE 'idle in transaction%'") == 0
            assert _sessions(engine, "true") <= 5
            server.resume()
            until(lambda: mq.status().outbox.pending == 0, mq.status)


def _notice_publishes(adapter: Any) -> threading.Event:
    """Return what is set when the broker is asked."""
    asked = threading.Event()
    publish = adapter.publish

    def noticed(messages: Sequence[Message], timeout: float) -> Any:
        asked.set()
        return publish(messages, timeout)

    adapter.publish = noticed
    return asked


def _sessions(engine: Engine, where: str) -> int:
    query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {where}"
    with engine.connect() as connection:
        return int(connection.execute(text(query)).scalar_one())


@pytest.mark.parametrize("kind", ["sql"], indirect=True)
@pytest.mark.usefixtures("engine")
def test_trap_12_cleaning_takes_a_bounded_number_of_rows_at_a_time(make_mq: MakeMQ) -> None:
    store = make_mq().store
    store.create()
    row = {"consumer_group": "g", "topic": "t", "fingerprint": b"f", "received_at": 0, "done_at": 0}
    rows = [{**row, "message_id": str(number)} for number in range(CLEAN_CHUNK + 1)]
    with store.transaction() as connection:
        connection.execute(insert(store.tables.inbox), rows)
    for left in (CLEAN_CHUNK, 1, 0):
        with store.transaction() as connection:
            assert Inbox(store).clean(connection, retention=60.0) == left
