"""An append-only record of what a process saw, which survives its SIGKILL."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class History:
    """Writes one line of JSON an event, unbuffered and in a single ``O_APPEND`` write."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: str, **fields: Any) -> None:
        """Append *event*; it is there for other processes when this returns."""
        record = {"t_mono": time.monotonic(), "proc": os.getpid(), "f": event, **fields}
        os.write(self._file, json.dumps(record).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_history(path: Path, event: str | None = None) -> list[dict[str, Any]]:
    """Return the events so far (of one kind, if *event* is given), in the order of writing."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    records = [json.loads(line) for line in lines]
    return [record for record in records if event is None or record["f"] == event]
