"""The measured side: one process, which runs one function and reports to its parent.

``python -m benchmarks.child`` reads its task, a JSON object, from the first line of standard
input: ``{"side": "module:function", "reports": 5, ...}`` with the function's keyword arguments.
Reports are JSON lines on the descriptor ``reports``: libraries print where they like.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

_reports: int = -1


def main() -> None:
    """Run the task; its result is the last report."""
    global _reports  # noqa: PLW0603 - one descriptor of the process, like sys.stdout
    task = json.loads(sys.stdin.readline())
    _reports = task.pop("reports")
    module, _, function = task.pop("side").partition(":")
    result = getattr(import_module(module), function)(**task)
    report(event="result", **result)


def report(**values: Any) -> None:
    """Send a line to the parent."""
    os.write(_reports, json.dumps(values).encode() + b"\n")


def go() -> None:
    """Say that everything is prepared, and wait for the parent's word."""
    # As docs/operations.md advises, for all contestants alike: a full collection of what the
    # imports have made takes tens of milliseconds.
    gc.collect()
    gc.freeze()
    report(event="ready", pid=os.getpid())
    if not sys.stdin.readline():
        sys.exit("the measuring process is gone")


def linger() -> None:
    """Wait for the parent's word, while other threads go on."""
    sys.stdin.readline()


def consumed(numbers: Sequence[object], figures: Mapping[str, float]) -> NoReturn:
    """Report what a consumer has taken, and later again, until the parent ends this process.

    Other threads go on meanwhile: what is not acknowledged by then never will be, and what comes
    twice has had its time to come.
    """
    for event in ("done", "final"):
        report(event=event, count=len(numbers), distinct=len(set(numbers)), **figures)
        linger()
    while True:
        time.sleep(60)


def peak_memory() -> float:
    """Return the most memory this program has had, in MB (getrusage's counts the parent's too)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not tell the peak of a process's memory")


class Clock:
    """Seconds on the wall and on the processor since it was made, and the memory's peak."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def read(self) -> dict[str, float]:
        """Return what has passed."""
        return {
            "seconds": time.perf_counter() - self._wall,
            "cpu_seconds": time.process_time() - self._cpu,
            "rss_mb": peak_memory(),
        }


if __name__ == "__main__":
    # Under its own name: the sides import this module, and must meet the same descriptor.
    import_module("benchmarks.child").main()
