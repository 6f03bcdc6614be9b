"""The least rights a user needs, and what is said where one of them is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol

import pytest
from confluent_kafka import KafkaError, KafkaException

from reliable_mq.adapter import (
    SENT,
    AdapterContext,
    GroupSpec,
    Handled,
    Received,
    Severity,
    Subscription,
    TopicSpec,
    TransactionalSubscription,
    Unroutable,
)
from reliable_mq.errors import ConfigurationError, ReliableMQError, TransportError
from reliable_mq.testing.contract.base import fresh_name
from reliable_mq.testing.contract.messages import numbered
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_kafka import open_adapter
from reliable_mq_kafka.adapter import KafkaAdapter
from reliable_mq_kafka.drafts import Draft
from reliable_mq_kafka.errors import error_of
from reliable_mq_kafka.producing import Line
from reliable_mq_kafka.rights import (
    CONSUME,
    DECLARE,
    INSPECT,
    INSPECT_INTERNAL,
    PUBLISH,
    TRANSACT,
    Rights,
)
from reliable_mq_kafka.shipments import Shipment
from tests.adapters.kafka.secure import SecureKafka

SECRET = "us3r-s3cret"
GROUP = "billing"
INTERNAL = ("__consumer_offsets", "__transaction_state")
SOON = 20.0
"""Seconds; far below the time after which the operations give up."""


def without(rights: Rights, kind: str, operation: str) -> Rights:
    return {
        one: tuple(name for name in names if (one, name) != (kind, operation))
        for one, names in rights.items()
    }


class OpenUser(Protocol):
    """Makes a user with these rights and opens its adapter."""

    def __call__(
        self, *rights: Rights, topics: Mapping[str, TopicSpec] | None = None
    ) -> KafkaAdapter: ...


@pytest.fixture
def prefix(unique: str) -> str:
    """What the names of the topics begin with that the users have rights on."""
    return f"{unique}."


@pytest.fixture
def open_user(secure: SecureKafka, prefix: str) -> Iterator[OpenUser]:
    opened: list[KafkaAdapter] = []

    def make(*rights: Rights, topics: Mapping[str, TopicSpec] | None = None) -> KafkaAdapter:
        user = fresh_name("user")
        secure.set_password(user, SECRET)
        for one in rights:
            names = INTERNAL if one is INSPECT_INTERNAL else [prefix]
            secure.allow(one, user=user, topics=names, groups=[GROUP])
        url = secure.url_of(user, SECRET, "session_timeout=6")
        opened.append(open_adapter(url, AdapterContext(instance=user, topics=topics or {})))
        return opened[-1]

    yield make
    for adapter in opened:
        adapter.close()


@pytest.fixture
def boss(secure: SecureKafka) -> Iterator[KafkaAdapter]:
    adapter = open_adapter(secure.url, AdapterContext(instance=fresh_name("boss")))
    yield adapter
    adapter.close()


@pytest.fixture
def topic(boss: KafkaAdapter, prefix: str) -> str:
    """A topic that others have made, with three messages."""
    name = f"{prefix}in"
    boss.declare([TopicSpec(name=name), TopicSpec(name=f"{prefix}out")], [])
    assert boss.publish(numbered(name, range(3)), 60.0) == [SENT] * 3
    return name


def received(subscription: Subscription) -> list[Received]:
    found: list[Received] = []

    def enough() -> bool:
        # The first producer of a broker's has to wait until that has made its log of transactions.
        with suppress(TransportError):
            found.extend(subscription.receive(10, 0.2).deliveries)
        return len(found) >= 3

    wait_for(enough, "three deliveries")
    return found


@contextmanager
def refused(needed: str) -> Iterator[None]:
    """The block ends soon with an error that says which right is *needed*, and no secret."""
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=needed) as caught:
        yield
    assert time.monotonic() - began < SOON
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.__cause__)


# --- enough -------------------------------------------------------------------------------------


def test_a_user_that_makes_topics_needs_no_more(open_user: OpenUser, prefix: str) -> None:
    adapter = open_user(DECLARE)
    for _ in range(2):
        adapter.declare([TopicSpec(name=f"{prefix}new", partitions=2)], [])


def test_a_user_that_publishes_needs_no_more(open_user: OpenUser, topic: str) -> None:
    assert open_user(PUBLISH).publish(numbered(topic, range(5)), 60.0) == [SENT] * 5


def test_a_user_that_receives_needs_no_more(open_user: OpenUser, topic: str) -> None:
    adapter = open_user(CONSUME)
    adapter.declare([TopicSpec(name=topic)], [GroupSpec(topic=topic, group=GROUP)])
    assert adapter.redelivery_bound([topic]) is not None
    subscription = adapter.subscribe([topic], GROUP, prefetch=10, ordered=True)
    subscription.ack(received(subscription))
    subscription.flush()
    assert adapter.lag(topic, GROUP) == 0
    subscription.close()


def commit_outputs(adapter: KafkaAdapter, topic: str, output: str) -> None:
    subscription: TransactionalSubscription
    subscription = adapter.subscribe_transactional([topic], GROUP, prefetch=10)
    try:
        handled = [Handled(one, numbered(output, [7])) for one in received(subscription)]
        assert not subscription.commit(handled)
    finally:
        subscription.close()


def test_a_user_with_exactly_once_handlers_needs_no_more(
    open_user: OpenUser, topic: str, prefix: str, boss: KafkaAdapter
) -> None:
    adapter = open_user(CONSUME, PUBLISH, TRANSACT)
    commit_outputs(adapter, topic, f"{prefix}out")
    # A commit is answered before each partition is told of it.
    wait_for(lambda: boss.lag(f"{prefix}out", "reader") >= 3, "the outputs")


def test_a_user_that_inspects_needs_no_more(open_user: OpenUser, topic: str, prefix: str) -> None:
    known = {topic: TopicSpec(name=topic)}
    adapter = open_user(PUBLISH, INSPECT, INSPECT_INTERNAL, topics=known)
    assert "kafka-not-checked" not in {one.code for one in adapter.inspect()}


# --- one right too few ----------------------------------------------------------------------------


def test_declare_without_a_right_says_which(open_user: OpenUser, topic: str, prefix: str) -> None:
    new, old = [TopicSpec(name=f"{prefix}new")], [TopicSpec(name=topic)]
    group = [GroupSpec(topic=topic, group=GROUP)]
    with refused("CREATE"):
        open_user(without(DECLARE, "topic", "CREATE")).declare(new, [])
    with refused("DESCRIBE"):
        open_user(without(DECLARE, "topic", "DESCRIBE")).declare(old, [])
    with refused("READ the group"):
        open_user(DECLARE, without(CONSUME, "group", "READ")).declare(old, group)
    with refused("READ the group and its topic"):
        open_user(DECLARE, without(CONSUME, "topic", "READ")).declare(old, group)


def test_a_publish_without_the_right_is_unroutable(open_user: OpenUser, topic: str) -> None:
    began = time.monotonic()
    (outcome,) = open_user(CONSUME).publish(numbered(topic, [1]), 60.0)
    assert time.monotonic() - began < SOON
    assert isinstance(outcome, Unroutable)
    assert "WRITE" in outcome.cause
    assert SECRET not in outcome.cause


def test_it_is_known_that_nothing_was_sent_where_the_client_was_refused_before_the_hand_over(
    open_user: OpenUser, topic: str
) -> None:
    adapter = open_user(CONSUME)
    line = Line(adapter._clients.producer)

    def is_broken() -> bool:
        try:
            line.producer.produce(topic)
        except KafkaException as error:
            return error_of(error).code() == KafkaError._FATAL
        return False

    # What the client has to say of it waits for the next poll.
    wait_for(is_broken, "a producer that is broken")
    draft = Draft(numbered(topic, [1]))
    Shipment(line, draft, time.monotonic() + 60.0).send(draft.open())
    assert line.has_sent_nothing
    assert not line.usable
    line.close()


@pytest.mark.parametrize(("kind", "says"), [("topic", "READ those"), ("group", "READ its groups")])
def test_receive_without_a_right_says_which(
    open_user: OpenUser, topic: str, kind: str, says: str
) -> None:
    adapter = open_user(without(CONSUME, kind, "READ"))
    subscription = adapter.subscribe([topic], GROUP, prefetch=10, ordered=True)
    with refused(says):
        received(subscription)
    subscription.close()


@pytest.mark.parametrize(
    ("kind", "operation", "says"),
    [
        ("topic", "WRITE", "WRITE the topics"),
        ("transactional-id", "WRITE", "WRITE the transactional ids"),
        ("group", "READ", "READ its groups"),
        ("topic", "READ", "READ those"),
    ],
)
def test_an_exactly_once_handler_without_a_right_says_which_and_stores_nothing(
    open_user: OpenUser,
    topic: str,
    prefix: str,
    boss: KafkaAdapter,
    kind: str,
    operation: str,
    says: str,
) -> None:
    rights = [without(one, kind, operation) for one in (CONSUME, PUBLISH, TRANSACT)]
    adapter = open_user(*rights)
    with refused(says):
        commit_outputs(adapter, topic, f"{prefix}out")
    assert boss.lag(f"{prefix}out", "reader") == 0


@pytest.mark.parametrize(
    ("ask", "rights", "says"),
    [
        (lambda a, t: a.lag(t, GROUP), without(CONSUME, "group", "READ"), "READ the group"),
        (lambda a, t: a.lag(t, GROUP), without(CONSUME, "topic", "READ"), "DESCRIBE"),
        (
            lambda a, t: a.redelivery_bound([t]),
            without(CONSUME, "topic", "DESCRIBE_CONFIGS"),
            "DESCRIBE_CONFIGS of topic",
        ),
    ],
    ids=["lag, group", "lag, topic", "redelivery_bound"],
)
def test_a_question_without_the_right_says_which(
    open_user: OpenUser,
    topic: str,
    ask: Callable[[KafkaAdapter, str], object],
    rights: Rights,
    says: str,
) -> None:
    adapter = open_user(rights)
    with refused(says):
        ask(adapter, topic)


def test_inspect_names_what_it_may_not_see_and_says_the_rest(
    open_user: OpenUser, topic: str, prefix: str
) -> None:
    hidden = f"hidden-{prefix}x"
    known = {name: TopicSpec(name=name, partitions=5) for name in (topic, hidden)}
    adapter = open_user({"topic": ("DESCRIBE",)}, topics=known)
    findings = adapter.inspect()
    unseen = {one.subject: one for one in findings if one.code == "kafka-not-checked"}
    assert unseen.keys() == {
        "broker 1",
        f"topic {topic}",
        f"topic {hidden}",
        *(f"topic {name}" for name in INTERNAL),
    }
    assert {one.severity for one in unseen.values()} == {Severity.INFO}
    assert "DESCRIBE_CONFIGS of the cluster" in unseen["broker 1"].what
    assert "DESCRIBE_CONFIGS of topic" in unseen[f"topic {topic}"].what
    seen = {one.code for one in findings if one.subject == f"topic {topic}"}
    assert {"kafka-replication", "kafka-partitions"} <= seen


def test_a_right_that_is_taken_away_and_given_again_is_noticed_without_a_restart(
    secure: SecureKafka, open_user: OpenUser, topic: str, prefix: str
) -> None:
    adapter = open_user(CONSUME)
    user = adapter._context.instance
    subscription = adapter.subscribe([topic], GROUP, prefetch=10, ordered=True)
    subscription.ack(received(subscription))
    secure.forbid_everything(user)

    def is_refused() -> bool:
        try:
            subscription.receive(10, 0.2)
        except ReliableMQError as error:
            return isinstance(error, ConfigurationError)
        return False

    wait_for(is_refused, "an error")
    secure.allow(CONSUME, user=user, topics=[prefix], groups=[GROUP])

    def is_well() -> bool:
        try:
            subscription.ack(subscription.receive(10, 0.2).deliveries)
            subscription.flush()
            return adapter.lag(topic, GROUP) == 0
        except ReliableMQError:
            return False

    wait_for(is_well, "a lag of 0")
    subscription.close()
