"""What handlers of several processes saw, in one file that outlives the process which wrote it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

HANDLED = "handled"
HOLDING = "holding"

_PATIENCE = 300.0
_LOOK_EVERY = 0.005


@dataclass(frozen=True, slots=True)
class Note:
    """Process *pid* did *what* with message *number*, at a time of the clock that all share."""

    what: str
    number: int
    pid: int
    at: float


class Notes:
    """Notes in the file *path*. A line is one write, so that a kill leaves all of it or nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._read = 0
        self._seen: list[Note] = []

    def close(self) -> None:
        """Write nothing more."""
        self._file.close()

    def add(self, what: str, number: int) -> None:
        """Write one."""
        line = f"{what} {number} {os.getpid()} {time.monotonic()!r}\n"
        self._file.write(line.encode())

    @staticmethod
    def first(path: Path) -> bool:
        """Return True to the first caller of all processes, for this *path*."""
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def wait(self, what: str, *numbers: int) -> list[Note]:
        """Return the first note of this kind for each of *numbers*; ``RuntimeError`` if none."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            found = {note.number: note for note in reversed(self._all()) if note.what == what}
            missing = [number for number in numbers if number not in found]
            if not missing:
                return [found[number] for number in numbers]
            if time.monotonic() > deadline:
                raise RuntimeError(f"not {what} within {_PATIENCE:g} s: {missing[:5]}")
            time.sleep(_LOOK_EVERY)

    def _all(self) -> list[Note]:
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode().splitlines():
            what, number, pid, at = line.split()
            self._seen.append(Note(what, int(number), int(pid), float(at)))
        return self._seen
