"""The measuring side: starts children and listens to them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
_PROFILE_TIMEOUT = 60.0


def environment() -> dict[str, str]:
    """Return the environment of measured processes: nobody compiles modules at every start."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


class ChildFailed(Exception):
    """A measured process ended, or was silent for too long; the text has the end of its output."""


class Child:
    """One measured process. Not thread-safe."""

    def __init__(
        self, side: str, task: dict[str, Any], *, wrap: Sequence[str] = (), python: str = ""
    ) -> None:
        self.side = side
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._buffer = b""
        self._pipe, reports = os.pipe()
        self._measured = 0
        self._popen = subprocess.Popen(  # noqa: S603 - our own module
            [*wrap, python or sys.executable, "-m", "benchmarks.child"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=self._errors,
            stderr=self._errors,
            pass_fds=(reports,),
            env=environment(),
        )
        os.close(reports)
        self._say(json.dumps({"side": side, "reports": reports, **task}))

    @property
    def pid(self) -> int:
        """The measured process itself, once it has reported to be ready; 0 before."""
        return self._measured

    def go(self) -> None:
        """Let it go on from where it waits."""
        self._say("go")

    def expect(self, event: str, timeout: float) -> dict[str, Any]:
        """Return its next report, which must be this *event*."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._pipe], [], [], max(0.0, left))
            read = os.read(self._pipe, 65536) if ready else b""
            if not read:
                raise self._failed("ended" if ready else f"did not say {event!r} in {timeout:g} s")
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        report: dict[str, Any] = json.loads(line)
        if report.pop("event") != event:
            raise self._failed(f"said {line!r} where {event!r} was expected")
        self._measured = report.pop("pid", self._measured)
        return report

    def kill(self) -> None:
        """SIGKILL; a profiler around it writes what it has seen. Harmless when it has ended."""
        if self._popen.poll() is None and self._measured not in (0, self._popen.pid):
            os.kill(self._measured, signal.SIGKILL)
            self._popen.wait(_PROFILE_TIMEOUT)
        self._popen.kill()
        self._popen.wait()

    def wait(self, timeout: float) -> None:
        """Wait for its end."""
        self._popen.wait(timeout)

    def close(self) -> None:
        """Kill what is left of it."""
        self.kill()
        os.close(self._pipe)
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        self._errors.close()

    def _say(self, line: str) -> None:
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(line.encode() + b"\n")
            self._popen.stdin.flush()
        except BrokenPipeError:
            raise self._failed("ended") from None

    def _failed(self, why: str) -> ChildFailed:
        self.kill()
        self._errors.seek(0)
        tail = self._errors.read()[-4000:].decode(errors="replace")
        return ChildFailed(f"{self.side} {why}; the end of its output:\n{tail}")


@contextmanager
def child(
    side: str, task: dict[str, Any], *, wrap: Sequence[str] = (), python: str = ""
) -> Iterator[Child]:
    """Start a measured process; it is gone after the block."""
    started = Child(side, task, wrap=wrap, python=python)
    try:
        yield started
    finally:
        started.close()
