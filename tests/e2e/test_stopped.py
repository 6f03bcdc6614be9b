"""A process stopped inside its handler delays its key by stated limits, and no more."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from reliable_mq import ReliableMQ
from tests.e2e.conftest import MakeMQ, StartProgram
from tests.e2e.processes import Program
from tests.e2e.program import Folder, Task
from tests.e2e.waiting import until

pytestmark = pytest.mark.chaos

NOTICED = {"rabbitmq": 3 * 4.0, "kafka": 1.5, "redis": 2 * 1.5, "sql": 2 * 1.5}
"""After this many seconds at most the others know, as docs/guarantees.md has it."""

IDLE = 2.0
"""The limit for a transaction that is silent, which the stopped process may be in."""

MARGIN = 10.0
"""What a machine under test may be slow."""

Seen = Callable[[], list[str]]


@pytest.fixture
def database_url(database: str, request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{database}_url")
    return url


def send(mq: ReliableMQ, topic: str, task: Task, *, key: str) -> None:
    """Publish, patiently."""
    mq.publish_direct(topic, task, key=key, timeout=30)


def at_rest(mq: ReliableMQ, topic: str) -> bool:
    group = mq.status().groups[topic, "billing"]
    return (group.lag, group.retries) == (0, 0)


def take_over(mq: ReliableMQ, seen: Seen, number: str, kind: str) -> float:
    """Wait until this process left the effect of *number*; return the seconds it took."""
    started = time.monotonic()
    until(lambda: number in seen(), mq.status, seconds=NOTICED[kind] + IDLE + MARGIN)
    return time.monotonic() - started


def let_the_zombie_finish(zombie: Program, folder: Folder) -> None:
    """Resume it, let its handler return, and wait until it has drawn the consequences."""
    folder.open_gate("stopped")
    zombie.signal(signal.SIGCONT)
    until(lambda: folder.notes("gate-passed", pid=zombie.pid))
    zombie.signal(signal.SIGTERM)
    assert zombie.wait() == 0


@pytest.mark.parametrize(
    ("kind", "database"),
    [
        ("sql", "postgresql"),
        ("sql", "mariadb"),
        ("redis", "postgresql"),
        ("redis", "mariadb"),
        ("rabbitmq", "postgresql"),
        ("kafka", "postgresql"),
    ],
    indirect=["kind"],
)
class TestStopped:
    def test_on_a_delivery(
        self,
        build_mq: MakeMQ,
        start_program: StartProgram,
        folder: Folder,
        unique: str,
        seen: Seen,
        kind: str,
    ) -> None:
        mq = build_mq(ordered=True)
        zombie = start_program(E2E_ORDERED="1")
        send(mq, unique, Task(number=1, gate="stopped"), key="a")
        until(lambda: folder.notes("gate", pid=zombie.pid), zombie.said)
        zombie.signal(signal.SIGSTOP)
        send(mq, unique, Task(number=2), key="a")
        send(mq, unique, Task(number=3), key="b")
        folder.ignore_gates()
        with mq.running():
            take_over(mq, seen, "1", kind)
            until(lambda: sorted(seen()) == ["1", "2", "3"], mq.status)
            assert seen().index("1") < seen().index("2"), "the key kept its order"
            let_the_zombie_finish(zombie, folder)
            until(lambda: at_rest(mq, unique), mq.status)
        assert sorted(seen()) == ["1", "2", "3"]
        assert mq.dead_letters() == []
        assert [note["attempt"] for note in folder.notes("call", number=1)] == [1, 1]

    def test_on_a_retry(
        self,
        build_mq: MakeMQ,
        start_program: StartProgram,
        folder: Folder,
        unique: str,
        seen: Seen,
        kind: str,
    ) -> None:
        mq = build_mq(ordered=True)
        zombie = start_program(E2E_ORDERED="1")
        send(mq, unique, Task(number=1, fails=1, gate="stopped"), key="a")
        until(lambda: folder.notes("gate", pid=zombie.pid, attempt=2), zombie.said)
        zombie.signal(signal.SIGSTOP)
        send(mq, unique, Task(number=2), key="a")
        folder.ignore_gates()
        with mq.running():
            take_over(mq, seen, "1", kind)
            until(lambda: seen() == ["1", "2"], mq.status)
            let_the_zombie_finish(zombie, folder)
            until(lambda: at_rest(mq, unique), mq.status)
        assert seen() == ["1", "2"]
        assert mq.dead_letters() == []
