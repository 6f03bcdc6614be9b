"""SIGTERM: what runs may end, what does not end in time comes again, and nothing is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from reliable_mq import ReliableMQ
from tests.e2e.brokers import Broker, patient
from tests.e2e.conftest import MakeMQ, StartProgram
from tests.e2e.processes import Program
from tests.e2e.program import Folder, Task
from tests.e2e.waiting import until, until_handed_back

Seen = Callable[[], list[str]]

PATIENT = {
    "RELIABLE_MQ_CONSUMER__SHUTDOWN_TIMEOUT": "60",
    "RELIABLE_MQ_CONSUMER__IDLE_IN_TRANSACTION": "60",
}


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    return postgresql_url


def send(mq: ReliableMQ, topic: str, *tasks: Task) -> None:
    for task in tasks:
        mq.publish_direct(topic, task, key="a", timeout=30)


def wait_at_the_gate(program: Program, folder: Folder) -> None:
    until(lambda: folder.notes("gate", pid=program.pid), program.said)


def test_sigterm_lets_a_slow_handler_end_before_the_process_does(
    build_mq: MakeMQ,
    start_program: StartProgram,
    folder: Folder,
    unique: str,
    seen: Seen,
) -> None:
    mq = build_mq(ordered=True)
    program = start_program(E2E_ORDERED="1", **PATIENT)
    send(mq, unique, Task(number=1, gate="slow"), Task(number=2))
    wait_at_the_gate(program, folder)
    program.signal(signal.SIGTERM)
    program.wait_for_log("SIGTERM: stopping")
    folder.open_gate("slow")
    assert program.wait() == 0, program.said()
    assert seen()[:1] == ["1"]
    # The second may have been begun before the stop.
    until_handed_back(mq, unique, 2 - len(seen()))
    mq.run_until_idle(60)
    assert seen() == ["1", "2"]
    assert [note["attempt"] for note in folder.notes("call")] == [1, 1]


def test_a_handler_that_outlasts_the_shutdown_timeout_is_handled_elsewhere(
    build_mq: MakeMQ,
    start_program: StartProgram,
    folder: Folder,
    unique: str,
    seen: Seen,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It leaves politely, so nobody waits for these. With less, a process that stands still for a
    # moment loses what it holds before it can say that it is unfinished.
    longer = {
        "RELIABLE_MQ_CONSUMER__LEASE": "30",
        "RELIABLE_MQ_BROKER_URL": patient(broker),
    }
    for name, value in longer.items():
        monkeypatch.setenv(name, value)
    mq = build_mq(ordered=True)
    program = start_program(E2E_ORDERED="1", **longer)
    send(mq, unique, Task(number=1, gate="shut"), Task(number=2))
    wait_at_the_gate(program, folder)
    program.signal(signal.SIGTERM)
    assert program.wait() == 0, program.said()
    assert "unfinished; they will be delivered again" in program.said()
    assert seen() == []
    folder.ignore_gates()
    until_handed_back(mq, unique, 2)
    mq.run_until_idle(60)
    assert seen() == ["1", "2"]
    assert {note["attempt"] for note in folder.notes("call")} == {1}, "no attempt was counted"
    assert mq.dead_letters() == []


def test_a_second_signal_ends_the_process_at_once_and_loses_nothing(
    build_mq: MakeMQ,
    start_program: StartProgram,
    folder: Folder,
    unique: str,
    seen: Seen,
) -> None:
    mq = build_mq(ordered=True)
    program = start_program(E2E_ORDERED="1", **PATIENT)
    send(mq, unique, Task(number=1, gate="shut"), Task(number=2))
    wait_at_the_gate(program, folder)
    program.signal(signal.SIGTERM)
    program.wait_for_log("SIGTERM: stopping")
    program.signal(signal.SIGTERM)
    assert program.wait() == -signal.SIGTERM
    folder.ignore_gates()
    until_handed_back(mq, unique, 2)
    mq.run_until_idle(60)
    assert seen() == ["1", "2"]
    assert mq.dead_letters() == []
