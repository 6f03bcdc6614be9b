"""A body nobody can read: kept whole and shown, its neighbours handled, replayed once."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.orm import Session

from reliable_mq import Delivery, ReliableMQ
from tests.e2e.brokers import Broker
from tests.e2e.command import as_json, reliable_mq
from tests.e2e.conftest import MakeMQ
from tests.e2e.shop import Order, leave
from tests.e2e.waiting import until

Seen = Callable[[], list[str]]

POISON = b"\x00\xff\xfe {'id': not json\r\n"


def strict(make_mq: MakeMQ, topic: str) -> ReliableMQ:
    """The application before its fix."""
    mq = make_mq()

    @mq.handler(topic)
    def handle(order: Order, session: Session) -> None:
        leave(session, order.id)

    return mq


def lenient(make_mq: MakeMQ, topic: str) -> ReliableMQ:
    """The application after its fix: it takes any body."""
    mq = make_mq()

    @mq.handler(topic)
    def handle(body: bytes, session: Session, delivery: Delivery) -> None:
        leave(session, f"mended {body.hex()} attempt {delivery.attempt}")

    return mq


def test_a_poison_body_is_kept_and_shown_while_its_neighbours_are_handled_and_replayed_once(
    broker: Broker, make_mq: MakeMQ, unique: str, seen: Seen
) -> None:
    before = strict(make_mq, unique)
    before.declare()
    broker.put(unique, b'{"id": 1}')
    broker.put(unique, POISON, headers=[("x-source", b"elsewhere"), ("message-id", b"poison")])
    broker.put(unique, b'{"id": 2}')
    counts = before.run_until_idle(60)
    assert (counts.handled, counts.dead_lettered) == (2, 1)
    assert sorted(seen()) == ["1", "2"]

    (shown,) = as_json(broker, "dlq", "ls")
    assert base64.b64decode(shown["body_base64"]) == POISON
    assert (shown["topic"], shown["group"]) == (unique, "billing")
    assert shown["cause"].startswith("DecodeError: the body is not a valid Order")
    assert shown["headers"]["x-source"] == "elsewhere"
    (group,) = as_json(broker, "status")["groups"]
    assert (group["lag"], group["retries"], group["dead_letters"]) == (0, 0, 1)

    after = lenient(make_mq, unique)
    assert reliable_mq(broker, "dlq", "replay", str(shown["id"])).returncode == 0
    assert reliable_mq(broker, "dlq", "replay", str(shown["id"])).returncode == 1
    assert after.replay(shown["id"]) is False
    assert after.run_until_idle(60).handled == 1
    assert after.replay(shown["id"]) is False
    assert after.run_until_idle(60).handled == 0
    assert sorted(seen()) == ["1", "2", f"mended {POISON.hex()} attempt 1"]
    assert as_json(broker, "dlq", "ls") == []


@pytest.mark.parametrize("kind", ["redis"], indirect=True)
@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"])
class TestOnEachDatabase:
    @pytest.fixture
    def database_url(self, database: str, request: pytest.FixtureRequest) -> str:
        url: str = request.getfixturevalue(f"{database}_url")
        return url

    def test_replays_called_at_the_same_time_are_one(
        self, broker: Broker, make_mq: MakeMQ, unique: str, seen: Seen
    ) -> None:
        mq = strict(make_mq, unique)
        mq.declare()
        broker.put(unique, POISON)
        assert mq.run_until_idle(60).dead_lettered == 1
        (letter,) = mq.dead_letters()
        with ThreadPoolExecutor(8) as pool:
            replayed = list(pool.map(mq.replay, [letter.id] * 16))
        assert sorted(replayed) == [False] * 15 + [True]
        assert lenient(make_mq, unique).run_until_idle(60).handled == 1
        assert len(seen()) == 1


@pytest.mark.parametrize("kind", ["rabbitmq", "redis"], indirect=True)
class TestOnMariaDB:
    @pytest.fixture
    def database_url(self, mariadb_url: str) -> str:
        return mariadb_url

    def test_a_body_that_the_database_does_not_take_stops_nobody_and_a_person_is_told(
        self, broker: Broker, make_mq: MakeMQ, unique: str, seen: Seen
    ) -> None:
        body = b"'" * 17_000_000
        mq = strict(make_mq, unique)
        mq.declare()
        broker.put(unique, b'{"id": 1}', body, b'{"id": 2}')
        # Not until it is idle: so large a body, while it is still on its way, counts neither as
        # waiting nor as held with RabbitMQ.
        with mq.running() as service:
            until(
                lambda: service.counts().handled >= 2 and service.counts().dead_lettered >= 1,
                service.counts,
            )
            until(lambda: mq.status().groups[unique, "billing"].lag == 0, mq.status)
        counts = service.counts()
        assert (counts.handled, counts.dead_lettered) == (2, 1)
        assert sorted(seen()) == ["1", "2"]
        (shown,) = as_json(broker, "dlq", "ls")
        assert shown["body_base64"] == ""
        assert shown["cause"].startswith("incomplete: lacks its body of 17000000 bytes")
        assert "(max_allowed_packet)" in shown["cause"]
        assert "; oversize: " in shown["cause"]
        refused = reliable_mq(broker, "dlq", "replay", str(shown["id"]))
        assert refused.returncode == 1
        assert "it is not the whole message" in refused.stderr
        (group,) = as_json(broker, "status")["groups"]
        assert (group["lag"], group["retries"], group["dead_letters"]) == (0, 0, 1)


FORGED = [
    ("message-id", b"line\r\nbreak\x00nul"),
    ("message-time", b"yesterday"),
    ("content-type", b"\x00" * 300),
    ("message-key", b"k" * 5000),
    ("reliable-mq-origin-attempts", b"-1"),
]


def test_forged_headers_are_parsed_strictly_and_the_message_is_handled(
    broker: Broker, make_mq: MakeMQ, unique: str, seen: Seen
) -> None:
    mq = make_mq()

    @mq.handler(unique)
    def handle(order: Order, session: Session, delivery: Delivery) -> None:
        message = delivery.message
        assert "\x00" not in message.id
        assert "\n" not in message.id
        assert len(message.key or "") < 100
        assert message.content_type is None
        assert delivery.attempt == 1
        leave(session, order.id)

    mq.declare()
    broker.put(unique, b'{"id": 1}', headers=FORGED)
    broker.put(unique, b'{"id": 2}')
    counts = mq.run_until_idle(60)
    assert (counts.handled, counts.dead_lettered) == (2, 0), mq.dead_letters()
    assert sorted(seen()) == ["1", "2"]


def test_a_message_over_the_limits_is_a_dead_letter_that_keeps_all_of_it(
    broker: Broker, make_mq: MakeMQ, unique: str, seen: Seen
) -> None:
    mq = make_mq(max_message_bytes=1000, max_header_count=8)

    @mq.handler(unique)
    def handle(order: Order, session: Session) -> None:
        leave(session, order.id)

    mq.declare()
    broker.put(unique, b"[" + b" " * 5000 + b"]", headers=[("message-id", b"large")])
    broker.put(unique, b"{}", headers=[(f"h{n}", b"x") for n in range(200)])
    broker.put(unique, b'{"id": 2}')
    counts = mq.run_until_idle(60)
    assert (counts.handled, counts.dead_lettered) == (1, 2)
    bodies = sorted(len(letter.message.body) for letter in mq.dead_letters())
    assert bodies == [2, 5002]
    assert {letter.cause.partition(":")[0] for letter in mq.dead_letters()} == {
        "oversize",
        "headers",
    }
    assert seen() == ["2"]
