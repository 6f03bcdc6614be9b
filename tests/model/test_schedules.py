"""Thousands of schedules of the whole chain, with every failure, and the promises after each.

``RMQ_MODEL_SCHEDULES=5000 pytest tests/model`` runs more of them than a plain run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from reliable_mq import crashpoints, operations
from reliable_mq.store.outbox.held import OutboxDesk
from tests.model.world import CELL, GROUPS, TOPIC, Crash, Fuse, Process, World, threadless
from tests.sweep.application import Job, effect, marker
from tests.sweep.invariants import Letter, Truth, missing, violations

SCHEDULES = int(os.environ.get("RMQ_MODEL_SCHEDULES", "100"))
STEPS = 40
ROUNDS = 400
"""Of the healed world, after which what still waits is stuck."""

PASSED = sorted(
    point
    for point in crashpoints.POINTS
    if point.partition(".")[0]
    in ("relay", "consumer", "batch", "parking", "failure", "retry", "replay")
)
GROUP = st.sampled_from(GROUPS)
PROCESS = st.integers(0, 1)
JOBS = st.lists(
    st.fixed_dictionaries(
        {"key": st.sampled_from(["a", "b", None]), "fails": st.sampled_from([0, 0, 0, 1, 2, 99])},
        optional={"rejected": st.just(True)},
    ),
    min_size=1,
    max_size=4,
)
FAULT = st.one_of(
    st.none(),
    st.none(),
    st.builds(Fuse, st.sampled_from(PASSED), st.integers(1, 3)),
    st.lists(st.booleans(), min_size=1, max_size=2),
)
"""Nothing, a death, or commits that fail (True: although they were applied)."""


class Schedule(RuleBasedStateMachine):
    """Two processes, producers and a person, in any order."""

    world: ClassVar[World]

    @initialize()
    def begin(self) -> None:
        self.world.empty()
        self.processes = [Process(self.world), Process(self.world)]
        self.jobs: dict[int, Job] = {}
        self.accepted: set[int] = set()
        self.replayed: set[int] = set()

    # --- the application ------------------------------------------------------------------------

    @rule(jobs=JOBS, commits=st.sampled_from([True, True, True, False]), fault=FAULT)
    def publish(self, jobs: list[dict[str, Any]], commits: bool, fault: Any) -> None:
        made = [Job(number=len(self.jobs) + n, **values) for n, values in enumerate(jobs)]
        self.jobs.update({job.number: job for job in made})
        with self._faulty(fault):
            if self.world.produce(made, commits=commits):
                self.accepted.update(job.number for job in made)

    # --- the processes --------------------------------------------------------------------------

    @rule(process=PROCESS, fault=FAULT)
    def send(self, process: int, fault: Any) -> None:
        self._step(process, self.processes[process].send, fault)

    @rule(process=PROCESS, name=GROUP, fault=FAULT)
    def take_in(self, process: int, name: str, fault: Any) -> None:
        self._step(process, partial(self.processes[process].take_in, name), fault)

    @rule(process=PROCESS, name=GROUP, fault=FAULT)
    def work(self, process: int, name: str, fault: Any) -> None:
        self._step(process, partial(self.processes[process].work, name), fault)

    @rule(process=PROCESS, fault=FAULT)
    def retry(self, process: int, fault: Any) -> None:
        self._step(process, self.processes[process].retry, fault)

    @rule(process=PROCESS, name=GROUP, fault=FAULT)
    def go_through(self, process: int, name: str, fault: Any) -> None:
        """Everything in its usual order, so that schedules get somewhere."""
        one = self.processes[process]

        def all_of_it() -> None:
            one.do(one.send)
            one.do(partial(one.take_in, name))
            one.do(one.retry)
            for _ in range(3):
                one.do(partial(one.work, name))
            one.do(partial(one.take_in, name))

        self._step(process, all_of_it, fault)

    @rule(process=PROCESS)
    def die(self, process: int) -> None:
        self._replace(process)

    @rule(by=st.sampled_from([0.1, 0.4, 1.0, 5.0]))
    def let_time_pass(self, by: float) -> None:
        self.world.clock.advance(by)

    # --- the broker -----------------------------------------------------------------------------

    @rule(times=st.integers(1, 4), stored=st.booleans())
    def lose_confirmations(self, times: int, stored: bool) -> None:
        self.world.broker.unknown(times, stored=stored)

    @rule(applied=st.booleans())
    def lose_an_acknowledgement(self, applied: bool) -> None:
        self.world.broker.lose_acks(applied=applied)

    @rule(refuses=st.booleans())
    def refuse(self, refuses: bool) -> None:
        (self.world.broker.refuse if refuses else self.world.broker.accept)(TOPIC)

    @rule(up=st.booleans())
    def reach(self, up: bool) -> None:
        (self.world.broker.up if up else self.world.broker.down)()

    @rule(times=st.integers(0, 1))
    def duplicate(self, times: int) -> None:
        self.world.broker.duplicate(times)

    @rule()
    def rebalance(self) -> None:
        self.world.broker.revoke()

    # --- a person -------------------------------------------------------------------------------

    @rule()
    def release_held(self) -> None:
        desk = OutboxDesk(self.world.store, discard_after=0.0)
        for entry in desk.entries(held=True):
            desk.retry(entry.id)

    @rule(fault=FAULT)
    def replay(self, fault: Any) -> None:
        letters = self.world.mq.dead_letters()
        if letters:
            self.replayed.add(Job.model_validate_json(letters[0].message.body).number)
            with self._faulty(fault):
                self._quietly(partial(operations.replay, self.world.store, letters[0].id))

    # --- faults ---------------------------------------------------------------------------------

    def _step(self, process: int, step: Callable[[], object], fault: Any) -> None:
        with self._faulty(fault):
            try:
                self.processes[process].do(step)
            except Crash:
                self._replace(process)

    def _quietly(self, step: Callable[[], object]) -> None:
        try:
            self.processes[0].do(step)
        except Crash:
            return

    def _replace(self, process: int) -> None:
        self.processes[process].die()
        self.processes[process] = Process(self.world)

    def _faulty(self, fault: Any) -> Any:
        return _armed(self.world, fault)

    # --- the end --------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "processes"):
            return
        self.world.heal()
        truth = self._settle()
        # Nothing may have been published at all: that alone is no fault here.
        broken = [line for line in violations(truth) if not line.startswith("I14")]
        assert broken == []

    def _settle(self) -> Truth:
        for _ in range(ROUNDS):
            self.release_held()
            self._round()
            truth = self._truth()
            if not truth.waiting and not missing(truth):
                return truth
            self.world.clock.advance(0.5)
        return self._truth()

    def _round(self) -> None:
        for one in self.processes:
            one.do(one.send)
            for name in GROUPS:
                one.do(partial(one.take_in, name))
            one.do(one.retry)
            for name in GROUPS:
                while one.work(name):
                    pass
                one.do(partial(one.take_in, name))

    def _truth(self) -> Truth:
        world = self.world
        status = world.mq.status()
        waiting = sum((one.lag or 0) + one.retries for one in status.groups.values())
        topic = f"{TOPIC}.ordered.dlq"
        copies = {one.id: one.body for one in world.broker.published(topic)}
        return Truth(
            committed=frozenset(world.numbers(marker)),
            accepted=frozenset(self.accepted),
            jobs=self.jobs,
            bodies={number: job.model_dump_json().encode() for number, job in self.jobs.items()},
            effects={
                name: world.numbers(effect, effect.c.consumer_group == name) for name in GROUPS
            },
            dead=self._letters(),
            calls=[line for line in world.calls if line["number"] not in self.replayed],
            waiting=waiting + status.outbox.pending + status.outbox.held,
            graves=[Job.model_validate_json(body).number for body in copies.values()],
            replayed=frozenset(self.replayed),
        )

    def _letters(self) -> dict[str, list[Letter]]:
        found: dict[str, list[Letter]] = {name: [] for name in GROUPS}
        for letter in self.world.mq.dead_letters(limit=1000):
            number = Job.model_validate_json(letter.message.body).number
            found[letter.group].append(Letter.of(letter, number))
        return found


class _armed:  # noqa: N801 - reads as a block
    """A fault for the time of the block."""

    def __init__(self, world: World, fault: Any) -> None:
        self._world = world
        self._fault = fault

    def __enter__(self) -> None:
        if isinstance(self._fault, Fuse):
            crashpoints._fuse = self._fault  # type: ignore[assignment]
        elif self._fault:
            self._world.commit_faults[:] = self._fault

    def __exit__(self, *_: object) -> None:
        crashpoints.arm(None)
        self._world.commit_faults.clear()


@pytest.fixture
def world(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    caplog.set_level(60)
    world = World(tmp_path)
    with threadless(world):
        yield world
    world.mq.close()


@pytest.mark.slow
@pytest.mark.timeout(0 if SCHEDULES > 1000 else 1800)
def test_no_schedule_breaks_a_promise(world: World) -> None:
    machine = type("Machine", (Schedule,), {"world": world})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=SCHEDULES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_truth_of_a_quiet_world_is_complete(world: World) -> None:
    """Without faults everything ends: the machine is not blind for want of work."""
    machine = type("Machine", (Schedule,), {"world": world})()
    machine.begin()
    machine.publish([{"key": "a", "fails": 1}, {"key": "a"}, {"rejected": True}], True, None)
    machine.world.heal()
    truth = machine._settle()
    assert violations(truth) == []
    assert {name: sorted(numbers) for name, numbers in truth.effects.items()} == {
        name: [0, 1] for name in GROUPS
    }
    assert truth.buried("single") == {2}
    assert CELL
