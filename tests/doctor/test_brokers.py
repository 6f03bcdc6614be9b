"""Every broker through its adapter: what exists is compared with the application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from reliable_mq import ReliableMQ, Settings
from reliable_mq.adapter import Finding, Severity
from reliable_mq.doctor import diagnose
from reliable_mq.errors import ConfigurationError
from reliable_mq.testing.memory import MemoryAdapter
from tests.conftest import OwnServer
from tests.doctor.conftest import ignore, worse_than_info

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
KINDS = ("sql", "kafka", "rabbitmq", "redis")
AWAY = {
    "kafka": "kafka://127.0.0.1:1?connect_timeout=1",
    "rabbitmq": "amqp://app:canary@127.0.0.1:1/?connection_timeout=1",
    "redis": "redis://:canary@127.0.0.1:1/0",
}

MakeMQ = Callable[..., ReliableMQ]


@pytest.fixture
def make_mq(postgresql_url: str) -> Iterator[MakeMQ]:
    """Applications of one service on a store that is no file."""
    with ExitStack() as stack:

        def make(broker_url: str, *handled: tuple[str, str], **settings: Any) -> ReliableMQ:
            values = {"broker_url": broker_url, "database_url": postgresql_url, **settings}
            mq = stack.enter_context(ReliableMQ(Settings(**values)))
            for topic, group in handled:
                mq.handler(mq.topic(topic, str, partitions=2), group=group)(ignore)
            return mq

        yield make


@pytest.fixture(params=KINDS)
def broker_url(request: pytest.FixtureRequest) -> str:
    """The shared server of each kind."""
    if request.param == "sql":
        return "sql://"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def of_groups(mq: ReliableMQ) -> list[tuple[str, Severity]]:
    return [(one.code, one.severity) for one in diagnose(mq) if one.code.startswith("group-")]


def the(mq: ReliableMQ, code: str) -> Finding:
    (finding,) = (one for one in diagnose(mq) if one.code == code)
    return finding


def test_a_declared_application_is_known_to_its_broker(
    broker_url: str, make_mq: MakeMQ, unique: str
) -> None:
    mq = make_mq(broker_url, (unique, f"{unique}-billing"))
    mq.declare()
    assert of_groups(mq) == [("group-idle", INFO)]
    with mq.transaction():
        mq.publish(unique, "unicorn")
    mq.run_until_idle(60, consume=False)
    assert of_groups(mq) == [("group-idle", WARNING)]
    assert "1 messages wait" in the(mq, "group-idle").what


def test_a_group_that_the_store_knows_and_the_broker_does_not_is_an_error(
    broker_url: str, make_mq: MakeMQ, unique: str
) -> None:
    # As if the broker had been set up anew, or the URL led to another one.
    mq = make_mq(broker_url, (unique, f"{unique}-billing"))
    mq.store.create()
    from reliable_mq.operations import declare_groups

    declare_groups(mq.store, mq.handlers)
    assert ("group-undeclared", ERROR) in of_groups(mq)


def test_the_doctor_declares_nothing(broker_url: str, make_mq: MakeMQ, unique: str) -> None:
    mq = make_mq(broker_url, (unique, f"{unique}-billing"))
    mq.store.create()
    diagnose(mq)
    assert ("group-undeclared", ERROR) in of_groups(mq)
    assert ("group-undeclared", ERROR) in of_groups(mq)


def test_a_renamed_group_for_which_the_broker_keeps_messages_is_a_warning(
    broker_url: str, make_mq: MakeMQ, unique: str
) -> None:
    old = make_mq(broker_url, (unique, f"{unique}-old"))
    old.declare()
    with old.transaction():
        old.publish(unique, "unicorn")
    old.run_until_idle(60, consume=False)
    mq = make_mq(broker_url, (unique, f"{unique}-new"))
    mq.declare()
    finding = the(mq, "group-orphaned")
    assert (finding.severity, finding.subject) == (WARNING, f"group {unique}-old of topic {unique}")
    assert "1 messages wait for it" in finding.what


@pytest.mark.parametrize("kind", AWAY)
def test_a_broker_that_is_away_is_one_error_and_the_database_is_checked_all_the_same(
    kind: str, make_mq: MakeMQ
) -> None:
    mq = make_mq(AWAY[kind], ("orders", "billing"))
    mq.store.create()
    found = diagnose(mq)
    assert "canary" not in str(found)
    assert [one.severity for one in found if one.code == "broker-unreachable"] == [ERROR]
    codes = {one.code for one in found}
    assert {"relay-missing", "group-undeclared"} <= codes
    assert "inbox-unbounded" not in codes


def test_a_kafka_topic_that_keeps_longer_than_the_inbox_is_an_error(
    kafka_url: str, make_mq: MakeMQ, unique: str
) -> None:
    mq = make_mq(kafka_url, (unique, f"{unique}-billing"))
    mq.declare()
    assert not [one for one in diagnose(mq) if one.code.startswith("inbox-")]
    short = make_mq(kafka_url, (unique, f"{unique}-billing"), inbox={"retention": 86_400})
    assert the(short, "inbox-retention").severity is ERROR


def test_an_exactly_once_handler_does_not_count_as_idle(
    kafka_url: str, make_mq: MakeMQ, unique: str
) -> None:
    mq = make_mq(kafka_url)
    mq.handler(unique, group=f"{unique}-billing", guarantee="exactly-once")(ignore)
    mq.declare()
    assert of_groups(mq) == [("group-unseen", INFO)]


def test_the_recommended_redis_has_no_finding_and_a_careless_one_has(
    own_server: OwnServer, make_mq: MakeMQ, unique: str
) -> None:
    def findings(server: Any) -> list[Finding]:
        mq = make_mq(server.url, (unique, f"{unique}-billing"), table_prefix=f"m{server.port()}_")
        mq.declare()
        return [
            one for one in worse_than_info(diagnose(mq)) if not one.code.startswith("postgresql-")
        ]

    sound = {"appendfsync": "always", "maxmemory": "1gb", "maxmemory-policy": "noeviction"}
    assert findings(own_server("redis", sound)) == []
    careless = {"appendonly": "no", "maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"}
    found = findings(own_server("redis", careless))
    assert {one.severity for one in found} == {ERROR}
    assert {"allkeys-lru" in one.what for one in found} == {True, False}


def test_an_inspection_that_is_refused_or_breaks_is_a_finding_and_the_rest_is_made(
    make_mq: MakeMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    mq = make_mq("memory://doctor", ("orders", "billing"))
    mq.declare()

    def fail(error: Exception) -> None:
        def inspect(self: object) -> list[Finding]:
            raise error

        monkeypatch.setattr(MemoryAdapter, "inspect", inspect)

    fail(ConfigurationError("the user may not look"))
    assert the(mq, "broker-refused").severity is ERROR
    assert of_groups(mq) == [("group-idle", INFO)]
    fail(KeyError("a bug"))
    finding = the(mq, "not-checked")
    assert (finding.severity, finding.subject) == (WARNING, "memory://doctor")
    assert of_groups(mq) == [("group-idle", INFO)]
