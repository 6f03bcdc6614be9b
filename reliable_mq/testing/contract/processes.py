"""Member processes from the test's side: start, watch, stop, kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from reliable_mq.testing.contract.history import read_history
from reliable_mq.testing.contract.member import Task
from reliable_mq.testing.contract.waiting import wait_for

T = TypeVar("T")

_MODULE = "reliable_mq.testing.contract.member"


class MemberProcess:
    """A running member. Signals are real ones; what it saw is read from its history file."""

    def __init__(self, task: Task, log: Path) -> None:
        self._history = Path(task.history)
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._write(task.to_line())

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of one kind so far."""
        return read_history(self._history, kind)

    def wait_for_deliveries(self, count: int) -> list[dict[str, Any]]:
        """Wait until it has received *count* different messages; return the deliveries."""
        return self._wait(lambda: self._enough(count), f"{count} messages at the member process")

    def wait_for_acks(self, count: int) -> None:
        """Wait until it has acknowledged *count* deliveries, durably."""
        self._wait(
            lambda: sum(event["count"] for event in self.events("ack")) >= count,
            f"{count} acks of the member process",
        )

    def command(self, text: str, answer: str, *, meanwhile: Callable[[], object]) -> None:
        """Send a command and wait for the event that answers it."""
        before = len(self.events(answer))
        self._write(text + "\n")
        self._wait(lambda: len(self.events(answer)) > before, f"the answer to {text!r}", meanwhile)

    def go_on_with_ack(self, *, meanwhile: Callable[[], object]) -> None:
        """SIGCONT after :meth:`stop_before_ack`; returns when it has acknowledged."""
        before = len(self.events("ack"))
        self.resume()
        self._wait(lambda: len(self.events("ack")) > before, "its acknowledgements", meanwhile)

    def kill(self) -> None:
        """SIGKILL; returns when it is dead. Harmless when it is dead already."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def stop(self) -> None:
        """SIGSTOP: it holds what it holds, its connections stay open, it renews nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def stop_before_ack(self) -> None:
        """The same; what it does first when it goes on is to acknowledge all it ever received."""
        self._write("stop, then ack\n")
        # Also where it has ended: then there is nothing to wait for.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def _enough(self, count: int) -> list[dict[str, Any]]:
        deliveries = self.events("deliver")
        return deliveries if len({event["id"] for event in deliveries}) >= count else []

    def _wait(
        self,
        condition: Callable[[], T],
        what: str,
        meanwhile: Callable[[], object] | None = None,
    ) -> T:
        def look() -> T:
            value = condition()
            if not value and self._process.poll() is not None:
                raise AssertionError(f"the member process ended:\n{self._log.read_text()[-4000:]}")
            return value

        try:
            return wait_for(look, what, meanwhile=meanwhile)
        except AssertionError as error:
            error.add_note(f"errors of the member process: {self.events('error')[-3:]}")
            raise

    def _write(self, text: str) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(text)
        stdin.flush()
