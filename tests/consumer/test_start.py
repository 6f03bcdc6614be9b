"""How the parts of a process start where the broker is away, or something else is wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from reliable_mq import ConfigurationError, ReliableMQ, Settings, TransportError
from reliable_mq.adapter import Adapter
from reliable_mq.operations import _lags
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq.testing.memory import MemoryAdapter, MemoryBroker


@pytest.fixture
def broker(unique: str) -> Iterator[MemoryBroker]:
    yield MemoryBroker.named(unique)
    MemoryBroker.forget(unique)


@pytest.fixture
def mq(broker: MemoryBroker, unique: str, sqlite_url: str) -> Iterator[ReliableMQ]:
    settings = Settings(broker_url=f"memory://{unique}", database_url=sqlite_url, group="tests")
    with ReliableMQ(settings) as mq:
        yield mq


def test_parts_start_as_soon_as_the_broker_is_there(mq: ReliableMQ, broker: MemoryBroker) -> None:
    handled = threading.Event()

    @mq.handler("t")
    def handle(number: int, session: Session) -> None:
        handled.set()

    broker.down()
    with mq.running() as service:
        assert service.parts() == {"relay": "stalled", "consumer": "stalled", "retries": "stalled"}
        with mq.transaction():
            mq.publish("t", 1)
        broker.up()
        assert handled.wait(30)
        assert set(service.parts().values()) == {"running"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_service_that_never_started_stops(
    mq: ReliableMQ, broker: MemoryBroker, asynchronous: bool
) -> None:
    @mq.handler("t")
    async def handle(number: int) -> None:
        raise AssertionError("must not be called")

    broker.down()

    async def main() -> None:
        async with mq.running():
            pass

    if asynchronous:
        asyncio.run(main())
    else:
        with mq.running():
            pass
    assert mq.status().parts == {"relay": "off", "consumer": "off", "retries": "off"}


def test_a_transaction_needs_no_broker_and_says_once_that_it_is_away(
    mq: ReliableMQ, broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    mq.topic("t")
    broker.down()
    for number in range(3):
        with mq.transaction():
            mq.publish("t", number)
    assert mq.status().outbox.pending == 3
    assert caplog.text.count("topics are not declared yet") == 1
    broker.up()
    assert mq.run_until_idle().sent == 3


def test_run_until_idle_and_publish_direct_say_at_once_that_the_broker_is_away(
    mq: ReliableMQ, broker: MemoryBroker
) -> None:
    mq.topic("t")
    broker.down()
    with pytest.raises(TransportError, match="down"):
        mq.run_until_idle()
    with pytest.raises(TransportError, match="down"):
        mq.publish_direct("t", 1)


def test_what_does_not_mend_itself_is_raised_at_the_start(
    postgresql_url: str, unique: str, broker: MemoryBroker
) -> None:
    wrong = postgresql_url.replace("app:app@", "app:canary@")
    settings = Settings(broker_url=f"memory://{unique}", database_url=wrong, group="tests")
    with ReliableMQ(settings) as mq:

        @mq.handler("t")
        async def handle(number: int) -> None:
            raise AssertionError("must not be called")

        with pytest.raises(DBAPIError, match="authentication failed"), mq.running():
            raise AssertionError("must not be entered")


def test_an_error_of_the_configuration_that_shows_later_is_said_and_tried_again(
    mq: ReliableMQ,
    broker: MemoryBroker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = [TransportError("away"), ConfigurationError("another number of partitions")]
    declare = MemoryAdapter.declare

    def failing(self: MemoryAdapter, *arguments: object) -> None:
        if errors:
            raise errors.pop(0)
        declare(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryAdapter, "declare", failing)
    mq.topic("t")
    with mq.running() as service:
        wait_for(lambda: service.parts()["relay"] == "running", "the relay")
    assert errors == []
    assert "wait for their start: TransportError: away" in caplog.text
    assert "wait for their start: ConfigurationError: another number" in caplog.text


def test_status_asks_a_broker_that_is_away_only_once() -> None:
    asked: list[str] = []

    class Away:
        def lag(self, topic: str, group: str) -> int:
            asked.append(topic)
            if topic == "missing":
                raise ConfigurationError("not declared")
            if topic == "here":
                return 7
            raise TransportError("away")

    adapter: Adapter = Away()  # type: ignore[assignment]
    groups = [("missing", "g"), ("here", "g"), ("away", "g"), ("never", "g")]
    assert _lags(adapter, groups) == {("here", "g"): 7}
    assert asked == ["missing", "here", "away"]
