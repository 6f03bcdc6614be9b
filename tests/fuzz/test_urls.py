"""URLs of brokers and databases: understood, or refused without showing what is secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import reliable_mq_kafka.location as kafka
import reliable_mq_rabbitmq.options as rabbitmq
import reliable_mq_redis.location as redis
from reliable_mq.errors import ConfigurationError
from reliable_mq.registry import scheme_of
from reliable_mq.store.urls import async_url, identity_of, is_memory, parse_url, sync_url
from reliable_mq_kafka.options import parse_options as kafka_options
from reliable_mq_redis.options import parse_options as redis_options
from tests.fuzz.mutation import Mutator
from tests.fuzz.running import error_of, fuzz

CANARY = "c4n4ry7f3a"
_PLACES = (
    "h",
    "h1:9092,h2:9093",
    "[::1]:5672,[fe80::1]",
    "h:99999",
    "h:" + "9" * 30,
    "h:" + "9" * 5000,
    "h/" + "9" * 5000,
    "h/vhost",
    "h/%2F",
    "h/3",
    "h:26379/mymaster/0",
    "unix.sock",
    "",
)
_QUERIES = (
    "",
    "?",
    "?session_timeout=6&commit_interval=0.5&connect_timeout=nan",
    "?mechanism=plain&static_id=a.b&ca=/tmp/x&ca=/tmp/y",
    "?heartbeat=10&connection_timeout=inf&confirm_window=1e3&operation_timeout=-1",
    "?management=http://localhost:15672/path&management_user=u&management_password=pw",
    "?management=https://h:1,h:2&cafile=x&certfile=y&keyfile=z&server_hostname=w",
    "?wait=1&wait_aof=true&wait_timeout=0.1&guard=300&trim=0&tls=no",
    "?mode=memory&charset=utf8&host=/tmp",
    "#fragment",
)
_RESTS = tuple(place + query for place in _PLACES for query in _QUERIES)


def _kafka(url: str) -> object:
    location = kafka.parse_url(url)
    return location, kafka_options(location.query)


def _redis(url: str) -> object:
    location = redis.parse_url(url)
    return location, redis_options(location.query)


def _rabbitmq(url: str) -> object:
    return rabbitmq.parse(url, {})


def _database(url: str) -> object:
    found = parse_url(url)
    is_memory(found)
    return [identity_of(sync_url(found)), identity_of(async_url(found))]


_PARSERS: dict[str, tuple[Callable[[str], object], tuple[str, ...]]] = {
    "kafka": (_kafka, ("kafka", "kafka+ssl", "KAFKA")),
    "rabbitmq": (_rabbitmq, ("amqp", "amqps", "AMQPS")),
    "redis": (_redis, ("redis", "rediss", "redis+sentinel", "redis+cluster", "redis+x")),
    "database": (_database, ("postgresql", "mysql+pymysql", "sqlite", "mariadb", "sqlite+x", "o")),
}


@pytest.mark.parametrize("name", _PARSERS)
def test_a_url_is_understood_or_refused_by_a_configuration_error_without_its_password(
    name: str,
) -> None:
    parse, schemes = _PARSERS[name]

    def make(mutator: Mutator) -> str:
        rest = mutator.argument_of(_RESTS)
        return f"{mutator.pick(schemes)}://user:{CANARY}@{rest}"

    def check(url: str) -> None:
        error = error_of(ConfigurationError, lambda: parse(url))
        assert CANARY not in str(error)
        assert error is None or CANARY not in str(error.__cause__)

    # SQLAlchemy looks for its dialects on the disk.
    fuzz(f"url.{name}", make, check, share=10 if name == "database" else 1)


def test_a_scheme_is_one_or_a_configuration_error_without_the_password() -> None:
    def make(mutator: Mutator) -> str:
        return mutator.argument_of(("kafka", "amqp://", "://", ":", "redis+sentinel://", "")) + (
            f"user:{CANARY}@host/"
        )

    def check(url: str) -> None:
        assert CANARY not in str(error_of(ConfigurationError, lambda: scheme_of(url)))

    fuzz("url.scheme", make, check)


_VALUES: tuple[Any, ...] = (None, 1, "x", {}, {"capabilities": 1}, [], float("nan"), b"\0")


def test_client_options_of_any_kind_are_taken_or_refused() -> None:
    names = ("channel_max", "frame_max", "locale", "tcp_options", "client_properties", "host")

    def make(mutator: Mutator) -> dict[str, Any]:
        return {mutator.pick(names): mutator.pick(_VALUES) for _ in range(1 + mutator.below(3))}

    def check(given: dict[str, Any]) -> None:
        error = error_of(ConfigurationError, lambda: rabbitmq.parse("amqp://host", given))
        assert error is None or "client_options" in str(error)

    fuzz("url.client_options", make, check)
