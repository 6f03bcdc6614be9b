"""What each guarantee keeps when its process is killed in the middle, for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine

from reliable_mq import ReliableMQ
from tests.e2e.brokers import Broker
from tests.e2e.shop import Order
from tests.e2e.waiting import until

MakeMQ = Callable[..., ReliableMQ]
Seen = Callable[[], list[str]]
Spawn = Callable[..., subprocess.Popen[bytes]]

SCRIPT = Path(__file__).with_name("process.py")
ORDERS = 5


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    """A stopped process must be ended by the database, which SQLite cannot."""
    return postgresql_url


@pytest.fixture
def spawn(broker: Broker, unique: str, tmp_path: Path) -> Iterator[Spawn]:
    """Start consuming processes; what is left of them is killed."""
    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "process.log").open("ab"))
        environment = {
            **os.environ,
            "PYTHONPATH": str(SCRIPT.parents[2]),
            "E2E_ONCE": str(tmp_path / "once"),
            "E2E_TOPIC": unique,
            "RELIABLE_MQ_BROKER_URL": broker.url,
            "RELIABLE_MQ_DATABASE_URL": broker.database_url,
            "RELIABLE_MQ_GROUP": "billing",
            "RELIABLE_MQ_CONSUMER__LEASE": "2",
            "RELIABLE_MQ_CONSUMER__IDLE_IN_TRANSACTION": "3",
        }

        def start(behaviour: str, guarantee: str = "effectively-once") -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, str(SCRIPT), behaviour, guarantee],
                env=environment,
                stdout=log,
                stderr=log,
            )
            stack.callback(end, process)
            return process

        yield start


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


@pytest.fixture
def send(make_mq: MakeMQ, unique: str, engine: Engine) -> Callable[[], ReliableMQ]:
    """Publish the orders of one key once the consumer has declared the topic."""

    def publish() -> ReliableMQ:
        mq = make_mq()
        mq.declare()
        with mq.transaction():
            for number in range(1, ORDERS + 1):
                mq.publish(unique, Order(id=number), key="ann")
        with mq.running(consume=False):
            until(lambda: mq.status().outbox.pending == 0, mq.status)
        return mq

    return publish


Send = Callable[[], ReliableMQ]


@pytest.mark.parametrize("behaviour", ["kill", "kill-before-ack"])
def test_effectively_once_survives_a_kill_with_each_effect_once_and_in_order(
    spawn: Spawn, send: Send, seen: Seen, behaviour: str
) -> None:
    victim = spawn(behaviour)
    send()
    assert victim.wait(60) == -signal.SIGKILL
    spawn("go on")
    until(lambda: len(seen()) >= ORDERS, seen)
    assert seen() == ["1", "2", "3", "4", "5"]


def test_at_least_once_repeats_what_was_handled_and_not_acknowledged(
    spawn: Spawn, send: Send, seen: Seen
) -> None:
    victim = spawn("kill-before-ack", "at-least-once")
    send()
    assert victim.wait(60) == -signal.SIGKILL
    spawn("go on", "at-least-once")
    until(lambda: set(seen()) == {"1", "2", "3", "4", "5"} and len(seen()) > ORDERS, seen)


def test_at_most_once_loses_what_a_kill_interrupts_and_repeats_nothing(
    spawn: Spawn, send: Send, seen: Seen
) -> None:
    victim = spawn("kill", "at-most-once")
    mq = send()
    assert victim.wait(60) == -signal.SIGKILL
    spawn("go on", "at-most-once")
    until(lambda: all(one.lag == 0 for one in mq.status().groups.values()), mq.status)
    assert "1" not in seen()
    assert max(Counter(seen()).values(), default=0) <= 1
