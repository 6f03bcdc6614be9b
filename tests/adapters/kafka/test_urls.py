"""URLs and options, judged without a broker."""

from __future__ import annotations

import pytest

from reliable_mq.adapter import AdapterContext
from reliable_mq.errors import ConfigurationError
from reliable_mq.registry import open_adapter as open_by_url
from reliable_mq_kafka import open_adapter
from reliable_mq_kafka.config import Clients
from reliable_mq_kafka.health import Health
from reliable_mq_kafka.location import parse_url
from reliable_mq_kafka.options import parse_options


def context(**options: object) -> AdapterContext:
    return AdapterContext(instance="test", client_options=options)


def properties(url: str, **options: object) -> dict[str, object]:
    location = parse_url(url)
    clients = Clients(location, parse_options(location.query), context(**options))
    return clients._producer(Health()) | clients._consumer(Health(), "billing", None)


@pytest.mark.parametrize(
    ("url", "bootstrap"),
    [
        ("kafka://broker", "broker:9092"),
        ("kafka://one:1,two", "one:1,two:9092"),
        ("kafka://[::1]:1,[::2]", "[::1]:1,[::2]:9092"),
        ("KAFKA://broker/", "broker:9092"),
    ],
)
def test_hosts_without_a_port_get_kafkas(url: str, bootstrap: str) -> None:
    assert parse_url(url).bootstrap == bootstrap


def test_user_and_password_are_percent_decoded() -> None:
    location = parse_url("kafka+ssl://us%40er:p%3Aw%2F%2C%40@one,two")
    assert (location.user, location.password) == ("us@er", "p:w/,@")


@pytest.mark.parametrize(
    "url",
    [
        "kafka://",
        "kafka://one,,two",
        "kafka://one:0",
        "kafka://one:65536",
        "kafka://one/topic",
        "kafka://user@one",
        "kafka://user:@one",
        "kafka://one#part",
        "kafka://one?ca=a&ca=b",
        "kafka://one?session_timeout=0",
        "kafka://one?session_timeout=nan",
        "kafka://one?commit_interval=2",
        "kafka://one?mechanism=MD5",
        "kafka://one?mechanism=SCRAM-SHA-512",
        "kafka://one?ca=",
        "kafka+ssl://user:password@one?mechanism=GSSAPI",
        "kafka+ssl://one?ca=/no/such/file.pem",
    ],
)
def test_what_cannot_be_a_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError):
        open_adapter(url, context())


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'acks'.*session_timeout.*client_options"):
        open_adapter("kafka://one?acks=1", context())


@pytest.mark.parametrize("url", ["kafka://app:s3cret@one/x", "kafka+ssl://app:s3cret@one?x=1"])
def test_an_error_about_a_url_does_not_show_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_adapter(url, context())
    assert "s3cret" not in str(caught.value)


def test_a_plain_password_is_not_sent_in_plain_text() -> None:
    with pytest.raises(ConfigurationError, match=r"kafka\+ssl"):
        open_adapter("kafka://app:s3cret@one?mechanism=PLAIN", context())


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("kafka://one", "plaintext"),
        ("kafka://app:pw@one", "sasl_plaintext"),
        ("kafka+ssl://one", "ssl"),
        ("kafka+ssl://app:pw@one", "sasl_ssl"),
    ],
)
def test_the_scheme_and_the_user_say_how_to_connect(url: str, protocol: str) -> None:
    assert properties(url)["security.protocol"] == protocol


def test_certificates_and_host_names_are_checked() -> None:
    found = properties("kafka+ssl://one")
    assert found["enable.ssl.certificate.verification"] is True
    assert found["ssl.endpoint.identification.algorithm"] == "https"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("acks", 1),
        ("acks", "0"),
        ("request.required.acks", 1),
        ("enable.idempotence", False),
        ("enable.gapless.guarantee", False),
        ("queuing.strategy", "lifo"),
        ("delivery.report.only.error", True),
        ("partitioner", "consistent_random"),
        ("allow.auto.create.topics", True),
        ("enable.auto.commit", True),
        ("auto.commit.enable", "true"),
        ("enable.auto.offset.store", True),
        ("isolation.level", "read_uncommitted"),
        ("auto.offset.reset", "latest"),
        ("group.protocol", "consumer"),
        ("partition.assignment.strategy", "range"),
        ("enable.ssl.certificate.verification", False),
        ("ssl.endpoint.identification.algorithm", "none"),
        ("bootstrap.servers", "elsewhere"),
        ("security.protocol", "plaintext"),
        ("sasl.password", "s3cret"),
        ("group.id", "other"),
        ("group.instance.id", "me"),
        ("transactional.id", "me"),
        ("message.timeout.ms", 1000),
        ("delivery.timeout.ms", 1000),
        ("message.max.bytes", 10),
        ("error_cb", print),
        ("on_delivery", print),
    ],
)
def test_a_client_option_that_would_break_a_promise_is_refused_by_name(
    name: str, value: object
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_adapter("kafka://one", AdapterContext(instance="x", client_options={name: value}))
    assert repr(name) in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"no.such.option": 1},
        {"linger.ms": "soon"},
        {"linger.ms": None},
        {"compression.type": "rar"},
        {"max.in.flight": 6},
        {"stats_cb": "name"},
        {"ssl.key.password": {"a": 1}},
    ],
)
def test_a_client_option_that_librdkafka_cannot_use_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        open_adapter("kafka://one", AdapterContext(instance="x", client_options=options))


def test_other_client_options_reach_the_clients_and_need_not_fit_both() -> None:
    options = {
        "linger.ms": 7,
        "compression.type": "lz4",
        "fetch.min.bytes": 9,
        "acks": "all",
        "enable.idempotence": "true",
        "client.rack": "a",
    }
    open_adapter("kafka://one", AdapterContext(instance="x", client_options=options)).close()
    found = properties("kafka://one", **options)
    assert found["linger.ms"] == 7
    assert found["fetch.min.bytes"] == 9
    assert found["client.rack"] == "a"


def test_the_entry_points_serve_both_schemes() -> None:
    for url in ("kafka://one", "kafka+ssl://one"):
        adapter = open_by_url(url, context())
        assert adapter.name == "kafka"
        adapter.close()
