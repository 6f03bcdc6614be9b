"""From a URL to an adapter, by what is installed; errors say what to install."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

import pytest

from reliable_mq import registry
from reliable_mq.adapter import AdapterContext
from reliable_mq.errors import ConfigurationError, MissingExtraError
from reliable_mq.registry import open_adapter, scheme_of

CONTEXT = AdapterContext(instance="test")


def opened(url: str, context: AdapterContext) -> tuple[str, AdapterContext]:
    return url, context


@pytest.fixture
def installed(monkeypatch):
    """Replaces the installed adapters by scheme -> object reference."""

    def put(**adapters: str) -> None:
        found = EntryPoints(
            EntryPoint(name.replace("_", "+"), value, registry.GROUP)
            for name, value in adapters.items()
        )
        monkeypatch.setattr(registry, "entry_points", lambda group: found.select(group=group))

    return put


HERE = f"{__name__}:opened"


def test_the_scheme_names_the_adapter_and_it_gets_url_and_context(installed):
    installed(sql="nowhere:at_all", kafka=HERE)
    adapter: Any = open_adapter("kafka://h1,h2", CONTEXT)
    assert adapter == ("kafka://h1,h2", CONTEXT)


def test_the_scheme_is_read_in_any_case_of_letters(installed):
    installed(kafka_ssl=HERE)
    adapter: Any = open_adapter("Kafka+SSL://h", CONTEXT)
    assert adapter == ("Kafka+SSL://h", CONTEXT)


def test_an_unknown_scheme_is_refused_with_those_installed(installed):
    installed(sql=HERE, kafka=HERE)
    with pytest.raises(ConfigurationError, match=r"kafak://; installed are: kafka://, sql://"):
        open_adapter("kafak://h", CONTEXT)


@pytest.mark.parametrize(
    ("scheme", "extra"),
    [
        ("kafka", "kafka"),
        ("kafka_ssl", "kafka"),
        ("amqps", "rabbitmq"),
        ("redis_sentinel", "redis"),
    ],
)
def test_a_missing_client_library_is_named_with_the_command_that_installs_it(
    installed, scheme, extra
):
    installed(**{scheme: "a_client_nobody_has:open_adapter"})
    url = scheme.replace("_", "+") + "://h"
    with pytest.raises(MissingExtraError) as missing:
        open_adapter(url, CONTEXT)
    assert f"pip install 'reliable-mq[{extra}]'" in str(missing.value)
    assert "a_client_nobody_has" in str(missing.value)
    assert isinstance(missing.value.__cause__, ModuleNotFoundError)


def test_a_broken_adapter_of_a_third_party_is_not_blamed_on_an_extra(installed):
    installed(nats="a_client_nobody_has:open_adapter")
    with pytest.raises(ModuleNotFoundError, match="a_client_nobody_has"):
        open_adapter("nats://h", CONTEXT)


def test_a_module_of_our_own_that_is_missing_is_not_blamed_on_an_extra(installed):
    installed(kafka="reliable_mq_kafka_of_another_release:open_adapter")
    with pytest.raises(ModuleNotFoundError):
        open_adapter("kafka://h", CONTEXT)


@pytest.mark.parametrize(
    "url", ["", "localhost", "localhost:9092", "sql", "sql:", "sql:/", "a b://h"]
)
def test_a_url_without_a_scheme_is_refused_with_an_example(url):
    with pytest.raises(ConfigurationError, match=r"has no scheme; write for example sql://"):
        scheme_of(url)


@pytest.mark.parametrize(
    "url",
    ["app:CANARY@h", "//app:CANARY@h", "://app:CANARY@h", "a b://u:CANARY@h", "app:CANARY://x@h",
     "h/?password=CANARY"],
)  # fmt: skip
def test_the_refusal_of_a_url_without_a_scheme_shows_no_password(url):
    with pytest.raises(ConfigurationError) as refused:
        open_adapter(url, CONTEXT)
    assert "CANARY" not in str(refused.value)


def test_each_scheme_of_ours_is_declared_by_the_distribution():
    declared = {entry.name for entry in entry_points(group=registry.GROUP)}
    assert declared >= {"sql", "memory", "kafka", "kafka+ssl", "amqp", "amqps", "redis", "rediss"}
    assert declared >= {"redis+sentinel", "redis+cluster"}
