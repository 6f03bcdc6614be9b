"""Functions of the application that the client calls while it reads."""

from __future__ import annotations

import logging

import pytest

from reliable_mq.adapter import SENT
from reliable_mq.testing.contract.messages import numbered, numbers_of
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_kafka.adapter import KafkaAdapter
from tests.adapters.kafka.conftest import Declare, Open

COUNT = 3000


def test_statistics_that_the_application_fails_to_take_cost_no_record(
    adapter: KafkaAdapter, open_one: Open, declare: Declare, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(statistics: str) -> None:
        raise ValueError("no room for statistics")

    topic = declare()
    assert adapter.publish(numbered(topic, range(COUNT)), 60.0) == [SENT] * COUNT
    options: dict[str, object] = {"stats_cb": fail, "statistics.interval.ms": 1}
    reader = open_one(client_options=options)
    subscription = reader.subscribe([topic], "billing", prefetch=COUNT, ordered=True)
    received: list[int] = []

    def done() -> bool:
        received.extend(numbers_of(subscription.receive(50, 0.05).deliveries))
        return bool(received) and received[-1] == COUNT - 1

    try:
        with caplog.at_level(logging.ERROR, "reliable_mq.kafka"):
            wait_for(done, "the last record")
    finally:
        subscription.close()
    assert received == list(range(COUNT))
    assert "client_options: stats_cb has failed" in caplog.text
