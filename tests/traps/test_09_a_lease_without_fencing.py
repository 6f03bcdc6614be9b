"""Trap 9: a process that was stopped goes on as if what it held were still its own."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from reliable_mq.testing.contract import AdapterContract
from tests.contract.test_sql import OnSql
from tests.e2e.conftest import MakeMQ, StartProgram
from tests.e2e.program import Folder, Task
from tests.e2e.waiting import until


class TestTheBrokersBooks(OnSql):
    """A stopped member of a group acknowledges, once it goes on, what another has by now."""

    column = None  # type: ignore[assignment]

    @pytest.fixture
    def database_url(self, sqlite_url: str) -> str:
        return sqlite_url

    test_trap_09_a_stopped_owner_is_replaced_and_changes_nothing_when_it_goes_on = (
        AdapterContract.test_a_stopped_owner_is_replaced_and_changes_nothing_when_it_goes_on
    )


@pytest.mark.parametrize("kind", ["redis", "kafka"], indirect=True)
class TestTheHandlersEffects:
    @pytest.fixture
    def database_url(self, postgresql_url: str) -> str:
        return postgresql_url

    def test_trap_09_a_process_stopped_in_its_handler_adds_no_second_effect(
        self,
        build_mq: MakeMQ,
        start_program: StartProgram,
        folder: Folder,
        seen: Callable[[], list[str]],
        unique: str,
    ) -> None:
        mq = build_mq(ordered=True)
        zombie = start_program(E2E_ORDERED="1")
        mq.publish_direct(unique, Task(number=1, gate="stopped"), key="a", timeout=30)
        until(lambda: folder.notes("gate", pid=zombie.pid), zombie.said)
        zombie.signal(signal.SIGSTOP)
        mq.publish_direct(unique, Task(number=2), key="a", timeout=30)
        folder.ignore_gates()
        with mq.running():
            until(lambda: seen() == ["1", "2"], mq.status)
            folder.open_gate("stopped")
            zombie.signal(signal.SIGCONT)
            until(lambda: folder.notes("gate-passed", pid=zombie.pid))
            zombie.signal(signal.SIGTERM)
            assert zombie.wait() == 0
        assert seen() == ["1", "2"]
