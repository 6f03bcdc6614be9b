"""Consumers die with deliveries in hand, for sure: what the random schedules leave to chance."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.brokers import Server
from tests.nemesis.faults import Fault, Schedule
from tests.nemesis.members import Crew, Member
from tests.nemesis.truth import history_lines

IN_HAND = 20
"""Deliveries that consumers have at least when they are killed."""
_PATIENCE = 120.0
_ACKNOWLEDGED_AT_ONCE = 1.0
"""Seconds in which somebody would acknowledge who does not wait for his commit."""


class Ambush(Schedule):
    """All consumers are killed while the broker serves them, and the database does not answer.

    Until then nothing of what they have received can have been committed.
    """

    def __init__(self, seed: int, folder: Path, crew: Crew, database: Server) -> None:
        super().__init__(seed, folder)
        self._folder = folder
        self._crew = crew
        self._database = database

    def faults(self) -> Mapping[str, Fault]:
        """Return that one."""
        return {"consumers killed with deliveries in hand": self._kill_all}

    def _kill_all(self) -> None:
        consumers = list(self._crew.of("consumer"))
        # One that is still at its start would wait for the database, and receive nothing.
        self._await(lambda _: self._at_work(consumers), len(consumers))
        for one in consumers:
            one.pause()
        self._await(lambda since: self._noted("publish", "sent", since))
        self._database.pause()
        try:
            for one in consumers:
                one.resume()
            self._await(lambda since: self._noted("receive", "numbers", since))
            self.over.wait(_ACKNOWLEDGED_AT_ONCE)
            for one in consumers:
                one.kill()
        finally:
            self._database.resume()
        for one in consumers:
            one.restart()

    def _await(self, count: Callable[[float], int], enough: int = IN_HAND) -> None:
        """Wait until *enough* was noted from now on."""
        since = time.monotonic()
        while (found := count(since)) < enough:
            if time.monotonic() > since + _PATIENCE:
                raise TimeoutError(f"{found} instead of {enough} after {_PATIENCE:g} s")
            self.over.wait(0.1)

    def _at_work(self, members: Sequence[Member]) -> int:
        """Return how many of *members* have received something."""
        busy = {line["pid"] for line in history_lines(self._folder) if line["what"] == "receive"}
        return sum(one.pid in busy for one in members)

    def _noted(self, what: str, messages: str, since: float) -> int:
        lines = (line for line in history_lines(self._folder) if line["what"] == what)
        return sum(len(line[messages]) for line in lines if line["t"] > since)
