"""Trap 14: the end of a process acknowledges what did not run, or cuts off what did."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.e2e.conftest import MakeMQ, StartProgram
from tests.e2e.program import Folder, Task
from tests.e2e.waiting import until

COUNT = 500
"""Enough that some are left when the process has noticed the signal."""


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    return postgresql_url


@pytest.mark.parametrize("kind", ["sql", "rabbitmq"], indirect=True)
def test_trap_14_sigterm_lets_what_runs_end_and_leaves_the_rest_to_others(
    build_mq: MakeMQ,
    start_program: StartProgram,
    folder: Folder,
    seen: Callable[[], list[str]],
    unique: str,
) -> None:
    # No process stands still here, so none need be noticed by its open transaction.
    mq = build_mq(ordered=True, consumer={"idle_in_transaction": 60})
    program = start_program(
        E2E_ORDERED="1",
        RELIABLE_MQ_CONSUMER__SHUTDOWN_TIMEOUT="60",
        RELIABLE_MQ_CONSUMER__IDLE_IN_TRANSACTION="60",
    )
    with mq.transaction():
        for number in range(COUNT):
            mq.publish(unique, Task(number=number, gate=None if number else "slow"), key="a")
    until(lambda: folder.notes("gate", pid=program.pid), program.said)
    program.signal(signal.SIGTERM)
    program.wait_for_log("SIGTERM: stopping")
    folder.open_gate("slow")
    assert program.wait() == 0, program.said()
    everything = [str(number) for number in range(COUNT)]
    done = seen()
    assert 0 < len(done) < COUNT
    assert done == everything[: len(done)]
    with mq.running():
        # RabbitMQ takes back later than the process ends: until then nothing is seen to be left.
        until(lambda: len(seen()) >= COUNT, mq.status, seconds=60)
    mq.run_until_idle(60)
    assert seen() == everything
    assert len(folder.notes("call")) == COUNT
