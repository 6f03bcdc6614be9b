"""One cell: a process is killed at a point, another one goes on, and then everything must hold."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, create_engine, select, update

from reliable_mq.service import Service
from reliable_mq.store.codec import pack_headers
from reliable_mq.store.outbox.held import OutboxDesk
from tests.e2e.waiting import until
from tests.progress import Progress
from tests.sweep import application as app
from tests.sweep.application import History, Job, Place
from tests.sweep.forking import Victims, log_of
from tests.sweep.invariants import Letter, Truth, missing, violations
from tests.sweep.scenarios import Before, Meanwhile, Scenario

DEADLINE = 600.0
"""Seconds for a step that takes one or two where the machine has time for it."""
STILL = 120.0
"""Seconds without any progress after which it is looked at what is left."""
UNREADABLE = 3
"""Number of the job whose row is spoilt."""

GROUPS = {
    "plain": ("ordered", "batch"),
    "least": ("least",),
    "most": ("most",),
    "exactly": ("reader",),
}


@dataclass
class Report:
    """What came of a cell."""

    scenario: Scenario
    messages: int = 0
    killed: bool = False
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Cell:
    """The application of one cell, and what is known of it."""

    def __init__(self, scenario: Scenario, place: Place) -> None:
        self.scenario = scenario
        self.place = place
        self.jobs = app.workload(slow=scenario.slow, healthy=scenario.healthy)
        self.mq = app.build(place)
        self.history = History(Path(place.folder))
        self.accepted: set[int] = set()
        self.replayed: set[int] = set()
        self.discarded: set[int] = set()

    def run(self, victims: Victims) -> Report:
        """Kill, go on, check."""
        report = Report(self.scenario)
        began = time.monotonic()
        try:
            with self.mq:
                self.mq.declare()
                self._prepare()
                report.violations += self._kill(victims)
                report.killed = not report.violations
                self._go_on()
                truth = self.truth()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this cell's result
            report.violations.append(f"{type(error).__name__}: {error}")
        else:
            report.messages = len(truth.committed)
            report.violations += violations(truth)
        report.seconds = time.monotonic() - began
        return report

    # --- before -------------------------------------------------------------------------------

    def _prepare(self) -> None:
        app.publish(self.mq, self.place, self.jobs)
        self.accepted = {job.number for job in self.jobs}
        self._roll_back()
        before = self.scenario.before
        if before in (Before.HOLD, Before.HELD):
            self._spoil()
        if before is Before.HELD:
            with self.mq.running(consume=False):
                self._wait_until_held()
            self._mend()
        if before is Before.RELAY:
            self.mq.run_until_idle(DEADLINE, consume=False)
        if before in (Before.HANDLE, Before.REPLAY):
            self._settle()
        if before is Before.REPLAY:
            self._replay_all()
        if self.scenario.role in ("replay", "discard"):
            self._remember_first()

    def _roll_back(self) -> None:
        with self.mq.transaction() as session:
            jobs = [Job(number=number) for number in app.ROLLED_BACK]
            app.write(self.mq, session, self.place, jobs)
            session.flush()
            session.rollback()

    def _of_unreadable(self, table: Any) -> ColumnElement[bool]:
        body = self.jobs[UNREADABLE].model_dump_json().encode()
        return table.c.body == body  # type: ignore[no-any-return]

    def _spoil(self) -> None:
        outbox = self.mq.store.tables.outbox
        with self.mq.store.transaction() as connection:
            spoil = update(outbox).where(self._of_unreadable(outbox)).values(headers=b"\xff")
            assert connection.execute(spoil).rowcount == 1

    def _mend(self) -> None:
        held = self.mq.store.tables.outbox_held
        with self.mq.store.transaction() as connection:
            headers = pack_headers(app.HEADERS)
            mend = update(held).where(self._of_unreadable(held)).values(headers=headers)
            assert connection.execute(mend).rowcount == 1

    def _wait_until_held(self) -> None:
        until(lambda: self.mq.status().outbox.held == 1, "a held row", seconds=DEADLINE)

    def _replay_all(self) -> None:
        for letter in self.mq.dead_letters(self.place.cell):
            self.replayed.add(_number(letter.message.body))
            assert self.mq.replay(letter.id)

    def _remember_first(self) -> None:
        number = _number(self.mq.dead_letters(self.place.cell)[0].message.body)
        {"replay": self.replayed, "discard": self.discarded}[self.scenario.role].add(number)

    # --- the kill -----------------------------------------------------------------------------

    def _kill(self, victims: Victims) -> list[str]:
        scenario = self.scenario
        code = victims.run(
            self.place,
            scenario.role,
            f"{scenario.point}:{scenario.passage}",
            meanwhile=self._meanwhile,
            seconds=DEADLINE,
        )
        said = Path(log_of(self.place)).read_text(errors="replace")
        if code == -signal.SIGKILL and f"RMQ_CRASH: killed at {scenario.point}\n" in said:
            return []
        tail = said[-1500:]
        return [f"I14: not killed at {scenario.point}, its exit code was {code}: {tail}"]

    def _meanwhile(self, pid: int) -> None:
        what = self.scenario.meanwhile
        if what is Meanwhile.NOTHING:
            return
        known = len(self.history.lines("call"))
        until(lambda: len(self.history.lines("call")) > known + 1, "its handlers run")
        if what is Meanwhile.SIGTERM:
            os.kill(pid, signal.SIGTERM)
            return
        with self.mq.running():
            until(lambda: not _lives(pid), "its end", seconds=DEADLINE)

    # --- after --------------------------------------------------------------------------------

    def _go_on(self) -> None:
        if self.scenario.before is Before.HOLD:
            with self.mq.running():
                self._wait_until_held()
            self._mend()
        if self.scenario.before in (Before.HOLD, Before.HELD):
            desk = OutboxDesk(self.mq.store, discard_after=0.0)
            for entry in desk.entries(held=True):
                desk.retry(entry.id)
        if self.scenario.role == "discard":
            self._discard_again()
        self._settle()

    def _discard_again(self) -> None:
        for letter in self.mq.dead_letters(self.place.cell):
            if _number(letter.message.body) in self.discarded:
                assert self.mq.discard(letter.id)

    def _settle(self) -> None:
        """Run until nothing waits and nothing is missing; the checks say what then still is."""
        with self.mq.running() as service:
            progress = Progress(STILL)
            while (left := self._left(service)) and not progress.is_over:
                progress.note(left)
                time.sleep(0.05)

    def _left(self, service: Service) -> int:
        busy = 0
        try:
            service.wait_idle(5.0)
        except TimeoutError:
            busy = 1
        return max(busy, self._waiting() or sum(map(len, missing(self.truth()).values())))

    def _waiting(self) -> int:
        status = self.mq.status()
        groups = status.groups.values()
        left = sum((group.lag or 0) + group.retries for group in groups)
        return left + status.outbox.pending + status.outbox.held

    def truth(self) -> Truth:
        """Read everything."""
        kind = self.scenario.kind
        done = self._effects()
        groups = GROUPS[kind]
        graves = done.get("graves", [])
        exactly = kind == "exactly"
        lossy = self.scenario.point == "ack_first.settled"
        return Truth(
            committed=frozenset(self._numbers(app.marker)),
            accepted=frozenset(self.accepted),
            jobs=self._jobs(),
            bodies={number: _body(job) for number, job in self._jobs().items()},
            effects={group: done.get(group, []) for group in groups},
            dead={group: [] for group in groups} if exactly else self._letters(groups),
            calls=[
                line
                for line in sorted(
                    self.history.lines("call") + self.history.lines("fail"),
                    key=lambda line: float(line["t"]),
                )
                if line["number"] not in self.replayed
            ],
            waiting=self._waiting(),
            graves=[] if exactly else graves,
            replayed=frozenset(self.replayed),
            discarded=frozenset(graves if exactly else self.discarded),
            may_lose=frozenset({"most"} if lossy else ()),
            may_repeat=frozenset({"least"}),
        )

    def _jobs(self) -> dict[int, Job]:
        more = [Job(number=number) for number in (*app.ROLLED_BACK, *app.UNCOMMITTED)]
        return {job.number: job for job in [*self.jobs, *more]}

    def _numbers(self, table: Any, *conditions: Any) -> list[int]:
        query = select(table.c.number).where(table.c.cell == self.place.cell, *conditions)
        with self.mq.store.engine.connect() as connection:
            return list(connection.scalars(query.order_by(table.c.id)))

    def _effects(self) -> dict[str, list[int]]:
        names = ("ordered", "batch", "graves", "reader")
        found = {
            group: self._numbers(app.effect, app.effect.c.consumer_group == group)
            for group in names
        }
        for line in self.history.lines("done"):
            found.setdefault(line["group"], []).append(line["number"])
        return found

    def _letters(self, groups: tuple[str, ...]) -> dict[str, list[Letter]]:
        found: dict[str, list[Letter]] = {group: [] for group in groups}
        for letter in self.mq.dead_letters(self.place.cell, limit=1000):
            number = _number(letter.message.body)
            found[letter.group].append(Letter.of(letter, number))
        return found


def _number(body: bytes) -> int:
    return int(json.loads(body)["number"])


def _body(job: Job) -> bytes:
    return job.model_dump_json().encode()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def make_tables(database_url: str) -> None:
    """Make the application's own tables."""
    engine = create_engine(database_url)
    app.metadata.create_all(engine)
    engine.dispose()


def run(scenario: Scenario, place: Place, victims: Victims) -> Report:
    """Run one cell."""
    return Cell(scenario, place).run(victims)
