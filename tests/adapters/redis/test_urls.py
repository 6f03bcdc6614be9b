"""URLs, options and client options: what is taken and what is refused, without a server."""

from __future__ import annotations

import pytest

from reliable_mq.adapter import AdapterContext
from reliable_mq.errors import ConfigurationError
from reliable_mq_redis import open_adapter
from reliable_mq_redis.location import Address, Kind, Location, parse_url
from reliable_mq_redis.options import Options, parse_options


def opened(url: str, **client_options: object) -> None:
    open_adapter(url, AdapterContext(instance="test", client_options=client_options)).close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", Location(kind=Kind.SERVER, hosts=(Address("localhost", 6379),))),
        (
            "redis://app:p%40ss@db:7000/3",
            Location(
                kind=Kind.SERVER,
                hosts=(Address("db", 7000),),
                username="app",
                password="p@ss",
                database=3,
            ),
        ),
        (
            "rediss://:secret@[::1]:7000",
            Location(kind=Kind.SERVER, hosts=(Address("::1", 7000),), tls=True, password="secret"),
        ),
        (
            "redis+sentinel://a:b@one,two:1234/orders/2",
            Location(
                kind=Kind.SENTINEL,
                hosts=(Address("one", 26379), Address("two", 1234)),
                username="a",
                password="b",
                service="orders",
                database=2,
            ),
        ),
        (
            "redis+cluster://one:7000,two",
            Location(kind=Kind.CLUSTER, hosts=(Address("one", 7000), Address("two", 6379))),
        ),
    ],
)
def test_a_url_says_where_the_servers_are(url: str, expected: Location) -> None:
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://one,two/0", "several hosts"),
        ("redis://host:port", "host:port"),
        ("redis://host:70000", "host:70000"),
        ("redis://host/orders", "orders"),
        ("redis+sentinel://host", "service"),
        ("redis+cluster://host/1", "database 1"),
        ("redis://host?wait=1&wait=2", "twice"),
        ("unix:///run/redis.sock", "unix"),
    ],
)
def test_a_url_that_cannot_be_is_refused_by_name(url: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        parse_url(url)


def test_errors_about_a_url_hide_its_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_url("redis://app:s3cret@host/orders")
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(parse_url("redis://app:s3cret@host/1"))


def test_options_are_parsed() -> None:
    query = {
        "wait": "2",
        "wait_aof": "1",
        "wait_timeout": "0.5",
        "guard": "60",
        "trim": "0",
        "tls": "true",
    }
    assert parse_options(query) == Options(
        wait=2, wait_aof=True, wait_timeout=0.5, guard=60.0, trim=0.0, tls=True
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wait", "-1"),
        ("wait", "many"),
        ("wait_aof", "maybe"),
        ("wait_timeout", "0"),
        ("guard", "nan"),
        ("guard", "inf"),
        ("trim", "-1"),
        ("tls", ""),
        ("socket_timeout", "5"),
    ],
)
def test_an_unknown_option_or_value_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        opened(f"redis://localhost?{name}={value}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retry", object()),
        ("retry_on_timeout", True),
        ("retry_on_error", [OSError]),
        ("decode_responses", True),
        ("protocol", 3),
        ("health_check_interval", 10),
        ("db", 1),
        ("host", "elsewhere"),
        ("socket_timeout", None),
        ("socket_timeout", 0),
        ("max_connections", 10),
        ("no_such_option", 1),
    ],
)
def test_client_options_that_break_a_promise_or_do_not_exist_are_refused(
    name: str, value: object
) -> None:
    with pytest.raises(ConfigurationError, match=name):
        opened("redis://localhost", **{name: value})


def test_client_options_reach_the_connection() -> None:
    adapter = open_adapter(
        "redis://localhost",
        AdapterContext(
            instance="test", client_options={"socket_timeout": 2.5, "client_name": "shop"}
        ),
    )
    connection = adapter._servers.dialer.server(Address("localhost", 6379))
    assert (connection.socket_timeout, connection.client_name) == (2.5, "shop")


def test_a_password_stands_in_one_place_only() -> None:
    opened("redis://localhost", username="app", password="s3cret")
    with pytest.raises(ConfigurationError, match="password") as caught:
        opened("redis://:s3cret@localhost", password="s3cret")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ssl_cert_reqs", "none"), ("ssl_cert_reqs", None), ("ssl_check_hostname", False)],
)
def test_an_encrypted_connection_is_always_verified(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        opened("rediss://localhost", **{name: value})


def test_options_of_encryption_without_encryption_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="rediss"):
        opened("redis://localhost", ssl_ca_certs="/ca.pem")
    opened("redis+cluster://localhost?tls=1", ssl_ca_certs="/ca.pem")


def test_tls_is_written_as_a_scheme_where_there_is_one() -> None:
    with pytest.raises(ConfigurationError, match="rediss"):
        opened("redis://localhost?tls=1")
