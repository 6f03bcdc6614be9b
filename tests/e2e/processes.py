"""Processes of the application, from the side of the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.e2e.waiting import until

SCRIPT = Path(__file__).with_name("program.py")


class Program:
    """A running ``program.py``; killed when the block ends, if it still lives."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(SCRIPT)],
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            error.add_note(f"the process said:\n{self.said()[-4000:]}")
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it."""
        self._process.send_signal(number)

    def said(self) -> str:
        """Return its log."""
        return self._log.read_text(errors="replace")

    def wait_for_log(self, text: str) -> None:
        """Wait until its log has *text*."""
        until(lambda: text in self.said() or self._check_alive(), f"{text!r} in its log")

    def wait(self, seconds: float = 60) -> int:
        """Wait for its end; return the exit code. Where it does not come, its log has why."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGUSR1)
            until(lambda: "most recent call first" in self.said())
            raise

    def _check_alive(self) -> bool:
        assert self._process.poll() is None, f"it ended with {self._process.returncode}"
        return False
