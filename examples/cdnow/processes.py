"""A process that is killed, and started again by whoever looks after it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

STOPPING = 60.0
"""Seconds a process has for its end after SIGTERM."""


class ProcessFailedError(Exception):
    """A process ended by itself, and not well."""


class Process:
    """``python -m`` with these arguments. What it says goes to a file in *folder*."""

    def __init__(self, name: str, *arguments: str, folder: Path) -> None:
        self.name = name
        self._arguments = arguments
        self._log = folder / f"{name}.log"
        self._child = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, "-m", *self._arguments], stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL: no clean-up, no goodbye."""
        self._child.kill()
        self._child.wait()

    def revive(self) -> bool:
        """Start it again if a signal killed it, as a service manager does; tell whether.

        Raises :class:`ProcessFailedError` if it gave up by itself.
        """
        code = self._child.poll()
        if code is not None and code > 0:
            raise ProcessFailedError(f"{self.name} ended with exit code {code}")
        if code is None or code == 0:
            return False
        self._child = self._start()
        return True

    def finish(self) -> None:
        """Wait for the end of one that ends by itself."""
        self._check(self._child.wait(STOPPING))

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._child.terminate()
        self._check(self._child.wait(STOPPING))

    def _check(self, code: int) -> None:
        if code:
            raise ProcessFailedError(f"{self.name} ended with exit code {code}")

    def last_words(self) -> str:
        """Return the end of what it said."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join([f"--- {self.name}", *lines[-15:]])
