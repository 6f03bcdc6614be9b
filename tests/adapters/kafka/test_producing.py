"""The end of a producer that several publishes share. No broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, Producer

from reliable_mq.testing.contract.messages import numbered
from reliable_mq_kafka import shipments
from reliable_mq_kafka.drafts import Draft
from reliable_mq_kafka.health import Health
from reliable_mq_kafka.producing import Line
from reliable_mq_kafka.shipments import Shipment


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(lambda _: Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}))
    yield line
    line.close()


class Watched:
    """A producer whose calls are noted; while it takes a message another publish gives up."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._producer = line.producer
        self._purged = threading.Event()
        self._other = threading.Thread(target=line.give_up)
        self.calls: list[str] = []

    def produce(self, *arguments: Any) -> None:
        if not self.calls:
            self._other.start()
            # It must wait for the end of this call, so there is nothing else to wait for.
            self._purged.wait(0.3)
        self.calls.append("produce")
        self._producer.produce(*arguments)

    def purge(self) -> None:
        self.calls.append("purge")
        self._purged.set()
        self._producer.purge()

    def poll(self, seconds: float) -> int:
        self._other.join()
        return self._producer.poll(seconds)

    def __len__(self) -> int:
        return len(self._producer)


def test_nothing_is_handed_over_behind_what_another_publish_has_taken_out(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipments, "_SERVE_EVERY", 1)
    line.producer = watched = Watched(line)  # type: ignore[assignment]
    draft = Draft(numbered("orders", range(3)))
    Shipment(line, draft, time.monotonic() + 60.0).send(draft.open())
    assert watched.calls[:2] == ["produce", "purge"]
    assert watched.calls.count("produce") == 1
    line.collect(lambda: len(watched) == 0)
    assert len(watched) == 0


def test_what_follows_from_a_fatal_error_does_not_hide_it() -> None:
    health = Health()
    refused = KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED, "no id for you", fatal=True)
    health.on_error(KafkaError(KafkaError._TRANSPORT, "disconnected"))
    health.on_error(refused)
    health.on_error(KafkaError(KafkaError._TRANSPORT, "disconnected"))
    health.recovered()
    assert health.has_no_id
    assert "no id for you" in health.why()
