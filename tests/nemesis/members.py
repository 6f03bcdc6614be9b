"""The processes of the application, from the side of the nemesis."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tests.nemesis.application import Arena
from tests.nemesis.clocks import Clocks

SCRIPT = Path(__file__).with_name("member.py")
ROLES = ("relay", "relay", "consumer", "consumer", "consumer", "producer", "producer", "replayer")
SPARED = ("relay", "consumer")
"""Of each of these roles one process lives from beginning to end: the soak is measured on it."""
STOP_TIMEOUT = 90.0
LONG = 6000
"""Characters of the log that are shown."""


class Member:
    """One process after another in the same role."""

    def __init__(self, crew: Crew, role: str, *, spared: bool = False) -> None:
        self._crew = crew
        self.role = role
        self.spared = spared
        self._process = crew.launch(role)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended by itself; None while it lives."""
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Begin the next life."""
        self._process = self._crew.launch(self.role)

    def pause(self) -> None:
        """SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int | None:
        """Return the exit code, None for one that does not end and was killed."""
        try:
            return self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            return None


class Crew:
    """All members, also those of a storm. ``launch`` is for any thread."""

    def __init__(self, arena: Arena, seed: int, clocks: Clocks | None = None) -> None:
        self._arena = arena
        self._clocks = clocks
        self._seed = seed
        self._lives = itertools.count(1)
        self._lock = threading.Lock()
        self._every: list[subprocess.Popen[bytes]] = []
        # Nothing is ever written to it. Its end tells members that the test is gone.
        self._until_we_end, self._ours = os.pipe()
        self.members: list[Member] = []

    @property
    def log(self) -> Path:
        """What all of them say."""
        return Path(self._arena.folder) / "members.log"

    def said(self) -> str:
        """Return the end of that."""
        return self.log.read_text(errors="replace")[-LONG:] if self.log.exists() else ""

    def start(self) -> None:
        """Start one member for each of the roles."""
        to_spare = list(SPARED)
        for role in ROLES:
            spared = role in to_spare
            if spared:
                to_spare.remove(role)
            self.members.append(Member(self, role, spared=spared))

    def launch(self, role: str) -> subprocess.Popen[bytes]:
        """Start a process."""
        with self._lock, self.log.open("ab") as log:
            life = next(self._lives)
            arena = json.dumps(asdict(self._arena))
            command = [sys.executable, str(SCRIPT), role, str(life), str(self._seed), arena]
            environment = {n: v for n, v in os.environ.items() if n != "RMQ_CRASH"}
            if self._clocks is not None:
                environment |= self._clocks.environment(life)
            process = subprocess.Popen(
                command, stdin=self._until_we_end, stdout=log, stderr=log, env=environment
            )
            self._every.append(process)
            return process

    def of(self, *roles: str) -> Iterator[Member]:
        """The members in these roles."""
        return (member for member in self.members if member.role in roles)

    def stop(self, *roles: str) -> list[str]:
        """End these with SIGTERM; return a line for each that did not end well by itself."""
        chosen = list(self.of(*roles))
        for member in chosen:
            member.ask_to_stop()
        ends = [(member, member.wait()) for member in chosen]
        # The latter for those who have just begun, and know no other way to end yet.
        fine = (0, -signal.SIGTERM)
        return [f"I10: a {one.role} ended with {code}" for one, code in ends if code not in fine]

    def close(self) -> None:
        """Kill whatever is left."""
        for process in self._every:
            if process.poll() is None:
                process.kill()
            process.wait()
        os.close(self._ours)
        os.close(self._until_we_end)
