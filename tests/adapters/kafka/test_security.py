"""Encryption, users, access control."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from confluent_kafka.admin import AdminClient

from reliable_mq.adapter import SENT, GroupSpec, TopicSpec, Unknown, Unroutable
from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq.testing.contract.base import fresh_name
from reliable_mq.testing.contract.messages import message, numbered, numbers_of
from reliable_mq.testing.contract.readers import Reader
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_kafka.rights import CONSUME, DECLARE, PUBLISH
from tests.adapters.kafka.conftest import GROUP, Declare, Open, Subscribe
from tests.adapters.kafka.secure import PASSWORD, USER, WRONG, SecureKafka

QUICK = "connect_timeout=3&session_timeout=2"


def url(server: SecureKafka, password: str = PASSWORD, *, query: str = "", ca: bool = True) -> str:
    found = server.url_of(USER, password, query)
    return found if ca else found.partition("?")[0]


@pytest.fixture(scope="module")
def admin(secure: SecureKafka) -> AdminClient:
    """May do everything; has given the user what the library asks for, on some names only."""
    secure.set_password()
    for rights in (DECLARE, PUBLISH, CONSUME):
        secure.allow(rights, topics=["topic"], groups=[GROUP])
    secure.allow({"topic": ("DESCRIBE",)}, topics=["readable"])
    return secure.boss


@pytest.mark.parametrize("mechanism", ["", "mechanism=SCRAM-SHA-512", "mechanism=PLAIN"])
def test_everything_works_encrypted_and_with_a_user(
    secure: SecureKafka,
    admin: AdminClient,
    open_one: Open,
    declare: Declare,
    subscribe: Subscribe,
    mechanism: str,
) -> None:
    adapter = open_one(url(secure, query=mechanism))
    topic = declare(adapter=adapter)
    assert adapter.publish(numbered(topic, range(10)), 20.0) == [SENT] * 10
    reader = Reader(subscribe(topic, adapter=adapter))
    taken = reader.take(10)
    assert numbers_of(taken) == list(range(10))
    reader.ack_and_flush(taken)
    assert adapter.lag(topic, GROUP) == 0


def test_a_certificate_that_nobody_vouches_for_is_refused_by_everything(
    secure: SecureKafka, admin: AdminClient, open_one: Open, subscribe: Subscribe
) -> None:
    adapter = open_one(url(secure, ca=False))
    _is_refused(adapter.declare, match="certificate")
    consumer = subscribe("topic", adapter=adapter)
    with pytest.raises(ConfigurationError, match="certificate"):
        wait_for(lambda: consumer.receive(1, 0.5).deliveries, "an error", seconds=20.0)
    begin = time.monotonic()
    (outcome,) = adapter.publish([message("topic")], 60.0)
    assert time.monotonic() - begin < 20.0
    assert isinstance(outcome, Unknown)
    assert "certificate" in outcome.cause


def test_a_certificate_for_another_host_is_refused(
    secure: SecureKafka, admin: AdminClient, open_one: Open
) -> None:
    elsewhere = url(secure).replace("@localhost:", "@127.0.0.1:")
    _is_refused(open_one(elsewhere).declare, match="certificate")


def test_plain_text_to_an_encrypted_listener_ends_in_time(
    secure: SecureKafka, admin: AdminClient, open_one: Open
) -> None:
    adapter = open_one(f"kafka://{secure.place}", query=QUICK)
    with pytest.raises(TransportError):
        adapter.declare([TopicSpec(name="topic")], [])
    (outcome,) = adapter.publish([message("topic")], 2.0)
    assert isinstance(outcome, Unknown)


def test_encrypted_to_a_plain_listener_ends_in_time(
    secure: SecureKafka, admin: AdminClient, open_one: Open
) -> None:
    adapter = open_one(f"kafka+ssl://{secure.bootstrap}", query=QUICK)
    with pytest.raises((TransportError, ConfigurationError)):
        adapter.declare([TopicSpec(name="topic")], [])


def test_a_password_that_is_put_right_is_used_without_a_restart_of_the_process(
    secure: SecureKafka, admin: AdminClient, open_one: Open, declare: Declare
) -> None:
    good = open_one(url(secure))
    topic = declare(adapter=good)
    late = open_one(url(secure, WRONG))
    _is_refused(late.declare)
    assert isinstance(late.publish([message(topic)], 10.0)[0], Unknown)
    secure.set_password(password=WRONG)
    try:
        wait_for(lambda: late.publish([message(topic)], 5.0) == [SENT], "a confirmation")
        late.declare([TopicSpec(name=topic)], [])
        assert late.lag(topic, GROUP) == 1
    finally:
        secure.set_password()


def test_a_topic_that_may_not_be_written_is_unroutable_and_the_others_are_sent(
    secure: SecureKafka, admin: AdminClient, open_one: Open, declare: Declare
) -> None:
    boss = open_one(secure.url)
    forbidden = TopicSpec(name=fresh_name("readable"))
    boss.declare([forbidden], [])
    adapter = open_one(url(secure))
    topic = declare(adapter=adapter)
    both = [message(forbidden.name, key="a"), message(topic, key="a"), message("hidden", key="a")]
    begin = time.monotonic()
    outcomes = adapter.publish(both, 60.0)
    assert time.monotonic() - begin < 20.0
    assert [type(one) for one in outcomes] == [Unroutable, type(SENT), Unroutable]
    assert forbidden.name in outcomes[0].cause  # type: ignore[union-attr]
    assert "WRITE" in outcomes[0].cause  # type: ignore[union-attr]


def test_a_group_that_may_not_be_joined_is_a_configuration_error(
    secure: SecureKafka,
    admin: AdminClient,
    open_one: Open,
    declare: Declare,
    subscribe: Subscribe,
) -> None:
    adapter = open_one(url(secure))
    topic = declare(adapter=adapter)
    with pytest.raises(ConfigurationError, match="READ"):
        adapter.declare([], [GroupSpec(topic=topic, group="strangers")])
    consumer = subscribe(topic, group="strangers", adapter=adapter)
    with pytest.raises(ConfigurationError, match="READ"):
        wait_for(lambda: consumer.receive(1, 0.5).deliveries, "an error", seconds=20.0)


def test_no_secret_is_shown_by_an_error_a_repr_or_a_log_line(
    secure: SecureKafka, admin: AdminClient, open_one: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    adapter = open_one(url(secure, WRONG), client_options={"debug": "security"})
    with pytest.raises(ConfigurationError) as caught:
        adapter.declare([TopicSpec(name="topic")], [])
    (outcome,) = adapter.publish([message("topic")], 5.0)
    shown = [str(caught.value), repr(caught.value.__cause__), repr(outcome), caplog.text]
    shown += [repr(vars(adapter)), repr(adapter._clients._location)]
    assert caplog.text
    assert WRONG not in "".join(shown)


def _is_refused(declare: Callable[..., object], match: str = "password") -> None:
    begin = time.monotonic()
    with pytest.raises(ConfigurationError, match=match):
        declare([TopicSpec(name="topic")], [])
    assert time.monotonic() - begin < 20.0
