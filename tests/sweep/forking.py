"""The test's side of the processes that are killed."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.sweep.application import Place

SCRIPT = Path(__file__).with_name("victim.py")


class Victims:
    """Makes one process after another. Used by one thread."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "RMQ_CRASH"},
        )
        self._answers: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            self._answers.put(int(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._reader.join()
        assert self._server.stdout is not None
        self._server.stdout.close()

    def run(
        self,
        place: Place,
        role: str,
        crash: str,
        *,
        meanwhile: Callable[[int], None],
        seconds: float,
    ) -> int | None:
        """Run a process and return its exit code; None: it had to be killed from here.

        *meanwhile* gets its id, and may take its time.
        """
        order = {"place": asdict(place), "role": role, "crash": crash, "log": log_of(place)}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        pid = self._answers.get(timeout=60)
        try:
            meanwhile(pid)
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            self._end(pid)
            return None
        except BaseException:
            self._end(pid)
            raise

    def _end(self, pid: int) -> None:
        with suppress(ProcessLookupError):  # it has ended by itself just now
            os.kill(pid, signal.SIGKILL)
        self._answers.get(timeout=60)


def log_of(place: Place) -> str:
    """Where the processes of a cell write what they say."""
    return str(Path(place.folder) / "log")
