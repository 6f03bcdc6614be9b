"""Trap 18: while a handler runs nobody talks to the broker, which gives its work to another."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.e2e.brokers import Broker
from tests.e2e.conftest import MakeMQ, StartProgram
from tests.e2e.program import Folder, Task
from tests.e2e.waiting import until
from tests.traps.conftest import unhurried

HEARTBEAT = 4
PATIENCE = {"kafka": 10.0, "rabbitmq": 3.0 * HEARTBEAT}
"""Seconds without a word after which the broker takes the work away, as these tests set it:
Kafka's ``max.poll.interval.ms``, three heartbeats of RabbitMQ. More than a process stalls for on a
crowded machine."""

CLIENT: dict[str, dict[str, Any]] = {"kafka": {"max.poll.interval.ms": 10_000}, "rabbitmq": {}}


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    return postgresql_url


@pytest.fixture
def broker(kind: str, request: pytest.FixtureRequest, database_url: str) -> Broker:
    # With Kafka's own session_timeout: this is about handlers, not about a silent client.
    found = unhurried(kind, request, database_url)
    options = f"?heartbeat={HEARTBEAT}" if kind == "rabbitmq" else ""
    return replace(found, url=found.url + options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kafka", "rabbitmq"], indirect=True)
def test_trap_18_a_handler_may_take_longer_than_the_broker_waits_for_a_sign_of_life(
    kind: str,
    build_mq: MakeMQ,
    start_program: StartProgram,
    folder: Folder,
    seen: Callable[[], list[str]],
    unique: str,
) -> None:
    # Where the inbox would hide a second call.
    mq = build_mq(guarantee="at-least-once", client_options=CLIENT[kind])
    slow = start_program(
        E2E_GUARANTEE="at-least-once",
        RELIABLE_MQ_CLIENT_OPTIONS=json.dumps(CLIENT[kind]),
        RELIABLE_MQ_CONSUMER__IDLE_IN_TRANSACTION="60",
    )
    mq.publish_direct(unique, Task(number=1, gate="slow"), timeout=30)
    until(lambda: folder.notes("gate", pid=slow.pid), slow.said)
    folder.ignore_gates()
    with mq.running():
        enough = time.monotonic() + 1.5 * PATIENCE[kind]
        until(lambda: time.monotonic() > enough or len(folder.notes("call")) > 1)
        folder.open_gate("slow")
        until(lambda: seen() == ["1"], mq.status)
    assert len(folder.notes("call")) == 1
