"""Broker or database away, at the start and in the middle: nothing is lost, nobody crashes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from reliable_mq import ReliableMQ, RetryPolicy
from tests.brokers import Server
from tests.conftest import OwnServer
from tests.e2e.brokers import Broker, quick
from tests.e2e.command import as_json
from tests.e2e.conftest import MakeMQ
from tests.e2e.shop import Order, leave
from tests.e2e.waiting import until

Seen = Callable[[], list[str]]

pytestmark = pytest.mark.chaos


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lasts is not said again after a while: on a busy machine an outage is a long one."""
    for module in ("service", "consumer.group", "consumer.reports"):
        monkeypatch.setattr(f"reliable_mq.{module}.QUIET", 3600.0)


def shop(mq: ReliableMQ, topic: str) -> None:
    @mq.handler(topic, retry=RetryPolicy(max_attempts=3, initial_delay=0.05))
    def handle(order: Order, session: Session) -> None:
        leave(session, order.id)


def publish(mq: ReliableMQ, topic: str, *numbers: int) -> None:
    with mq.transaction():
        for number in numbers:
            mq.publish(topic, Order(id=number), key=f"k{number % 3}")


def at_rest(mq: ReliableMQ, topic: str) -> bool:
    status = mq.status()
    group = status.groups[topic, "billing"]
    return (status.outbox.pending, group.lag, group.retries) == (0, 0, 0)


def seen_again(seen: Seen) -> list[str]:
    """Look on a new connection where the pooled one died with the server."""
    try:
        return seen()
    except DBAPIError:
        return seen()


def twice_in_a_row(messages: Sequence[str], bad: str, good: str) -> bool:
    """Tell whether *bad* was said twice without *good* in between."""
    said = [bad in message for message in messages if bad in message or good in message]
    return any(first and second for first, second in itertools.pairwise(said))


class Complaints:
    """The warnings so far."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __call__(self, text: str = "") -> list[str]:
        return [
            record.getMessage()
            for record in self._caplog.records
            if record.levelno >= logging.WARNING and text in record.getMessage()
        ]


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Complaints:
    caplog.set_level(logging.INFO, logger="reliable_mq")
    return Complaints(caplog)


class TestBroker:
    @pytest.fixture(params=["rabbitmq", "redis", "kafka"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        found: str = request.param
        return found

    @pytest.fixture
    def server(self, kind: str, own_server: OwnServer) -> Server:
        return own_server(kind)

    @pytest.fixture
    def broker(self, kind: str, server: Server, postgresql_url: str) -> Broker:
        return Broker(kind, quick(kind, server.url, goes_away=True), postgresql_url)

    @pytest.fixture
    def database_url(self, postgresql_url: str) -> str:
        return postgresql_url

    def test_away_at_the_start_and_in_the_middle(
        self,
        server: Server,
        broker: Broker,
        make_mq: MakeMQ,
        unique: str,
        seen: Seen,
        complaints: Complaints,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server.kill()
        mq = make_mq(relay={"publish_timeout": 5})
        shop(mq, unique)
        publish(mq, unique, 1, 2)
        with mq.running():
            until(lambda: complaints("wait for their start"))
            assert mq.status().parts == {
                "relay": "stalled",
                "consumer": "stalled",
                "retries": "stalled",
            }
            publish(mq, unique, 3)
            assert mq.status().outbox.pending == 3
            server.restart()
            until(lambda: sorted(seen()) == ["1", "2", "3"], complaints)
            until(lambda: at_rest(mq, unique), mq.status)
            until(lambda: set(mq.status().parts.values()) == {"running"}, mq.status)

            server.kill()
            publish(mq, unique, 4, 5)
            until(lambda: mq.status().parts["consumer"] == "stalled", mq.status)
            until(lambda: mq.status().parts["relay"] == "stalled", mq.status)
            status = as_json(broker, "status")
            assert status["outbox"]["pending"] == 2
            assert [group["lag"] for group in status["groups"]] == [None]
            publish(mq, unique, 6)
            server.restart()
            until(lambda: sorted(seen()) == ["1", "2", "3", "4", "5", "6"], complaints)
            until(lambda: at_rest(mq, unique), mq.status)
            until(lambda: set(mq.status().parts.values()) == {"running"}, mq.status)
        assert mq.dead_letters() == []
        # Each part says it once for each outage, not at each try. A broker that has only just
        # started may answer late once more: then the group says in between that it is well again.
        assert len(complaints("wait for their start")) == 1
        assert not twice_in_a_row(caplog.messages, "cannot receive", "receives again")
        assert complaints("cannot reach")
        assert not twice_in_a_row(caplog.messages, "cannot reach", "reaches the broker again")


class TestDatabase:
    @pytest.fixture(params=["postgresql", "mariadb"])
    def server(self, request: pytest.FixtureRequest, own_server: OwnServer) -> Server:
        return own_server(request.param)

    @pytest.fixture
    def database_url(self, server: Server) -> str:
        return server.url

    @pytest.fixture
    def kind(self) -> str:
        return "redis"

    def test_away_at_the_start_and_in_the_middle(
        self,
        server: Server,
        broker: Broker,
        make_mq: MakeMQ,
        unique: str,
        seen: Seen,
        complaints: Complaints,
    ) -> None:
        mq = make_mq(relay={"lease": 3, "publish_timeout": 2})
        shop(mq, unique)
        mq.declare()
        assert seen() == []
        broker.put(unique, b'{"id": 1}')
        server.kill()
        fresh = make_mq(relay={"lease": 3, "publish_timeout": 2})
        shop(fresh, unique)
        with fresh.running() as service:
            until(lambda: complaints("wait for their start"))
            server.restart()
            until(lambda: seen_again(seen) == ["1"], complaints)

            server.kill()
            broker.put(unique, *(b'{"id": %d}' % number for number in range(2, 8)))
            until(lambda: complaints("the database failed"), complaints)
            until(lambda: service.parts()["consumer"] == "stalled")
            # Nothing was acknowledged: the broker still has all of them.
            assert fresh._runtime.adapter.lag(unique, "billing") == 6
            server.restart()
            until(lambda: sorted(seen_again(seen)) == [str(n) for n in range(1, 8)], complaints)
            until(lambda: at_rest(fresh, unique), fresh.status)
            until(lambda: set(service.parts().values()) == {"running"}, service.parts)
        assert fresh.dead_letters() == []
        assert len(complaints("wait for their start")) == 1
        assert len(complaints("the database failed, ")) == 1
