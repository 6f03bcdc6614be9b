"""Consume, process, produce: each input has its output once, as a committed reader sees it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.adapters.kafka.copying import PATIENT, Copying, Program, settle
from tests.brokers import Kafka, variable
from tests.conftest import started
from tests.e2e.waiting import until

QUICK = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "500"}
WORK = 0.005
"""Seconds for each input: enough for something to happen in between."""


@pytest.fixture(scope="module")
def breakable(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """A broker that looks for transactions past their time-out more often than by default."""
    if os.environ.get(variable("kafka")):
        pytest.skip("a broker that somebody else runs cannot be killed from here")
    yield from started(request, Kafka(QUICK))


@pytest.fixture
def copying(own: Kafka, unique: str, tmp_path: Path) -> Iterator[Copying]:
    with ExitStack() as stack:
        yield Copying(own, unique, tmp_path, stack)


# --- kills ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["handler", "ended", "produced", "offsets", "committed"])
def test_a_killed_process_leaves_each_output_once(copying: Copying, point: str) -> None:
    with copying.start(point, at=2) as killed:
        copying.send(20)
        until(lambda: f"at {point}:" in killed.said() or copying.outputs(), killed.said)
        copying.send(20)
        killed.wait_for_death()
    if point in {"produced", "offsets"}:
        # There is something that a careless reader would see twice.
        left = len(copying.outputs("read_uncommitted"))
        assert left > len(copying.outputs())
    copying.start()
    copying.check()
    if point in {"produced", "offsets"}:
        assert len(copying.outputs("read_uncommitted")) > 40


def test_two_processes_that_are_killed_again_and_again_leave_each_output_once(
    copying: Copying,
) -> None:
    running = [copying.start(), copying.start()]
    for turn in range(4):
        _send_until_copied(copying, running[turn % 2])
        running[turn % 2].end()
        running[turn % 2] = copying.start()
    copying.send(40)
    copying.check()


def _send_until_copied(copying: Copying, running: Program) -> None:
    """Send inputs of which some are copied when it returns, and the last ones just sent."""
    before = len(copying.outputs())
    copying.send(10)
    until(lambda: len(copying.outputs()) > before, running.said)
    copying.send(30)


# --- fencing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["handler", "ended", "produced"])
def test_a_process_that_was_stopped_past_its_session_is_fenced_by_the_group(
    copying: Copying, point: str
) -> None:
    stopped = copying.start(point, how="SIGSTOP", options=PATIENT)
    copying.send(10)
    until(lambda: f"at {point}" in stopped.said(), stopped.said)
    copying.start(options=PATIENT)
    until(lambda: len(set(copying.outputs("read_uncommitted"))) == 10, stopped.said)
    stopped.signal(signal.SIGCONT)
    copying.check()
    copying.send(10)
    copying.check()


def test_a_transaction_of_a_stopped_process_is_over_when_it_comes_back(copying: Copying) -> None:
    stopped = copying.start("offsets", how="SIGSTOP")
    copying.send(10)
    until(lambda: "at offsets" in stopped.said(), stopped.said)
    copying.start()
    until(lambda: len(set(copying.outputs())) == 10, stopped.said)
    stopped.signal(signal.SIGCONT)
    copying.check()
    copying.send(10)
    copying.check()


# --- traffic --------------------------------------------------------------------------------------


def no_output_is_seen_twice(copying: Copying, count: int) -> bool:
    """Tell whether *count* outputs are there, none of them twice."""
    seen = copying.outputs()
    assert len(set(seen)) == len(seen)
    return len(seen) >= count


def has_handled(program: Program) -> bool:
    return "handled its first" in program.said()


def test_a_process_that_joins_and_leaves_under_traffic_leaves_each_output_once(
    copying: Copying,
) -> None:
    with copying.traffic():
        steady = copying.start(work=WORK)
        until(lambda: no_output_is_seen_twice(copying, 50), steady.said)
        for _ in range(2):
            guest = copying.start(work=WORK)
            until(partial(has_handled, guest), guest.said)
            seen = len(copying.outputs())
            until(partial(no_output_is_seen_twice, copying, seen + 20), guest.said)
            guest.leave()
    copying.check()


def test_a_member_with_a_lasting_name_is_killed_and_comes_back_to_its_partitions(
    copying: Copying,
) -> None:
    # A session longer than the test may take: nobody waits for its end.
    options = "session_timeout=300&transaction_timeout=3&static_id=one"
    copying.fill(200)
    with copying.start("produced", at=2, options=options, work=WORK) as killed:
        killed.wait_for_death()
    copying.start(options=options)
    copying.check()


# --- what cannot be handled -----------------------------------------------------------------------


def test_an_input_that_cannot_be_decoded_is_a_dead_letter_once_and_the_rest_goes_on(
    copying: Copying,
) -> None:
    copying.fill(20)
    copying.send_raw(b"no number")
    copying.fill(20)
    with copying.start("offsets", at=1) as killed:
        killed.wait_for_death()
    copying.start()
    copying.check()
    dead = f"{copying.prefix}-in.{copying.prefix}.dlq"
    settle(copying.server.bootstrap, dead)
    assert copying.bodies(dead) == [b"no number"]
