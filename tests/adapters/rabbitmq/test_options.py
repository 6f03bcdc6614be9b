from __future__ import annotations

import re
import ssl
from pathlib import Path

import pika
import pytest

from reliable_mq.adapter import Adapter, AdapterContext
from reliable_mq.errors import ConfigurationError
from reliable_mq_rabbitmq import __doc__ as documentation
from reliable_mq_rabbitmq import open_adapter
from reliable_mq_rabbitmq.options import Options, parse


def refusal(url: str, **client_options: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(url, client_options)
    return str(caught.value)


def test_a_url_without_anything_means_the_local_broker_and_its_guest() -> None:
    options = parse("amqp://localhost", {})
    assert options.hosts == (("localhost", 5672),)
    assert (options.user, options.password, options.virtual_host) == ("guest", "guest", "/")


def test_user_password_and_virtual_host_are_percent_decoded() -> None:
    options = parse("amqp://us%40er:p%2Fw%3A%40@h/the%2Fhost", {})
    assert (options.user, options.password) == ("us@er", "p/w:@")
    assert options.virtual_host == "the/host"


def test_several_hosts_have_ports_of_their_own() -> None:
    assert parse("amqp://u:p@h1:1,h2,[::1]:3/", {}).hosts == (("h1", 1), ("h2", 5672), ("::1", 3))
    assert parse("amqps://h1,h2:2/", {}).hosts == (("h1", 5671), ("h2", 2))


@pytest.mark.parametrize(
    "url",
    [
        "amqp://",
        "amqp://h1,,h2",
        "amqp://h:port",
        "amqp://h:70000",
        "amqp://u:sesame/open@h",
        "amqp://u:1?sesame@h",
        "amqp://u:sesame\u2100@h",
        "amqp://u:sesame@[::1",
        "amqp://u:sesame@h1,u:sesame@h2",
        "amqp://u:sesame@h/one/two",
        "amqp://u:sesame@h/#fragment",
        "amqp://u:sesame@h?heartbeat=1&heartbeat=2",
        "amqp://u:sesame@h?heartbeats=10",
        "amqp://u:sesame@h?cafile=ca.pem",
        "amqps://u:sesame@h?keyfile=key.pem",
        "amqps://u:sesame@h?verify=none",
    ],
)
def test_what_is_not_understood_is_refused_without_showing_the_password(url: str) -> None:
    assert "sesame" not in refusal(url)


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "no", ""])
def test_heartbeats_cannot_be_switched_off(value: str) -> None:
    text = refusal(f"amqp://h?heartbeat={value}")
    assert f"heartbeat={value}" in text
    assert "from 1 to 3600" in text


@pytest.mark.parametrize(
    "query",
    [
        "connection_timeout=0",
        "blocked_connection_timeout=0",
        "operation_timeout=nan",
        "confirm_window=0",
        "confirm_window=1.5",
    ],
)
def test_limits_that_would_be_none_are_refused(query: str) -> None:
    assert query in refusal(f"amqp://h?{query}")


def test_every_option_reaches_the_client() -> None:
    options = parse(
        "amqp://h?heartbeat=7&connection_timeout=1.5&blocked_connection_timeout=9"
        "&operation_timeout=4&confirm_window=50",
        {"frame_max": 4096, "client_properties": {"product": "shop"}},
    )
    parameters = options.parameters("h", 5672, "name")
    assert parameters.heartbeat == 7
    assert parameters.socket_timeout == parameters.stack_timeout == 1.5
    assert parameters.blocked_connection_timeout == 9
    assert (options.operation_timeout, options.confirm_window) == (4, 50)
    assert parameters.frame_max == 4096
    assert parameters.client_properties == {"connection_name": "name", "product": "shop"}


def test_the_documentation_names_every_query_option() -> None:
    fields = set(Options.__dataclass_fields__) - {
        *("hosts", "virtual_host", "user", "password", "tls", "client")
    }
    assert fields <= set(re.findall(r"``(\w+)``", documentation or ""))


def test_blocked_connections_time_out_by_default() -> None:
    parameters = parse("amqp://h", {}).parameters("h", 5672, "name")
    assert parameters.blocked_connection_timeout == 30
    assert parameters.heartbeat == 10


@pytest.mark.parametrize(
    "name", ["heartbeat", "credentials", "ssl_options", "blocked_connection_timeout", "typo"]
)
def test_client_options_that_are_not_the_clients_to_choose_are_refused(name: str) -> None:
    assert repr(name) in refusal("amqp://h", **{name: 0})


@pytest.mark.parametrize(
    "options",
    [
        {"frame_max": 1},
        {"channel_max": "many"},
        {"client_properties": "shop"},
        {"client_properties": {"capabilities": {}}},
    ],
)
def test_client_options_of_a_wrong_value_are_refused(options: dict[str, object]) -> None:
    assert "client_options" in refusal("amqp://h", **options)


def test_tls_checks_the_certificate_and_the_name_of_each_host() -> None:
    options = parse("amqps://h1,h2", {})
    found = options.parameters("h2", 5671, "name").ssl_options
    assert found.server_hostname == "h2"
    assert found.context.check_hostname
    assert found.context.verify_mode is ssl.CERT_REQUIRED


def test_tls_may_expect_another_name_than_the_hosts() -> None:
    options = parse("amqps://10.0.0.1?server_hostname=broker.example", {})
    assert options.parameters("10.0.0.1", 5671, "n").ssl_options.server_hostname == "broker.example"


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    options = parse(f"amqps://u:sesame@h?cafile={missing}", {})
    with pytest.raises(ConfigurationError, match=str(missing)) as caught:
        options.parameters("h", 5671, "name")
    assert "sesame" not in str(caught.value)


def test_neither_the_options_nor_pikas_parameters_show_the_password() -> None:
    options = parse("amqp://u:sesame@h", {})
    assert "sesame" not in repr(options)
    assert isinstance(options.parameters("h", 5672, "name"), pika.ConnectionParameters)
    assert "sesame" not in repr(options.parameters("h", 5672, "name"))


def test_an_adapter_is_opened_without_connecting() -> None:
    adapter = open_adapter("amqp://no-such-host.invalid", AdapterContext(instance="test"))
    assert isinstance(adapter, Adapter)
    assert adapter.name == "rabbitmq"
    adapter.close()
