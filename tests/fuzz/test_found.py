"""What the fuzzing has found, each by its name."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from reliable_mq import Delivery, ReliableMQ, Settings
from reliable_mq.cli.commands import app
from reliable_mq.consumer.failures import Failure, dead_letter_message
from reliable_mq.errors import ConfigurationError
from reliable_mq.message import Message
from reliable_mq.registry import scheme_of
from reliable_mq.store.urls import parse_url
from reliable_mq.wire import ORIGIN_CAUSE, TRUNCATED, Limits, decode
from reliable_mq_kafka.location import parse_url as kafka_url
from reliable_mq_rabbitmq.messages import decode as from_amqp
from reliable_mq_rabbitmq.messages import encode as to_amqp
from reliable_mq_redis.location import parse_url as redis_url
from reliable_mq_sql.rows import UNDECODED
from tests.adapters.rabbitmq.foreign import RawProperties
from tests.fuzz.outcome import arriving

_NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _copy_of(message: Message, cause: str = "no") -> Message:
    failure = Failure(group="g" * 64, message=message, headers=(), attempts=1, cause=cause)
    return dead_letter_message(failure, Settings(), _NOW)


@pytest.mark.parametrize("headers", [b"", b"null", b'[["a", 5]]', b'[["\\ud800", "b"]]', b"\xff"])
def test_a_row_whose_headers_cannot_be_read_is_handled_and_holds_up_nobody(
    headers: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "shop.db"
    seen: dict[bytes, Delivery] = {}
    with ReliableMQ(Settings(database_url=f"sqlite:///{file}")) as mq:
        topic = mq.topic("orders", bytes, partitions=1)

        @mq.handler(topic, group="billing")
        def handle(body: bytes, session: Session, delivery: Delivery) -> None:
            seen[body] = delivery

        mq.declare()
        for body in (b"1", b"2", b"3"):
            with mq.transaction():
                mq.publish(topic, body)
        mq.run_until_idle(60, consume=False)
        _damage(file, headers)
        assert mq.run_until_idle(60).handled == 3
    assert dict(seen[b"1"].message.headers) == {}
    kept = seen[b"2"].message.headers[UNDECODED]
    assert (kept if isinstance(kept, bytes) else kept.encode()) == headers


def _damage(file: Path, headers: bytes) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute(
            "UPDATE reliable_mq_topic_log SET headers = ?, message_time = ? WHERE body = ?",
            (headers, (1 << 63) - 1, b"2"),
        )
    connection.close()


def test_the_copy_of_a_dead_letter_is_within_the_limits_whatever_letters_its_cause_has() -> None:
    room = Limits().header_bytes - 2560 - 1024
    message = Message(
        id="\N{SNOWMAN}" * 85,
        topic="t" * 170,
        key="k" * 1024,
        headers={"h": "x" * (room - 1)},
        content_type="c" * 255,
    )
    copy = _copy_of(message, cause="\N{SNOWMAN}" * 2000)
    assert copy.headers["h"] == message.headers["h"]
    assert len(str(copy.headers[ORIGIN_CAUSE]).encode()) <= 1024
    assert decode(arriving(copy), Limits()).fault is None


def test_a_header_name_that_grew_when_it_became_text_does_not_hold_up_the_copy() -> None:
    name = b"\xff" * 100
    table = bytes((len(name),)) + name + b"t\x01"
    properties = RawProperties(b"\x20\x00" + len(table).to_bytes(4, "big") + table).encode()[0]
    message = decode(from_amqp("orders", properties, b""), Limits()).message
    assert [len(name) for name in message.headers] == [400]
    copy = _copy_of(message)
    assert copy.headers[TRUNCATED] == "headers"
    to_amqp(copy)


@pytest.mark.parametrize("url", ["redis://h:" + "1" * 5000, "redis://h/" + "1" * 5000])
def test_a_number_of_thousands_of_digits_in_a_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is expected"):
        redis_url(url)


@pytest.mark.parametrize("url", ["sqlite:///\udcff.db", "sqlite:///a%00b", "mysql://u:\0@h/d"])
def test_a_database_url_with_what_no_driver_takes_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a URL"):
        parse_url(url)


def test_a_broker_url_with_bytes_that_are_no_text_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="no UTF-8") as caught:
        scheme_of("kafka://user:secret\udcff@host")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("scheme", "parse"), [("kafka", kafka_url), ("redis", redis_url)])
def test_a_password_in_the_place_of_the_host_is_not_in_the_error(
    scheme: str, parse: Callable[[str], object]
) -> None:
    for rest in ("app:secret", "h1:9092,app:secret", "app:pw@h:secret", "app:secret/0"):
        with pytest.raises(ConfigurationError) as caught:
            parse(f"{scheme}://{rest}")
        assert "secret" not in str(caught.value)


def test_a_password_behind_a_name_with_white_space_is_not_in_the_error() -> None:
    with pytest.raises(ConfigurationError) as caught:
        kafka_url("kafka://h:port?ssl.key .password=secret")
    assert "secret" not in str(caught.value)


def test_a_variable_that_is_nested_too_deeply_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RELIABLE_MQ_CLIENT_OPTIONS", "[" * 5000)
    with pytest.raises(ConfigurationError, match="nested more deeply"):
        Settings()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", ".shop:mq"],
        ["run", "..:x"],
        ["status", "--app", "shop.:mq"],
        ["dlq", "show", "99999999999999999999"],
        ["outbox", "ls", "--after", "-9223372036854775809"],
        ["dlq", "ls", "--limit", "9223372036854775808"],
        ["dlq", "ls", "--topic", "\udcff"],
    ],
)
def test_an_argument_that_cannot_be_is_wrong_usage(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 2
