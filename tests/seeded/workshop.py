"""Breaks a copy of the installed library, and runs tests on it in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from xml.etree import ElementTree

from tests.seeded.bug import Bug

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "reliable_mq",
    "reliable_mq_kafka",
    "reliable_mq_rabbitmq",
    "reliable_mq_redis",
    "reliable_mq_sql",
)
_PATIENCE = 280


class Verdict(Enum):
    """How a test ended."""

    PASSED = "passed"
    FAILED = "failed"
    BROKEN = "not run"
    """An error outside the test itself, or a skip: it proves nothing."""


@dataclass(frozen=True)
class Report:
    """Verdicts by node id, and what pytest said."""

    verdicts: Mapping[str, Verdict]
    output: str

    def are(self, wanted: Verdict, tests: Sequence[str]) -> bool:
        """Tell whether all of *tests* ended like that, and there were no others."""
        return len(self.verdicts) == len(tests) and set(self.verdicts.values()) == {wanted}


def copy_library(folder: Path, *, bug: Bug | None = None) -> Path:
    """Copy the packages that are imported here into *folder*, with *bug* in them."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None, name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(spec.origin).parent, folder / name, ignore=ignored)
    for edit in bug.edits if bug is not None else ():
        edit.apply(folder)
    return folder


def run_tests(library: Path, tests: Sequence[str], servers: Mapping[str, str]) -> Report:
    """Run *tests* on *library*; *servers* are the variables that name running ones."""
    results = library / "results.xml"
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # A test that the bug lets wait for ever has noticed it.
    command += ["-o", "timeout=90", f"--junitxml={results}"]
    done = subprocess.run(
        [*command, *(f"tests/{test}" for test in tests)],
        cwd=ROOT,
        env={**os.environ, **servers, "PYTHONPATH": str(library)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    return Report(_read(results), done.stdout)


def _read(results: Path) -> dict[str, Verdict]:
    if not results.exists():
        return {}
    # Written by pytest, a moment ago.
    cases = ElementTree.parse(results).iter("testcase")  # noqa: S314
    found: dict[str, Verdict] = {}
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        # One that failed may leave something behind, which is an error of its own.
        if found.get(name) is not Verdict.FAILED:
            found[name] = _verdict(case)
    return found


def _verdict(case: ElementTree.Element) -> Verdict:
    ends = {child.tag for child in case}
    if "failure" in ends:
        return Verdict.FAILED
    return Verdict.BROKEN if ends & {"error", "skipped"} else Verdict.PASSED
