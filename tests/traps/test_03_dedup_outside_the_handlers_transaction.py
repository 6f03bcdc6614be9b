"""Trap 3: a message is remembered as seen although its handler did not succeed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.conftest import MakeMQ, StartProgram
from tests.e2e.program import IN_HANDLER, Folder, Task


@pytest.fixture
def database_url(database: str, request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{database}_url")
    return url


@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"])
@pytest.mark.parametrize("kind", ["sql"], indirect=True)
def test_trap_03_a_message_whose_handler_died_is_new_when_it_comes_again(
    build_mq: MakeMQ,
    start_program: StartProgram,
    folder: Folder,
    seen: Callable[[], list[str]],
    unique: str,
) -> None:
    # No process stands still here, so none need be noticed by its open transaction.
    mq = build_mq(consumer={"idle_in_transaction": 60})
    victim = start_program(E2E_CRASH=IN_HANDLER)
    mq.publish_direct(unique, Task(number=1, crash=True), timeout=30)
    assert victim.wait() == -9
    counts = mq.run_until_idle(60)
    assert (counts.handled, counts.duplicates) == (1, 0)
    assert seen() == ["1"]
    assert len(folder.notes("call")) == 2
