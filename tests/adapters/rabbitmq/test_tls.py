from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reliable_mq.adapter import SENT, Adapter, TopicSpec
from reliable_mq.errors import ConfigurationError
from reliable_mq.testing.contract.messages import message
from tests.adapters.rabbitmq.certificates import (
    make_authority,
    make_certificate,
    needs_openssl,
    tls_settings,
)
from tests.brokers import RabbitMQ, variable
from tests.conftest import started

Opened = Callable[..., Adapter]


@dataclass
class Tls:
    """A node whose certificate is for ``localhost`` and signed by an authority of its own."""

    node: RabbitMQ
    folder: Path

    def url(self, host: str = "localhost", authority: str = "ca") -> str:
        port = self.node.port("tls")
        return f"amqps://guest:guest@{host}:{port}/?cafile={self.folder / authority}.pem"


@pytest.fixture(scope="module")
def tls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    if os.environ.get(variable("rabbitmq")):
        pytest.skip("needs a node of our own, with TLS")
    needs_openssl()
    folder = tmp_path_factory.mktemp("tls")
    for authority in ("ca", "other"):
        make_authority(folder, authority)
    make_certificate(folder, "server", "ca", "localhost")
    node = RabbitMQ(tls_settings(folder, "ssl_options"))
    node.settings["listeners.ssl.1"] = f"127.0.0.1:{node.port('tls')}"
    for _ in started(request, node):
        yield Tls(node, folder)


def refusal(adapter: Adapter) -> str:
    with pytest.raises(ConfigurationError) as caught:
        adapter.declare([TopicSpec(name="orders")], [])
    return str(caught.value)


def test_messages_travel_over_tls(tls: Tls, opened: Opened) -> None:
    adapter = opened(tls.url())
    adapter.declare([TopicSpec(name="orders", catch_all=True)], [])
    batch = [message("orders", bytes(50_000)) for _ in range(100)]
    assert adapter.publish(batch, 20.0) == [SENT] * 100


def test_a_certificate_of_another_authority_is_refused(tls: Tls, opened: Opened) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in refusal(opened(tls.url(authority="other")))


def test_a_certificate_of_another_name_is_refused(tls: Tls, opened: Opened) -> None:
    assert "127.0.0.1" in refusal(opened(tls.url(host="127.0.0.1")))
    adapter = opened(tls.url(host="127.0.0.1") + "&server_hostname=localhost")
    adapter.declare([TopicSpec(name="orders")], [])


def test_tls_never_falls_back_to_plain_text(tls: Tls, opened: Opened) -> None:
    plain = tls.url().replace(str(tls.node.port("tls")), str(tls.node.port()))
    assert "does not speak TLS" in refusal(opened(plain))
