"""The examples, copied to where only the installed library can be imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import guard

ROOT = Path(__file__).parents[2]


class Example:
    """Runs a module of the examples; whatever it has started ends with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            name: value for name, value in os.environ.items() if "RELIABLE_MQ_" not in name.upper()
        }
        self._log = folder / "example.log"
        self._started: list[tuple[subprocess.Popen[bytes], int]] = []

    @property
    def said(self) -> str:
        return self._log.read_text()

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=self.folder,
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append((process, guard.born(process.pid)))
        return process

    def run(self, module: str, *arguments: str, timeout: float = 60.0) -> int:
        return self.start(module, *arguments).wait(timeout)

    def end(self) -> None:
        for process, since in self._started:
            guard.kill_family(process.pid, since)
            process.wait()


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    shutil.copytree(
        ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__")
    )
    example = Example(tmp_path)
    yield example
    example.end()
