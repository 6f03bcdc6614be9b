"""Wall clocks that jump: each machine of a run has one, and its processes know no other."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import threading
import time
from pathlib import Path

from tests.nemesis.unable import UnableError
from tests.sweep.application import History

SOURCE = Path(__file__).with_name("clock.c")
MACHINES = 4
MINUTE, HOUR = 60, 3600
_LOOK_EVERY = 0.1
_NOTICED = 30.0
"""Seconds that nothing but a jump moves a clock within a tenth of one."""


class Clocks:
    """The clocks of all machines. ``jump`` and ``calm_down`` are for one thread.

    Processes on one file share its machine, and with it the clock of their database: that one only
    goes forward, since time that runs again would run again for all that is due at some time.
    Elsewhere no clock stays more than *bearable* seconds ahead when a fault is over.
    """

    def __init__(self, folder: Path, *, one_machine: bool, bearable: int | None = None) -> None:
        """Raise ``UnableError`` where nothing can be compiled."""
        self._folder = folder
        self._one_machine = one_machine
        self._bearable = bearable
        self._library = folder / "clock.so"
        _compile(self._library)
        self._moved = [0] * (1 if one_machine else MACHINES)
        for machine in range(len(self._moved)):
            self._set(machine, 0)

    def environment(self, number: int) -> dict[str, str]:
        """Return the variables of the process *number*."""
        file = self._file(number % len(self._moved))
        return {"LD_PRELOAD": str(self._library), "RMQ_NEMESIS_CLOCK": str(file)}

    def jump(self, rng: random.Random) -> int:
        """Let the clock of one machine jump by minutes or hours; return where it is then."""
        machine = rng.randrange(len(self._moved))
        if self._one_machine:
            there = self._moved[machine] + rng.choice((MINUTE, HOUR))
        else:
            there = rng.choice((-6 * HOUR, -2 * HOUR, -5 * MINUTE, 5 * MINUTE, 2 * HOUR, 6 * HOUR))
        self._set(machine, there)
        return there

    def calm_down(self) -> list[int]:
        """Put back the clocks that are too far ahead; return where they are then."""
        if self._bearable is None or self._one_machine:
            return []
        ahead = [one for one, moved in enumerate(self._moved) if moved > self._bearable]
        for machine in ahead:
            self._set(machine, self._bearable)
        return [self._bearable] * len(ahead)

    def _set(self, machine: int, seconds: int) -> None:
        self._moved[machine] = seconds
        with self._file(machine).open("r+b" if self._file(machine).exists() else "wb") as file:
            file.write(struct.pack("q", seconds))

    def _file(self, machine: int) -> Path:
        return self._folder / f"clock-{machine}"


def _compile(library: Path) -> None:
    if shutil.which("cc") is None:
        raise UnableError("clocks that jump need a C compiler (cc)")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, SOURCE, "-ldl"],
        check=True,
    )


def note_jumps(history: History) -> None:
    """Note each jump of this process's wall clock, against the one that has none. For a thread."""
    before = time.time() - time.monotonic()
    while True:
        threading.Event().wait(_LOOK_EVERY)
        now = time.time() - time.monotonic()
        if abs(now - before) > _NOTICED:
            history.note("clock", jumped=round(now - before))
            before = now
