"""Trap 16: a failure is stored, and that was the last that anybody heard of it."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.e2e.brokers import Broker
from tests.e2e.command import as_json
from tests.e2e.conftest import MakeMQ, StartProgram
from tests.e2e.program import Folder, Task
from tests.e2e.waiting import until

pytestmark = pytest.mark.parametrize("kind", ["sql"], indirect=True)


def test_trap_16_what_failed_in_a_process_that_died_is_retried_by_another(
    build_mq: MakeMQ,
    start_program: StartProgram,
    folder: Folder,
    seen: Callable[[], list[str]],
    unique: str,
) -> None:
    mq = build_mq()
    victim = start_program()
    mq.publish_direct(unique, Task(number=1, fails=3), timeout=30)
    until(lambda: folder.notes("call", attempt=1), victim.said)
    victim.signal(signal.SIGKILL)
    assert victim.wait() == -9
    with mq.running():
        until(lambda: seen() == ["1"], mq.status)
    assert {call["attempt"] for call in folder.notes("call")} == {1, 2, 3, 4}


def test_trap_16_what_was_given_up_is_shown_with_its_cause_until_a_person_decides(
    broker: Broker, build_mq: MakeMQ, unique: str
) -> None:
    mq = build_mq()
    mq.publish_direct(unique, Task(number=1, fails=1000), timeout=30)
    with mq.running():
        until(mq.dead_letters, mq.status)
    (shown,) = as_json(broker, "dlq", "ls")
    assert (shown["topic"], shown["attempts"]) == (unique, 5)
    assert shown["cause"] == "OSError: an injected failure"
    groups = {one["topic"]: one for one in as_json(broker, "status")["groups"]}
    assert groups[unique]["dead_letters"] == 1
