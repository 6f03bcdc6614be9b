"""Trap 8: Redis entries that a dead consumer took, or that a living one still works on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.e2e.conftest import MakeMQ, StartProgram
from tests.e2e.program import Folder, Task
from tests.e2e.shop import Order
from tests.e2e.waiting import until

LEASE = 6.0
"""Seconds after which this process takes over what another one has not renewed: by 1.25 of them."""

LONGER = 8.0
"""The lease of that other one, which renews after a third of it: so it may stall for a while.
Longer, because what is not renewed it would take over from itself, which nobody would see."""

pytestmark = pytest.mark.parametrize("kind", ["redis"], indirect=True)
Seen = Callable[[], list[str]]


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    return postgresql_url


def test_trap_08_what_a_killed_consumer_had_taken_is_handled_by_another(
    build_mq: MakeMQ, start_program: StartProgram, folder: Folder, seen: Seen, unique: str
) -> None:
    mq = build_mq()
    victim = start_program()
    for number in range(10):
        mq.publish_direct(unique, Task(number=number, gate="shut"), timeout=30)
    until(lambda: folder.notes("gate"), victim.said)
    victim.signal(signal.SIGKILL)
    assert victim.wait() == -9
    folder.ignore_gates()
    mq.run_until_idle(60)
    assert sorted(seen()) == [str(number) for number in range(10)]
    assert mq.status().groups[unique, "billing"].lag == 0


def test_trap_08_a_living_handler_keeps_its_entry_longer_than_a_lease(
    build_mq: MakeMQ, start_program: StartProgram, folder: Folder, seen: Seen, unique: str
) -> None:
    # Where the inbox would hide a second call.
    mq = build_mq(guarantee="at-least-once", consumer={"lease": LEASE})
    slow = start_program(
        E2E_GUARANTEE="at-least-once",
        RELIABLE_MQ_CONSUMER__LEASE=str(LONGER),
        RELIABLE_MQ_CONSUMER__IDLE_IN_TRANSACTION="60",
    )
    mq.publish_direct(unique, Task(number=1, gate="slow"), timeout=30)
    until(lambda: folder.notes("gate", pid=slow.pid), slow.said)
    folder.ignore_gates()
    with mq.running():
        enough = time.monotonic() + 1.5 * LEASE
        until(lambda: time.monotonic() > enough or len(folder.notes("call")) > 1)
        folder.open_gate("slow")
        until(lambda: mq.status().groups[unique, "billing"].lag == 0, mq.status)
    assert len(folder.notes("call")) == 1
    assert seen() == ["1"]


@pytest.mark.usefixtures("engine")
def test_trap_08_a_group_gets_what_was_there_before_it(make_mq: MakeMQ, unique: str) -> None:
    producer = make_mq()
    producer.topic(unique, Order)
    producer.declare()
    producer.publish_direct(unique, Order(id=1), timeout=30)
    got: list[int] = []
    consumer = make_mq()

    @consumer.handler(unique)
    def handle(order: Order) -> None:
        got.append(order.id)

    consumer.declare()
    consumer.run_until_idle(60)
    assert got == [1]
