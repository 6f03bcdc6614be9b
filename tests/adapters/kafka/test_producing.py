"""The end of a producer that several publishes share. No broker."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, Producer

from reliable_mq.testing.contract.messages import numbered
from reliable_mq_kafka.drafts import Draft
from reliable_mq_kafka.health import Health
from reliable_mq_kafka.producing import Line
from reliable_mq_kafka.shipments import Shipment


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(lambda _: Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}))
    yield line
    line.close()


def test_what_is_handed_over_while_another_publish_gives_up_is_taken_out_too(line: Line) -> None:
    line.give_up()
    draft = Draft(numbered("orders", range(3)))
    Shipment(line, draft, time.monotonic() + 60.0).send(draft.open())
    assert len(line.producer) == 0


def test_what_follows_from_a_fatal_error_does_not_hide_it() -> None:
    health = Health()
    refused = KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED, "no id for you", fatal=True)
    health.on_error(KafkaError(KafkaError._TRANSPORT, "disconnected"))
    health.on_error(refused)
    health.on_error(KafkaError(KafkaError._TRANSPORT, "disconnected"))
    health.recovered()
    assert health.has_no_id
    assert "no id for you" in health.why()
